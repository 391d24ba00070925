"""CUDA graphs of the forward pass, one for each shape that steps are padded to.

Problem. A step of a 28-layer model is about 270 launches of 12 µs of host time each on the machine
that we measure on: 3 ms for work that takes the GPU 0.5 ms.

Choice. The first step of a shape runs launch by launch, which compiles what is not compiled yet,
and is captured right behind; from the second on it is one launch. All graphs share one memory pool:
they run one after another, and what a graph leaves for the next step (tokens, keys, values, tables)
lies outside it. Its logits are good until the next replay.

Rejected: torch.cuda.graph, whose entry collects garbage, empties the allocator's cache and waits
for the device: 0.1 s at a time when others wait for tokens. Capturing the draw as well: it would
double the number of graphs for 20 µs a step that overlap with the step before.

Price: a graph of 300 nodes takes 10 to 30 ms to capture and some megabytes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.cuda.layout import Shape

Forward = Callable[[Shape], Tensor]


class Graphs:
    """Runs a forward pass by shape. Owned by one runner, used on its stream only."""

    def __init__(self, forward: Forward, device: torch.device, *, enabled: bool) -> None:
        self._forward = forward
        self._device = device
        self._enabled = enabled
        self._captured: dict[Shape, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle() if enabled else None

    def run(self, shape: Shape) -> Tensor:
        """Logits of a step whose block has been uploaded."""
        known = self._captured.get(shape)
        if known is not None:
            known[0].replay()
            return known[1]
        logits = self._forward(shape)
        if self._enabled and shape.small:
            try:
                self.capture(shape)
            except torch.OutOfMemoryError:  # it is faster with a graph, and right without
                self._enabled = False
        return logits

    def capture(self, shape: Shape) -> None:
        """Record the shape's launches; nothing runs. It must have run once."""
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            logits = self._forward(shape)
        finally:
            graph.capture_end()
        self._captured[shape] = (graph, logits)

    def __contains__(self, shape: Shape) -> bool:
        return shape in self._captured

    def forget(self) -> None:
        """Give all graphs and their memory back."""
        self._captured.clear()
