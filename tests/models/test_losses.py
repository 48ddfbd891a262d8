"""The losses, against what the papers say written out in loops, on maps of a few cells."""

import math
from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensor, FakeTensorMode

from pyface import ops
from pyface.models import MTCNN, MTCNNConfig, losses
from pyface.models.backbones import Context
from pyface.models.base import GroundTruth
from pyface.models.mtcnn import CropKind, CropTruth, ONet, PNet, RNet, WithLandmarks
from pyface.models.s3fd import S3FDVGG16
from pyface.models.srn import SRNResNet50
from pyface.models.ssh import SSHVGG16, inside
from pyface.models.zoo import list_models, model_info
from pyface.ops import reference

LITE = ["s3fd_lite", "ssh_lite", "srn_lite"]
NAN, INFINITY = math.nan, math.inf


@pytest.fixture(params=LITE)
def name(request):
    return request.param


def build(name, **settings):
    """A fresh model in training mode."""
    torch.manual_seed(0)
    row = model_info(name)
    return row.build(replace(row.config, **settings)).train()


def truth_of(*images, ignore=None, landmarks=None):
    """Faces (x1, y1, x2, y2) of each image; landmarks as one [5, 2] or None for each face."""
    boxes = torch.tensor([box for image in images for box in image], dtype=torch.float32).reshape(-1, 4)
    splits = torch.tensor([0, *map(len, images)]).cumsum(0)
    if landmarks is not None:
        unknown = torch.full((5, 2), NAN)
        landmarks = torch.stack([unknown if points is None else torch.tensor(points) for points in landmarks])
    return GroundTruth(boxes, splits, None if ignore is None else torch.tensor(ignore), landmarks)


def maps_of(model, sizes, *, batch=2, seed=0, scale=1.0):
    """Random maps for a model's levels; leaves that require a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def random(channels, size):
        return (scale * torch.randn(batch, channels, *size, generator=generator)).requires_grad_()

    maps = []
    for k, (level, size) in enumerate(zip(model.levels, sizes, strict=True)):
        n = len(level.anchors)
        steps = level.num_background == 0  # SRN
        low = steps and k < model.config.low_levels
        maps.append(
            ops.LevelMaps(
                logits=random((level.num_background + 1) * n, size),
                boxes=random(4 * n, size),
                landmarks=random(10 * n, size) if getattr(model.config, "landmarks", False) else None,
                gate=random(n, size) if low else None,
                offsets=random(4 * n, size) if steps and not low else None,
            )
        )
    return maps


def tensors(maps):
    return [x for level in maps for x in level if x is not None]


def sizes_for(model, side):
    return [(-(-side // level.stride),) * 2 for level in model.levels]


# --- the slow way ----------------------------------------------------------------------------------------------------


class Anchor:
    """One anchor of one image and all outputs for it, as numbers."""

    def __init__(self, maps, level, image, k, row, column):
        n = len(level.anchors)

        def numbers(x, channels):
            return None if x is None else [x[image, c, row, column].item() for c in channels]

        x1, y1, x2, y2 = level.anchors[k]
        dx, dy = column * level.stride, row * level.stride
        self.box = (x1 + dx, y1 + dy, x2 + dx, y2 + dy)
        self.logits = numbers(maps.logits, range(k, (level.num_background + 1) * n, n))
        self.deltas = numbers(maps.boxes, range(4 * k, 4 * k + 4))
        self.points = numbers(maps.landmarks, range(10 * k, 10 * k + 10))
        self.gate = numbers(maps.gate, [k])
        self.offsets = numbers(maps.offsets, range(4 * k, 4 * k + 4))

    def face_probability(self):
        *background, face = self.logits
        if not background:
            return sigmoid(face)
        return math.exp(face) / (math.exp(face) + math.exp(max(background)))

    def cross_entropy(self, is_face):
        p = self.face_probability()
        return -math.log(p if is_face else 1 - p)


def anchors_of(maps, levels, image):
    """All anchors of an image, in the order of `ops.anchor_boxes`."""
    return [
        Anchor(level_maps, level, image, k, row, column)
        for level_maps, level in zip(maps, levels, strict=True)
        for row in range(level_maps.logits.shape[2])
        for column in range(level_maps.logits.shape[3])
        for k in range(len(level.anchors))
    ]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def smooth(x, sigma=1.0):
    return (sigma * x) ** 2 / 2 if abs(x) < 1 / sigma**2 else abs(x) - 1 / (2 * sigma**2)


def focal(p, is_face):
    return -0.25 * (1 - p) ** 2 * math.log(p) if is_face else -0.75 * p**2 * math.log(1 - p)


def deltas_to(anchor, box, variances):
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    return [
        ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / width / variances[0],
        ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / height / variances[0],
        math.log((box[2] - box[0]) / width) / variances[1],
        math.log((box[3] - box[1]) / height) / variances[1],
    ]


def moved_by(anchor, deltas, variances):
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = (anchor[0] + anchor[2]) / 2 + deltas[0] * variances[0] * width
    y = (anchor[1] + anchor[3]) / 2 + deltas[1] * variances[0] * height
    half_width = width * math.exp(deltas[2] * variances[1]) / 2
    half_height = height * math.exp(deltas[3] * variances[1]) / 2
    return (x - half_width, y - half_height, x + half_width, y + half_height)


def box_loss(anchor, deltas, box, variances, sigma=1.0):
    return sum(smooth(a - b, sigma) for a, b in zip(deltas, deltas_to(anchor, box, variances), strict=True))


def distance_iou_loss(anchor, deltas, box, variances):
    found = moved_by(anchor, deltas, variances)
    low, high = (
        [max(a, b) for a, b in zip(found, box, strict=True)],
        [min(a, b) for a, b in zip(found, box, strict=True)],
    )
    shared = max(0, high[2] - low[0]) * max(0, high[3] - low[1])
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (found, box)]
    distance = sum((found[k] + found[k + 2] - box[k] - box[k + 2]) ** 2 / 4 for k in range(2))
    corners = sum((low[k + 2] - high[k]) ** 2 for k in range(2))
    return 1 - shared / (sum(areas) - shared) + distance / corners


def weighted_box_loss(config, anchor, box):
    if config.box_loss == "diou":
        return config.box_weight * distance_iou_loss(anchor.box, anchor.deltas, box, config.variances)
    sigma = getattr(config, "box_sigma", 1.0)
    return config.box_weight * box_loss(anchor.box, anchor.deltas, box, config.variances, sigma)


def landmark_loss(anchor, points, landmarks, variance):
    """Of one anchor; None where its face's landmarks are not all known."""
    if landmarks is None or any(math.isnan(v) for point in landmarks for v in point):
        return None
    values = []
    for k, point in enumerate(landmarks):
        for axis in (0, 1):
            side, centre = anchor[axis + 2] - anchor[axis], (anchor[axis + 2] + anchor[axis]) / 2
            values.append(smooth(points[2 * k + axis] - (point[axis] - centre) / side / variance))
    return sum(values)


