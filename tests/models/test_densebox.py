"""DenseBox: shapes, the pyramid, maps to faces, landmarks, the loss."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyface import FaceDetector, ops
from pyface.models import DenseBoxConfig, DenseBoxLite, DenseBoxLiteConfig, DenseBoxVGG19, create_model
from pyface.models.backbones import VGG19
from pyface.models.base import GroundTruth
from pyface.models.densebox import DenseBox, DenseBoxOutput, Refine, branch, peaks, upsample
from pyface.models.fusion import fold_batch_norms
from pyface.models.inference import InferenceOptions
from pyface.models.views import whole
from pyface.ops import reference

SIZES = [(96, 128), (97, 131), (33, 70), (1, 1)]


def pictures(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lite(**settings):
    """A lite network with random weights and random statistics of normalisation, in evaluation mode."""
    torch.manual_seed(0)
    model = DenseBoxLite(DenseBoxLiteConfig(**settings)).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return model


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(0)
    return DenseBoxVGG19().eval()


def assert_same(actual, expected, tolerance=1e-4):
    for a, b in zip(actual, expected, strict=True):
        if b is None:
            assert a is None
        else:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- networks --------------------------------------------------------------------------------------------------------


def test_the_papers_patch_of_240_gives_maps_of_60(vgg):
    with torch.inference_mode():
        maps = vgg(pictures(1, 3, 240, 240))
    assert [tuple(x.shape[1:]) for x in maps] == [(1, 60, 60), (4, 60, 60), (5, 60, 60), (1, 60, 60)]


@pytest.mark.parametrize(("landmarks", "refine"), [(5, True), (5, False), (0, True), (0, False), (72, True)])
def test_branches(landmarks, refine):
    model, x = lite(landmarks=landmarks, refine=refine), pictures(2, 3, 64, 96)
    with torch.inference_mode():
        maps = model(x)
    assert maps.scores.shape == (2, 1, 16, 24)
    assert maps.offsets.shape == (2, 4, 16, 24)
    assert maps.landmarks is None if landmarks == 0 else maps.landmarks.shape == (2, landmarks, 16, 24)
    assert maps.refined.shape == (2, 1, 16, 24) if refine else maps.refined is None
    assert not refine or not torch.equal(maps.refined, maps.scores)
    assert sum(p.numel() for p in model.parameters()) < 1_500_000


@pytest.mark.parametrize("size", SIZES)
def test_maps_round_up(size, vgg):
    cells = tuple(-(-side // 4) for side in size)
    for model in (vgg, lite()):
        with torch.inference_mode():
            maps = model(pictures(1, 3, *size))
        assert all(tuple(x.shape[2:]) == cells for x in maps)


def test_parameters_of_the_papers_network():
    model = DenseBoxVGG19(DenseBoxConfig(landmarks=72))
    trunk = 3 * 64 + 64 * 64 + 64 * 128 + 128 * 128 + 128 * 256 + 3 * 256 * 256 + 256 * 512 + 3 * 512 * 512
    trunk = 9 * trunk + 2 * 64 + 2 * 128 + 4 * 256 + 4 * 512
    branches = sum(768 * 512 + 512 + 512 * n + n for n in (1, 4, 72))
    refine = 9 * 73 * 64 + 64 + 25 * 64 * 64 + 64 + 64 + 1
    assert sum(p.numel() for p in model.parameters()) == trunk + branches + refine


def test_the_trunk_is_torchvisions_vgg19_up_to_conv4_4():
    layers = [(name, layer.weight.shape[:2]) for name, layer in VGG19().named_children()]
    names = [f"conv{block}_{k}" for block, depth in ((1, 2), (2, 2), (3, 4), (4, 4)) for k in range(1, depth + 1)]
    assert [name for name, _ in layers] == names
    assert [shape[0] for _, shape in layers] == [64, 64, 128, 128, *[256] * 4, *[512] * 4]
    vgg16 = create_model("s3fd_vgg16", weights=None)
    assert vgg16.backbone.conv5_3.weight.shape == (512, 512, 3, 3)


def test_upsampling_keeps_cells_over_their_quarters():
    ramp = torch.arange(4.0)[None, None, None].expand(1, 1, 3, 4)
    fine = upsample(ramp, torch.zeros(1, 1, 5, 7))  # an odd map that pooling rounded up
    assert fine.shape == (1, 1, 5, 7)
    assert fine[0, 0, 2].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75]
    x = pictures(2, 3, 5, 6)
    whole_map = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample(x, torch.zeros(1, 1, 9, 12)), whole_map[:, :, :9])


def test_refine_interpolates_last_what_the_paper_interpolates_first():
    torch.manual_seed(0)
    refine, scores, landmarks = Refine(3, 8), pictures(2, 1, 9, 12), pictures(2, 3, 9, 12, seed=2)
    x = F.max_pool2d(torch.cat([scores, landmarks], 1), 2, 2, ceil_mode=True)
    x = F.relu(refine.conv6_2(F.relu(refine.conv6_1(x))))
    expected = refine.conv6_3(upsample(x, scores))
    torch.testing.assert_close(refine(scores, landmarks), expected, rtol=1e-5, atol=1e-6)


def test_branches_have_the_authors_layers():
    layers = branch(768, 512, 4, 0.5)
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.ReLU, nn.Dropout, nn.Conv2d]
    assert layers[2].p == 0.5


def test_training_starts_with_low_scores_and_small_boxes():
    torch.manual_seed(0)
    with torch.no_grad():
        maps = DenseBoxLite().train()(pictures(2, 3, 160, 160))
    assert maps.scores.abs().mean() < 0.3
    found = ops.decode_densebox(
        torch.ones_like(maps.scores), maps.offsets, score_threshold=0.5, max_candidates=2000, unit=5.0
    )
    sides = found.boxes[..., 2:] - found.boxes[..., :2]
    assert sides.mean() == pytest.approx(20, abs=3)


def test_folding_channels_last_and_half_precision():
    model, x = lite(), pictures(2, 3, 97, 130)
    with torch.inference_mode():
        expected = model(x)
        folded = fold_batch_norms(model)
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
        assert_same(folded(x), expected)
        last = folded.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
        assert_same(last, expected)
        for a, b in zip(folded.bfloat16()(x.bfloat16()), expected, strict=True):
            assert a.dtype == torch.bfloat16
            assert (a - b).abs().mean() < 0.1 * b.abs().mean() + 0.02


def test_export():
    """One program for all sizes and batches."""
    model, auto = lite(), torch.export.Dim.AUTO
    program = torch.export.export(model, (pictures(2, 3, 96, 160),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    x = pictures(1, 3, 77, 131)
    with torch.no_grad():
        assert_same(program.module()(x), model(x))


def lively(model, x):
    """The same model, half of whose random scores on x pass its threshold."""
    maps = model(x)
    scores, last = (maps.scores, model.score[-1]) if model.refine is None else (maps.refined, model.refine.conv6_3)
    model.score_threshold = 0.3
    last.bias.data += 0.3 - scores.median()
    return model


@pytest.mark.parametrize(("landmarks", "refine"), [(3, True), (0, True), (5, False)])
def test_only_five_landmarks_are_faces_landmarks(landmarks, refine):
    x = pictures(2, 3, 65, 97)
    with torch.inference_mode():
        found = lively(lite(landmarks=landmarks, refine=refine), x).find(x)
    assert found.count.min() > 5
    assert found.landmarks.shape == (*found.scores.shape, 5 if landmarks == 5 else 0, 2)


def test_find_compiles_as_a_full_graph():
    model, x = lite(), pictures(2, 3, 65, 97)
    with torch.inference_mode():
        torch._dynamo.reset()
        lively(model, x)
        compiled = torch.compile(model.find, fullgraph=True, backend="aot_eager")
        found, expected = compiled(x), model.find(x)
        assert expected.count.min() > 5
        assert torch.equal(found.count, expected.count)
        assert_same([found.boxes, found.landmarks], [expected.boxes, expected.landmarks])


# --- the pyramid -----------------------------------------------------------------------------------------------------


def scales(model, height, width, options=None):
    view = whole(0, height, width, model.own_scale(height, width))
    return [view.scale for view in model.plan(view, options or InferenceOptions())]


def test_the_papers_pyramid(vgg):
    expected = [2 ** (1.2 - 0.3 * k) for k in range(15)]
    assert expected[-1] == pytest.approx(2**-3)
    assert scales(vgg, 600, 800) == pytest.approx(expected)
    assert scales(vgg, 800, 1600) == pytest.approx([scale / 2 for scale in expected])
    small = scales(vgg, 90, 120)  # ends where the image is as large as a face
    assert small == pytest.approx(expected[: len(small)])
    assert small[-1] * 120 <= 62.5 < small[-2] * 120


@pytest.mark.parametrize(("height", "width"), [(480, 640), (1000, 700), (31, 3000)])
def test_the_lite_pyramid_shows_every_face_at_its_size(height, width):
    model = DenseBoxLite()
    seen = scales(model, height, width)
    assert seen[0] * max(height, width) == pytest.approx(640)
    smallest, largest = model.smallest_face / seen[0], max(height, width)
    assert smallest == pytest.approx(14 * max(height, width) / 640)
    low, high = (20 * factor for factor in model.config.positive_band)
    for face in torch.linspace(smallest, largest, 200).tolist():
        assert any(low - 1e-6 <= scale * face <= high + 1e-6 for scale in seen), face
    assert sum(scale**2 for scale in seen) < 4 / 3 * seen[0] ** 2


def test_size_and_min_face_choose_the_first_view():
    model = DenseBoxLite()
    seen = []
    model.forward = lambda images: seen.append(tuple(images.shape[2:])) or empty_maps(images)
    image = torch.zeros(320, 640, 3, dtype=torch.uint8)
    model.detect([image], options=InferenceOptions(size=320))
    assert seen[0] == (160, 320)
    seen.clear()
    model.detect([image], min_face=28)
    assert seen[0] == (160, 320)
    seen.clear()
    for min_face in (8, 1):  # it finds faces of 14 px, and enlarges up to four times
        model.detect([image[:64, :96]], min_face=min_face)
    assert (128, 192) in seen  # 1.75 times: 112 x 168, padded
    assert (256, 384) in seen
    seen.clear()
    model.detect([image], options=InferenceOptions(tile=256))
    assert all(max(shape) <= 256 for shape in seen)
    assert len(seen) == 4  # of 640, 320, 160 and the smaller ones; the tiles of a view share batches


def test_multiscale_tests_of_others_are_refused():
    with pytest.raises(ValueError, match=r"multiscale must be None for DenseBoxLite, .* got 's3fd'"):
        DenseBoxLite().detect([torch.zeros(50, 50, 3).byte()], options=InferenceOptions(multiscale="s3fd"))


def test_tiles_share_room_for_a_face(vgg):
    image = torch.zeros(50, 50, 3).byte()
    for model, least in ((DenseBoxLite(), 114), (vgg, 250)):
        model.check_options(InferenceOptions(tile=least))
        with pytest.raises(ValueError, match=f"tile must be {least} pixels or more for .*, got {least - 1}"):
            model.detect([image], options=InferenceOptions(tile=least - 1))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"pyramid_step": 1.0}, "pyramid_step must be more than 1, got 1.0"),
        ({"pyramid_step": math.nan}, "pyramid_step must be more than 1, got nan"),
        ({"pyramid_scales": 0}, "pyramid_scales must be 1 or more, or None, got 0"),
        ({"face": 0.0}, "face must be more than 0, got 0.0"),
        ({"radius": -1.0}, "radius must be more than 0, got -1.0"),
        ({"stride": 0}, "stride must be more than 0, got 0"),
        ({"positive_band": (1.25, 0.8)}, "positive_band must be"),
        ({"ignore_band": (0.9, 1.67)}, "ignore_band around it"),
        ({"positive_band": (0.0, 1.0), "ignore_band": (0.0, 1.0)}, "more than 0"),
        ({"ignore_band": (0.6, math.inf)}, "ignore_band around it"),
    ],
)
def test_invalid_configurations_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        DenseBoxLiteConfig(**numbers)


# --- maps to faces ---------------------------------------------------------------------------------------------------


def empty_maps(images):
    batch, _, height, width = images.shape
    cells = (-(-height // 4), -(-width // 4))
    return DenseBoxOutput(*(torch.zeros(batch, n, *cells) for n in (1, 4, 5, 1)))


class Planted(DenseBoxLite):
    """Returns what a perfect network would: it reads the faces, which are white on black, from the image."""

    POINTS = ((0.3, 0.35), (0.7, 0.35), (0.5, 0.55), (0.35, 0.8), (0.65, 0.8))

    def __init__(self, boxes, config=None):
        super().__init__(config)
        self.boxes = boxes

    def forward(self, images):
        maps = empty_maps(images)
        for b in range(len(images)):
            # A white image of unknown scale: its width gives the scale.
            lit = images[b].amax(0) > 0
            scale = int(lit.any(0).sum()) / 640
            boxes = self.boxes * scale
            points = boxes[:, None, :2] + torch.tensor(self.POINTS) * (boxes[:, None, 2:] - boxes[:, None, :2])
            targets = ops.densebox_targets(
                boxes,
                torch.tensor([0, len(boxes)]),
                tuple(maps.scores.shape[2:]),
                face=self.config.face,
                positive_band=self.config.positive_band,
                ignore_band=self.config.ignore_band,
                unit=self.unit,
                landmarks=points,
                landmark_radius=0.1,
            )
            positive = (targets.label[0] == 1).float()
            maps.refined[b, 0] = 0.9 * positive
            maps.offsets[b] = targets.offsets[0]
            maps.landmarks[b] = (targets.landmark_label[0] == 1).float()
        return maps


def test_encoded_faces_come_back_through_the_models_candidates():
    boxes = torch.tensor([[100.0, 60, 122, 85], [10, 20, 40, 46], [60, 100, 78, 122]])
    model = Planted(boxes)
    maps = model(torch.ones(1, 3, 160, 640))
    found = model.candidates(maps, score_threshold=0.5, max_candidates=500)
    assert found.count.item() == int((maps.refined > 0).sum()) > 20
    decoded = found.boxes[0, : found.count[0]]
    distance = (decoded[:, None] - boxes[None]).abs().amax(2)
    assert distance.amin(1).max() < 1e-3
    assert distance.amin(0).max() < 1e-3
    clipped = model.candidates(maps, score_threshold=0.5, max_candidates=500, sizes=torch.tensor([[110.0, 640.0]]))
    assert clipped.boxes[..., 3].max() == 110


def test_scores_are_the_refined_ones_where_there_are_any():
    model = lite()
    maps = empty_maps(torch.zeros(1, 3, 16, 16))
    maps.offsets[:] = torch.tensor([0.5, 0.5, -0.5, -0.5])[:, None, None]
    maps.refined[0, 0, 1, 2], maps.scores[0, 0, 3, 3] = 0.8, 0.95
    found = model.candidates(maps, score_threshold=0.5, max_candidates=9)
    assert found.index.tolist()[0][:2] == [6, -1]
    assert found.scores[0, 0].item() == pytest.approx(0.8)
    plain = model.candidates(maps._replace(refined=None), score_threshold=0.5, max_candidates=9)
    assert plain.index.tolist()[0][:2] == [15, -1]
    assert plain.boxes[0, 0].tolist() == [4, 4, 24, 24]


def test_face_detector_finds_planted_faces_of_all_sizes():
    boxes = torch.tensor(
        [[20.0, 30, 41, 52], [100, 40, 140, 90], [300, 100, 400, 220], [10, 140, 200, 380], [460, 20, 500, 66]]
    )
    detector = FaceDetector(Planted(boxes), device="cpu")
    picture = torch.full((3, 400, 640), 255, dtype=torch.uint8)
    result = detector(picture)
    assert len(result.boxes) == len(boxes)
    distance = (result.boxes[:, None] - boxes[None]).abs().amax(2)
    best = distance.argmin(1)
    sides = boxes[best, 3] - boxes[best, 1]
    assert (distance.amin(1) < 0.05 * sides + 0.5).all()
    assert sorted(best.tolist()) == list(range(len(boxes)))
    expected = boxes[best, None, :2] + torch.tensor(Planted.POINTS) * (boxes[best, 2:] - boxes[best, :2])[:, None]
    # Half a cell, in the view that shows the face at its size, is 2 of 14 ... 28 pixels.
    assert ((result.landmarks - expected).abs().amax(2) < 0.15 * sides[:, None]).all()
    assert (result.scores - 0.9).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["densebox_lite", "densebox_vgg19"])
def test_create_model(name):
    model = create_model(name, weights=None)
    assert isinstance(model, DenseBox)
    if name == "densebox_lite":
        faces = FaceDetector(name, weights=None, device="cpu", score_threshold=1.0)
        result = faces(torch.zeros(3, 70, 90, dtype=torch.uint8))
        assert len(result.boxes) == 0
        assert result.landmarks.shape == (0, 5, 2)


def test_suppression_by_union_or_by_the_smaller_area():
    # Of 3 boxes the second lies within the first: the overlap is 0.25 of the union and all of the smaller area.
    maps = empty_maps(torch.zeros(1, 3, 64, 64))
    for row, column, side, score in ((8, 8, 32, 0.9), (8, 9, 16, 0.8), (2, 2, 12, 0.85)):
        maps.refined[0, 0, row, column] = score
        maps.offsets[0, :, row, column] = torch.tensor([1.0, 1, -1, -1]) * side / 50
    for overlap, count in (("union", 3), ("min", 2)):
        model = lite(nms_overlap=overlap)
        model.forward = lambda images: maps
        assert model.find(torch.zeros(1, 3, 64, 64)).count.item() == count


def test_peaks():
    heat = torch.zeros(1, 2, 20, 30)
    heat[0, 0, 5, 7], heat[0, 0, 15, 20] = 0.4, 0.9  # the higher one lies outside of the first box
    heat[0, 1, 6, 6] = 0.1
    boxes = torch.tensor([[[20.0, 16, 40, 36], [0, 0, 120, 80], [29.0, 21, 29.5, 21.5]]])
    found = peaks(heat, boxes, 4, 30)
    assert found[0, 0].tolist() == [[30, 22], [26, 26]]
    assert found[0, 1].tolist() == [[82, 62], [26, 26]]
    assert found[0, 2].tolist() == [[30, 22], [30, 22]]
    # What lies beyond the count may be anything.
    bad = torch.tensor([[[math.nan] * 4, [-math.inf, 0, math.inf, 9], [3e38, 3e38, -3e38, -3e38]]])
    assert peaks(heat, bad, 4, 5).isfinite().all()
    assert peaks(heat, boxes[:, :0], 4, 5).shape == (1, 0, 2, 2)


def test_peaks_equal_a_search_cell_by_cell():
    heat = torch.rand(2, 3, 24, 31, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    start = 80 * torch.rand(2, 40, 2, generator=generator)
    boxes = torch.cat([start, start + 4 + 30 * torch.rand(2, 40, 2, generator=generator)], 2)
    found = peaks(heat, boxes, 4, 10)
    y, x = torch.meshgrid(torch.arange(24) * 4 + 2.0, torch.arange(31) * 4 + 2.0, indexing="ij")
    for b in range(2):
        for box, points in zip(boxes[b], found[b], strict=True):
            inside = (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])
            for n in range(3):
                if inside.any():
                    best = heat[b, n].masked_fill(~inside, -1).argmax()
                    assert points[n].tolist() == [x.flatten()[best], y.flatten()[best]]


# --- the loss --------------------------------------------------------------------------------------------------------


def random_output(batch=2, size=(40, 40), landmarks=5, refine=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    channels = (1, 4, landmarks, 1)
    maps = [torch.randn(batch, n, *size, generator=generator).requires_grad_() if n else None for n in channels]
    return DenseBoxOutput(*maps[:3], maps[3] if refine else None)


FACES = torch.tensor([[20.0, 30, 70, 80], [90, 60, 130, 108], [100, 10, 190, 100]])
POINTS = torch.stack([FACES[:, :2] + share * (FACES[:, 2:] - FACES[:, :2]) for share in (0.3, 0.4, 0.5, 0.6, 0.7)], 1)


def truth(splits=(0, 1, 3), boxes=FACES, ignore=None, landmarks=POINTS):
    return GroundTruth(boxes, torch.tensor(splits), ignore, landmarks)


def slow_loss(maps, faces, config, seed):
    """The terms cell by cell, from the reference's targets and samples."""
    unit = config.face / config.stride
    targets = reference.densebox_targets(
        faces.boxes,
        faces.splits,
        tuple(maps.scores.shape[2:]),
        face=config.face,
        unit=unit,
        gray=config.gray,
        positive_band=config.positive_band,
        ignore_band=config.ignore_band,
        ignore=faces.ignore,
        landmarks=faces.landmarks,
    )
    ratio = config.negative_ratio

    def map_error(outputs, labels, disc):
        total, number = 0.0, 0
        errors, index = [], []
        for b in range(outputs.shape[0]):
            for n in range(outputs.shape[1]):
                errors.append([])
                index.append([])
                for output, label in zip(
                    outputs[b, n].flatten().tolist(), labels[b, n].flatten().tolist(), strict=True
                ):
                    errors[-1].append((output - (1.0 if label == 1 else 0.0)) ** 2)
                    index[-1].append({1: 0, 0: -1, -1: -2}[label])
        chosen = reference.balanced_sample(
            torch.tensor(errors),
            torch.tensor(index).int(),
            ratio=ratio,
            minimum=round(ratio * math.pi * disc * disc),
            seed=seed,
        )
        for row, mask in zip(errors, chosen.tolist(), strict=True):
            for error, is_chosen in zip(row, mask, strict=True):
                total, number = total + error * is_chosen, number + is_chosen
        return total / max(number, 1)

    distance, positive = 0.0, 0
    for b, i, j in (targets.label == 1).nonzero().tolist():
        difference = maps.offsets[b, :, i, j] - targets.offsets[b, :, i, j]
        distance, positive = distance + (difference**2).sum().item(), positive + 1
    disc = config.radius * unit
    terms = {
        "classification": map_error(maps.scores, targets.label[:, None], disc),
        "box": 3.0 * distance / max(positive, 1),
    }
    if maps.landmarks is not None:
        known = faces.landmarks is not None and bool(faces.landmarks.isfinite().any())
        terms["landmarks"] = 0.5 * map_error(maps.landmarks, targets.landmark_label, 1.0) if known else 0.0
    if maps.refined is not None:
        terms["refine"] = map_error(maps.refined, targets.label[:, None], disc)
    return terms


