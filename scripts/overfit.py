"""Trains a detector on four images until it finds their faces: a minimal check that a loss works.

    python scripts/overfit.py s3fd_vgg16 --data faces/train --device cuda

The images are taken from a data folder: `images/`, with `bbx_gt.txt` beside it in WIDER FACE's format. The weights are
discarded. tests/models/test_overfit.py does the same with the lite detectors. At --size, faces should have sizes that
the network can find: 40 px and more for densebox_vgg19, which never enlarges an image here.
"""

import argparse
import math
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from pyface import FaceDetector, ops
from pyface.data.folder import read_folder
from pyface.evaluation.average_precision import box_iou
from pyface.io.images import read_image
from pyface.models import create_model
from pyface.models.base import GroundTruth
from pyface.models.inference import InferenceOptions
from pyface.models.single_shot import SingleShot
from pyface.models.views import View, scale_for, whole

FILES = ("tr_ilc_00077.jpg", "tr_ilc_00247.jpg", "tr_ilc_00457.jpg", "tr_ilc_00491.jpg")  # eleven clear faces


def main() -> int:
    arguments = parse()
    torch.manual_seed(0)
    try:
        model = create_model(arguments.model, weights=None)
        images, boxes = read(arguments.data, arguments.files)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    if not model.trains_on_images:
        sys.exit(f"{arguments.model} does not train on whole images")
    model.to(arguments.device)
    start = time.perf_counter()
    terms_of = train(model, images, boxes, arguments.size, arguments.steps, arguments.rate, arguments.bf16)
    for step, terms in enumerate(terms_of, 1):
        if step == 1 or step % 20 == 0:
            values = ", ".join(f"{name} {value:.4f}" for name, value in terms.items())
            print(f"step {step}, {time.perf_counter() - start:.0f} s: {values}", flush=True)
    found, wrong = count_found(model, images, boxes, arguments.size)
    print(f"{found} of {sum(map(len, boxes))} faces found, {wrong} boxes that are none")
    return 0 if found == sum(map(len, boxes)) and wrong == 0 else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a name from pyface.list_models()")
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and bbx_gt.txt")
    parser.add_argument("--files", nargs="+", default=FILES, help="names in images/")
    parser.add_argument("--size", type=int, default=320, help="longer side of the images")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--bf16", action="store_true", help="mixed precision, faster where the hardware knows it")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    if arguments.steps < 20:
        parser.error(f"--steps must be 20 or more, since the rate rises in a tenth of them, got {arguments.steps}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here; leave out --device cuda")
    return arguments


def read(folder: Path, files: tuple[str, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Reads images, uint8 RGB [H, W, 3], and their faces, float32 [N, 4] as (x1, y1, x2, y2)."""
    known = {picture.path.name: picture for picture in read_folder(folder)}
    missing = [name for name in files if name not in known]
    if missing:
        sys.exit(f"{folder} holds no {', '.join(missing)}")
    pictures = [known[name] for name in files]
    for picture in pictures:
        if len(picture.ignore):
            sys.exit(f"{picture.path} has boxes to ignore; take another image")
    images = [torch.from_numpy(read_image(picture.path)) for picture in pictures]
    return images, [torch.from_numpy(picture.faces) for picture in pictures]


def train(
    model: SingleShot,
    images: list[Tensor],
    boxes: list[Tensor],
    size: int,
    steps: int,
    rate: float,
    bf16: bool = False,
):
    """Trains on the same batch of all images in every step, and yields the loss terms of each step."""
    batches = views_of(model, images, boxes, size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4)
    # The rate rises over a tenth of the steps and falls to 0 over the rest, so that the running averages of
    # normalisation catch up.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        if step == steps * 2 // 3:
            freeze_statistics(model)
        terms = defaultdict(float)
        for batch, truth in batches:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                parts = model.loss(model(batch), truth, seed=step)
            for name, value in parts.items():
                terms[name] += value
        optimizer.zero_grad()
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        yield {name: value.item() for name, value in terms.items()}
    model.eval()


def freeze_statistics(model: SingleShot) -> None:
    """Makes layers normalise by their running averages, as in detection, where views of all sizes share them."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()


def views_of(
    model: SingleShot, images: list[Tensor], boxes: list[Tensor], size: int
) -> list[tuple[Tensor, GroundTruth]]:
    """One batch of all images for each view that the detector runs on (DenseBox has a pyramid of views)."""
    plans = []
    for k, image in enumerate(images):
        view = whole(k, *image.shape[:2], scale_for(size, *image.shape[:2]))
        plans.append(model.plan(view, InferenceOptions(size=size)))
    return [batch_of(model, views, images, boxes) for views in zip(*plans, strict=False)]


def batch_of(
    model: SingleShot, views: tuple[View, ...], images: list[Tensor], boxes: list[Tensor]
) -> tuple[Tensor, GroundTruth]:
    """Preprocessed images [B, 3, H, W], and their faces in input pixels."""
    height, width = (math.ceil(max(sides) / 32) * 32 for sides in zip(*(view.content for view in views), strict=True))
    means, stds = model.preprocessing.mean, model.preprocessing.std
    batch, _ = ops.letterbox(images, (height, width), scales=[view.scale for view in views], mean=means, std=stds)
    batch = batch.flip(1) if model.preprocessing.bgr else batch
    scaled = torch.cat([faces * view.scale for faces, view in zip(boxes, views, strict=True)])
    splits = torch.tensor([0, *map(len, boxes)]).cumsum(0)
    return batch.to(model.device), GroundTruth(scaled.to(model.device), splits.to(model.device))


def count_found(model: SingleShot, images: list[Tensor], boxes: list[Tensor], size: int) -> tuple[int, int]:
    """Counts the faces found (IoU >= 0.5) and the detections that match no face, among scores > 0.5."""
    detector = FaceDetector(model, device=model.device, size=size, score_threshold=0.5)
    found = wrong = 0
    for image, faces in zip(images, boxes, strict=True):
        is_hit = box_iou(faces.numpy(), detector(image.numpy()).boxes.numpy()) >= 0.5
        found += int(is_hit.any(1).sum())
        wrong += int((~is_hit.any(0)).sum())
    return found, wrong


if __name__ == "__main__":
    sys.exit(main())
