"""Greedy tokens equal transformers' token for token, whatever happens to a sequence on the way."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.loading import load_decoder, read_checkpoint
from engine.runner import cpu_attention
from engine.sequence import SamplingParams, Sequence
from tests.support.checkpoints import FAMILIES, make_checkpoint
from tests.support.steps import Steps, generated, load_runner, make_runner, make_sequence

transformers = pytest.importorskip("transformers", reason="compares with transformers")

DEMO = Path(__file__).parent.parent.parent / "demo"
TOKENS = 24
PROMPTS = [
    [int(token) for token in np.random.default_rng(seed).integers(3, 384, length)]
    for seed, length in enumerate((5, 1, 33, 17, 64, 8))
]

VARIANTS: dict[str, dict[str, Any]] = {
    **{family: {"family": family} for family in FAMILIES},
    "untied": {"tie": False},
    "sharded": {"shards": 3},
    "many key heads": {"heads": 4, "kv_heads": 4},
    "one key head": {"heads": 4, "kv_heads": 1},
    "wide heads": {"family": "qwen3", "head_dim": 32},
    "biased": {"config": {"attention_bias": True, "mlp_bias": False}},
    "linear rope": {"rope": {"rope_type": "linear", "factor": 4.0}},
    "llama3 rope": {
        "rope": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "old style": {
        "old_style": True,
        "rope": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
}


class Reference:
    """A checkpoint, and what transformers says about it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    @functools.cached_property
    def answers(self) -> list[list[int]]:
        return [self.greedy(prompt) for prompt in PROMPTS]

    def greedy(self, prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return [int(token) for token in output[0, len(prompt) :]]

    @torch.no_grad()
    def log_probabilities(self, prompt: list[int]) -> torch.Tensor:
        """Of the token after `prompt`, [vocab]."""
        logits: torch.Tensor = self.model(torch.tensor([prompt])).logits[0, -1]
        return logits.log_softmax(-1)


@pytest.fixture(scope="module", params=list(VARIANTS))
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return Reference(
        make_checkpoint(tmp_path_factory.mktemp("checkpoint"), **VARIANTS[request.param])
    )


@pytest.fixture(params=["torch", "compiled"])
def steps(request: pytest.FixtureRequest, reference: Reference) -> Steps:
    if request.param == "torch":
        return Steps(load_runner(reference.path))
    pytest.importorskip("numba", reason="an optional accelerator")
    return Steps(load_runner(reference.path, backend=cpu_attention))


def sequences() -> list[Sequence]:
    return [make_sequence(prompt, number=number) for number, prompt in enumerate(PROMPTS)]


def test_alone(reference: Reference, steps: Steps) -> None:
    for prompt, answer in zip(PROMPTS, reference.answers, strict=True):
        sequence = make_sequence(prompt)
        steps.generate([sequence], TOKENS)
        assert generated(sequence) == answer


def test_batched_with_ragged_neighbours(reference: Reference, steps: Steps) -> None:
    together = sequences()
    steps.generate(together, TOKENS)
    assert [generated(s) for s in together] == reference.answers


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_with_the_prompt_computed_in_chunks(reference: Reference, steps: Steps, chunk: int) -> None:
    together = sequences()
    steps.generate(together, TOKENS, chunk=chunk)
    assert [generated(s) for s in together] == reference.answers


def test_joining_one_by_one(reference: Reference, steps: Steps) -> None:
    together = sequences()
    for number in range(len(together)):
        steps.step({s: min(7, s.to_compute) for s in reversed(together[: number + 1])})
    steps.generate(together, TOKENS)
    assert [generated(s)[:TOKENS] for s in together] == reference.answers


def test_after_preemption_in_the_middle(reference: Reference, steps: Steps) -> None:
    together = sequences()
    steps.generate(together, TOKENS // 2)
    for sequence in together[::2]:
        steps.preempt(sequence)
    steps.generate(together, TOKENS, chunk=9)
    assert [generated(s) for s in together] == reference.answers


def test_on_pages_that_another_sequence_computed(reference: Reference, steps: Steps) -> None:
    for prompt, answer in zip(PROMPTS, reference.answers, strict=True):
        first, second = make_sequence(prompt), make_sequence(prompt)
        steps.generate([first], 1)
        shared = (len(prompt) - 1) // steps.page_size
        second.pages = first.pages[:shared]
        second.computed = shared * steps.page_size
        steps.generate([second, first], TOKENS)
        assert generated(second) == answer
        assert generated(first) == answer


def test_log_probabilities_are_transformers_own(reference: Reference, steps: Steps) -> None:
    prompt = PROMPTS[2]
    expected = reference.log_probabilities(prompt).topk(5)
    sequence = make_sequence(prompt, SamplingParams(logprobs=5))
    (sampled,) = steps.step({sequence: len(prompt)})
    assert [token for token, _ in sampled.top] == expected.indices.tolist()
    assert [value for _, value in sampled.top] == pytest.approx(expected.values.tolist(), abs=1e-4)
    assert sampled.logprob == sampled.top[0][1]


def test_bf16_stays_close_to_fp32(reference: Reference) -> None:
    decoder = load_decoder(read_checkpoint(reference.path), torch.bfloat16)
    steps = Steps(make_runner(decoder, dtype=torch.bfloat16))
    prompt = PROMPTS[2]
    expected = reference.log_probabilities(prompt).tolist()
    sequence = make_sequence(prompt, SamplingParams(logprobs=3))
    (sampled,) = steps.step({sequence: len(prompt)})
    for token, value in sampled.top:
        assert value == pytest.approx(expected[token], abs=0.6)


@pytest.mark.parametrize("name", ["small", "large"])
def test_the_bundled_models_answer_as_transformers_do(name: str) -> None:
    path = DEMO / name
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    reference = Reference(path)
    steps = Steps(load_runner(path, backend=cpu_attention))
    asked = [[{"role": "user", "content": text}] for text in ("Hi!", "What is 17 + 25?")]
    prompts = [
        tokenizer.apply_chat_template(a, add_generation_prompt=True)["input_ids"] for a in asked
    ]
    together = [make_sequence(prompt) for prompt in prompts]
    steps.generate(together, TOKENS)
    assert [generated(s) for s in together] == [reference.greedy(p) for p in prompts]
    for prompt in prompts:
        expected = reference.log_probabilities(prompt).topk(20)
        scored = make_sequence(prompt, SamplingParams(logprobs=20))
        (sampled,) = steps.step({scored: len(prompt)})
        assert [value for _, value in sampled.top] == pytest.approx(
            expected.values.tolist(), abs=1e-3
        )
