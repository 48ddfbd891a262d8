"""CUDA graphs: a chain of kernels is captured once per shape, then started by one call."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_one_capture = threading.Lock()  # torch captures one graph at a time in a process


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    free: torch.cuda.Event  # recorded once the outputs have been copied, on whatever stream
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class CudaGraphs:
    """A cache of CUDA graphs: one per function, input shapes and options.

    A graph holds the memory of its intermediate results, so only the last few are kept. Threads may share the cache,
    each on its own stream.

    Args:
        limit: Largest number of graphs; the least recently used one is dropped first.
    """

    def __init__(self, limit: int = 8) -> None:
        self.limit = limit
        self._graphs: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._lock = threading.Lock()  # a graph has one set of inputs and outputs

    def __call__(
        self, function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...], options: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Returns copies of the results of function(*inputs, **options); all inputs must be on one CUDA device.

        Args:
            function: Launches kernels on the current stream without synchronising, the same ones in every call.
            inputs: Tensors, which are copied into the graph's own.
            options: Hashable values.
        """
        key = (function, tuple((t.shape, t.stride(), t.dtype, t.device) for t in inputs), tuple(options.items()))
        with self._lock, torch.cuda.device(inputs[0].device):
            captured = self._graphs.get(key)
            if captured is None:
                while len(self._graphs) >= self.limit:
                    self._graphs.popitem(last=False)
                captured = self._graphs[key] = _capture(function, inputs, options)
            self._graphs.move_to_end(key)
            captured.free.wait()
            for own, given in zip(captured.inputs, inputs, strict=True):
                own.copy_(given)
            captured.graph.replay()
            outputs = tuple(output.clone() for output in captured.outputs)
            captured.free.record()
            return outputs

    def __reduce__(self) -> tuple[type[CudaGraphs], tuple[int]]:
        return CudaGraphs, (self.limit,)  # graphs exist in one process only


def _capture(
    function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...], options: dict[str, Any]
) -> _Captured:
    own = tuple(given.clone() for given in inputs)
    # Warm up on a side stream: libraries choose algorithms and allocate workspace in their first calls.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(*own, **options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads may keep running, for instance to copy images: only this thread's calls are restricted. By default
    # torch captures on one stream of the process, which may be another GPU's.
    with _one_capture, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        outputs = tuple(function(*own, **options))
    return _Captured(graph, torch.cuda.Event(), own, outputs)
