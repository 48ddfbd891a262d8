"""FaceDetector: any kind of image in, the right faces out in the right order, and bounded memory."""

import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from pyface import detector
from pyface.detections import Detections
from pyface.detector import FaceDetector, find_device, is_out_of_memory
from pyface.draw import draw
from pyface.io.images import ImageError
from pyface.io.pipeline import ordered_map
from pyface.models.base import Faces
from pyface.redact import redact
from pyface.resources import own_cores


def grey(level, width=48, height=32):
    return np.full((height, width, 3), level, np.uint8)


def test_one_image_and_a_list(fake_detector):
    one = fake_detector(grey(80))
    assert isinstance(one, Detections)
    assert (len(one), one.width, one.height, one.source) == (2, 48, 32, None)
    for several in ([grey(80)], (grey(80),)):
        result = fake_detector(several)
        assert isinstance(result, list)
        assert result == [one]
    assert fake_detector([]) == []


def test_results_are_sorted_and_outlive_inference_mode(fake_detector):
    result = fake_detector(grey(160))
    torch.testing.assert_close(result.scores, torch.tensor([0.4, 0.3, 0.2, 0.1]))
    assert result.boxes[:, 0].tolist() == [3, 2, 1, 0]
    assert result.landmarks[:, 0, 0].tolist() == [6, 5, 4, 3]
    assert not result.boxes.is_inference()
    result.boxes.requires_grad_()


def test_no_faces_is_empty(fake_detector):
    result = fake_detector(grey(0))
    assert len(result) == 0
    assert result.boxes.shape == (0, 4)
    assert result.landmarks.shape == (0, 5, 2)


def test_no_landmarks(fake_detector):
    fake_detector.model.landmarks = False
    assert fake_detector(grey(80)).landmarks is None


def test_mixed_kinds_and_sizes(fake_detector, write_grey):
    path = write_grey("a.png", 40)
    file = io.BytesIO()
    Image.fromarray(grey(120, 20, 30)).save(file, "PNG")
    sources = [
        path,
        str(path),
        file.getvalue(),
        Image.fromarray(grey(80, 33, 7)),
        grey(0, 5, 5),
        grey(160, 9, 9)[..., 0],
        torch.full((3, 12, 10), 200, dtype=torch.uint8),
    ]
    results = fake_detector(sources)
    assert [len(result) for result in results] == [1, 1, 3, 2, 0, 4, 5]
    sizes = [(48, 32), (48, 32), (20, 30), (33, 7), (5, 5), (9, 9), (10, 12)]
    assert [(result.width, result.height) for result in results] == sizes
    assert [result.source for result in results] == [str(path), str(path), *[None] * 5]


def test_bgr(fake_detector):
    seen = []

    def detect(images, **options):
        seen.append(images[0][0, 0].tolist())
        return [Faces(torch.zeros(0, 4), torch.zeros(0), None)]

    fake_detector.model.detect = detect
    blue = grey(0)
    blue[..., 0] = 255
    fake_detector(blue, bgr=True)
    fake_detector(blue)
    assert seen == [[0, 0, 255], [255, 0, 0]]


def test_batches(fake_detector):
    levels = [0, 40, 80, 120, 160, 200, 240]
    assert [len(result) for result in fake_detector([grey(level) for level in levels])] == list(range(7))
    assert fake_detector.model.batches == [3, 3, 1]


def test_large_images_go_in_small_batches(fake_detector, monkeypatch):
    monkeypatch.setattr("pyface.detector._BATCH_PIXELS", 48 * 32 * 2)
    fake_detector([grey(40)] * 4 + [grey(40, 96, 64)] * 2)
    assert fake_detector.model.batches == [2, 2, 1, 1]


def test_threshold_is_passed_on(fake_model):
    detector = FaceDetector(fake_model, device="cpu", score_threshold=0.15)
    assert len(detector(grey(120))) == 2
    detector.score_threshold = 0.25
    assert len(detector(grey(120))) == 1


def test_the_threshold_in_use(tmp_path):
    from pyface.models import create_model
    from pyface.models.checkpoints import save_checkpoint

    model = create_model("ssh_lite")
    own = model.score_threshold
    assert 0 < own < 1
    assert FaceDetector("ssh_lite", device="cpu").score_threshold == own
    assert FaceDetector("ssh_lite", device="cpu", precision="bf16").score_threshold == own
    assert FaceDetector("ssh_lite", device="cpu", score_threshold=0).score_threshold == 0
    save_checkpoint(tmp_path / "other.safetensors", model, "ssh_lite", {"score_threshold": 0.125})
    other = FaceDetector("ssh_lite", weights=tmp_path / "other.safetensors", device="cpu")
    assert other.score_threshold == pickle.loads(pickle.dumps(other)).score_threshold == 0.125


