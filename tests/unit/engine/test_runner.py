"""A step reads sequences, changes none of them, and answers in the order it was asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine import runner as runner_module
from engine.kernels.attention import TorchAttention
from engine.pool import make_pool
from engine.runner import CpuRunner, cpu_attention, dtype_for, use_threads
from engine.sequence import Chunk, SamplingParams
from tests.support.checkpoints import make_checkpoint
from tests.support.steps import Steps, load_runner, make_sequence


@pytest.fixture
def runner(tmp_path: Path) -> CpuRunner:
    return load_runner(make_checkpoint(tmp_path / "model"))


def test_results_come_in_the_order_of_the_chunks(runner: CpuRunner) -> None:
    steps = Steps(runner)
    decoding = make_sequence(range(3, 9))
    steps.step({decoding: 6})
    prompt, cut = make_sequence(range(20, 30)), make_sequence(range(40, 60))
    sampled = steps.step({prompt: 10, cut: 5, decoding: 1})
    assert [one.sequence for one in sampled] == [prompt, decoding]


def test_a_step_changes_no_sequence_and_can_be_repeated(runner: CpuRunner) -> None:
    sequence = make_sequence(range(3, 9), SamplingParams(temperature=1.0, seed=4, logprobs=2))
    sequence.pages = [5, 3]
    first = runner.launch([Chunk(sequence, 6)]).result()
    assert (sequence.known, sequence.computed, sequence.pages) == (6, 0, [5, 3])
    assert runner.launch([Chunk(sequence, 6)]).result() == first


def test_a_step_in_which_nothing_is_drawn_draws_nothing(runner: CpuRunner) -> None:
    sequence = make_sequence(range(3, 9))
    sequence.pages = [5, 3]
    assert runner.launch([Chunk(sequence, 4)]).result() == []


def test_a_seeded_answer_is_the_same_in_any_company(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model")
    params = SamplingParams(temperature=0.9, top_p=0.95, seed=11)
    answers = []
    for chunk, neighbours in ((10**9, 0), (3, 0), (10**9, 5), (2, 5)):
        steps = Steps(load_runner(path))
        sequence = make_sequence(range(3, 20), params)
        others = [
            make_sequence(range(5, 9 + i), SamplingParams(1.0, seed=i)) for i in range(neighbours)
        ]
        steps.generate([*others, sequence], 12, chunk=chunk)
        answers.append(sequence.tokens[: sequence.num_prompt + 12].tolist())
    assert all(answer == answers[0] for answer in answers)


def test_attention_without_numba_is_torchs(
    runner: CpuRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "find_spec", lambda name: None)
    assert type(cpu_attention(runner.decoder.config, runner.pool)) is TorchAttention


def test_attention_with_numba_is_compiled(runner: CpuRunner) -> None:
    pytest.importorskip("numba", reason="an optional accelerator")
    config = runner.decoder.config
    pool = make_pool(config, page_size=4, num_pages=8, dtype=torch.float32)
    assert type(cpu_attention(config, pool)).__name__ == "NumbaAttention"


def test_half_types_are_computed_in_what_the_cpu_is_fast_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner_module, "can_pack", lambda _dtype: True)
    for able, expected in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert dtype_for(torch.bfloat16) == dtype_for(torch.float16) == expected
        assert dtype_for(torch.float32) == torch.float32


def test_the_number_of_threads_can_be_set() -> None:
    before = torch.get_num_threads()
    try:
        use_threads(2)
        assert torch.get_num_threads() == 2
    finally:
        use_threads(before)
