"""The emulated device must report each of these known mistakes, put into a copy of the kernels."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pyface import ops

pytestmark = pytest.mark.cuda_host


# --- exercises -------------------------------------------------------------------------------------------------------


def boxes_and_scores(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    corner = torch.rand(n, 2, generator=generator) * 10 * n**0.5
    boxes = torch.cat([corner, corner + 10 + 20 * torch.rand(n, 2, generator=generator)], 1)
    return boxes, torch.rand(n, generator=generator)


def nms():
    return ops.nms(*boxes_and_scores(70), 0.3)


def nms_tiles():
    return ops.nms(*boxes_and_scores(4100), 0.3)


def soft_nms():
    return ops.soft_nms(*boxes_and_scores(70), 0.3)


def box_at_an_odd_place():
    boxes, scores = boxes_and_scores(70)
    shifted = torch.empty(4 * 70 + 1)[1:].view(70, 4).copy_(boxes)
    return ops.soft_nms(shifted, scores, 0.3)


def box_voting():
    boxes, scores = boxes_and_scores(70)
    return ops.box_voting(boxes.round() // 40 * 40 + torch.tensor([0.0, 0, 30, 30]), scores, 0.3)


def box_voting_of_one_cluster():
    boxes, scores = boxes_and_scores(70)
    return ops.box_voting(boxes / 100 + torch.tensor([0.0, 0, 30, 30]), scores, 0.3)


def hard_negatives():
    losses = torch.rand(2, 700, generator=torch.Generator().manual_seed(0))
    return ops.hard_negatives(losses, (torch.arange(1400).view(2, 700) % 9 == 0).int() - 1)


def online_hard():
    return ops.online_hard(torch.rand(70_000, generator=torch.Generator().manual_seed(0)), keep=0.7)


def assign_anchors():
    faces, _ = boxes_and_scores(12)
    anchors, _ = boxes_and_scores(300)
    return ops.assign_anchors(
        anchors, faces, torch.tensor([0, 12]), positive=0.5, negative=0.3, force_best=True, compensate="mean"
    )


def densebox_targets():
    centre = 40 + 160 * torch.rand(4, 2, generator=torch.Generator().manual_seed(0))
    return ops.densebox_targets(torch.cat([centre - 25, centre + 25], 1), torch.tensor([0, 2, 4]), (61, 60))


def decode_densebox():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 1, 20, 30, generator=generator), torch.randn(2, 4, 20, 30, generator=generator)
    return ops.decode_densebox(*maps, score_threshold=0.2, max_candidates=20)


def letterbox():
    images = [torch.full((9, 17, 3), 200, dtype=torch.uint8), torch.full((30, 11, 3), 9, dtype=torch.uint8)]
    return ops.letterbox(images, (12, 16))


def maxout_background():
    return ops.maxout_background(torch.randn(2, 5, 3, 7, generator=torch.Generator().manual_seed(0)), 3)


def face_probability_of_five_images():
    logits = torch.randn(5, 4, 3, 7, generator=torch.Generator().manual_seed(0))
    # Several times, since only some launches have fewer rows of blocks than images.
    return [ops.face_probability(logits, 3) for _ in range(8)][-1]


# --- mistakes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A mistake in place of a source's text, a call that executes it, and the report's words (regular expression)."""

    name: str
    file: str
    text: str
    mistake: str
    exercise: Callable[[], object]
    words: str
    unit: str = ""  # the file that is compiled, where `file` is a header


