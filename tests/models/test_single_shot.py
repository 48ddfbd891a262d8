"""SingleShot.detect: sizes, scales, tiles, votes and batches around a network whose outputs are known."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from pyface import ops
from pyface.detector import FaceDetector
from pyface.evaluation.average_precision import box_iou
from pyface.io.images import read_image
from pyface.models import single_shot
from pyface.models.base import Faces, check_images
from pyface.models.graphs import CudaGraphs
from pyface.models.inference import InferenceOptions, Preprocessing, vote
from pyface.models.single_shot import Limits, SingleShot
from pyface.models.zoo import create_model, list_models


class SquareFinder(SingleShot):
    """A detector without a network: finds white squares of about 16 and 32 network pixels on black.

    Its landmarks are points at fixed places of a square.
    """

    limits = {"ap": Limits(500, 100), "fast": Limits(20, 2)}  # noqa: RUF012
    POINTS = ((-0.25, -0.25), (0.25, -0.25), (0.0, 0.0), (-0.2, 0.3), (0.2, 0.3))

    def __init__(self, landmarks=True):
        super().__init__()
        self.preprocessing = Preprocessing((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
        self.score_threshold, self.nms_threshold = 0.3, 0.3
        self.landmarks = landmarks
        self.weight = nn.Parameter(torch.tensor(20.0))
        self.levels = tuple(
            ops.AnchorLevel(stride=s, anchors=((0.0, 0.0, 2.0 * s, 2.0 * s),), num_background=0) for s in (8, 16)
        )
        self.calls = []

    def forward(self, images):
        self.calls.append(tuple(images.shape))
        grey = images.mean(1, keepdim=True)
        maps = []
        for stride in (8, 16):
            inner = F.avg_pool2d(grey, 2 * stride, stride)
            outer = F.avg_pool2d(grey, 4 * stride, stride, stride)
            logits = self.weight * (inner - 0.75 - 2 * (outer - 0.4).relu())
            points = logits.new_tensor(self.POINTS).flatten() * 10  # in units of the variance 0.1
            boxes = torch.zeros_like(logits).repeat(1, 4, 1, 1)
            landmarks = points[None, :, None, None].expand(*boxes.shape[:1], -1, *boxes.shape[2:])
            maps.append(ops.LevelMaps(logits, boxes, landmarks if self.landmarks else None))
        return maps

    def candidates(self, maps, *, score_threshold, max_candidates, sizes=None):
        return ops.decode_anchors(
            maps,
            self.levels[: len(maps)],
            score_threshold=score_threshold,
            max_candidates=max_candidates,
            sizes=sizes,
        )

    def loss(self, maps, truth, *, seed=0):
        raise NotImplementedError("there is nothing to learn")


def picture(height, width, *squares):
    """uint8 [height, width, 3], black with white squares (x, y, side)."""
    image = torch.zeros(height, width, 3, dtype=torch.uint8)
    for x, y, side in squares:
        image[y : y + side, x : x + side] = 255
    return image


def corners(*squares):
    return torch.tensor([[x, y, x + side, y + side] for x, y, side in squares]).float()


def iou(a, b):
    sides = (torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])).clamp(0)
    inter = sides.prod(2)
    return inter / ((a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1) - inter)


def assert_found(faces: Faces, *squares, at=0.6):
    expected = corners(*squares)
    assert len(faces.boxes) == len(squares), faces.boxes
    if squares:
        assert (iou(faces.boxes, expected).amax(0) > at).all(), faces.boxes
    assert (faces.scores[:-1] >= faces.scores[1:]).all()


SMALL, LARGE = (40, 24, 16), (96, 48, 32)


def test_native_size_of_several_images_together():
    model = SquareFinder()
    one, two = picture(100, 160, SMALL, LARGE), picture(90, 130, (64, 32, 32))
    found = model.detect([one, two, picture(50, 50)])
    assert_found(found[0], SMALL, LARGE, at=0.99)
    assert_found(found[1], (64, 32, 32), at=0.99)
    assert_found(found[2])
    assert found[2].landmarks.shape == (0, 5, 2)
    assert len(model.calls) == 3
    model.calls.clear()
    model.detect([one, picture(97, 150), two])
    assert sorted(model.calls) == [(1, 3, 96, 160), (2, 3, 128, 160)]  # equal canvases share a call


def test_landmarks_are_in_the_images_pixels():
    found = SquareFinder().detect([picture(100, 160, LARGE)])[0]
    centre = torch.tensor([96.0 + 16, 48 + 16])
    torch.testing.assert_close(found.landmarks[0], centre + 32 * torch.tensor(SquareFinder.POINTS))


@pytest.mark.parametrize(
    ("size", "squares"),
    [
        (320, [(20, 12, 8), (48, 24, 16)]),
        ((200, 400), [(20, 12, 8), (48, 24, 16)]),
        ((400, 320), None),
        ("native", [(48, 24, 16), (96, 32, 32)]),
        (80, [(32, 32, 32), (96, 32, 64)]),
    ],
)
def test_size(size, squares):
    if squares is None:
        with pytest.raises(ValueError, match="size must be 'native', the longer side"):
            InferenceOptions(size=size)
        return
    image = picture(100, 160, *squares)
    assert_found(SquareFinder().detect([image], options=InferenceOptions(size=size))[0], *squares)


def test_min_face_chooses_the_scale_and_drops_smaller_faces():
    model = SquareFinder()
    assert model.smallest_face == 10
    image = picture(200, 320, (64, 64, 64), (192, 96, 32))
    assert_found(model.detect([image], min_face=20)[0], (64, 64, 64), (192, 96, 32))
    assert model.calls == [(1, 3, 128, 160)]
    assert_found(model.detect([image], min_face=40, options=InferenceOptions(size=160))[0], (64, 64, 64))
    model.calls.clear()
    model.detect([picture(64, 64)], min_face=1)
    assert model.calls == [(1, 3, 128, 128)]  # no more than doubled


def test_score_threshold_and_limits():
    model, image = SquareFinder(), picture(100, 160, SMALL, LARGE, (8, 8, 16))
    assert len(model.detect([image], options=InferenceOptions(limits="fast"))[0].boxes) == 2
    scores = model.detect([image])[0].scores
    assert len(scores) == 3
    assert len(model.detect([image], score_threshold=scores[0].item())[0].scores) < 3


@pytest.mark.parametrize("paper", ["s3fd", "srn", "ssh"])
@pytest.mark.parametrize("landmarks", [True, False])
def test_multiscale_finds_what_one_scale_does_not(paper, landmarks):
    height, width = (500, 656) if paper == "ssh" else (200, 256)  # ssh's pyramid begins at a shorter side of 500
    squares = [(40, 24, 16), (96, 48, 32), (16, 96, 10)] + ([] if paper == "ssh" else [(144, 96, 64)])
    model, image = SquareFinder(landmarks), picture(height, width, *squares)
    assert len(model.detect([image])[0].boxes) < len(squares)
    for mirrored in (False, True):
        seen = image.flip(1) if mirrored else image
        expected = [(width - x - side, y, side) for x, y, side in squares] if mirrored else squares
        faces = model.detect([seen], options=InferenceOptions(multiscale=paper))[0]
        overlaps = iou(corners(*expected), faces.boxes)
        assert (overlaps.amax(1) > 0.5).all(), faces.boxes
        if not landmarks:
            assert faces.landmarks is None
            continue
        for box, points in zip(faces.boxes, faces.landmarks, strict=True):
            centre, side = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).mean()
            places = (points - centre) / side
            assert (places - torch.tensor(SquareFinder.POINTS)).abs().max() < 0.5
            assert points[0, 0] < points[1, 0]
            assert points[3, 0] < points[4, 0]


def test_the_mirror_image_alone_gives_the_same_faces(monkeypatch):
    monkeypatch.setitem(single_shot.MULTISCALE, "ssh", lambda view: [replace(view, mirror=True)])
    image = picture(100, 160, SMALL, LARGE)  # 160 is a multiple of the stride, so that mirrored cells are cells
    plain = SquareFinder().detect([image])[0]
    mirrored = SquareFinder().detect([image], options=InferenceOptions(multiscale="ssh"))[0]
    assert_found(mirrored, SMALL, LARGE, at=0.99)
    order, other = plain.boxes[:, 0].argsort(), mirrored.boxes[:, 0].argsort()
    torch.testing.assert_close(plain.landmarks[order], mirrored.landmarks[other])
    torch.testing.assert_close(plain.boxes[order], mirrored.boxes[other])
    assert (mirrored.landmarks[:, 0, 0] < mirrored.landmarks[:, 1, 0]).all()


def test_ssh_pyramid_leaves_out_the_last_level_at_its_largest_scale(monkeypatch):
    image = picture(100, 160, (96, 48, 32))
    monkeypatch.setitem(single_shot.MULTISCALE, "ssh", lambda view: [view])
    assert_found(SquareFinder().detect([image], options=InferenceOptions(multiscale="ssh"))[0], (96, 48, 32))
    monkeypatch.setitem(single_shot.MULTISCALE, "ssh", lambda view: [replace(view, levels=-1)])
    assert_found(SquareFinder().detect([image], options=InferenceOptions(multiscale="ssh"))[0])


MORE_MODELS = [pytest.param(name, marks=pytest.mark.slow) for name in ("ssh_lite", "srn_lite", "densebox_lite")]


@pytest.mark.parametrize("model", ["s3fd_lite", *MORE_MODELS])
def test_real_faces_at_the_borders_of_tiles_come_back_once_and_whole(gallery, model):
    """Nine faces of 30 to 160 pixels, and tiles that begin and end anywhere on them."""
    picture = read_image(gallery)
    for left, top in ((0, 0), (37, 21)):
        for tile in (256, 320, 416):
            assert_tiles_find_the_same(picture[top:, left:], model, tile)


@pytest.mark.parametrize("model", ["s3fd_lite", *MORE_MODELS])
@pytest.mark.parametrize("tile", [256, 512])
def test_real_faces_of_half_a_tile_come_back_once_and_whole(gallery, model, tile):
    """The gallery's largest face is 160 pixels high."""
    scale = tile / 2 / 160
    with Image.open(gallery) as image:
        picture = np.asarray(image.convert("RGB").resize((round(960 * scale), round(560 * scale))))
    for left, top in ((0, 0), (37, 21)):
        assert_tiles_find_the_same(picture[top:, left:], model, tile)