def faces_of(truth, image):
    """The boxes and landmarks of an image's faces, as numbers."""
    own = slice(int(truth.splits[image]), int(truth.splits[image + 1]))
    boxes = truth.boxes[own].tolist()
    return boxes, [None] * len(boxes) if truth.landmarks is None else truth.landmarks[own].tolist()


def assigned(boxes_of_anchors, truth, image, valid=None, **rules):
    """`reference.assign_anchors` for one image: a list."""
    own = slice(int(truth.splits[image]), int(truth.splits[image + 1]))
    boxes = truth.boxes[own]
    index, _ = reference.assign_anchors(
        torch.tensor(boxes_of_anchors),
        boxes,
        torch.tensor([0, len(boxes)]),
        ignore=None if truth.ignore is None else truth.ignore[own],
        valid=None if valid is None else torch.tensor(valid),
        **rules,
    )
    return index[0].tolist()


def mean(values):
    return sum(values) / max(1, len(values))


def slow_s3fd(model, maps, truth):
    classification, box, points, faces = 0.0, 0.0, [], 0
    for image in range(len(truth.splits) - 1):
        anchors = anchors_of(maps, model.levels, image)
        index = assigned(
            [a.box for a in anchors], truth, image, positive=0.35, negative=0.35, force_best=True, compensate="mean"
        )
        boxes, landmarks = faces_of(truth, image)
        matches = [(a, face) for a, face in zip(anchors, index, strict=True) if face >= 0]
        background = [a.cross_entropy(False) for a, face in zip(anchors, index, strict=True) if face == -1]
        wanted = max(model.config.min_negatives, model.config.negative_ratio * len(matches))
        classification += sum(a.cross_entropy(True) for a, _ in matches)
        classification += sum(sorted(background, reverse=True)[: int(wanted)])
        faces += len(matches)
        box += sum(weighted_box_loss(model.config, a, boxes[face]) for a, face in matches)
        if maps[0].landmarks is not None:
            points += [landmark_loss(a.box, a.points, landmarks[face], 0.1) for a, face in matches]
    terms = {"classification": classification / max(1, faces), "box": box / max(1, faces)}
    return with_landmarks(terms, maps, points, model.config.landmark_weight)


def with_landmarks(terms, maps, points, weight):
    if maps[0].landmarks is not None:
        terms["landmarks"] = weight * mean([value for value in points if value is not None])
    return terms


def slow_ssh(model, maps, truth):
    config = model.config
    terms = {"classification": 0.0, "box": 0.0}
    points_term = 0.0
    height, width = (cells * 8 for cells in maps[0].logits.shape[2:])
    for module, level, border in zip(maps, model.levels, config.borders, strict=True):
        classification, box, points, samples = 0.0, 0.0, [], 0
        for image in range(len(truth.splits) - 1):
            anchors = anchors_of([module], [level], image)
            valid = [
                a.box[0] >= -border
                and a.box[1] >= -border
                and a.box[2] <= width + border
                and a.box[3] <= height + border
                for a in anchors
            ]
            index = assigned([a.box for a in anchors], truth, image, valid, positive=config.positive_iou, negative=0.3)
            boxes, landmarks = faces_of(truth, image)
            matches = [(a, face) for a, face in zip(anchors, index, strict=True) if face >= 0]
            matches = sorted(matches, key=lambda match: match[0].face_probability())[: config.module_samples // 4]
            background = [a for a, face in zip(anchors, index, strict=True) if face == -1]
            background.sort(key=Anchor.face_probability, reverse=True)
            background = background[: config.module_samples - len(matches)]
            samples += len(matches) + len(background)
            classification += sum(a.cross_entropy(True) for a, _ in matches)
            classification += sum(a.cross_entropy(False) for a in background)
            box += sum(weighted_box_loss(config, a, boxes[face]) for a, face in matches)
            if module.landmarks is not None:
                points += [landmark_loss(a.box, a.points, landmarks[face], config.variances[0]) for a, face in matches]
        terms["classification"] += classification / max(1, samples)
        terms["box"] += box / max(1, samples)
        known = sum(value for value in points if value is not None)
        points_term += config.landmark_weight * known / max(1, samples)
    return terms | ({} if maps[0].landmarks is None else {"landmarks": points_term})


def slow_srn(model, maps, truth):
    variances, (positive, negative) = model.variances, model.config.second_iou
    first_class, first_box, first_low, first_high = 0.0, 0.0, 0, 0
    classification, box, points, faces = 0.0, 0.0, [], 0
    for image in range(len(truth.splits) - 1):
        anchors = anchors_of(maps, model.levels, image)
        boxes, landmarks = faces_of(truth, image)
        index = assigned([a.box for a in anchors], truth, image, positive=0.7, negative=0.3, force_best=True)
        for a, face in zip(anchors, index, strict=True):
            if a.gate is not None and face != -2:
                first_class += focal(sigmoid(a.gate[0]), face >= 0)
                first_low += face >= 0
            if a.offsets is not None and face >= 0:
                first_box += box_loss(a.box, a.offsets, boxes[face], variances)
                first_high += 1
        moved = [a.box if a.offsets is None else moved_by(a.box, a.offsets, variances) for a in anchors]
        valid = [a.gate is None or sigmoid(a.gate[0]) > 0.01 for a in anchors]
        index = assigned(moved, truth, image, valid, positive=positive, negative=negative)
        for a, start, face in zip(anchors, moved, index, strict=True):
            if face != -2:
                classification += focal(a.face_probability(), face >= 0)
            if face >= 0:
                faces += 1
                box += box_loss(start, a.deltas, boxes[face], variances)
                if a.points is not None:
                    points.append(landmark_loss(start, a.points, landmarks[face], variances[0]))
    terms = {
        "first_classification": first_class / max(1, first_low),
        "first_box": first_box / max(1, first_high),
        "classification": classification / max(1, faces),
        "box": box / max(1, faces),
    }
    return with_landmarks(terms, maps, points, model.config.landmark_weight)


SLOW = {"s3fd_lite": slow_s3fd, "ssh_lite": slow_ssh, "srn_lite": slow_srn}
POINTS = [[24.0, 26.0], [36.0, 26.0], [30.0, 34.0], [25.0, 42.0], [35.0, 42.0]]


def assert_terms(actual, expected):
    assert list(actual) == list(expected)
    for key, value in actual.items():
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected[key], rel=2e-4, abs=1e-6), key


