"""The compiled module (csrc/bindings.cpp); pyface/ops/extension.py is its only user.

Written by scripts/make_stub.py.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

version: str
source_hash: str
compiler: str
cuda_compiler: str
cuda_archs: str
simd: str
has_cuda: bool

class _Cpu(ModuleType):
    def nms(
        self,
        boxes: Tensor,
        scores: Tensor,
        classes: Tensor | None,
        counts: Tensor | None,
        batch: int,
        n: int,
        iou_threshold: float,
        score_threshold: float,
        overlap: int,
        max_detections: int,
        keep: Tensor,
        keep_count: Tensor,
        threads: int,
        /,
    ) -> None: ...
    def soft_nms(
        self,
        boxes: Tensor,
        scores: Tensor,
        n: int,
        method: int,
        iou_threshold: float,
        sigma: float,
        score_threshold: float,
        overlap: int,
        keep: Tensor,
        kept_scores: Tensor,
        keep_count: Tensor,
        threads: int,
        /,
    ) -> None: ...
    def box_voting(
        self,
        boxes: Tensor,
        scores: Tensor,
        n: int,
        iou_threshold: float,
        overlap: int,
        drop_singletons: bool,
        voted_boxes: Tensor,
        voted_scores: Tensor,
        voted_count: Tensor,
        threads: int,
        /,
    ) -> None: ...
    def letterbox(
        self,
        images: Sequence[Tensor],
        scales: Sequence[float],
        num_images: int,
        out_h: int,
        out_w: int,
        interpolation: int,
        normalization: Sequence[object],
        out: Tensor,
        threads: int,
        /,
    ) -> None: ...
    def crop_resize(
        self,
        images: Sequence[Tensor],
        num_images: int,
        boxes: Tensor,
        image_index: Tensor,
        n: int,
        out_h: int,
        out_w: int,
        interpolation: int,
        normalization: Sequence[object],
        out: Tensor,
        threads: int,
        /,
    ) -> None: ...
    def pnet(
        self,
        images: Tensor,
        batch: int,
        height: int,
        width: int,
        weights: Sequence[object],
        out: Tensor,
        threads: int,
        /,
    ) -> None: ...
    def convnet(
        self,
        crops: Tensor,
        n: int,
        channels: int,
        size: int,
        layers: Sequence[Sequence[object]],
        num_layers: int,
        features: Tensor,
        out: int,
        side: int,
        threads: int,
        /,
    ) -> None: ...
    def maxout_background(
        self,
        logits: Tensor,
        dtype: torch.dtype,
        batch: int,
        channels: int,
        height: int,
        width: int,
        num_background: int,
        out: Tensor,
        threads: int,
        /,
    ) -> None: ...
    def maxout_background_backward(
        self,
        logits: Tensor,
        gradient: Tensor,
        dtype: torch.dtype,
        batch: int,
        channels: int,
        height: int,
        width: int,
        num_background: int,
        out: Tensor,
        threads: int,
        /,
    ) -> None: ...
    def face_probability(
        self,
        logits: Tensor,
        dtype: torch.dtype,
        batch: int,
        height: int,
        width: int,
        num_background: int,
        out: Tensor,
        threads: int,
        /,
    ) -> None: ...
    def decode_anchors(
        self,
        levels: Sequence[Sequence[object]],
        num_levels: int,
        dtype: torch.dtype,
        batch: int,
        decoding: Sequence[object],
        out: Sequence[object],
        threads: int,
        /,
    ) -> None: ...
    def assign_anchors(
        self,
        anchors: Tensor,
        anchor_stride: int,
        num_anchors: int,
        boxes: Tensor,
        num_boxes: int,
        ignore: Tensor | None,
        splits: Tensor,
        batch: int,
        valid: Tensor | None,
        valid_stride: int,
        matching: Sequence[object],
        index: Tensor,
        overlap: Tensor,
        threads: int,
        /,
    ) -> None: ...
    def hard_negatives(
        self,
        losses: Tensor,
        index: Tensor,
        batch: int,
        n: int,
        ratio: float,
        minimum: int,
        selected: Tensor,
        threads: int,
        /,
    ) -> None: ...
    def balanced_sample(
        self,
        losses: Tensor,
        index: Tensor,
        batch: int,
        n: int,
        ratio: float,
        hard_fraction: float,
        minimum: int,
        seed: int,
        selected: Tensor,
        threads: int,
        /,
    ) -> None: ...
    def online_hard(
        self, losses: Tensor, valid: Tensor | None, n: int, keep: float, selected: Tensor, threads: int, /
    ) -> None: ...
    def decode_densebox(
        self,
        scores: Tensor,
        offsets: Tensor,
        dtype: torch.dtype,
        batch: int,
        grid: Sequence[object],
        score_threshold: float,
        decoding: Sequence[object],
        out: Sequence[object],
        threads: int,
        /,
    ) -> None: ...
    def densebox_targets(
        self,
        boxes: Tensor,
        num_boxes: int,
        ignore: Tensor | None,
        splits: Tensor,
        batch: int,
        landmarks: Tensor | None,
        num_landmarks: int,
        grid: Sequence[object],
        targets: Sequence[object],
        label: Tensor,
        offsets: Tensor,
        landmark_label: Tensor,
        threads: int,
        /,
    ) -> None: ...

class _Cuda(ModuleType):
    def nms_workspace(self, batch: int, n: int, /) -> int: ...
    def nms(
        self,
        boxes: Tensor,
        scores: Tensor,
        classes: Tensor | None,
        counts: Tensor | None,
        batch: int,
        n: int,
        iou_threshold: float,
        score_threshold: float,
        overlap: int,
        max_detections: int,
        keep: Tensor,
        keep_count: Tensor,
        workspace: int,
        workspace_bytes: int,
        device: int,
        stream: int,
        /,
    ) -> int: ...
    def soft_nms_workspace(self, n: int, /) -> int: ...
    def soft_nms(
        self,
        boxes: Tensor,
        scores: Tensor,
        n: int,
        method: int,
        iou_threshold: float,
        sigma: float,
        score_threshold: float,
        overlap: int,
        keep: Tensor,
        kept_scores: Tensor,
        keep_count: Tensor,
        workspace: int,
        workspace_bytes: int,
        device: int,
        stream: int,
        /,
    ) -> int: ...
    def box_voting_workspace(self, n: int, /) -> int: ...
    def box_voting(
        self,
        boxes: Tensor,
        scores: Tensor,
        n: int,
        iou_threshold: float,
        overlap: int,
        drop_singletons: bool,
        voted_boxes: Tensor,
        voted_scores: Tensor,
        voted_count: Tensor,
        workspace: int,
        workspace_bytes: int,
        device: int,
        stream: int,
        /,
    ) -> int: ...
    def letterbox(
        self,
        images: Sequence[Tensor],
        scales: Sequence[float],
        num_images: int,
        out_h: int,
        out_w: int,
        interpolation: int,
        normalization: Sequence[object],
        out: Tensor,
        device: int,
        stream: int,
        /,
    ) -> int: ...
    def crop_resize(
        self,
        images: Sequence[Tensor],
        num_images: int,
        boxes: Tensor,
        image_index: Tensor,
        n: int,
        out_h: int,
        out_w: int,
        interpolation: int,
        normalization: Sequence[object],
        out: Tensor,
        device: int,
        stream: int,
        /,
    ) -> int: ...
    def maxout_background(
        self,
        logits: Tensor,
        dtype: torch.dtype,
        batch: int,
        channels: int,
        height: int,
        width: int,
        num_background: int,
        out: Tensor,
        device: int,
        stream: int,
        /,
    ) -> int: ...
    def maxout_background_backward(
        self,
        logits: Tensor,
        gradient: Tensor,
        dtype: torch.dtype,
        batch: int,
        channels: int,
        height: int,
        width: int,
        num_background: int,
        out: Tensor,
        device: int,
        stream: int,
        /,
    ) -> int: ...
    def face_probability(
        self,
        logits: Tensor,
        dtype: torch.dtype,
        batch: int,
        height: int,
        width: int,
        num_background: int,
        out: Tensor,
        device: int,
        stream: int,
        /,
    ) -> int: ...
    def decode_anchors_workspace(self, batch: int, num_anchors: int, max_candidates: int, /) -> int: ...
    def decode_anchors(
        self,
        levels: Sequence[Sequence[object]],
        num_levels: int,
        dtype: torch.dtype,
        batch: int,
        decoding: Sequence[object],
        out: Sequence[object],
        workspace: int,
        workspace_bytes: int,
        device: int,
        stream: int,
        /,
    ) -> int: ...
    def assign_anchors_workspace(self, batch: int, num_anchors: int, num_boxes: int, /) -> int: ...
    def assign_anchors(
        self,
        anchors: Tensor,
        anchor_stride: int,
        num_anchors: int,
        boxes: Tensor,
        num_boxes: int,
        ignore: Tensor | None,
        splits: Tensor,
        batch: int,
        valid: Tensor | None,
        valid_stride: int,
        matching: Sequence[object],
        index: Tensor,
        overlap: Tensor,
        workspace: int,
        workspace_bytes: int,
        device: int,
        stream: int,
        /,
    ) -> int: ...
    def hard_negatives_workspace(self, batch: int, n: int, /) -> int: ...
    def hard_negatives(
        self,
        losses: Tensor,
        index: Tensor,
        batch: int,
        n: int,
        ratio: float,
        minimum: int,
        selected: Tensor,
        workspace: int,
        workspace_bytes: int,
        device: int,
        stream: int,
        /,
    ) -> int: ...
    def balanced_sample_workspace(self, batch: int, n: int, /) -> int: ...
    def balanced_sample(
        self,
        losses: Tensor,
        index: Tensor,
        batch: int,
        n: int,
        ratio: float,
        hard_fraction: float,
        minimum: int,
        seed: int,
        selected: Tensor,
        workspace: int,
        workspace_bytes: int,
        device: int,
        stream: int,
        /,
    ) -> int: ...
    def online_hard_workspace(self, n: int, /) -> int: ...
    def online_hard(
        self,
        losses: Tensor,
        valid: Tensor | None,
        n: int,
        keep: float,
        selected: Tensor,
        workspace: int,
        workspace_bytes: int,
        device: int,
        stream: int,
        /,
    ) -> int: ...
    def decode_densebox_workspace(self, batch: int, num_cells: int, max_candidates: int, /) -> int: ...
    def decode_densebox(
        self,
        scores: Tensor,
        offsets: Tensor,
        dtype: torch.dtype,
        batch: int,
        grid: Sequence[object],
        score_threshold: float,
        decoding: Sequence[object],
        out: Sequence[object],
        workspace: int,
        workspace_bytes: int,
        device: int,
        stream: int,
        /,
    ) -> int: ...
    def densebox_targets_workspace(self, batch: int, num_landmarks: int, height: int, width: int, /) -> int: ...
    def densebox_targets(
        self,
        boxes: Tensor,
        num_boxes: int,
        ignore: Tensor | None,
        splits: Tensor,
        batch: int,
        landmarks: Tensor | None,
        num_landmarks: int,
        grid: Sequence[object],
        targets: Sequence[object],
        label: Tensor,
        offsets: Tensor,
        landmark_label: Tensor,
        workspace: int,
        workspace_bytes: int,
        device: int,
        stream: int,
        /,
    ) -> int: ...
    def error_string(self, status: int, /) -> str: ...
    def runtime_version(self, /) -> int: ...
    def driver_version(self, /) -> int: ...

cpu: _Cpu
cuda: _Cuda  # where the build has CUDA