def assert_tiles_find_the_same(picture, model, tile):
    options = {"device": "cpu", "size": "native", "score_threshold": 0.5}
    whole = FaceDetector(model, **options)(picture)
    faces = FaceDetector(model, tile=tile, **options)(picture)
    assert len(faces) == len(whole) >= 9
    assert box_iou(whole.boxes.numpy(), faces.boxes.numpy()).max(1).min() > 0.8


def test_tiles_find_what_the_whole_image_shows():
    # One in a corner, one across the border of two tiles, one larger than what tiles share.
    squares = [(8, 8, 16), (240, 120, 32), (400, 300, 128), (120, 400, 16)]
    image = picture(480, 640, *squares)
    model = SquareFinder()
    faces = model.detect([image], options=InferenceOptions(tile=256))[0]
    assert (iou(corners(*squares), faces.boxes).amax(1) > 0.55).all(), faces.boxes
    assert len(faces.boxes) == 4
    assert all(max(shape[2:]) <= 256 for shape in model.calls)
    small = picture(100, 160, SMALL)
    assert_found(model.detect([small], options=InferenceOptions(tile=256))[0], SMALL, at=0.99)


def test_votes():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]])
    faces = Faces(boxes, torch.tensor([0.5, 0.9, 0.7]), torch.arange(30.0).reshape(3, 5, 2))
    voted = vote(faces, 0.3, drop_singletons=False)
    expected = ops.box_voting(boxes, faces.scores, 0.3)
    assert torch.equal(voted.boxes, expected[0])
    assert voted.scores.tolist() == pytest.approx([0.9, 0.7])
    assert torch.equal(voted.landmarks, faces.landmarks[[1, 2]])
    alone = vote(faces, 0.3, drop_singletons=True)
    assert torch.equal(alone.landmarks, faces.landmarks[[1]])
    nothing = vote(Faces(boxes[:0], faces.scores[:0], faces.landmarks[:0]), 0.3, drop_singletons=False)
    assert nothing.landmarks.shape == (0, 5, 2)