class TestAgainstLoops:
    @pytest.mark.parametrize("seed", range(3))
    def test_lite(self, name, seed):
        """Images with several faces, none and two; two faces have landmarks, and one box is ignored."""
        model = build(name)
        truth = truth_of(
            [(10.0, 12, 42, 50), (30.0, 30, 52, 60), (70.0, 8, 79, 17), (40.0, 60, 90, 92)],
            [],
            [(2.0, 3, 70, 91), (60.0, 60, 92, 92)],
            ignore=[False, False, False, True, False, False],
            landmarks=[POINTS, None, None, None, None, [[p + 40 for p in point] for point in POINTS]],
        )
        maps = maps_of(model, sizes_for(model, 96), batch=3, seed=seed)
        expected = SLOW[name](model, maps, truth)
        assert all(value > 0 for value in expected.values())
        assert_terms(model.loss(maps, truth), expected)

    def test_few_samples_of_ssh(self):
        """More positive anchors and more background than a module takes: the hardest are chosen."""
        model = build("ssh_lite", module_samples=8)
        faces = [(8.0 * k, 8.0 * k, 8.0 * k + 20, 8.0 * k + 20) for k in range(9)]
        maps, truth = maps_of(model, sizes_for(model, 96), seed=5), truth_of(faces, faces[:1])
        assert_terms(model.loss(maps, truth), slow_ssh(model, maps, truth))

    def test_few_negatives_of_s3fd(self):
        model = build("s3fd_lite", min_negatives=0)
        maps, truth = maps_of(model, sizes_for(model, 64)), truth_of([(10.0, 10, 30, 30)], [])
        assert_terms(model.loss(maps, truth), slow_s3fd(model, maps, truth))

    @pytest.mark.parametrize(("network", "slow"), [(S3FDVGG16, slow_s3fd), (SSHVGG16, slow_ssh)])
    def test_networks_of_the_papers(self, network, slow):
        with torch.device("meta"):
            model = network()
        maps = maps_of(model, sizes_for(model, 96))
        truth = truth_of([(10.0, 12, 42, 50), (30.0, 30, 52, 60)], [(2.0, 3, 70, 91)])
        assert_terms(model.loss(maps, truth), slow(model, maps, truth))

    def test_srn_of_the_paper_counts_pixels_as_the_author_does(self):
        with torch.device("meta"):
            model = SRNResNet50()
        maps = maps_of(model, sizes_for(model, 96), scale=0.3)
        truth = truth_of([(10.0, 12, 42, 50), (30.0, 30, 52, 60)], [(2.0, 3, 70, 91)])
        inclusive = truth._replace(boxes=truth.boxes - torch.tensor([0.0, 0, 1, 1]))
        assert_terms(model.loss(maps, truth), slow_srn(model, maps, inclusive))
        # The targets decode, through `candidates`, to where the face is.
        anchor = torch.tensor(model.levels[2].anchors[0])
        boxes = torch.zeros(1, 8, 1, 1)
        boxes[0, :4, 0, 0] = losses.encode_boxes(anchor, inclusive.boxes[0], (1.0, 1.0))
        logits = torch.full((1, 2, 1, 1), -9.0).index_fill(1, torch.tensor(0), 9.0)
        empty = ops.LevelMaps(
            torch.full((1, 2, 1, 1), -9.0), torch.zeros(1, 8, 1, 1), gate=torch.full((1, 2, 1, 1), -9.0)
        )
        found = model.candidates(
            [empty, empty, ops.LevelMaps(logits, boxes, gate=logits)], score_threshold=0.5, max_candidates=1
        )
        torch.testing.assert_close(found.boxes[0, 0], truth.boxes[0], rtol=0, atol=1e-3)


