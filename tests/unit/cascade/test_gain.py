"""The gain model: what it learns, how it is stored, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cascade.features import BEFORE
from cascade.fit import Plan, embedding_plan, feature_plan, fit_gain, out_of_fold
from cascade.gain import Estimate, GainModel, ModelFileError, read_model, scores_of

NAMES = ("difficulty", "noise")


def made_up(n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Small fails as difficulty grows; large is right three times in four."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    small = (rng.random(n) < 1 / (1 + np.exp(2 * x[:, 0]))).astype(float)
    large = (rng.random(n) < 0.75).astype(float)
    return x, small, large


def fitted(n: int = 600) -> GainModel:
    x, small, large = made_up(n)
    plans = {"before": feature_plan(NAMES)}
    return fit_gain({"before": x}, plans, small, large, rng=np.random.default_rng(0))


def test_the_gain_grows_with_what_makes_small_fail() -> None:
    model = fitted()
    easy = model.estimate({"before": np.array([-2.0, 0.0])})
    hard = model.estimate({"before": np.array([2.0, 0.0])})
    assert easy.gain < 0.0 < 0.4 < hard.gain
    assert abs(easy.large - 0.75) < 0.15


def test_one_and_many_are_estimated_alike() -> None:
    model, (x, _, _) = fitted(), made_up()
    many = model.estimate_many({"before": x[:5]})
    for row, (small, large, _) in zip(x[:5], many, strict=True):
        one = model.estimate({"before": row})
        assert (one.small, one.large) == pytest.approx((small, large), abs=1e-5)


def test_a_stored_model_answers_as_before() -> None:
    model, (x, _, _) = fitted(), made_up()
    again = read_model(model.to_json(), {"before": NAMES})
    before = model.estimate_many({"before": x})
    assert again.estimate_many({"before": x}) == pytest.approx(before, abs=1e-6)
    assert again.labels == 600


def test_two_blocks_know_more_than_one() -> None:
    rng = np.random.default_rng(5)
    x, small, large = made_up(800)
    vectors = rng.normal(size=(800, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    small = small * (vectors[:, 0] > 0)
    inputs = {"before": x, "embedding": vectors}
    plans = {"before": feature_plan(NAMES), "embedding": embedding_plan(8)}
    errors = {}
    for names in (("before",), ("before", "embedding")):
        held = out_of_fold(
            {n: inputs[n] for n in names}, {n: plans[n] for n in names}, small, large, rng=rng
        )
        errors[names] = float(np.mean((held[:, 0] - small) ** 2))
    assert errors[("before", "embedding")] < errors[("before",)] - 0.01


def test_a_group_is_never_on_both_sides() -> None:
    """Rows repeated in pairs: with their twins seen, noise could be learnt by heart."""
    rng = np.random.default_rng(2)
    x = np.repeat(rng.normal(size=(150, 2)), 2, axis=0)
    noise = np.repeat((rng.random(150) < 0.5).astype(float), 2)
    plans = {"before": Plan(NAMES, 5.0, 1.0, 256, True)}
    apart = {}
    for name, groups in (("grouped", np.repeat(np.arange(150), 2)), ("alone", None)):
        held = out_of_fold({"before": x}, plans, noise, noise, rng=rng, groups=groups)
        apart[name] = float(np.mean((held[:, 0] - noise) ** 2))
    assert apart["alone"] < 0.2 < 0.24 < apart["grouped"]


def test_of_two_equal_gains_the_longer_answer_is_the_dearer() -> None:
    rng = np.random.default_rng(4)
    x, small, large = made_up()
    tokens = np.exp(3.0 + x[:, 1] + 0.1 * rng.normal(size=len(x)))
    plans = {"before": feature_plan(NAMES)}
    inputs = {"before": x}
    model = fit_gain(inputs, plans, small, large, rng=rng, tokens=tokens)
    short, long = (model.estimate({"before": np.array([2.0, at])}) for at in (-1.0, 1.0))
    assert short.length < -0.5 < 0.5 < long.length
    assert short.gain == pytest.approx(long.gain, abs=0.2)
    assert long.score < short.score


def test_a_negative_gain_counts_more_the_longer() -> None:
    assert Estimate(1.0, 0.8, 1.0).score < Estimate(1.0, 0.8, 0.0).score < 0.0
    assert Estimate(0.5, 0.9, 9.0).score == Estimate(0.5, 0.9, 3.0).score


def test_of_two_equal_gains_the_one_where_the_models_take_turns_goes_to_large() -> None:
    settled, doubtful = Estimate(0.9, 0.95), Estimate(0.5, 0.55)
    assert settled.gain == pytest.approx(doubtful.gain)
    assert settled.score < doubtful.score
    assert Estimate(1.0, 1.0).score == Estimate(0.0, 0.0).score == 0.0


def test_a_constant_feature_does_no_harm() -> None:
    x, small, large = made_up()
    x[:, 1] = 7.0
    plans = {"before": feature_plan(NAMES)}
    model = fit_gain({"before": x}, plans, small, large, rng=np.random.default_rng(0))
    assert np.isfinite(model.estimate({"before": np.array([0.0, 1e9])}).gain)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not json", "not a gain model"),
        ("[]", "not a gain model"),
        ('{"format": "sluice-gain/1"}', "not a gain model"),
        ('{"format": "pickle"}', "refit it"),
    ],
)
def test_what_is_no_model_is_refused(text: str, said: str) -> None:
    with pytest.raises(ModelFileError, match=said):
        read_model(text, {})


def test_a_model_of_other_features_is_refused() -> None:
    with pytest.raises(ModelFileError, match="another version"):
        read_model(fitted().to_json(), {"before": BEFORE})


def test_the_file_is_plain_json_of_bounded_size() -> None:
    stored = json.loads(fitted().to_json())
    assert stored["format"] == "sluice-gain/1"
    assert len(fitted().to_json()) < 50_000


def test_one_score_is_what_many_would_say() -> None:
    rng = np.random.default_rng(3)
    for row in rng.normal(0.5, 2.0, size=(200, 3)):
        one = Estimate(*row.tolist())
        assert one.score == pytest.approx(scores_of(row[None, :])[0], abs=1e-12)