def test_every_cluster_has_the_landmarks_of_its_best_face():
    generator = torch.Generator().manual_seed(0)
    corner = 60 * torch.rand(200, 2, generator=generator)
    boxes = torch.cat([corner, corner + 8 + 8 * torch.rand(200, 2, generator=generator)], 1)
    scores = (20 * torch.rand(200, generator=generator)).round() / 20  # many are equal
    faces = Faces(boxes, scores, boxes[:, None, :2].expand(-1, 5, -1))  # landmarks tell whose they are
    kept = vote(faces, 0.3, drop_singletons=False)
    assert torch.equal(kept.landmarks[:, 0], boxes[ops.nms(boxes, scores, 0.3 - 1e-12)][:, :2])
    some = vote(faces, 0.3, drop_singletons=True)
    assert 0 < len(some.boxes) < len(kept.boxes)
    place = [(kept.boxes == box).all(1).nonzero()[0, 0] for box in some.boxes]
    assert torch.equal(some.landmarks, kept.landmarks[torch.stack(place)])


def test_s3fd_votes_as_its_authors_count_sides():
    """IoU 0.29 by x2 - x1, and 0.34 by x2 - x1 + 1."""
    boxes = torch.tensor([[0.0, 0, 8, 8], [4.4, 0, 12.4, 8]])
    faces = Faces(boxes, torch.tensor([0.8, 0.4]), torch.arange(20.0).reshape(2, 5, 2))
    assert len(vote(faces, 0.3, drop_singletons=False).boxes) == 2
    voted = vote(faces, 0.3, drop_singletons=False, plus_one=True)
    torch.testing.assert_close(voted.boxes, (2 * boxes[:1] + boxes[1:]) / 3)
    assert torch.equal(voted.landmarks, faces.landmarks[:1])