FAULTS = [
    Fault(
        "a barrier is missing after an atomic",
        "nms.cu",
        "  __syncthreads();\n  const int count = total;",
        "  const int count = total;",
        nms,
        "race: .* shared total",
    ),
    Fault(
        "a barrier is missing after a write",
        "soft_nms.cu",
        "bests[warp_id()] = best;\n    __syncthreads();",
        "bests[warp_id()] = best;",
        soft_nms,
        "warp_best",
    ),
    Fault(
        "a loop runs one too far",
        "box_voting.cu",
        "member < n && cluster",
        "member <= n && cluster",
        box_voting,
        "reads 8 bytes out of bounds: 0 bytes after the end of workspace array",
    ),
    Fault(
        "a mask names lanes that are not there",
        "matching.cu",
        "return __shfl_sync(kWarp, first, leader) + __popc(peers & bits_below(lane_id()));",
        "return has_item ? __shfl_sync(kWarp, first, leader) + __popc(peers & bits_below(lane_id())) : 0;",
        assign_anchors,
        "__shfl_sync|__match_any_sync|__syncthreads",
    ),
    Fault(
        "a histogram is not cleared",
        "select.cuh",
        "i += kThreads) buckets[i] = 0;",
        "i += kThreads) {}",
        hard_negatives,
        "nobody has written",
        unit="mining.cu",
    ),
    Fault(
        "neighbours read what a thread writes",
        "densebox.cu",
        "if (label[cell] == 0 && is_gray",
        "if (label[cell] == 0 && (cell == 0 || label[cell - 1] < 2) && is_gray",
        densebox_targets,
        "race: .* label",
    ),
    Fault(
        "a byte is changed by an atomic",
        "densebox.cu",
        "is_gray(plan, i, tile, reach)) label[cell] = -1;",
        "is_gray(plan, i, tile, reach)) atomicExch(label + cell, -1);",
        densebox_targets,
        "an atomic access to 1 bytes",
    ),
    Fault(
        "an output's bound is one too far",
        "survivors.cuh",
        "slot < end; slot += step",
        "slot <= end; slot += step",
        decode_densebox,
        "race|out of bounds",
        unit="densebox.cu",
    ),
    Fault(
        "a picture is read beyond its last column",
        "resample.cu",
        "fmin(fmax(ceil(high), 0.0), size)",
        "fmin(fmax(ceil(high) + 1.0, 0.0), size + 1.0)",
        letterbox,
        "out of bounds: .* letterbox's images",
    ),
    Fault(
        "a channel is left out",
        "scoring.cu",
        "for (int c = num_background; c < channels; ++c) to.set(1 + c",
        "for (int c = num_background + 1; c < channels; ++c) to.set(1 + c",
        maxout_background,
        "is left unwritten",
    ),
    Fault(
        "an index is read that only boxes with classes have",
        "nms.cu",
        "        // Without classes `indices` may hold nothing.\n",
        "        if (indices[k] == kNone) continue;\n",
        nms_tiles,
        "shared stage_index .* nobody has written",
    ),
    Fault(
        "a flag is set without a release",
        "nms.cu",
        "kept), ::cuda::memory_order_release);",
        "kept), ::cuda::memory_order_relaxed);",
        nms_tiles,
        "race: .* another block",
    ),
    Fault(
        "a flag is read without an acquire",
        "mining.cu",
        "finished.fetch_add(1, ::cuda::memory_order_acq_rel)",
        "finished.fetch_add(1, ::cuda::memory_order_release)",
        online_hard,
        "race: .* workspace array",
    ),
    Fault(
        "a cache is read that does not follow writes",
        "mining.cu",
        "search.buckets[i] = __ldcg(",
        "search.buckets[i] = __ldg(",
        online_hard,
        "by __ldg, which the same launch wrote",
    ),
    Fault(
        "two coordinates are loaded at once",
        "suppress.cuh",
        "  return {b[0], b[1], b[2], b[3]};",
        "  const uint64_t two = *reinterpret_cast<const uint64_t*>(b);\n"
        "  const uint32_t x1 = static_cast<uint32_t>(two), y1 = static_cast<uint32_t>(two >> 32);\n"
        "  return {__uint_as_float(x1), __uint_as_float(y1), b[2], b[3]};",
        box_at_an_odd_place,
        "no multiple of 8",
        unit="soft_nms.cu",
    ),
    Fault(
        "a counter is read before all have added",
        "matching.cu",
        "__ldcg(&faces_[f].matched)));\n    }\n    __syncthreads();",
        "__ldcg(&faces_[f].matched)));\n    }",
        assign_anchors,
        "race: .* shared shared",
    ),
    Fault(
        "threads leave before a barrier",
        "densebox.cu",
        "    CellTarget target;\n",
        "    CellTarget target;\n    if (!tile.is_inside) continue;\n",
        densebox_targets,
        "__syncthreads|__ballot_sync",
    ),
    Fault(
        "a list's size is not cleared",
        "survivors.cuh",
        "return cudaMemsetAsync(count, 0, batch * kMaxLevels * sizeof(uint32_t), stream);",
        "return cudaSuccess;",
        decode_densebox,
        "nobody has written",
        unit="densebox.cu",
    ),
    Fault(
        "a workspace's array is too short",
        "suppress.cuh",
        "workspace.take<float4>(entries)",
        "workspace.take<float4>(entries / 8)",
        nms_tiles,
        "out of bounds: .* workspace array",
        unit="nms.cu",
    ),
    Fault(
        "a range is not cleared",
        "mining.cu",
        "if (const int status = cudaMemsetAsync(range, 0, sizeof(Range), cuda_stream)) return status;",
        "",
        online_hard,
        "nobody has written",
    ),
    Fault(
        "more is written than there is room",
        "survivors.cuh",
        "      if (slot >= max_candidates) return;\n",
        "",
        decode_densebox,
        "race|out of bounds",
        unit="densebox.cu",
    ),
    Fault(
        "lanes read what others wrote without a barrier",
        "nms.cu",
        "(high) << 32 | low;\n    }\n    __syncthreads();",
        "(high) << 32 | low;\n    }",
        nms,
        "shared shared",
    ),
    Fault(
        "lanes read what their warp wrote without a barrier",
        "box_voting.cu",
        "fmaxf(scores[order[at]], 0.f);\n    }\n    __syncwarp();",
        "fmaxf(scores[order[at]], 0.f);\n    }",
        box_voting_of_one_cluster,
        "shared members",
    ),
    Fault(
        "a grid has fewer rows than there are images",
        "scoring.cu",
        "image < pixels.batch; image += gridDim.y",
        "image < gridDim.y; image += gridDim.y",
        face_probability_of_five_images,
        "is left unwritten",
    ),
    Fault(
        "a kernel runs on the default stream",
        "matching.cu",
        "settle_faces<<<static_cast<unsigned>(plan.batch), kImageThreads, 0, stream>>>",
        "settle_faces<<<static_cast<unsigned>(plan.batch), kImageThreads>>>",
        assign_anchors,
        "settle_faces runs on another stream than the caller's",
    ),
    Fault(
        "a memset runs on the default stream",
        "survivors.cuh",
        "sizeof(uint32_t), stream)",
        "sizeof(uint32_t))",
        decode_densebox,
        "cudaMemsetAsync runs on another stream than the caller's",
        unit="densebox.cu",
    ),
    Fault(
        "a launch is not checked",
        "matching.cu",
        "  if (const int status = launch_status(); status || !has_faces) return status;",
        "  if (!has_faces) return cudaSuccess;",
        assign_anchors,
        "nobody has asked whether the launch of match_anchors<true> succeeded",
    ),
    Fault(
        "the caller's device is not made the current one",
        "soft_nms.cu",
        "  const DeviceGuard guard(device);\n  if (guard.status()) return guard.status();\n",
        "",
        soft_nms,
        "soft_nms_kernel runs on device 0, and its arrays are on device 1",
    ),
    Fault(
        "the caller's current device is not restored",
        "common.cuh",
        "    if (changed_) cudaSetDevice(previous_);\n",
        "",
        soft_nms,
        "device 1 is left the current one",
        unit="soft_nms.cu",
    ),
]