def test_faces_that_stay_on_the_device_are_not_read(fake_model):
    """Tensors on the meta device have shapes but no values, so copying, comparing or waiting for one fails."""

    real = fake_model.detect

    def detect(images, **options):
        return [Faces(*(tensor.to("meta") for tensor in found)) for found in real(images)]

    fake_model.detect = detect
    detector = FaceDetector(fake_model, device="cpu", keep_on_device=True, batch_size=2)
    single, several = detector(grey(80)), detector([grey(40), grey(0), grey(120)])
    streamed = [outcome.detections for outcome in detector.stream([grey(40), grey(0), grey(120)])]
    assert len(single) == 2
    for found in (several, streamed):
        assert [len(of) for of in found] == [1, 0, 3]
    for of in (single, *several, *streamed, single[:1]):
        assert {tensor.device.type for tensor in (of.boxes, of.scores, of.landmarks)} == {"meta"}
    assert single.to_torchvision()["labels"].device.type == "meta"
    with pytest.raises(NotImplementedError):
        single.cpu()


def test_keeping_faces_on_the_cpu_changes_nothing(fake_model):
    images = [grey(80), grey(0)]
    kept = FaceDetector(fake_model, device="cpu", keep_on_device=True)(images)
    assert kept == FaceDetector(fake_model, device="cpu")(images)
    assert kept[0].cpu() is kept[0]


@pytest.mark.cuda
def test_faces_stay_on_the_gpu(fake_model, cuda):
    images = [grey(80), grey(0), grey(200)]
    expected = FaceDetector(fake_model, device="cpu")(images)
    detector = FaceDetector(fake_model, device=cuda, keep_on_device=True, batch_size=2)
    for found in (detector(images), [outcome.detections for outcome in detector.stream(images)]):
        assert all(of.boxes.is_cuda and of.scores.is_cuda and of.landmarks.is_cuda for of in found)
        assert [of.cpu() for of in found] == expected == found
        assert [of.to_dict() for of in found] == [of.to_dict() for of in expected]
        assert found[2].above(0.25).boxes.is_cuda
        assert found[2].above(0.25) == expected[2].above(0.25)
        assert len(found[2].to_supervision()) == 5
        image = images[2]
        for convert in (Detections.crop, Detections.align):
            pairs = zip(convert(found[2], image), convert(expected[2], image), strict=True)
            assert all(np.array_equal(a, b) for a, b in pairs)
        assert np.array_equal(draw(image, found[2]), draw(image, expected[2]))
        assert np.array_equal(redact(image, found[2], "box"), redact(image, expected[2], "box"))


def test_stream_continues_after_an_unreadable_image(fake_detector, write_grey, tmp_path):
    sources = [write_grey("a.png"), tmp_path / "gone.png", b"words", write_grey("b.png", 80), None]
    outcomes = list(fake_detector.stream(sources))
    assert [outcome.source for outcome in outcomes] == sources
    assert [outcome.error is None for outcome in outcomes] == [True, False, False, True, False]
    assert [outcome.detections and len(outcome.detections) for outcome in outcomes] == [1, None, None, 2, None]
    assert outcomes[0].image.shape == (32, 48, 3)
    assert outcomes[1].image is None
    assert "gone.png: there is no such file" in str(outcomes[1].error)
    with pytest.raises(ImageError, match=r"gone\.png"):
        fake_detector(sources)


def test_stream_is_lazy(fake_detector):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield grey(40)

    stream = fake_detector.stream(endless())
    for _ in range(10):
        next(stream)
    assert len(taken) < 60
    stream.close()


def test_a_closed_stream_stops_reading(fake_detector, monkeypatch):
    running = set()
    decode = detector.decode_image

    def slow(opened):
        running.add(threading.current_thread())
        threading.Event().wait(0.05)
        image = decode(opened)
        running.remove(threading.current_thread())
        return image

    monkeypatch.setattr(detector, "decode_image", slow)
    stream = fake_detector.stream(grey(40) for _ in range(100))
    next(stream)
    stream.close()
    assert not running