@pytest.mark.parametrize(("paper", "shift", "count"), [("s3fd", 4.4, 1), ("srn", 2.9, 2)])
def test_which_paper_counts_sides_how(paper, shift, count):
    parts = [Faces(torch.tensor([[x, 0.0, x + 8, 8]]), torch.tensor([0.9]), None) for x in (0.0, shift)]
    assert len(SquareFinder()._merged(parts, InferenceOptions(multiscale=paper), None).boxes) == count


def test_votes_drop_what_one_scale_alone_finds():
    image = picture(200, 260, (144, 96, 64))
    options = InferenceOptions(multiscale="s3fd")
    kept = SquareFinder().detect([image], options=options)[0]
    dropped = SquareFinder().detect([image], options=InferenceOptions(multiscale="s3fd", drop_singletons=True))[0]
    assert len(dropped.boxes) < len(kept.boxes) or len(kept.boxes) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": 0}, "size must be"),
        ({"size": True}, "size must be"),
        ({"size": (640,)}, "size must be"),
        ({"size": "big"}, "got 'big'"),
        ({"multiscale": "mtcnn"}, "multiscale must be one of s3fd, srn, ssh or None, got 'mtcnn'"),
        ({"multiscale": "s3fd", "size": 640}, "size must be None with multiscale, which has its own sizes, got 640"),
        ({"limits": "all"}, "limits must be 'ap' or 'fast', got 'all'"),
        ({"tile": 10}, "tile must be a side of 64 pixels or more"),
        ({"precision": "int8"}, "precision must be one of fp32, fp16, bf16, got 'int8'"),
        ({"cuda_graph": True}, "cuda_graph needs a CUDA device"),
    ],
)
def test_wrong_options_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        FaceDetector(SquareFinder(), device="cpu", **arguments)


@pytest.mark.parametrize(
    "arguments", [{"size": 640}, {"tile": 256}, {"precision": "bf16"}, {"channels_last": True}, {"limits": "fast"}]
)
def test_mtcnn_takes_no_options_of_single_shot_detectors(arguments):
    with pytest.raises(ValueError, match=r"mtcnn does not support .*; leave it out"):
        FaceDetector("mtcnn", device="cpu", **arguments)


@pytest.mark.parametrize("arguments", [{}, {"precision": "bf16"}, {"channels_last": True}])
def test_face_detector(arguments):
    detector = FaceDetector(SquareFinder(), device="cpu", size="native", **arguments)
    image = picture(100, 160, SMALL, LARGE)
    for one in (detector, pickle.loads(pickle.dumps(detector))):
        result = one(image.numpy())
        assert_found(Faces(result.boxes, result.scores, None), SMALL, LARGE, at=0.98)
        assert result.landmarks.shape == (2, 5, 2)


def test_a_model_that_is_passed_keeps_its_weights():
    """Even one without batch normalisation, as the networks on VGG are, where there is nothing to fold."""
    model = SquareFinder()
    detectors = [
        FaceDetector(model, device="cpu", size="native", precision=precision) for precision in ("bf16", "fp32")
    ]
    assert [detector.model.dtype for detector in detectors] == [torch.bfloat16, torch.float32]
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    assert model.graphs is None