class Bare(DenseBox):
    """The loss without a network."""

    def forward(self, images):
        raise NotImplementedError


@pytest.mark.parametrize("config", [DenseBoxConfig(), DenseBoxLiteConfig(face=40.0)], ids=["paper", "lite"])
@pytest.mark.parametrize(
    "faces",
    [
        truth(),
        truth((0, 0, 3)),
        truth(ignore=torch.tensor([False, True, False])),
        truth(landmarks=POINTS.where(torch.rand(3, 5, 1, generator=torch.Generator().manual_seed(3)) < 0.5, math.nan)),
        truth(landmarks=None),
        truth(landmarks=torch.full_like(POINTS, math.nan)),
        truth((0, 0, 0), FACES[:0], landmarks=POINTS[:0]),
        truth(ignore=torch.ones(3, dtype=torch.bool)),
        truth(boxes=FACES[:, [0, 1, 0, 3]]),
    ],
    ids=[
        "faces",
        "one image without",
        "ignored",
        "some points",
        "no points",
        "unknown points",
        "no faces",
        "all ignored",
        "no area",
    ],
)
def test_loss_equals_a_slow_one(faces, config):
    model = Bare(config)
    for maps in (random_output(), random_output(landmarks=0, refine=False, seed=1)):
        if maps.landmarks is None:
            config_of = replace(config, landmarks=0, refine=False)
            model = Bare(config_of)
            faces = faces._replace(landmarks=None)
        terms = model.loss(maps, faces, seed=3)
        expected = slow_loss(maps, faces, config, 3)
        assert terms.keys() == expected.keys()
        for name, value in terms.items():
            assert value.dtype == torch.float32
            assert value.shape == ()
            assert value.item() == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name
        sum(terms.values()).backward()
        assert all(x.grad.isfinite().all() for x in maps if x is not None)


