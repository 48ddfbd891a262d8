"""Training samples: crops, faces and pixels agree, and depend on the seed and their number alone."""

import shutil

import numpy as np
import pytest
import torch

from pyface.data.folder import read_folder
from pyface.training import album as album_module
from pyface.training.album import Album, read, split
from pyface.training.crop_rules import octaves
from pyface.training.recipes import Recipe
from pyface.training.samples import Crop, Faces, Samples, colours, hue, in_crop, render, rotated

RECIPE = Recipe(size=96, batch_size=8, mosaic=0.4, cut_out=0.5, rotation=0.5)


@pytest.fixture(scope="module")
def album(data):
    return Album(split([str(data)], [])[0], keep=True)


def samples(album, recipe=RECIPE, **options):
    return Samples(album, recipe, octaves, seed=3, **({"first": 0, "count": 5} | options))


def same(a, b):
    tensors = zip([*a[:3], *a[5:8], *a.truth], [*b[:3], *b[5:8], *b.truth], strict=True)
    return (a.mosaics, a.size) == (b.mosaics, b.size) and all(torch.allclose(x, y, equal_nan=True) for x, y in tensors)


def test_a_sample_depends_on_its_number_alone(album):
    all_of_it = samples(album)
    late = samples(album, first=3, count=2)
    assert same(all_of_it[3], late[0])
    assert same(all_of_it[4], late[1])
    assert not same(all_of_it[3], all_of_it[4])
    with pytest.raises(IndexError):
        late[2]


def test_ranks_share_what_one_would_take(album):
    def faces(batch):
        return sorted(map(tuple, batch.truth.boxes.tolist()))

    half = Recipe(**{**vars(RECIPE), "batch_size": 4})
    parts = [samples(album, half, rank=rank, world=2)[1] for rank in range(2)]
    assert sorted(faces(parts[0]) + faces(parts[1])) == faces(samples(album)[1])


def test_an_epoch_takes_every_image_once(album):
    one = Samples(album, Recipe(size=96, batch_size=len(album)), octaves, 0, first=2, count=1)
    assert sorted(one[0].pictures.tolist()) == list(range(len(album)))


def test_streamed_images_give_the_same_pixels(album):
    streamed = Album(album.pictures, keep=False)
    a, b = samples(album)[1], samples(streamed)[1]
    assert b.pixels is not None
    assert torch.equal(a.truth.boxes, b.truth.boxes)
    # To the last bit, or how much memory is free would change the weights of a repeated run.
    assert torch.equal(render(a, album.images), render(b, b.pixels))


def test_faces_lie_where_the_discs_are(album):
    """The images' faces are bright discs: boxes and pixels move alike, also when mirrored, rotated or in mosaics."""
    plain = Recipe(size=96, batch_size=16, mosaic=0.3, rotation=0.7, photometric=0.0, smallest_face=12)
    seen = 0
    for batch in (samples(album, plain)[k] for k in range(5)):
        pixels = render(batch, album.images).mean(1)
        for b, image in enumerate(pixels):
            own = slice(batch.truth.splits[b], batch.truth.splits[b + 1])
            for box, ignore in zip(batch.truth.boxes[own], batch.truth.ignore[own], strict=True):
                if ignore:
                    continue
                x, y = ((box[:2] + box[2:]) / 2).long().tolist()
                assert image[min(y, 95), min(x, 95)] > 150
                seen += 1
    assert seen > 20


def test_mosaics_are_four_crops(album):
    batch = samples(album, Recipe(size=96, batch_size=4, mosaic=1.0))[0]
    assert batch.mosaics == 4
    assert len(batch.crops) == 16
    whole = render(batch, album.images)
    alone = render(
        batch._replace(pictures=batch.pictures[:1], crops=batch.crops[:1], mirrored=batch.mirrored[:1], mosaics=0,
                       size=48, angles=batch.angles[:1], colours=batch.colours[:1], cuts=batch.cuts[:0]), album.images,
    )  # fmt: skip
    torch.testing.assert_close(whole[0, :, :48, :48], alone[0])