def test_find_is_one_graph_of_static_shapes():
    model = SquareFinder()
    batch = torch.stack([picture(96, 160, SMALL, LARGE), picture(96, 160)]).permute(0, 3, 1, 2) / 255
    eager = model.find(batch)
    torch._dynamo.reset()
    compiled = torch.compile(model.find, fullgraph=True, backend="aot_eager")(batch)
    for mine, theirs in zip(eager, compiled, strict=True):
        assert torch.equal(mine, theirs)
    assert eager.count.tolist() == [2, 0]
    assert eager.boxes.shape == (2, 100, 4)


@pytest.mark.cuda
def test_cuda_graphs_find_the_same(cuda):
    image, other = picture(100, 160, SMALL, LARGE).to(cuda), picture(100, 160, (8, 8, 16)).to(cuda)
    plain = SquareFinder().to(cuda)
    graphed = SquareFinder().to(cuda)
    graphed.graphs = CudaGraphs(limit=2)
    for images in ([image], [other], [image, other], [other, image], [picture(300, 300).to(cuda)], [image]):
        for mine, theirs in zip(graphed.detect(images), plain.detect(images), strict=True):
            for a, b in zip(mine, theirs, strict=True):
                assert torch.equal(a, b)
    assert len(graphed.graphs._graphs) == 2
    assert isinstance(pickle.loads(pickle.dumps(graphed.graphs)), CudaGraphs)


@pytest.mark.cuda
@pytest.mark.parametrize("name", [name for name in list_models() if name != "mtcnn"])
def test_cuda_graphs_of_every_detector(name, cuda):
    torch.manual_seed(0)
    model = create_model(name, weights=None).to(cuda)
    for images in torch.randint(256, (2, 2, 128, 160, 3), dtype=torch.uint8, device=cuda):
        model.graphs = None
        plain = model.detect([*images])
        model.graphs = CudaGraphs()
        for mine, theirs in zip(model.detect([*images]), plain, strict=True):
            assert torch.equal(mine.boxes, theirs.boxes)
            assert torch.equal(mine.scores, theirs.scores)


@pytest.mark.cuda
def test_threads_share_cuda_graphs_on_streams_of_their_own(cuda):
    pictures = [picture(100, 160, SMALL, LARGE).to(cuda), picture(100, 160, (8, 8, 16)).to(cuda)]
    expected = [SquareFinder().to(cuda).detect([image])[0].boxes for image in pictures]
    model = SquareFinder().to(cuda)
    model.graphs = CudaGraphs()

    def find(k):
        with torch.cuda.stream(torch.cuda.Stream()):
            boxes = [model.detect([pictures[k % 2]])[0].boxes for _ in range(20)]
            torch.cuda.current_stream().synchronize()
        return boxes

    with ThreadPoolExecutor(4) as pool:
        for k, found in enumerate(pool.map(find, range(4))):
            assert all(torch.equal(boxes, expected[k % 2]) for boxes in found)


@pytest.mark.cuda
def test_detectors_on_all_gpus_capture_cuda_graphs_at_the_same_time(cuda):
    image = picture(100, 160, SMALL, LARGE)
    expected = SquareFinder().detect([image])[0].boxes

    def find(k):
        device = f"cuda:{k % torch.cuda.device_count()}"
        model = SquareFinder().to(device)
        model.graphs = CudaGraphs()
        return [model.detect([image.to(device)])[0].boxes.cpu() for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(find, range(4)):
            assert all(torch.equal(boxes, expected) for boxes in found)


@pytest.mark.cuda
def test_find_does_not_synchronise(cuda):
    model = SquareFinder().to(cuda)
    batch = torch.rand(2, 3, 96, 160, device=cuda)
    model.find(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.find(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_single_shot_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        SingleShot()


def test_an_image_without_pixels_has_no_faces():
    image = torch.full((128, 128, 3), 255, dtype=torch.uint8)
    full, empty = create_model("s3fd_lite", weights=None).detect([image, image[:0]], score_threshold=0.0)
    assert len(full.boxes) > 0
    assert empty.boxes.shape == (0, 4)
    assert empty.scores.shape == (0,)


def test_images_must_be_where_the_model_is():
    with pytest.raises(ValueError, match=r"images\[0\] must be on the model's device cpu, got meta; move it there"):
        check_images([torch.zeros(2, 2, 3, dtype=torch.uint8, device="meta")], torch.device("cpu"))