class TestByHand:
    """One face, one anchor of its size and place, constant maps: numbers that can be checked by hand."""

    def test_s3fd(self):
        model = build("s3fd_lite", negative_ratio=3.0, min_negatives=0, compensate=None)
        maps = [
            type(m)(*(x if x is None else torch.zeros_like(x) for x in m))
            for m in maps_of(model, [(1, 1)] * 6, batch=1)
        ]
        # The first level's anchor is (-6, -6, 10, 10); the others overlap it by less.
        terms = model.loss(maps, truth_of([(-6.0, -6, 10, 10)], landmarks=[[[2.0, 2.0]] * 4 + [[2.16, 2.0]]]))
        # p = 1/2 for the face, and for three hard negatives of four: IoU with the second anchor is 1/4 and less.
        assert terms["classification"].item() == pytest.approx(4 * math.log(2))
        assert terms["box"].item() == 0
        # One coordinate has an error of 0.16 / (0.1 * 16) = 0.1.
        assert terms["landmarks"].item() == pytest.approx(0.25 * 0.1**2 / 2, rel=1e-4)

    def test_ssh(self):
        model = build("ssh_lite", borders=(0.0, 0.0, 512.0))
        maps = [
            type(m)(*(x if x is None else torch.zeros_like(x) for x in m))
            for m in maps_of(model, [(2, 2), (1, 1), (1, 1)], batch=1)
        ]
        # An image of 16 x 16. M1's anchors about (4, 4), (12, 4) ... extend beyond it and do not count; M3's do.
        terms = model.loss(maps, truth_of([(0.0, 0, 16, 16)]))
        assert terms["classification"].item() == pytest.approx(math.log(2))  # M3's two alone; no M1 anchor lies inside
        assert terms["box"].item() == 0

    def test_ssh_lite_leaves_out_no_anchor(self):
        model = build("ssh_lite")
        for level, border in zip(model.levels, model.config.borders, strict=True):
            anchors = ops.anchor_boxes([level], [(320 // level.stride, 320 // level.stride)])
            assert inside(anchors, (320, 320), border).all()

    def test_ssh_lite_matches_a_face_between_two_anchors(self):
        model = build("ssh_lite")
        maps = maps_of(model, sizes_for(model, 96), batch=1)
        face = (29.0, 29, 51, 51)  # between four cells: IoUs of 0.44 with anchors of 16 px, 0.47 with those of 32
        assert model.loss(maps, truth_of([face]))["box"] > 0
        paper = build("ssh_lite", positive_iou=0.5)
        assert paper.loss(maps, truth_of([face]))["box"] == 0

    def test_unmarked_neighbours_do_not_change_what_a_marked_face_weighs_in_ssh(self):
        model = build("ssh_lite")
        face, others = (20.0, 20, 52, 52), [(60.0, 60, 92, 92), (60.0, 4, 92, 36)]

        def gradient(truth):
            maps = maps_of(model, sizes_for(model, 96), batch=1)
            for level in maps:
                level.landmarks.requires_grad_()
            model.loss(maps, truth)["landmarks"].backward()
            return torch.cat([level.landmarks.grad.flatten() for level in maps])

        alone = gradient(truth_of([face], landmarks=[POINTS]))
        crowd = gradient(truth_of([face, *others], landmarks=[POINTS, None, None]))
        assert alone.norm() > 0
        torch.testing.assert_close(crowd, alone, rtol=0.05, atol=1e-6)

    def test_srn(self):
        model = build("srn_lite", second_iou=(0.5, 0.4), variances=(0.1, 0.2))
        maps = [
            type(m)(*(x if x is None else torch.zeros_like(x) for x in m))
            for m in maps_of(model, [(1, 1)] * 6, batch=1)
        ]
        centre, (x1, y1, x2, y2) = 64, model.levels[5].anchors[1]
        face = [centre + 1.1 * (corner - centre) for corner in (x1, y1, x2, y2)]
        terms = model.loss(maps, truth_of([face]))
        doubt = 0.5**2 * math.log(2)
        # Step 1: six low anchors, all background. Step 2: of twelve anchors one is the face's, one has an IoU of
        # 1 / 1.1^2 / 2 = 0.41 and does not count, ten are background.
        assert terms["first_classification"].item() == pytest.approx(6 * 0.75 * doubt)
        assert terms["classification"].item() == pytest.approx((0.25 + 10 * 0.75) * doubt)
        off = math.log(1.1) / 0.2
        assert terms["first_box"].item() == pytest.approx(2 * off**2 / 2, rel=1e-4)
        assert terms["box"].item() == pytest.approx(2 * off**2 / 2, rel=1e-4)


# --- what must not happen --------------------------------------------------------------------------------------------

EMPTY = truth_of([], [])
DEGENERATE = {
    "no faces": EMPTY,
    "no faces, landmarks asked for": EMPTY._replace(ignore=torch.zeros(0).bool(), landmarks=torch.zeros(0, 5, 2)),
    "faces in the last image only": truth_of([], [(10.0, 10, 40, 50)]),
    "faces in the first image only": truth_of([(10.0, 10, 40, 50)], []),
    "boxes without area": truth_of([(10.0, 10, 10, 40), (20.0, 20, 20, 20)], [(30.0, 30, 20, 20), (5.0, 50, 30, 50)]),
    "thinnest boxes": truth_of([(10.0, 10, 10.001, 40)], [(20.0, 20, 20.00001, 20.00001)]),
    "all ignored": truth_of([(0.0, 0, 96, 96)], [(-500.0, -500, 600, 600)], ignore=[True, True]),
    "not finite": truth_of([(NAN, 10, 40, 40), (10.0, 10, INFINITY, 40)], [(-INFINITY, -INFINITY, INFINITY, INFINITY)]),
    "far outside": truth_of([(500.0, 500, 540, 540)], [(-90.0, -90, -50, -50)]),
    "larger than all": truth_of([(-1e6, -1e6, 1e6, 1e6)], [(0.0, 0, 1e30, 1e30)]),
    "landmarks half known": truth_of(
        [(10.0, 10, 40, 50)], [(10.0, 10, 40, 50)], landmarks=[[*POINTS[:4], [NAN, 1.0]], None]
    ),
}


class TestDegenerate:
    @pytest.mark.parametrize("case", list(DEGENERATE))
    def test_everything_stays_finite(self, name, case):
        model, truth = build(name), DEGENERATE[case]
        maps = maps_of(model, sizes_for(model, 96))
        terms = model.loss(maps, truth)
        assert all(value.isfinite() and value >= 0 for value in terms.values()), terms
        if case == "landmarks half known":
            assert terms["landmarks"] == 0
        torch.stack(list(terms.values())).sum().backward()
        for x in tensors(maps):
            assert x.grad is not None
            assert x.grad.isfinite().all()

    def test_images_without_faces_are_background(self, name):
        model = build(name)
        maps = maps_of(model, sizes_for(model, 96))
        terms = model.loss(maps, EMPTY)
        terms["classification"].backward()
        assert terms["box"] == terms["landmarks"] == 0
        n = len(model.levels[0].anchors)
        assert (maps[0].logits.grad[:, -n:] >= 0).all()
        assert (maps[0].logits.grad[:, -n:] > 0).any(0).any()

    def test_where_all_is_ignored_there_is_no_loss(self, name):
        model = build(name)
        maps = maps_of(model, sizes_for(model, 96), scale=0.1)  # SRN's moved anchors stay inside
        everywhere = truth_of([(-5e3, -5e3, 5e3, 5e3)], [(-5e3, -5e3, 5e3, 5e3)], ignore=[True, True])
        assert all(value == 0 for value in model.loss(maps, everywhere).values())

    def test_anchors_that_run_away(self):
        """SRN's first step may return anything."""
        model = build("srn_lite")
        maps = maps_of(model, sizes_for(model, 96))
        with torch.no_grad():
            maps[3].offsets[0, 2] = 1e4
            maps[3].offsets[0, 3] = -1e4
            maps[4].offsets[1, 0] = 1e30
        terms = model.loss(maps, truth_of([(10.0, 12, 42, 50)], [(2.0, 3, 70, 91)]))
        assert all(value.isfinite() for value in terms.values())
        torch.stack(list(terms.values())).sum().backward()
        assert all(x.grad.isfinite().all() for x in tensors(maps))


class TestProperties:
    TRUTH = truth_of([(10.0, 12, 42, 50), (30.0, 30, 52, 60)], [(2.0, 3, 70, 91)], landmarks=[POINTS, None, POINTS])

    def test_a_batch_of_twins_weighs_what_one_does(self, name):
        model = build(name)
        maps = maps_of(model, sizes_for(model, 96), batch=1)
        twins = [type(m)(*(x if x is None else torch.cat([x, x]) for x in m)) for m in maps]
        faces = [(10.0, 12, 42, 50), (30.0, 30, 52, 60)]
        one, two = model.loss(maps, truth_of(faces)), model.loss(twins, truth_of(faces, faces))
        assert_terms(two, {key: value.item() for key, value in one.items()})

    def test_same_bits_every_time(self, name):
        model = build(name)
        maps = maps_of(model, sizes_for(model, 96))
        first, second = model.loss(maps, self.TRUTH), model.loss(maps, self.TRUTH)
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_nothing_flows_into_the_truth(self, name):
        model = build(name)
        truth = self.TRUTH._replace(boxes=self.TRUTH.boxes.clone().requires_grad_())
        torch.stack(list(model.loss(maps_of(model, sizes_for(model, 96)), truth).values())).sum().backward()
        assert truth.boxes.grad is None

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_maps_of_half_precision(self, name, dtype):
        model = build(name)
        maps = maps_of(model, sizes_for(model, 96))
        halves = [type(m)(*(x if x is None else x.detach().to(dtype).requires_grad_() for x in m)) for m in maps]
        same = [type(m)(*(x if x is None else x.detach().float() for x in m)) for m in halves]
        terms = model.loss(halves, self.TRUTH)
        assert_terms(terms, {key: value.item() for key, value in model.loss(same, self.TRUTH).items()})
        torch.stack(list(terms.values())).sum().backward()
        assert all(x.grad.isfinite().all() for x in tensors(halves))

    def test_channels_last(self, name):
        model = build(name)
        maps = maps_of(model, sizes_for(model, 96))
        other = [type(m)(*(x if x is None else x.to(memory_format=torch.channels_last) for x in m)) for m in maps]
        terms = model.loss(maps, self.TRUTH)
        assert_terms(model.loss(other, self.TRUTH), {key: value.item() for key, value in terms.items()})

    def test_better_maps_have_a_lower_loss(self, name):
        """Maps that a step of gradient descent improved."""
        model = build(name)
        maps = maps_of(model, sizes_for(model, 96))
        before = torch.stack(list(model.loss(maps, self.TRUTH).values())).sum()
        before.backward()
        with torch.no_grad():
            for x in tensors(maps):
                x -= 0.02 * x.grad
        assert torch.stack(list(model.loss(maps, self.TRUTH).values())).sum() < before

    @pytest.mark.cuda
    def test_without_synchronising(self, name, cuda):
        model = build(name).to(cuda)
        truth = GroundTruth(*(None if x is None else x.to(cuda) for x in self.TRUTH))
        maps = [
            type(m)(*(x if x is None else x.detach().to(cuda).requires_grad_() for x in m))
            for m in maps_of(model, sizes_for(model, 96))
        ]
        expected = model.to("cpu").loss(maps_of(model, sizes_for(model, 96)), self.TRUTH)
        assert_terms(model.to(cuda).loss(maps, truth), {key: value.item() for key, value in expected.items()})
        torch.cuda.set_sync_debug_mode("error")
        try:
            torch.stack(list(model.loss(maps, truth).values())).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


class TestNetworks:
    """Whole lite networks, with faces of all sizes."""

    SIZES = (9, 16, 24, 34, 48, 66, 90, 130, 180, 260, 360)
    FACES = tuple((4.0 * k, 2.0 * k, 4.0 * k + size, 2.0 * k + 1.2 * size) for k, size in enumerate(SIZES))
    TRUTH = truth_of(
        list(FACES),
        [(64.0, 64, 80, 80)],
        landmarks=[[[box[0] + 1.0, box[1] + 2.0]] * 5 for box in FACES] + [None],
    )

    @pytest.fixture
    def pictures(self):
        return torch.randn(2, 3, 384, 384, generator=torch.Generator().manual_seed(0))

    def test_gradients_reach_every_parameter(self, name, pictures):
        model = build(name)
        for block in model.modules():
            if isinstance(block, Context):  # a new one lets gradients reach its last layer only
                torch.nn.init.ones_(block.layers[-1][-1].weight)
        torch.stack(list(model.loss(model(pictures), self.TRUTH).values())).sum().backward()
        without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert without == []
        assert all(p.grad.isfinite().all() for p in model.parameters())

    def test_autocast(self, name, pictures):
        model = build(name)
        with torch.no_grad():
            expected = model.loss(model(pictures), self.TRUTH)
        model = build(name)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            maps = model(pictures)
            terms = model.loss(maps, self.TRUTH)
        assert maps[0].logits.dtype == torch.bfloat16
        for key, value in terms.items():
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(expected[key].item(), rel=0.2), key
        torch.stack(list(terms.values())).sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())

    def test_validation_before_training(self, name):
        """Anchors that were first made in inference mode serve training too."""
        model = build(name)
        pictures = torch.randn(2, 3, 64, 96)
        truth = truth_of([(10.0, 12, 42, 50)], [])
        losses._anchors.cache_clear()
        with torch.inference_mode():
            model.loss(model(pictures), truth)
        torch.stack(list(model.loss(model(pictures), truth).values())).sum().backward()

    def test_no_landmarks_no_term(self, name, pictures):
        model = build(name, landmarks=False)
        with torch.no_grad():
            assert "landmarks" not in model.loss(model(pictures), self.TRUTH)


@pytest.mark.slow
@pytest.mark.parametrize("large", ["s3fd_vgg16", "ssh_vgg16", "srn_resnet50", "densebox_vgg19"])
def test_gradients_reach_every_parameter_of_the_papers_networks(large):
    """Faces of all their anchors' sizes; DenseBox's has one."""
    model = build(large)
    size = 64 if large == "densebox_vgg19" else 320
    pictures = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    faces = [(4.0, 4, 46, 54)] if size == 64 else TestNetworks.FACES
    points = [[(box[0] + 9, box[1] + 9)] * 5 for box in faces]
    terms = model.loss(model(pictures), truth_of(faces, landmarks=points))
    torch.stack(list(terms.values())).sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.fixture(params=[*LITE, "densebox_lite"])
def trained(request):
    return request.param


def outputs_of(name):
    """A fresh network, and its outputs for one image, without a gradient."""
    model = build(name).eval()
    with torch.no_grad():
        return model, model(torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)))