def build(fault: Fault, host, gpu, folder: Path):
    """An emulated device whose kernels have a mistake."""
    sources = host.ROOT / "csrc" / "cuda"
    shutil.copytree(sources, folder / "cuda")
    path = folder / "cuda" / fault.file
    text = path.read_text()
    assert text.count(fault.text) == 1, f"{fault.file} no longer has the text of this fault: {fault.name}"
    path.write_text(text.replace(fault.text, fault.mistake))
    host.rewrite(folder / "cuda", folder / "kernels")
    unit = (fault.unit or fault.file).replace(".cu", ".cpp")
    host.build_with(gpu.path.parent, folder / "kernels", unit, folder / "faulty.so")
    return host.Device(folder / "faulty.so")


@pytest.mark.slow
@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.name) for fault in FAULTS])
def test_a_mistake_is_found(fault, emulated_gpu, cuda_host_module, monkeypatch, tmp_path):
    cuda_host_module.use(build(fault, cuda_host_module, emulated_gpu, tmp_path), monkeypatch, fault.name)
    with pytest.raises(cuda_host_module.EmulationError, match=f"(?s){fault.words}"):
        fault.exercise()


EXERCISES = {fault.exercise.__name__: fault.exercise for fault in FAULTS}


@pytest.mark.parametrize("name", EXERCISES)
def test_nothing_is_found_where_nothing_is_wrong(name, emulated_gpu, cuda_host_module, monkeypatch):
    expected = EXERCISES[name]()
    cuda_host_module.use(emulated_gpu, monkeypatch, name)
    found = EXERCISES[name]()
    as_tuples = [(value,) if isinstance(value, torch.Tensor) else tuple(value) for value in (found, expected)]
    torch.testing.assert_close(*as_tuples)
