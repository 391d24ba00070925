"""Draws with the Triton kernels: greedy rows alone, or every row as its parameters say."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from engine.cuda.draw import Drawing
from engine.cuda.layout import Step
from engine.kernels.gpu.greedy import GreedyScratch, greedy
from engine.kernels.gpu.sample import SEEN, SampleInputs, SampleScratch, sample
from engine.sequence import Sequence

ROWS = 128
"""Drawn at a time: the scratch has eight bytes a token of the vocabulary for each."""


class TritonDraw:
    """One model's drawing kernels and their scratch."""

    def __init__(self, max_samples: int, vocab: int, device: torch.device) -> None:
        self._vocab = vocab
        self._device = device
        self._greedy = GreedyScratch.make(max_samples, vocab, device)
        self._sample = SampleScratch.make(ROWS, vocab, device)
        self._logprobs = torch.empty(max_samples, dtype=torch.float32, device=device)

    def greedy(self, logits: Tensor, tokens: Tensor) -> None:
        """The likeliest token of each row."""
        greedy(logits, tokens, self._greedy)

    def draw(self, logits: Tensor, step: Step, drawing: Drawing, tokens: Tensor) -> None:
        """Each row as its parameters say."""
        rows = len(logits)
        wishes = _Wishes(drawing, rows, self._vocab, self._device)
        inputs = SampleInputs(
            temperature=step.temperature,
            top_k=step.top_k,
            top_p=step.top_p,
            min_p=step.min_p,
            repetition=wishes.column("repetition_penalty", 1.0),
            frequency=wishes.column("frequency_penalty", 0.0),
            presence=wishes.column("presence_penalty", 0.0),
            seeds=step.seeds,
            positions=step.draw_at,
            count_slot=wishes.count_slot,
            bias_slot=wishes.bias_slot,
        )
        for first in range(0, rows, ROWS):
            part = slice(first, first + ROWS)
            sample(
                logits[part], _rows_of(inputs, part), wishes.counts, wishes.biases, tokens[part],
                self._logprobs[:rows][part], self._sample,
            )  # fmt: skip


def _rows_of(inputs: SampleInputs, rows: slice) -> SampleInputs:
    return SampleInputs(**{one.name: getattr(inputs, one.name)[rows] for one in fields(inputs)})


class _Wishes:
    """Rows of token counts and of biases for the sequences that need them, on the device."""

    def __init__(self, drawing: Drawing, rows: int, vocab: int, device: torch.device) -> None:
        self._drawing = [(at, s) for at, s in drawing if s.params.penalises]
        self._rows = rows
        self._device = device
        biased = [(at, s) for at, s in drawing if s.params.logit_bias is not None]
        self.counts = torch.zeros(
            (max(1, len(self._drawing)), vocab), dtype=torch.int32, device=device
        )
        self.biases = torch.zeros((max(1, len(biased)), vocab), dtype=torch.float32, device=device)
        self.count_slot = self._slots(self._drawing)
        self.bias_slot = self._slots(biased)
        for slot, (_, sequence) in enumerate(self._drawing):
            self._count(self.counts[slot], sequence)
        for slot, (_, sequence) in enumerate(biased):
            bias = sequence.params.logit_bias
            assert bias is not None
            ids = torch.from_numpy(bias.ids).to(device)
            self.biases[slot].index_add_(0, ids, torch.from_numpy(bias.values).to(device))

    def column(self, name: str, default: float) -> Tensor:
        """fp32 [rows] of one penalty."""
        values = np.full(self._rows, default, dtype=np.float32)
        for at, sequence in self._drawing:
            values[at] = getattr(sequence.params, name)
        return torch.from_numpy(values).to(self._device, non_blocking=True)

    def _slots(self, who: Drawing) -> Tensor:
        slots = np.full(self._rows, -1, dtype=np.int32)
        for slot, (at, _) in enumerate(who):
            slots[at] = slot
        return torch.from_numpy(slots).to(self._device)

    def _count(self, row: Tensor, sequence: Sequence) -> None:
        """How often the answer has each token, and a bit for what is in prompt or answer."""
        tokens = torch.from_numpy(sequence.tokens[: sequence.known].astype(np.int64))
        tokens = tokens.to(self._device)
        answer = tokens[sequence.num_prompt :]
        row.index_add_(0, answer, torch.ones_like(answer, dtype=torch.int32))
        row[tokens] = row[tokens] | SEEN