class TestTruth:
    def test_other_float_dtypes(self, name):
        model = build(name)
        maps = maps_of(model, sizes_for(model, 96))
        truth = TestProperties.TRUTH
        doubles = truth._replace(boxes=truth.boxes.double(), landmarks=truth.landmarks.double())
        expected, found = model.loss(maps, truth), model.loss(maps, doubles)
        assert all(torch.equal(found[key], value) for key, value in expected.items())

    def test_another_number_of_landmarks_is_named(self, name):
        model = build(name)
        truth = TestProperties.TRUTH._replace(landmarks=torch.zeros(3, 4, 2))
        with pytest.raises(ValueError, match=r"landmarks must be \[G, 5, 2\] = \[3, 5, 2\], got \[3, 4, 2\]"):
            model.loss(maps_of(model, sizes_for(model, 96)), truth)

    def test_another_number_of_images_is_named(self, trained):
        model, maps = outputs_of(trained)
        for splits in ([0, 0, 0], [0]):
            truth = GroundTruth(torch.zeros(0, 4), torch.tensor(splits))
            with pytest.raises(ValueError, match=r"splits must be \[2\] for a batch of 1, got"):
                model.loss(maps, truth)

    def test_integers_are_no_boxes(self, trained):
        model, maps = outputs_of(trained)
        with pytest.raises(TypeError, match=r"the truth's boxes must be float32, got torch\.int64"):
            model.loss(maps, GroundTruth(torch.tensor([[3, 3, 30, 30]]), torch.tensor([0, 1])))

    def test_all_maps_are_needed(self, name):
        model, maps = outputs_of(name)
        with pytest.raises(ValueError, match=rf"maps must be those of all {len(maps)} levels, got {len(maps) - 1}"):
            model.loss(maps[1:], truth_of([]))

    @pytest.mark.parametrize("value", [NAN, INFINITY])
    @pytest.mark.parametrize("faces", [[], [(10.0, 10, 42, 50)]])
    def test_a_network_that_diverged_does_not_look_perfect(self, trained, faces, value):
        model, maps = outputs_of(trained)
        tensors = maps if trained == "densebox_lite" else (x for level in maps for x in level)
        for x in tensors:
            if x is not None:
                x[0, -1, -1, -1] = value  # of logits, a face's
        terms = model.loss(maps, truth_of(faces))
        assert not torch.stack(list(terms.values())).sum().isfinite()

    def test_tracing_leaves_no_anchors_behind(self, name):
        model, pictures = build(name).eval(), torch.randn(1, 3, 64, 96)
        truth = truth_of([(10.0, 12, 42, 50)])
        losses._anchors.cache_clear()
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = truth._replace(boxes=mode.from_tensor(truth.boxes), splits=mode.from_tensor(truth.splits))
            model.loss(model(mode.from_tensor(pictures)), fake)
        assert not any(isinstance(x, FakeTensor) for x in model.loss(model(pictures), truth).values())


