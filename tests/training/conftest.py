"""What the training tests share: a small data folder."""

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A data folder of six noisy images, with a bright disc for a face, two of them without; landmarks for some."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    rows, points = [], []
    for k in range(6):
        height, width = 120 + 10 * k, 200 - 10 * k
        picture = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
        boxes = []
        for _ in range(0 if k >= 4 else k + 1):
            side = int(rng.integers(20, 60))
            x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
            cv2.circle(picture, (x + side // 2, y + side // 2), side // 2, (200, 220, 250), -1)
            boxes.append((x, y, side, side))
        cv2.imwrite(str(folder / "images" / f"{k}.png"), picture)
        rows += [f"{k}.png", str(len(boxes))]
        rows += [f"{x} {y} {w} {h} 0 0 0 {int(k == 3 and i == 0)} 0 0" for i, (x, y, w, h) in enumerate(boxes)]
        rows += ["0 0 0 0 0 0 0 0 0 0"] if not boxes else []
        points.append(f"# {k}.png")
        for x, y, w, h in boxes if k < 3 else []:
            five = [(0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8)]
            points.append(f"{x} {y} {w} {h} " + " ".join(f"{x + a * w} {y + b * h} 0" for a, b in five) + " 0.5")
    (folder / "bbx_gt.txt").write_text("\n".join(rows) + "\n")
    (folder / "landmarks.txt").write_text("\n".join(points) + "\n")
    return folder
