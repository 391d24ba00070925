"""What is drawn depends on the logits, the settings, the seed and the position; on nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from engine.sampler import Sampler, arrivals
from engine.sequence import LogitBias, SamplingParams, Sequence
from tests.support.steps import make_sequence

VOCAB = 3000


def logits(rows: int, seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def at(position: int, **params: object) -> Sequence:
    return make_sequence(range(position), SamplingParams(**params))  # type: ignore[arg-type]


def tokens(scores: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    return [sampled.token for sampled in Sampler().draw(scores, sequences)]


def many(scores: torch.Tensor, draws: int, **params: object) -> Counter[int]:
    """Token → how often, over `draws` seeds."""
    sequences = [at(1, seed=seed, **params) for seed in range(draws)]
    return Counter(tokens(scores.expand(draws, -1), sequences))


def test_nothing_to_draw_is_no_work() -> None:
    assert Sampler().draw(torch.empty(0, VOCAB), []) == []


def test_temperature_zero_is_the_most_likely() -> None:
    scores = logits(4)
    assert tokens(scores, [at(1) for _ in range(4)]) == scores.argmax(-1).tolist()


def test_top_k_one_is_the_most_likely() -> None:
    scores = logits(1)
    assert tokens(scores, [at(1, temperature=5.0, top_k=1)]) == scores.argmax(-1).tolist()


def test_the_same_seed_and_position_draw_the_same_in_any_company() -> None:
    scores = logits(6)
    settings = [
        {},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 2.0, "top_k": 2500},
        {"temperature": 1.0, "min_p": 0.02, "repetition_penalty": 1.3},
        {"temperature": 50.0, "top_p": 0.999},
    ]
    sequences = [at(5 + row, seed=row, **given) for row, given in enumerate(settings)]
    together = tokens(scores, sequences)
    alone = [tokens(scores[row : row + 1], [one])[0] for row, one in enumerate(sequences)]
    assert together == alone


def test_another_position_or_seed_draws_other_numbers() -> None:
    first = {float(arrivals(seed, at, 4)[0]) for seed in range(50) for at in range(50)}
    assert len(first) > 2490


def test_a_negative_or_huge_seed_is_a_seed() -> None:
    for seed in (-(2**63), -1, 2**63, 2**70):
        assert (arrivals(seed, 1, 100) > 0).all()


def test_a_little_noise_in_the_logits_seldom_changes_a_draw() -> None:
    """What a prefix hit does to bf16 logits must not draw a seeded answer anew."""
    scores = logits(1)
    noisy = scores + 0.02 * logits(1, seed=1) / 3
    seeded = [at(1, temperature=1.0, seed=seed) for seed in range(200)]
    drawn = zip(
        tokens(scores.expand(200, -1), seeded), tokens(noisy.expand(200, -1), seeded), strict=True
    )
    assert sum(first != second for first, second in drawn) <= 12


def test_draws_follow_the_distribution() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    expected = scores.softmax(-1)[0]
    counts = many(scores, 4000, temperature=1.0)
    for token in range(4):
        assert counts[token] / 4000 == pytest.approx(float(expected[token]), abs=0.03)


def test_temperature_flattens() -> None:
    scores = torch.tensor([[0.0, 3.0]])
    sharp, flat = (many(scores, 1000, temperature=t)[1] for t in (0.5, 5.0))
    assert sharp > 980
    assert flat == pytest.approx(1000 * 1 / (1 + np.exp(-0.6)), abs=50)


def test_top_k_keeps_the_k_most_likely() -> None:
    scores = logits(1)
    allowed = set(scores[0].topk(7).indices.tolist())
    assert set(many(scores, 500, temperature=3.0, top_k=7)) == allowed


def test_top_k_beyond_the_first_candidates_still_cuts() -> None:
    scores = logits(1)
    allowed = set(scores[0].topk(2000).indices.tolist())
    drawn = set(many(scores, 1500, temperature=50.0, top_k=2000))
    assert drawn <= allowed
    assert len(drawn) > 900


def test_top_k_above_the_vocabulary_is_off() -> None:
    scores = torch.zeros(1, 4)
    assert set(many(scores, 200, temperature=1.0, top_k=100)) == {0, 1, 2, 3}


def test_top_p_keeps_the_least_set_that_reaches_it() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert set(many(scores, 300, temperature=1.0, top_p=0.79)) == {0, 1}
    assert set(many(scores, 300, temperature=1.0, top_p=0.81)) == {0, 1, 2}
    assert set(many(scores, 300, temperature=1.0, top_p=0.01)) == {0}


def test_top_p_is_a_share_of_what_top_k_left() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert set(many(scores, 300, temperature=1.0, top_k=2, top_p=0.6)) == {0}
    assert set(many(scores, 300, temperature=1.0, top_k=2, top_p=0.7)) == {0, 1}


def test_top_p_within_a_wide_top_k_is_a_share_of_all_of_it() -> None:
    scores = logits(1) / 10
    order = scores[0].argsort(descending=True)
    kept = (scores[0][order] / 2.0).softmax(-1)[:2000]
    number = int((kept.cumsum(-1) < 0.3 * kept.sum()).sum()) + 1
    drawn = set(many(scores, 1500, temperature=2.0, top_k=2000, top_p=0.3))
    assert number > 100
    assert drawn <= set(order[:number].tolist())
    assert not drawn <= set(order[: number - 60].tolist())


def test_min_p_keeps_what_is_likely_beside_the_likeliest() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert set(many(scores, 300, temperature=1.0, min_p=0.5)) == {0, 1}


def test_equal_probabilities_are_cut_together() -> None:
    scores = torch.zeros(1, VOCAB)
    assert len(many(scores, 400, temperature=1.0, top_k=2)) > 300


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    scores = torch.tensor([[2.0, 1.9, -1.0, -1.05]])
    sequence = make_sequence([0], SamplingParams(repetition_penalty=1.5))
    assert tokens(scores, [sequence]) == [1]
    sequence.append(1)
    assert tokens(scores, [sequence]) == [0]
    low = torch.tensor([[-1.0, -1.05]])
    assert tokens(low, [make_sequence([0], SamplingParams(repetition_penalty=1.5))]) == [1]


def test_frequency_and_presence_penalties_count_the_answer_alone() -> None:
    scores = torch.tensor([[2.0, 1.5, 0.0]])
    for name, value in (("frequency_penalty", 0.3), ("presence_penalty", 0.6)):
        sequence = make_sequence([0, 0, 0], SamplingParams(**{name: value}))
        assert tokens(scores, [sequence]) == [0]
        sequence.append(0)
        sequence.append(0)
        assert tokens(scores, [sequence]) == [1]


def test_logit_bias_forces_and_forbids() -> None:
    scores = logits(2)
    best = int(scores[1].argmax())
    entries = (((17, 100.0),), ((best, -100.0),))
    drawn = tokens(scores, [at(1, logit_bias=LogitBias.of(each)) for each in entries])
    assert drawn[0] == 17
    assert drawn[1] == int(scores[1].topk(2).indices[1])


def test_a_bias_may_name_the_whole_vocabulary() -> None:
    scores = logits(1)
    worst = int(scores.argmin())
    entries = tuple((token, 90.0 if token == worst else -5.0) for token in range(VOCAB))
    bias = LogitBias.of(entries)
    assert bias is not None
    assert (bias.ids.dtype, bias.values.dtype) == (np.int64, np.float32)
    assert tokens(scores, [at(1, logit_bias=bias)]) == [worst]


def test_a_token_that_was_said_twice_is_penalised_once() -> None:
    scores = torch.tensor([[2.0, 1.3, -1.0]])
    sequence = make_sequence([0, 0, 0], SamplingParams(repetition_penalty=1.5))
    assert tokens(scores, [sequence]) == [0]


def test_logits_are_left_as_they_are() -> None:
    scores = logits(3)
    before = scores.clone()
    Sampler().draw(
        scores,
        [at(4, temperature=0.5, top_p=0.5), at(4, frequency_penalty=2.0), at(4, logprobs=2)],
    )
    assert torch.equal(scores, before)


def test_log_probabilities_are_the_models_own() -> None:
    scores = logits(2)
    wanted = at(4, temperature=0.1, repetition_penalty=2.0, logprobs=3)
    silent, reported = Sampler().draw(scores, [at(4), wanted])
    assert silent.top == ()
    expected = scores[1].log_softmax(-1)
    assert reported.logprob == pytest.approx(float(expected[reported.token]), abs=1e-5)
    best = expected.topk(3)
    assert [token for token, _ in reported.top] == best.indices.tolist()
    assert [value for _, value in reported.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_logprobs_zero_reports_the_token_without_alternatives() -> None:
    (sampled,) = Sampler().draw(logits(1), [at(1, logprobs=0)])
    assert sampled.logprob < 0
    assert sampled.top == ()


def test_each_row_gets_as_many_alternatives_as_it_asked_for() -> None:
    drawn = Sampler().draw(logits(3), [at(1, logprobs=1), at(1), at(1, logprobs=5)])
    assert [len(sampled.top) for sampled in drawn] == [1, 0, 5]


def test_bf16_logits_are_drawn_from_in_fp32() -> None:
    scores = logits(1).bfloat16()
    assert tokens(scores, [at(3, temperature=0.9, seed=5)]) == tokens(
        scores.float(), [at(3, temperature=0.9, seed=5)]
    )