class TestSRNSteps:
    def test_each_step_has_gradients_from_its_own_terms(self):
        """The second step's terms give the first step no gradient, nor the first step's terms the second."""
        model = build("srn_lite")
        truth = TestProperties.TRUTH
        for terms, taught in (
            (("first_classification",), {"gate"}),
            (("first_box",), {"offsets"}),
            (("classification",), {"logits"}),
            (("box",), {"boxes"}),
            (("landmarks",), {"landmarks"}),
        ):
            maps = maps_of(model, sizes_for(model, 96))
            found = model.loss(maps, truth)
            sum(found[term] for term in terms).backward()
            with_gradient = {
                field
                for level in maps
                for field, x in zip(ops.LevelMaps._fields, level, strict=True)
                if x is not None and x.grad is not None and x.grad.any()
            }
            assert with_gradient == taught

    def test_anchors_below_the_gate_do_not_count(self):
        model = build("srn_lite")
        maps = maps_of(model, sizes_for(model, 96))
        with torch.no_grad():
            maps[0].gate.fill_(-6.0)  # probability 0.0025
            maps[1].gate.fill_(-4.0)  # 0.018
        model.loss(maps, TestProperties.TRUTH)["classification"].backward()
        assert not maps[0].logits.grad.any()
        assert maps[1].logits.grad.any()

    def test_moved_anchors_meet_faces(self):
        """An anchor that lies on no face is moved onto one by the first step, in the second image only."""
        model = build("srn_lite")
        maps = maps_of(model, sizes_for(model, 128), scale=0.0)
        with torch.no_grad():
            for level in maps[:3]:
                level.gate.fill_(-9.0)
        anchor = ops.anchor_boxes(model.levels[3:4], [(4, 4)])[0]  # 58 x 72 px about (16, 16)
        face = anchor + torch.tensor([50.0, 60, 50, 60])
        truth = truth_of([face.tolist()], [face.tolist()])
        plain = model.loss(maps, truth)
        with torch.no_grad():
            maps[3].offsets[1, :4, 0, 0] = losses.encode_boxes(anchor, face + 1, model.variances)
        moved = model.loss(maps, truth)
        assert moved["box"] != plain["box"]
        moved["box"].backward()
        assert maps[3].boxes.grad[1, :4, 0, 0].any()
        assert not maps[3].boxes.grad[0, :4, 0, 0].any()

    def test_without_forcing_a_face_may_have_no_anchor_in_the_first_step(self):
        truth = truth_of([(10.0, 12, 42, 50)])
        for force, found in ((True, True), (False, False)):
            model = build("srn_lite", force_first=force)
            maps = maps_of(model, sizes_for(model, 96), batch=1)
            model.loss(maps, truth)["first_classification"].backward()
            assert any(bool((level.gate.grad < 0).any()) for level in maps[:3]) == found


# --- MTCNN -----------------------------------------------------------------------------------------------------------


def crops(n, *, seed=0, landmarks=True):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, 16 if landmarks else 6, generator=generator).requires_grad_()
    truth = CropTruth(
        torch.randint(0, 4, (n,), generator=generator),
        torch.randn(n, 4, generator=generator),
        torch.rand(n, 5, 2, generator=generator),
    )
    return outputs, truth


def slow_mtcnn(net, outputs, truth, mining="classification"):
    entropies, boxes, points = [], [], []
    for output, kind, box, landmarks in zip(*(x.tolist() for x in (outputs, *truth)), strict=True):
        p = sigmoid(output[1] - output[0])
        if kind in (CropKind.NEGATIVE, CropKind.POSITIVE):
            entropies.append(-math.log(p if kind == CropKind.POSITIVE else 1 - p))
        if kind in (CropKind.PART, CropKind.POSITIVE):
            boxes.append(sum((a - b) ** 2 for a, b in zip(output[2:6], box, strict=True)))
        if kind == CropKind.LANDMARK and len(output) == 16:
            xs, ys = zip(*landmarks, strict=True)
            points.append(sum((a - b) ** 2 for a, b in zip(output[6:], (*xs, *ys), strict=True)))

    def hard(values):
        return sorted(values, reverse=True)[: math.ceil(0.7 * len(values))]

    terms = {"classification": mean(hard(entropies)), "box": 0.5 * mean(hard(boxes) if mining == "all" else boxes)}
    if outputs.shape[1] == 16:
        terms["landmarks"] = (1.0 if net == "onet" else 0.5) * mean(hard(points) if mining == "all" else points)
    return terms