def test_a_quarter_turn_is_exact(album):
    """Pixels turn as by `torch.rot90`, boxes and landmarks with them."""
    batch = samples(album, Recipe(size=96, batch_size=6, photometric=0.0))[0]
    turned = render(batch._replace(angles=torch.full((6,), 90.0)), album.images)
    torch.testing.assert_close(turned, render(batch, album.images).rot90(-1, (2, 3)), rtol=0, atol=1e-2)
    faces = Faces(np.array([[10, 20, 30, 60]], np.float32), np.zeros(1, bool), np.full((1, 5, 2), [12, 25], np.float32))
    found = rotated(faces, 90, 96, smallest=6)
    assert found.boxes[0] == pytest.approx([36, 10, 76, 30])  # (x, y) -> (96 - y, x)
    assert found.landmarks[0, 0] == pytest.approx([71, 12])


def test_rotated_faces_at_the_edges():
    """A box bounds the rotated ellipse of the box before; boxes across the edge are clipped, ignored or left out."""
    boxes = np.array([[40, 40, 60, 60], [80, 40, 100, 60], [90, 0, 100, 10], [44, 50, 56, 51]], np.float32)
    faces = Faces(boxes, np.zeros(4, bool), np.full((4, 5, 2), np.nan, np.float32))
    found = rotated(faces, 45, 100, smallest=6)
    assert found.boxes[0] == pytest.approx([40, 40, 60, 60])  # a circle stays one
    x = 50 + 40 / np.sqrt(2)
    assert found.boxes[1] == pytest.approx([x - 10, x - 10, x + 10, x + 10])
    assert len(found.boxes) == 3  # the corner is outside
    assert found.ignore.tolist() == [False, False, False]
    assert found.boxes[2][2] - found.boxes[2][0] == pytest.approx(np.sqrt((12**2 + 1) / 2))


def test_in_crop_clips_ignores_and_leaves_out():
    boxes = np.array([[10, 10, 30, 30], [-30, 10, 6, 30], [25, 25, 45, 55], [60, 60, 70, 70], [12, 12, 13, 13]])
    points = np.stack([boxes[:, :2] + 0.5 * (boxes[:, 2:] - boxes[:, :2])] * 5, 1)
    faces = Faces(boxes.astype(np.float32), np.zeros(5, bool), points.astype(np.float32))
    found = in_crop(faces, Crop(0, 0, 0, 40, False), size=80, smallest=6)
    # Inside; with its centre outside; cut but with its centre inside; (wholly outside: left out); too small.
    assert found.boxes.tolist() == [[20, 20, 60, 60], [0, 20, 12, 60], [50, 50, 80, 80], [24, 24, 26, 26]]
    assert found.ignore.tolist() == [False, True, True, True]
    mirrored = in_crop(faces, Crop(0, 0, 0, 40, True), size=80, smallest=6)
    assert mirrored.boxes[0].tolist() == [20, 20, 60, 60]
    assert mirrored.boxes[2].tolist() == [0, 50, 30, 80]


def test_mirrored_landmarks_change_sides():
    points = np.array([[[2, 4], [8, 4], [5, 6], [3, 8], [7, 8]]], np.float32)
    faces = Faces(np.array([[0, 0, 10, 10]], np.float32), np.zeros(1, bool), points)
    found = in_crop(faces, Crop(0, 0, 0, 20, True), size=20, smallest=1)
    assert found.boxes.tolist() == [[10, 0, 20, 10]]
    assert found.landmarks[0].tolist() == [[12, 4], [18, 4], [15, 6], [13, 8], [17, 8]]


