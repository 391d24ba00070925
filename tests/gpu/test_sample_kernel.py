"""The sampling kernel draws what its twin draws, which sorts, and as often as it should."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the GPU's kernels are written in Triton")

from engine.kernels.gpu.sample import SEEN, SampleInputs, SampleScratch, sample, sample_twin
from tests.support.gpu_cases import DTYPES, INTERPRETED, generator_of, grid, poisoned, randn

DEFAULT: dict[str, Any] = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition": 1.0,
    "frequency": 0.0, "presence": 0.0, "seeds": 12345, "positions": 40, "count_slot": -1,
    "bias_slot": -1,
}  # fmt: skip
TYPES = {"top_k": torch.int32, "seeds": torch.int64, "positions": torch.int32,
         "count_slot": torch.int32, "bias_slot": torch.int32}  # fmt: skip
WISHES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"top_k": 1},
    {"top_k": 5, "seeds": -3},
    {"top_p": 0.3},
    {"min_p": 0.2, "temperature": 0.7},
    {"top_k": 40, "top_p": 0.8, "temperature": 1.7, "seeds": 2**62},
    {"top_k": 10**6, "top_p": 0.999999, "min_p": 1.0},
    {"repetition": 1.4, "frequency": 0.5, "presence": 0.7, "count_slot": 1, "temperature": 0.0},
    {"repetition": 0.8, "frequency": -0.5, "count_slot": 0, "bias_slot": 1, "top_p": 0.9},
    {"bias_slot": 0, "positions": 2**20, "seeds": 0},
    {"temperature": 1e-3, "top_p": 1e-9},
]


def inputs_of(rows: list[dict[str, Any]], device: str) -> SampleInputs:
    columns = {
        field.name: torch.tensor(
            [{**DEFAULT, **row}[field.name] for row in rows],
            dtype=TYPES.get(field.name, torch.float32),
            device=device,
        )
        for field in fields(SampleInputs)
    }
    return SampleInputs(**columns)


def drawn(
    logits: Tensor, inputs: SampleInputs, counts: Tensor, biases: Tensor
) -> tuple[Tensor, Tensor]:
    rows, vocab = logits.shape
    scratch = SampleScratch.make(rows, vocab, logits.device)
    for part in (scratch.scores, scratch.races, scratch.numbers):
        part.fill_(float("nan"))
    tokens = torch.full((rows,), -1, dtype=torch.int32, device=logits.device)
    logprobs = poisoned(rows, dtype=torch.float32, device=str(logits.device))
    sample(logits, inputs, counts, biases, tokens, logprobs, scratch)
    return tokens.cpu(), logprobs.cpu()


def wishes_of(vocab: int, device: str) -> tuple[Tensor, Tensor]:
    """Two rows of counts, two of biases: the first forbids all but three tokens."""
    generator = generator_of(8)
    counts = torch.randint(0, 3, (2, vocab), generator=generator)
    counts = torch.where(counts > 0, counts | SEEN, counts)
    counts[:, 5] = SEEN  # in the prompt, not in the answer
    biases = torch.full((2, vocab), float("-inf"))
    biases[0, [3, 17, vocab - 1]] = 0.5
    biases[1] = torch.randn(vocab, generator=generator)
    return counts.to(device, torch.int32), biases.to(device)


VOCABS = [50, 2100] if INTERPRETED else [50, 5000, 151936]


@pytest.mark.parametrize(("vocab", "spread", "dtype"), grid(VOCABS, [1.0, 6.0], DTYPES), ids=str)
def test_each_row_draws_as_it_wishes(
    vocab: int, spread: float, dtype: torch.dtype, device: str
) -> None:
    rows = WISHES if INTERPRETED else [replace_seed(row, at) for at in range(2) for row in WISHES]
    logits = randn(len(rows), vocab + 3, dtype=dtype, device=device, seed=1)[:, :vocab] * spread
    counts, biases = wishes_of(vocab, device)
    inputs = inputs_of(rows, device)
    tokens, logprobs = drawn(logits, inputs, counts, biases)
    wanted, likely = sample_twin(logits, inputs, counts, biases)
    assert tokens.tolist() == wanted.tolist()
    torch.testing.assert_close(logprobs, likely, rtol=1e-4, atol=1e-4)


def replace_seed(row: dict[str, Any], at: int) -> dict[str, Any]:
    return {**row, "seeds": row.get("seeds", 1) + 77 * at, "positions": 11 * at}


def test_a_row_s_draw_depends_on_nothing_beside_it(device: str) -> None:
    logits = randn(6, 300, dtype=torch.float32, device=device, seed=3)
    counts, biases = wishes_of(300, device)
    inputs = inputs_of([{"seeds": at, "top_p": 0.9} for at in range(6)], device)
    together, _ = drawn(logits, inputs, counts, biases)
    last = replace(inputs, **{f.name: getattr(inputs, f.name)[5:] for f in fields(inputs)})
    alone, _ = drawn(logits[5:], last, counts, biases)
    assert alone.tolist() == together[5:].tolist()


def test_tokens_are_drawn_as_often_as_they_are_likely(device: str) -> None:
    if INTERPRETED:
        pytest.skip("four thousand rows take an hour in the interpreter; the twin's draws are its")
    rows, vocab = 4096, 24
    logits = randn(1, vocab, dtype=torch.float32, device=device, seed=4).expand(rows, vocab)
    counts, biases = wishes_of(vocab, device)
    inputs = inputs_of([{"positions": at} for at in range(rows)], device)
    tokens, _ = drawn(logits, inputs, counts, biases)
    seen = np.bincount(tokens.numpy(), minlength=vocab)
    expected = rows * logits[0].double().softmax(dim=-1).cpu().numpy()
    assert float(((seen - expected) ** 2 / expected).sum()) < 60.0, "chi-square of 23 degrees"