class TestMTCNN:
    @pytest.mark.parametrize("mining", ["classification", "all"])
    @pytest.mark.parametrize(("net", "landmarks"), [("pnet", False), ("rnet", True), ("onet", True)])
    def test_against_loops(self, net, landmarks, mining):
        model = MTCNN(MTCNNConfig(hard_mining=mining))
        for n in (0, 1, 2, 7, 50):
            outputs, truth = crops(n, landmarks=landmarks)
            assert_terms(model.loss(net, outputs, truth), slow_mtcnn(net, outputs, truth, mining))

    def test_crops_have_the_terms_of_their_kind(self):
        outputs, truth = crops(40)
        torch.stack(list(MTCNN().loss("onet", outputs, truth).values())).sum().backward()
        taught = {kind: outputs.grad[truth.kind == kind].ne(0).any(0).tolist() for kind in CropKind}
        no, yes = [False], [True]
        assert taught[CropKind.NEGATIVE] == yes * 2 + no * 14
        assert taught[CropKind.POSITIVE] == yes * 6 + no * 10
        assert taught[CropKind.PART] == no * 2 + yes * 4 + no * 10
        assert taught[CropKind.LANDMARK] == no * 6 + yes * 10

    def test_easy_crops_get_no_gradient(self):
        outputs, truth = crops(40)
        truth = truth._replace(kind=torch.zeros_like(truth.kind))
        MTCNN().loss("onet", outputs, truth)["classification"].backward()
        assert outputs.grad[:, 0].ne(0).sum() == 28

    @pytest.mark.parametrize("kind", list(CropKind))
    def test_what_does_not_count_may_be_anything(self, kind):
        """Targets that mean nothing for a kind of crop, and batches of one kind."""
        outputs, truth = crops(5)
        truth = CropTruth(torch.full((5,), int(kind)), truth.boxes, truth.landmarks)
        if kind not in (CropKind.POSITIVE, CropKind.PART):
            truth.boxes.fill_(NAN)
        if kind != CropKind.LANDMARK:
            truth.landmarks.fill_(INFINITY)
        terms = MTCNN().loss("onet", outputs, truth)
        torch.stack(list(terms.values())).sum().backward()
        assert all(value.isfinite() for value in terms.values())
        assert outputs.grad.isfinite().all()

    @pytest.mark.parametrize(("net", "side"), [("pnet", 12), ("rnet", 24), ("onet", 48)])
    @pytest.mark.parametrize("autocast", [False, True])
    def test_gradients_reach_every_parameter(self, net, side, autocast):
        torch.manual_seed(0)
        model = MTCNN().train()
        network = getattr(model, net) if net == "onet" else WithLandmarks(getattr(model, net))
        _, truth = crops(24)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            terms = model.loss(net, network(torch.randn(24, 3, side, side)), truth)
        assert all(value.dtype == torch.float32 for value in terms.values())
        torch.stack(list(terms.values())).sum().backward()
        assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []

    @pytest.mark.parametrize(("net", "side"), [(PNet, 12), (RNet, 24)])
    def test_landmarks_in_training_only(self, net, side):
        network = net().eval()
        wrapped = WithLandmarks(network).eval()
        x = torch.randn(3, 3, side, side)
        outputs = wrapped(x)
        assert outputs.shape[:2] == (3, 16)
        torch.testing.assert_close(outputs[:, :6], network(x))
        assert set(network.state_dict()) == {
            key.removeprefix("net.") for key in wrapped.state_dict() if "points" not in key
        }

    def test_refuses_other_outputs(self):
        _, truth = crops(4)
        for shape in ((4, 7), (3, 6), (4, 6, 2, 2)):
            with pytest.raises(ValueError, match=r"outputs must be \[4, 6 or 16\], one for each crop, got"):
                MTCNN().loss("pnet", torch.zeros(shape), truth)

    def test_refuses_other_truth(self):
        outputs, truth = crops(4)
        for name in ("boxes", "landmarks"):
            with pytest.raises(ValueError, match=rf"the truth's {name} must be \[4, .*\], got \[1, "):
                MTCNN().loss("onet", outputs, truth._replace(**{name: getattr(truth, name)[:1]}))
        with pytest.raises(ValueError, match="net must be one of pnet, rnet, onet, got 'net'"):
            MTCNN().loss("net", outputs, truth)

    def test_unknown_landmarks_do_not_count(self):
        outputs, truth = crops(8)
        truth = truth._replace(kind=torch.full((8,), CropKind.LANDMARK))
        expected = MTCNN().loss("onet", outputs[:7], CropTruth(*(x[:7] for x in truth)))["landmarks"]
        truth.landmarks[7, 2, 0] = NAN
        torch.testing.assert_close(MTCNN().loss("onet", outputs, truth)["landmarks"], expected)

    def test_a_network_that_diverged_does_not_look_perfect(self):
        outputs, truth = crops(8)
        truth = truth._replace(kind=torch.zeros_like(truth.kind))
        assert MTCNN().loss("onet", outputs * NAN, truth)["classification"].isnan()

    def test_same_mapping_as_detection(self):
        """O-Net's landmarks are x1 ... x5, y1 ... y5."""
        truth = crops(1)[1]._replace(kind=torch.tensor([CropKind.LANDMARK]))
        outputs = torch.cat([torch.zeros(6), truth.landmarks[0, :, 0], truth.landmarks[0, :, 1]])[None]
        assert MTCNN().loss("onet", outputs, truth)["landmarks"] == 0
        assert ONet()(torch.zeros(1, 3, 48, 48)).shape == (1, 16)


# --- the pieces ------------------------------------------------------------------------------------------------------