def test_loss_by_hand():
    """A map of nine cells, one of which is positive; nothing is left to chance."""
    config = DenseBoxConfig(face=8.0, radius=0.1, gray=0.0, landmarks=0, refine=False)
    maps = DenseBoxOutput(torch.zeros(1, 1, 3, 3), torch.zeros(1, 4, 3, 3))
    maps.scores[0, 0, 1, 1], maps.scores[0, 0, 2, 0] = 0.4, 0.5
    faces = GroundTruth(torch.tensor([[2.0, 2.0, 10.0, 10.0]]), torch.tensor([0, 1]))
    terms = Bare(config).loss(maps, faces)
    # One positive cell, so one negative: half of one, rounded up, is the hardest.
    assert terms["classification"].item() == pytest.approx((0.6**2 + 0.5**2) / 2)
    assert terms["box"].item() == pytest.approx(3 * 4 * 0.5**2)


def test_ignored_cells_do_not_count():
    maps = random_output(1)
    faces = truth((0, 3), ignore=torch.tensor([False, False, True]))
    sum(Bare(DenseBoxConfig()).loss(maps, faces).values()).backward()
    label = ops.densebox_targets(FACES, faces.splits, (40, 40), ignore=faces.ignore).label
    assert (label == -1).sum() > 100
    for x in (maps.scores, maps.refined):
        assert not x.grad[:, 0][label == -1].any()
        assert x.grad[:, 0][label == 1].all()
    assert not maps.offsets.grad.movedim(1, -1)[label != 1].any()


