"""Runs one model's steps on a GPU: fill → upload → forward → draw → copy back, all enqueued.

    host    │ fill k, launch k │ read k−1 │ fill k+1, launch k+1 │ read k │
    GPU     │ … step k−1       │ step k              │ step k+1  │

A step costs the host one block to fill, one copy, one graph launch, one or two kernels that draw,
one copy back and one event: about 0.1 ms, whatever the model. Nothing waits for the device but
`result`, and that waits for the step before the one just launched.

What a step reads of the step before it (tokens drawn, keys and values, block tables) is on the
device and in stream order, so pages may be freed and lent again on the host while a step that reads
them is in flight: whoever writes them next does so in a later step.

A step that runs out of memory while it is enqueued is OutOfMemory: the loop reads the step before,
whose tokens lie in the other half of each buffer, calls `recover`, and tries a smaller one. A step
that fails otherwise takes the requests of its model along (loop.py). `recover` waits for the device
and finds out whether it still computes. A CUDA error other than lack of memory ends the process's
context for good, in which case it says so by RunnerLost, and the engine ends with that reason;
`sluice serve` then becomes another process (gateway/cli.py).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

from engine.cuda.draw import Drawing, Likelihoods, fill_draw, likelihoods
from engine.cuda.fill import Work, fill, samples_of, sort_out
from engine.cuda.graphs import Graphs
from engine.cuda.layout import (
    DECODE,
    Arrays,
    Blocks,
    Shape,
    Step,
    block_bytes,
    shape_for,
    shapes_ahead,
)
from engine.cuda.tables import Tables
from engine.sequence import Chunk, RunnerLost, Sampled, Sequence
from engine.shortage import first_line, telling_shortage


class Model(Protocol):
    """The forward pass (model.py)."""

    def forward(self, step: Step, shape: Shape, tables: Tensor, drawn: Tensor) -> Tensor: ...


class Prefixes(Protocol):
    """Which decode rows read prefixes together (prefixes.py)."""

    def plan(self, rows: list[Sequence]) -> bool: ...

    def forget(self) -> None: ...


class Draw(Protocol):
    """Logits → `tokens` int32 [rows] (draw.py)."""

    def greedy(self, logits: Tensor, tokens: Tensor) -> None: ...

    def draw(self, logits: Tensor, step: Step, drawing: Drawing, tokens: Tensor) -> None: ...


class Launched:
    """A step in flight. Its tokens are on their way to the host."""

    def __init__(
        self,
        tokens: Tensor,
        drawing: Drawing,
        told: Likelihoods | None,
        done: torch.cuda.Event | None,
    ) -> None:
        self._tokens = tokens
        self._drawing = drawing
        self._told = told
        self._done = done

    def ready(self) -> bool:
        return self._done is None or bool(self._done.query())  # type: ignore[no-untyped-call]

    def result(self) -> list[Sampled]:
        if self._done is not None:
            self._done.synchronize()
        tokens = self._tokens.tolist()
        if self._told is None:
            return [Sampled(sequence, tokens[at]) for at, sequence in self._drawing]
        told = self._told.by_sequence()
        return [
            Sampled(sequence, tokens[at], *told.get(sequence, ())) for at, sequence in self._drawing
        ]


class GpuRunner:
    """One model on one device. Called by the engine thread only."""

    depth = 2

    def __init__(
        self,
        model: Model,
        draw: Draw,
        *,
        device: torch.device,
        page_size: int,
        max_tokens: int,
        max_running: int,
        max_pages: int,
        prefixes: Prefixes | None = None,
        graphs: bool = True,
        dense: bool = False,
    ) -> None:
        """`max_tokens`, `max_running`: of one step; `max_pages`: of one sequence; `dense`: a whole
        prompt by itself has a faster way through attention."""
        self._model = model
        self._draw = draw
        self._device = device
        self._page_size = page_size
        self._prefixes = prefixes
        self._dense = dense
        self._tables = Tables(max_running, max_pages, device)
        largest = Shape(DECODE[-1] + max_running, max_tokens + 2048, 2 * max_running + 512)
        self._blocks = Blocks(block_bytes(largest), device)
        self._most = largest.samples
        self._drawn = torch.zeros(2 * self._most, dtype=torch.int32, device=device)
        self._read = torch.zeros(
            2 * self._most, dtype=torch.int32, pin_memory=device.type == "cuda"
        )
        self._drawn_at: dict[Sequence, int] = {}
        self._alive = torch.zeros(1, device=device)
        self._half = 0
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._events = [torch.cuda.Event() if on_gpu else None for _ in range(2)]  # type: ignore[no-untyped-call]
        self._graphs = Graphs(self._forward, device, enabled=graphs and on_gpu)
        ahead = shapes_ahead(max_running, max_tokens, prefixes=prefixes is not None, dense=dense)
        self._ahead = iter(ahead if on_gpu else ())

    def launch(self, chunks: list[Chunk]) -> Launched:
        """Enqueue a step. Raises OutOfMemory, or what the device raises; the sequences are as they
        were, and the step before can be read."""
        with telling_shortage():
            return self._enqueue(chunks)

    @torch.inference_mode()
    def _enqueue(self, chunks: list[Chunk]) -> Launched:
        if self._stream is not None:
            torch.cuda.set_stream(self._stream)
        half = self._half = 1 - self._half
        work = sort_out(chunks)
        prefix = self._prefixes is not None and self._prefixes.plan(work.decode)
        shape = shape_for(
            len(work.decode),
            work.prefill_rows,
            len(work.prompts),
            prefix=prefix,
            alone=self._dense and work.alone,
        )
        arrays = self._blocks.arrays(half, shape)
        self._fill(arrays, shape, work)
        drawing = samples_of(chunks, work, shape)
        plain = fill_draw(arrays, drawing)
        self._blocks.upload(half, shape)
        logits = self._logits(shape)
        return self._finish(logits, shape, drawing, half, plain=plain)

    def _fill(self, arrays: Arrays, shape: Shape, work: Work) -> None:
        fill(
            arrays,
            shape,
            work,
            self._tables,
            page_size=self._page_size,
            drawn_at=self._drawn_at,
        )

    def _logits(self, shape: Shape) -> Tensor:
        with suppress(torch.OutOfMemoryError):
            return self._graphs.run(shape)
        # What the allocator keeps may do. Not in an `except`: its error holds what failed.
        torch.cuda.empty_cache()
        return self._forward(shape)

    def _forward(self, shape: Shape) -> Tensor:
        return self._model.forward(
            self._blocks.step(shape), shape, self._tables.device, self._drawn
        )

    def _finish(
        self, logits: Tensor, shape: Shape, drawing: Drawing, half: int, *, plain: bool
    ) -> Launched:
        """Draw, and send what was drawn to the host."""
        where = slice(half * self._most, half * self._most + shape.samples)
        tokens = self._drawn[where]
        if plain:
            self._draw.greedy(logits, tokens)
        else:
            self._draw.draw(logits, self._blocks.step(shape), drawing, tokens)
        self._drawn_at = {sequence: where.start + at for at, sequence in drawing}
        told = likelihoods(logits, tokens, drawing)
        read = self._read[where]
        read.copy_(tokens, non_blocking=True)
        done = self._events[half]
        if done is not None:
            done.record()
        return Launched(read, drawing, told, done)

    def recover(self) -> None:
        """Forget what was in flight. Raises RunnerLost where the device does not compute any
        more."""
        try:
            if self._stream is not None:
                torch.cuda.synchronize(self._device)
                torch.cuda.empty_cache()
            self._alive.add_(1.0).item()  # takes no memory: there may be none
        except RuntimeError as error:
            raise RunnerLost(
                f"{self._device} does not compute any more ({first_line(error)}); a CUDA error "
                "ends the process's use of the card: restart the server"
            ) from error
        self._tables.forget()
        self._drawn_at = {}
        if self._prefixes is not None:
            self._prefixes.forget()

    @torch.inference_mode()
    def prepare(self) -> bool:
        """Run one kind of step on nothing but padding, which compiles and captures what it needs:
        a first request would wait for that. Before any request that takes as long as a compiler
        does, later milliseconds."""
        shape = next((one for one in self._ahead if one not in self._graphs), None)
        if shape is None:
            return False
        if self._stream is not None:
            torch.cuda.set_stream(self._stream)
        try:
            self._pad(shape)
        except torch.OutOfMemoryError:  # slower, and right
            torch.cuda.empty_cache()
            self._ahead = iter(())
        return True

    def _pad(self, shape: Shape) -> None:
        arrays = self._blocks.arrays(0, shape)
        self._fill(arrays, shape, Work([], [], 0))
        fill_draw(arrays, [])
        self._blocks.upload(0, shape)
        logits = self._graphs.run(shape)
        tokens = self._drawn[: shape.samples]
        self._draw.greedy(logits, tokens)
        self._draw.draw(logits, self._blocks.step(shape), [], tokens)
        if self._stream is not None:
            self._stream.synchronize()