class TestPieces:
    def test_boxes_there_and_back(self):
        generator = torch.Generator().manual_seed(0)
        corners = 100 * torch.rand(2, 50, 2, generator=generator)
        anchors, boxes = (torch.cat([c, c + 1 + 50 * torch.rand(50, 2, generator=generator)], 1) for c in corners)
        for variances in ((0.1, 0.2), (1.0, 1.0)):
            deltas = losses.encode_boxes(anchors, boxes, variances)
            torch.testing.assert_close(losses.decode_boxes(anchors, deltas, variances), boxes, rtol=0, atol=1e-3)
            torch.testing.assert_close(reference.decode_boxes(anchors, deltas, variances), boxes, rtol=0, atol=1e-3)

    def test_landmarks_there_and_back(self):
        anchors = torch.tensor([[0.0, 0, 16, 16], [10.0, 20, 40, 70]])
        points = 50 * torch.rand(2, 5, 2)
        deltas = losses.encode_landmarks(anchors, points, 0.1)
        assert deltas.shape == (2, 10)
        decoded = reference.decode_points(anchors, deltas.unflatten(1, (5, 2)), (0.1, 0.2))
        torch.testing.assert_close(decoded, points, rtol=0, atol=1e-4)

    def test_order_of_anchors_is_that_of_candidates(self, name):
        """A face that was encoded for an anchor comes back from `candidates` with that anchor's index."""
        model = build(name)
        maps = maps_of(model, sizes_for(model, 96), batch=1, scale=0.0)
        truth = torch.tensor([20.0, 24, 60, 70])
        with torch.no_grad():
            for level, described in zip(maps, model.levels, strict=True):
                n = len(described.anchors)
                level.logits[:, : described.num_background * n] = 9.0
                if level.gate is not None:
                    level.gate.fill_(9.0)
                if described.num_background == 0:
                    level.logits.fill_(-9.0)
            level = 1
            n, (rows, columns) = len(model.levels[level].anchors), maps[level].logits.shape[2:]
            for row, column, k in ((0, 0, n - 1), (rows - 1, 1, 0)):
                place = (
                    sum(m.boxes.shape[1] // 4 * m.boxes[0, 0].numel() for m in maps[:level])
                    + (row * columns + column) * n
                    + k
                )
                x = maps[level].logits.clone()
                maps[level].logits[0, -n + k, row, column] = 20.0
                anchors = losses.anchors_on(model.levels, maps)
                maps[level].boxes[0, 4 * k : 4 * k + 4, row, column] = losses.encode_boxes(
                    anchors[place], truth, model.variances
                )
                found = model.candidates(maps, score_threshold=0.5, max_candidates=1)
                evidence = losses.face_evidence([m.logits for m in maps], model.levels)
                boxes = losses.by_anchor([m.boxes for m in maps], model.levels)
                assert found.index[0, 0] == evidence[0].argmax() == place
                torch.testing.assert_close(found.boxes[0, 0], truth, rtol=0, atol=1e-3)
                decoded = losses.decode_boxes(anchors[place], boxes[0, place], model.variances)
                torch.testing.assert_close(decoded, truth, rtol=0, atol=1e-3)
                maps[level].logits.copy_(x)

    def test_diou(self):
        """Against the formula with numbers: overlap 6 x 8 of 100 and 96, centres (4, 1) apart, corners of 14 x 10."""
        boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 2, 2]])
        faces = torch.tensor([[4.0, 0, 14, 8], [0, 0, 10, 10], [8, 0, 10, 2]])
        expected = [1 - 48 / (100 + 80 - 48) + (4**2 + 1) / (14**2 + 10**2), 0, 1 + 8**2 / (10**2 + 2**2)]
        assert losses.diou(boxes, faces).tolist() == pytest.approx(expected)

    def test_box_terms_count_faces_alone(self):
        """They ignore what is not matched, and targets without area."""
        anchors = torch.tensor([[0.0, 0, 16, 16], [16, 0, 32, 16], [0, 16, 16, 32]])
        truth = truth_of([(2.0, 2, 18, 14), (5.0, 5, 5, 9)])
        index = torch.tensor([[0, -1, -2]], dtype=torch.int32)
        for kind in ("smooth_l1", "diou"):
            outputs = torch.zeros(1, 3, 4, requires_grad=True)
            value = losses.box_term(outputs, anchors, truth, index, (0.1, 0.2), kind)
            value.backward()
            assert value > 0
            assert (outputs.grad[0, 0] != 0).any()
            assert (outputs.grad[0, 1:] == 0).all()
            exact = losses.encode_boxes(anchors, truth.boxes[:1].expand(3, 4), (0.1, 0.2))[None]
            assert losses.box_term(exact, anchors, truth, index, (0.1, 0.2), kind).item() == pytest.approx(0, abs=1e-5)

    def test_smooth_l1(self):
        for sigma in (1.0, 3.0):
            for x in (-2.0, -0.2, 0.0, 0.05, 1 / sigma**2, 5.0):
                value = losses.smooth_l1(torch.tensor([[[x]]]), torch.zeros(1, 1, 1), torch.ones(1, 1).bool(), sigma)
                assert value.item() == pytest.approx(smooth(x, sigma), rel=1e-6, abs=1e-7)

    def test_focal(self):
        for x in (-8.0, -1.0, 0.0, 3.0):
            for is_face in (True, False):
                value = losses.focal(torch.tensor(x), torch.tensor(is_face), gamma=2, alpha=0.25)
                assert value.item() == pytest.approx(focal(sigmoid(x), is_face), rel=1e-4)

    def test_sure_and_wrong_costs_much_but_not_infinity(self):
        x = torch.tensor([200.0, -200.0], requires_grad=True)
        is_face = torch.tensor([False, True])
        value = losses.cross_entropy(x, is_face).sum() + losses.focal(x, is_face, gamma=2, alpha=0.25).sum()
        value.backward()
        assert value.item() == pytest.approx(400 + 200)
        assert x.grad.tolist() == pytest.approx([1.75, -1.25])

    def test_matched(self):
        truth = truth_of([], [(1.0, 0, 2, 1), (2.0, 0, 3, 1)], [], [(3.0, 0, 4, 1)], [])
        index = torch.tensor([[-1, -2, -1]] * 5, dtype=torch.int32)
        index[1] = torch.tensor([1, 0, -1])
        index[3] = torch.tensor([-2, 0, -1])
        found = losses.matched(truth.boxes, truth.splits, index)
        assert found.shape == (5, 3, 4)
        assert found[1, :2, 0].tolist() == [2, 1]
        assert found[3, 1, 0] == 3
        nothing = truth_of([], [])
        assert losses.matched(nothing.boxes, nothing.splits, index[:2]).shape == (2, 3, 4)

    def test_hardest(self):
        values = torch.tensor([[1.0, 5, 3, 4, NAN], [2.0, INFINITY, 9, 8, -INFINITY]])
        where = torch.tensor([[True, True, True, False, True], [False, True, True, True, True]])
        assert losses.hardest(values, where, 2).tolist() == [
            [False, True, False, False, True],
            [False, True, True, False, False],
        ]
        wanted = torch.tensor([1, 0])
        assert losses.hardest(values, where, 4, wanted).tolist() == [[False, False, False, False, True], [False] * 5]
        assert losses.hardest(values, where, 9).sum(1).tolist() == [4, 3]
        assert losses.hardest(values[:, :0], where[:, :0], 9).shape == (2, 0)

    def test_inside(self):
        anchors = torch.tensor([[0.0, 0, 10, 20], [-1.0, 0, 5, 5], [0.0, 0, 11, 20], [0.0, 0, 10, 21]])
        assert inside(anchors, (20, 10), 0).tolist() == [True, False, False, False]
        assert inside(anchors, (20, 10), 1).all()

    def test_landmarks_of_nobody(self):
        truth = truth_of([(0.0, 0, 16, 16)])
        anchors, index = torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([[0]])
        term = losses.landmark_term(torch.zeros(1, 1, 10), anchors, truth, index, 0.1, 1.0)
        assert term == 0


# --- a training step on a GPU ----------------------------------------------------------------------------------------


def single_shot_step(name, device):
    """A fresh network, and what computes its loss on images with faces of all sizes."""
    model = build(name).to(device)
    pictures = torch.randn(2, 3, 384, 384, generator=torch.Generator().manual_seed(0)).to(device)
    truth = GroundTruth(*(x if x is None else x.to(device) for x in TestNetworks.TRUTH))
    return model, lambda: model.loss(model(pictures), truth)


def mtcnn_step(net, device):
    """The same for one of MTCNN's networks, on crops of its size."""
    torch.manual_seed(0)
    model = MTCNN().train()
    network = (getattr(model, net) if net == "onet" else WithLandmarks(getattr(model, net))).to(device)
    side = {"pnet": 12, "rnet": 24, "onet": 48}[net]
    pictures = torch.randn(40, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    truth = CropTruth(*(x.to(device) for x in crops(40)[1]))
    return network, lambda: model.loss(net, network(pictures), truth)


SINGLE_SHOT = [name for name in list_models() if name != "mtcnn"]


@pytest.mark.cuda
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("trained", [*SINGLE_SHOT, "pnet", "rnet", "onet"])
def test_a_training_step_never_synchronises(trained, autocast, cuda):
    network, loss = (single_shot_step if trained in SINGLE_SHOT else mtcnn_step)(trained, cuda)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-5)

    def step():
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            terms = loss()
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        return terms

    step()  # anchors of a size are copied to the device once
    torch.cuda.set_sync_debug_mode("error")
    try:
        terms = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value.isfinite() for value in terms.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