def test_the_seed_decides_which_cells_count():
    model, maps = Bare(DenseBoxConfig()), random_output()
    values = [model.loss(maps, truth(), seed=seed)["classification"].item() for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("faces", [truth(), truth((0, 0, 0), FACES[:0], landmarks=None)], ids=["faces", "none"])
def test_gradients_reach_every_parameter(faces):
    torch.manual_seed(0)
    model = DenseBoxLite(DenseBoxLiteConfig(face=50.0)).train()
    with torch.autocast("cpu", torch.bfloat16):
        maps = model(pictures(2, 3, 160, 200))
        assert maps.scores.dtype == torch.bfloat16
        terms = model.loss(maps, faces)
    assert set(terms) == {"classification", "box", "landmarks", "refine"}
    assert all(value.dtype == torch.float32 and value.isfinite() for value in terms.values())
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if len(faces.boxes):
        assert [name for name, p in model.named_parameters() if not p.grad.any()] == []


def test_a_wrong_number_of_landmarks_is_named():
    with pytest.raises(ValueError, match="landmarks must be 5 points, as in the configuration, got 2; set"):
        Bare(DenseBoxConfig()).loss(random_output(), truth(landmarks=POINTS[:, :2]))


def test_training_lowers_the_loss():
    """Within a few steps on one image with two bright faces."""
    torch.manual_seed(0)
    model = DenseBoxLite().train()
    image = torch.full((1, 3, 64, 64), -1.0)
    boxes = torch.tensor([[4.0, 30, 29, 55], [34, 8, 58, 34]])
    for x1, y1, x2, y2 in boxes.int().tolist():
        image[0, :, y1:y2, x1:x2] = 1.0
    faces = GroundTruth(boxes, torch.tensor([0, 2]))
    optimizer, totals = torch.optim.AdamW(model.parameters(), 2e-3), []
    for step in range(30):
        total = sum(model.loss(model(image), faces, seed=step).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert sum(totals[-5:]) < 0.3 * sum(totals[:5])


@pytest.mark.cuda
def test_loss_does_not_synchronise(cuda):
    model = Bare(DenseBoxConfig())
    maps = DenseBoxOutput(*(x.detach().to(cuda) for x in random_output()))
    faces = GroundTruth(*(x if x is None else x.to(cuda) for x in truth()))
    model.loss(maps, faces)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.loss(maps, faces)
    finally:
        torch.cuda.set_sync_debug_mode("default")