def test_calls_share_the_threads_that_read(fake_detector, monkeypatch):
    """OpenCV loses memory with every thread that ends."""
    threads = set()  # the objects, as the numbers of ended threads are used again
    decode = detector.decode_image
    monkeypatch.setattr(
        detector, "decode_image", lambda opened: (threads.add(threading.current_thread()), decode(opened))[1]
    )
    for _ in range(20):
        fake_detector([grey(40)])
    assert len(threads) <= min(8, own_cores())
    assert threading.current_thread() not in threads


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_source_may_reuse_its_buffer(fake_model, batch_size):
    """As cv2's `read(image=buffer)` does; and an image may be closed as soon as the next one is taken."""
    detector = FaceDetector(fake_model, device="cpu", batch_size=batch_size)
    levels = [0, 40, 80, 120, 160, 200] * 3
    buffer, tensor = grey(0), torch.zeros(3, 32, 48, dtype=torch.uint8)
    wide = np.zeros((32, 48, 4), np.uint8)

    def frames():
        for level in levels:
            buffer[:] = level
            yield buffer

    def views():
        for level in levels:
            wide[:] = level
            yield wide[..., :3]

    def tensors():
        for level in levels:
            tensor[:] = level
            yield tensor

    def permuted():
        for level in levels:
            buffer[:] = level
            yield torch.from_numpy(buffer).permute(2, 0, 1)

    def encoded():
        memory = bytearray()
        for level in levels:
            memory[:] = cv2.imencode(".bmp", grey(level))[1].tobytes()
            yield memory

    def opened():
        for level in levels:
            with io.BytesIO(cv2.imencode(".png", grey(level))[1].tobytes()) as file:
                yield file

    def pil_images():
        for level in levels:
            with Image.open(io.BytesIO(cv2.imencode(".png", grey(level))[1].tobytes())) as image:
                yield image

    expected = [level // 40 for level in levels]
    for source in (frames, views, tensors, permuted, encoded, opened, pil_images):
        outcomes = list(detector.stream(source()))
        assert [len(outcome.detections) for outcome in outcomes] == expected, source.__name__
        assert [int(np.asarray(outcome.image)[0, 0, 0]) for outcome in outcomes] == levels, source.__name__
    assert [len(outcome.detections) for outcome in detector.stream((grey(level) for level in levels), copy=False)] == (
        expected
    )


def test_stream_without_copies(fake_detector):
    picture = grey(80)
    (outcome,) = fake_detector.stream([picture], copy=False)
    assert outcome.image is picture
    (outcome,) = fake_detector.stream([picture])
    assert not np.shares_memory(outcome.image, picture)


@pytest.mark.parametrize("given", [0, 1, 2, 3, 7, 40])
def test_results_arrive_before_the_error_of_the_source(fake_detector, given):
    def lost():
        for k in range(given):
            yield grey(40 * (k % 3))
        raise ConnectionError("camera lost")

    stream = fake_detector.stream(lost())
    assert [len(next(stream).detections) for _ in range(given)] == [k % 3 for k in range(given)]
    with pytest.raises(ConnectionError, match="camera lost"):
        next(stream)


def test_keys(fake_detector, write_grey):
    path = write_grey("a.png", 40)
    pairs = [("first", grey(80)), (7, path), (None, "gone.png"), (("a", 1), grey(0)), grey(120), (path, grey(40))]
    outcomes = list(fake_detector.stream(pairs))
    assert [outcome.source for outcome in outcomes[:4]] == ["first", 7, None, ("a", 1)]
    assert [None if of.detections is None else len(of.detections) for of in outcomes] == [2, 1, None, 0, 3, 1]
    assert [of.detections.source for of in outcomes if of.detections is not None] == [
        "first",
        str(path),
        None,
        None,
        str(path),
    ]
    assert "gone.png: there is no such file" in str(outcomes[2].error)


def test_odd_pil_images_do_not_end_a_stream(fake_detector, write_grey):
    path = write_grey("a.png", 40)
    with Image.open(path) as closed:
        pass
    strange = Image.new("LA", (64, 64)).convert("La")
    outcomes = list(fake_detector.stream([path, closed, strange, Image.new("F", (4, 4)), path]))
    assert [type(outcome.error) for outcome in outcomes] == [type(None), ImageError, type(None), ImageError, type(None)]


def test_truncated(fake_model):
    data = cv2.imencode(".jpg", grey(80))[1].tobytes()[:-2]
    with pytest.raises(ImageError, match='truncated="accept"'):
        FaceDetector(fake_model, device="cpu")(data)
    assert len(FaceDetector(fake_model, device="cpu", truncated="accept")(data)) == 2
    with pytest.raises(ValueError, match="truncated must be 'refuse' or 'accept', got True"):
        FaceDetector(fake_model, device="cpu", truncated=True)


def test_stream_refuses_a_single_image(fake_detector):
    for source in ("a.jpg", b"abc", grey(3), torch.zeros(3, 4, 4)):
        with pytest.raises(TypeError, match="pass it in a list"):
            list(fake_detector.stream(source))
    with pytest.raises(TypeError, match=r'got a folder; pass the files in it, such as sorted\(Path\("examples"\)'):
        list(fake_detector.stream("examples"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes."),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("fits", [1, 2])
def test_memory_runs_out(fake_model, error, fits):
    tried = []
    real = fake_model.detect

    def detect(images, **options):
        tried.append(len(images))
        if len(images) > fits:
            raise error
        return real(images, **options)

    fake_model.detect = detect
    detector = FaceDetector(fake_model, device="cpu", batch_size=4)
    levels = [0, 40, 80, 120, 160, 200, 240, 0, 40]
    assert [len(result) for result in detector([grey(level) for level in levels])] == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    # Later batches start small.
    assert tried == ([4, 2, 2, 2, 2, 1] if fits == 2 else [4, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1])


def test_an_image_that_never_fits(fake_model):
    real = fake_model.detect

    def detect(images, **options):
        if any(image.shape[0] > 100 for image in images):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(images, **options)

    fake_model.detect = detect
    detector = FaceDetector(fake_model, device="cpu")
    outcomes = list(detector.stream([grey(40), grey(40, 200, 300), grey(80)]))
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert "200 x 300 pixels are too many for the memory of cpu" in str(outcomes[1].error)
    with pytest.raises(MemoryError, match="raise min_face"):
        detector(grey(40, 200, 300))


def test_other_errors_of_a_model_are_not_hidden(fake_model):
    def detect(images, **options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    fake_model.detect = detect
    with pytest.raises(RuntimeError, match="mat1"):
        FaceDetector(fake_model, device="cpu")(grey(40))
    assert not is_out_of_memory(RuntimeError("mat1"))


def test_threads_share_a_detector(fake_detector):
    def work(level):
        return [len(result) for result in fake_detector([grey(level)] * 5)]

    with ThreadPoolExecutor(4) as pool:
        for index, counts in enumerate(pool.map(work, [40 * (k % 6) for k in range(40)])):
            assert counts == [index % 6] * 5


def test_max_pixels(fake_model, write_grey):
    detector = FaceDetector(fake_model, device="cpu", max_pixels=48 * 32 - 1)
    with pytest.raises(ImageError, match="more than the limit"):
        detector(write_grey("a.png"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold must be from 0 to 1"),
        ({"score_threshold": float("nan")}, "score_threshold must be from 0 to 1"),
        ({"min_face": 0}, "min_face must be 1 pixel or more"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"max_pixels": 0}, "max_pixels must be 1 or more"),
        ({"device": "tpu"}, "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"device": "mps"}, "device must be auto, cpu, cuda or cuda:N, got 'mps'"),
        ({"weights": "a.safetensors"}, "weights must be left out when model is a FaceModel"),
    ],
)
def test_refused_options(fake_model, options, message):
    with pytest.raises(ValueError, match=message):
        FaceDetector(fake_model, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_face": "20"}, "min_face must be a number, .* got '20'"),
        ({"score_threshold": [0.5]}, "score_threshold must be a number"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ({"max_pixels": "many"}, "max_pixels must be a whole number, got 'many'"),
        ({"model": 5}, "model must be a name .* or a FaceModel, got int"),
        ({"model": torch.nn.ReLU()}, "or a FaceModel, got ReLU"),
        ({"model": FaceDetector}, "or a FaceModel, got the class FaceDetector"),
    ],
)
def test_options_of_the_wrong_kind(fake_model, options, message):
    with pytest.raises(TypeError, match=message):
        FaceDetector(**{"model": fake_model, **options})


def test_min_face_of_a_part_of_a_pixel(fake_model):
    with pytest.raises(ValueError, match=r"min_face must be 1 pixel or more, .* got 0\.5"):
        FaceDetector(fake_model, min_face=0.5)


@pytest.mark.parametrize("step", ["open_image", "decode_image"])
def test_stream_continues_when_memory_runs_out_while_reading(fake_detector, write_grey, monkeypatch, step):
    real = getattr(detector, step)
    calls = []

    def fail_first(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError
        return real(*arguments, **options)

    monkeypatch.setattr(detector, step, fail_first)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # one thread, so that the first call is of the first image
    first, second = fake_detector.stream([write_grey("a.png"), write_grey("b.png")])
    assert isinstance(first.error, ImageError)
    assert "a.png: there is not enough memory" in str(first.error)
    assert len(second.detections) == 1


def test_unknown_model():
    with pytest.raises(ValueError, match="there is no model 'mtcn'"):
        FaceDetector("mtcn")


def test_devices(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"device 'cuda' cannot be used: .*; use device 'cpu'"):
        find_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    built = {"cuda": True}
    monkeypatch.setattr("pyface.detector.build_info", lambda: built)
    assert find_device("auto") == find_device("cuda") == torch.device("cuda:1")
    assert find_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match=r"'cuda:2' cannot be used: this machine has 2 CUDA device\(s\)"):
        find_device("cuda:2")
    built["cuda"] = False
    assert find_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="built without CUDA"):
        find_device("cuda")


def overlap(box, other) -> float:
    """Intersection over union of two boxes."""
    corner, end = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
    shared = np.prod(np.clip(end - corner, 0, None))
    return shared / (np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - shared)


ASTRONAUT_FACE = np.array([177, 72, 272, 190.0])  # drawn by hand


def test_mtcnn_finds_the_astronaut(astronaut, gallery):
    detector = FaceDetector("mtcnn", device="cpu")
    one, several = detector([astronaut, gallery])
    assert len(one) == 1
    assert one.scores[0] > 0.99
    assert overlap(one.boxes[0].numpy(), ASTRONAUT_FACE) > 0.6
    eyes, nose, mouth = one.landmarks[0, :2], one.landmarks[0, 2], one.landmarks[0, 3:]
    assert eyes[0, 0] < nose[0] < eyes[1, 0]
    assert eyes[:, 1].max() < nose[1] < mouth[:, 1].min()
    assert len(several) == 9
    assert detector(cv2.imread(str(astronaut)), bgr=True).boxes.allclose(one.boxes)
    assert one.align(astronaut).shape == (1, 112, 112, 3)
    again = pickle.loads(pickle.dumps(detector))(astronaut)
    assert again == one


@pytest.mark.cuda
@pytest.mark.parametrize("landmarks", [True, False])
def test_cuda(landmarks, fake_model, cuda):
    """The same faces as on the CPU, whether the images come from files or are on the device already."""
    fake_model.landmarks = landmarks
    pictures = [grey(level, 48 + level) for level in (0, 40, 200, 80)]
    expected = FaceDetector(fake_model, device="cpu")(pictures)
    detector = FaceDetector(fake_model, device="cuda")
    assert detector.device.index is not None
    assert detector(pictures) == expected
    assert detector([torch.from_numpy(picture).permute(2, 0, 1).cuda() for picture in pictures]) == expected
    again = pickle.loads(pickle.dumps(detector))
    assert again.device == detector.device
    assert again(pictures) == expected
    assert next(detector.model.parameters()).is_cuda  # pickling has left the original where it was


def test_ordered_map_keeps_order_and_bound():
    running, most, lock = [0], [0], threading.Lock()

    def work(number):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        threading.Event().wait(0.001 * (number % 3))
        with lock:
            running[0] -= 1
        return number

    for eager in (False, True):
        with ThreadPoolExecutor(8) as pool:
            assert list(ordered_map(pool, work, range(50), ahead=3, eager=eager)) == list(range(50))
    assert most[0] <= 3
    with ThreadPoolExecutor(8) as pool:  # heavier than the bound: one at a time
        assert list(ordered_map(pool, work, range(9), ahead=1, weight=lambda _: 5)) == list(range(9))


def test_ordered_map_passes_errors_on():
    with ThreadPoolExecutor(2) as pool:
        results = ordered_map(pool, lambda number: 1 / number, [1, 0, 2], ahead=3)
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)
