"""The bundled models answer as transformers would: word for word in fp32, up to ties in bf16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.loading import load_decoder, read_checkpoint
from engine.runner import cpu_attention
from tests.support.steps import Steps, generated, make_runner, make_sequence
from tests.support.strays import Judge, Reference

pytest.importorskip("transformers", reason="compares with transformers")

DEMO = Path(__file__).parents[2] / "demo"
LENGTHS = (3, 40, 150)
PAGE_SIZE, PAGES = 16, 256
TOKENS = 16
ORDINARY = range(10, 2000)
"""Ids of common pieces; those below are marks."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["small", "large"])
def reference(request: pytest.FixtureRequest) -> Reference:
    path = DEMO / request.param
    if not path.is_dir():
        pytest.skip("the bundled models are not here")
    return Reference.load(path, "cpu")


def judged(reference: Reference, dtype: torch.dtype, chunk: int) -> Judge:
    """What it says to random prompts of several lengths, computed together."""
    decoder = load_decoder(read_checkpoint(reference.path), dtype)
    runner = make_runner(
        decoder, page_size=PAGE_SIZE, num_pages=PAGES, dtype=dtype, backend=cpu_attention
    )
    rng = np.random.default_rng()
    prompts = [rng.integers(ORDINARY.start, ORDINARY.stop, length) for length in LENGTHS]
    sequences = [make_sequence(prompt, number=number) for number, prompt in enumerate(prompts)]
    Steps(runner, page_size=PAGE_SIZE, num_pages=PAGES).generate(sequences, TOKENS, chunk=chunk)
    judge = Judge(reference)
    for prompt, sequence in zip(prompts, sequences, strict=True):
        judge.hear([int(token) for token in prompt], generated(sequence)[:TOKENS])
    return judge


@pytest.mark.parametrize("chunk", [10**9, 64], ids=["whole prompts", "in chunks"])
def test_in_fp32_each_token_is_the_likeliest(reference: Reference, chunk: int) -> None:
    judged(reference, torch.float32, chunk).assert_likeliest()


def test_in_bf16_each_token_is_the_likeliest_or_tied(reference: Reference) -> None:
    judged(reference, torch.bfloat16, 64).assert_tied()