def test_colours():
    rng = np.random.default_rng(0)
    assert (colours(rng, 0.0) == np.eye(3, 4)).all()
    grey = np.array([90.0, 90, 90, 1])
    matrices = np.stack([colours(rng, 1.0) for _ in range(200)])
    greys = matrices @ grey
    assert np.abs(greys - greys.mean(1, keepdims=True)).max() < 1e-3  # greys stay grey
    assert greys.min() < 60
    assert greys.max() > 120
    assert hue(120) @ [1.0, 0, 0] == pytest.approx(hue(-240) @ [1.0, 0, 0])
    assert sorted(hue(120) @ [1.0, 0, 0]) == pytest.approx([0, 0, 1])


def test_cut_outs_cover_parts_of_faces(album):
    plain = Recipe(size=96, batch_size=8, photometric=0.0)
    cut = Recipe(size=96, batch_size=8, photometric=0.0, cut_out=1.0)
    a, b = samples(album, plain)[0], samples(album, cut)[0]
    before, after = render(a, album.images), render(b, album.images)
    assert len(b.cuts) > 0
    changed = (before != after).any(1)
    inside = torch.zeros_like(changed)
    for k, x1, y1, x2, y2, _ in b.cuts.tolist():
        inside[int(k), round(y1) : round(y2), round(x1) : round(x2)] = True
    assert changed.any()
    assert not (changed & ~inside).any()


def test_held_out_images(data):
    learned, held = split([str(data), str(data)], ["1.png"])
    assert [picture.path.name for picture in held] == ["1.png"]
    assert len(learned) == 10
    with pytest.raises(ValueError, match=r"held-out images must be in the data folders, got 9\.png"):
        split([str(data)], ["9.png"])


def test_held_out_images_of_one_name_are_told_apart(data, tmp_path):
    for name in "ab":
        shutil.copytree(data, tmp_path / name)
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    with pytest.raises(
        ValueError, match=r"1\.png, which could be .*a/images/1\.png and .*b/images/1\.png; write it with"
    ):
        split(folders, ["1.png"])
    learned, held = split(folders, ["b/images/1.png"])
    assert [picture.path for picture in held] == [tmp_path / "b" / "images" / "1.png"]
    assert len(learned) == 11


def test_an_image_of_a_folder_that_is_named_twice_is_kept_once(data):
    album = Album(read_folder(data) * 2, keep=True)
    assert len(album) == 12
    assert album[1] is album[7]
    assert album.sizes == [tuple(image.shape[:2]) for image in album.images]


def test_boxes_that_show_nothing_are_left_out(data):
    first = read_folder(data)[0]
    boxes = [[10, 10, 40, 40], [-50, 10, -5, 40], [190, 100, 290, 200], [200, 10, 240, 40], [30, 30, 30, 60]]
    landmarks = np.arange(50, dtype=np.float32).reshape(5, 5, 2)
    hostile = first._replace(faces=np.array(boxes, np.float32), ignore=np.array(boxes, np.float32), landmarks=landmarks)
    (kept,) = Album([hostile], keep=False).pictures  # 200 x 120
    assert kept.faces.tolist() == kept.ignore.tolist() == [boxes[0], boxes[2]]
    assert kept.landmarks.tolist() == landmarks[[0, 2]].tolist()


def test_streamed_images_are_decoded_once_per_batch(album, monkeypatch):
    decoded = []
    monkeypatch.setattr(album_module, "read", lambda path: decoded.append(path) or read(path))
    batch = samples(Album(album.pictures, keep=False), Recipe(size=96, batch_size=6, mosaic=1.0))[0]
    assert len(batch.pictures) == 24
    assert len(decoded) == len(set(decoded)) == len(batch.pixels) <= 6


def test_memory_is_shared_out():
    assert 0 < album_module._free_memory("cpu", 4) <= album_module._free_memory("cpu", 1) / 2


def test_a_broken_image_is_named(data, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "bad.jpg").write_bytes(b"no picture")
    pictures = split([str(data), str(tmp_path)], [])[0]
    with pytest.raises(ValueError, match=r"bad\.jpg"):
        Album(pictures)
