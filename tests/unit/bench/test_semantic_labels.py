"""The bench of labels plays what the layer does, and knows what its answers say."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from bench import semantic_replay
from bench.semantic_answers import KINDS, Kind, help_of, help_said, word
from bench.semantic_labels import Errs, Labeller, wilson
from bench.semantic_replay import SERVE, Pool, play_by_labels
from bench.semantic_streams import Questions
from cache.verify_others import Static
from tests.support.encoders import bag_vector
from tests.support.house import House

HALVES = ("tuned", "held")


@pytest.fixture
def bags(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are embedded without a model."""
    monkeypatch.setattr(
        semantic_replay,
        "embedded",
        lambda questions, _: np.stack([bag_vector(text) for text in questions.texts]),
    )
    monkeypatch.setattr("bench.semantic_labels.embedded", semantic_replay.embedded)


def conversation(count: int = 150) -> dict[str, str]:
    """Questions that share most words, and answers of which some come in two wordings."""
    rng = random.Random(5)
    knows = {}
    for _ in range(count):
        topic = rng.choice(["bill", "card", "phone", "fee"])
        words = "please kindly quickly hello thanks sir madam soon".split()
        polite = sorted(rng.sample(words, 3))
        wording = rng.choice(["Pay the {} at once.", "**Pay** the {} at once", "The {}: now."])
        knows[f"{' '.join(polite)} how do I pay my {topic} {topic}"] = wording.format(topic)
    return knows


async def test_the_replay_serves_and_learns_what_the_layer_does(bags: None) -> None:
    knows = conversation()
    questions, answers = [*knows], [*knows.values()]
    pool = Pool(Questions(questions, [answers.index(answer) for answer in answers]), Path())
    labeller = Labeller(answers, Path())
    order = np.arange(len(questions))
    played = play_by_labels(
        *(pool, order, Static(0.9)),
        lambda asked, kept, _: labeller(answers[asked], answers[kept]).right,
    )
    house = House(policy=Static(0.9))
    house.model.knows = knows
    hits, wrong = [], []
    for question in questions:
        house.clock.now += 1
        answer, trail = await house.ask(question)
        hits.append(trail.cache[0].hit)
        wrong.append(answer != knows[question])
    assert (played.action == SERVE).tolist() == hits
    assert played.wrong_hits.tolist() == wrong
    assert min(sum(hits), len(hits) - sum(hits), sum(wrong)) > 10


def test_labels_that_join_what_differs_serve_it(bags: None) -> None:
    texts = ["pay my bill now", "pay my bill now please", "pay my bill now please sir"]
    pool = Pool(Questions(texts, [0, 1, 1]), Path())
    order = np.arange(3)
    fooled = play_by_labels(pool, order, Static(2.0), lambda *_: True)
    served = play_by_labels(pool, order, Static(0.1), lambda *_: True)
    assert not fooled.wrong_hits.any()
    assert served.wrong_hits.tolist() == [False, True, True]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_twin_differs_and_every_wording_shows_it(kind: Kind) -> None:
    rng = random.Random(1)
    for _ in range(40):
        fields = kind.make(rng)
        twin = kind.twin(fields, rng)
        assert twin != fields
        for half in HALVES:
            for style in range(12):
                assert kind.say(fields, half, style) != kind.say(twin, half, style)


def test_the_halves_share_no_wording() -> None:
    rng = random.Random(1)
    for kind in KINDS:
        fields = kind.make(rng)
        tuned = {word(kind, fields, "tuned", style, "Art 7") for style in range(200)}
        held = {word(kind, fields, "held", style, "Art 7") for style in range(200)}
        assert len(tuned) > 20
        assert not tuned & held


def test_a_help_page_says_all_of_it_in_every_style() -> None:
    page = help_of("card_arrival")
    for half in HALVES:
        for style in range(50):
            text = help_said(page, half, style)
            assert page.topic in text
            assert page.menu in text
            assert str(page.days) in text
            assert f"£{page.fee}" in text


def test_a_judge_errs_as_often_as_is_said_and_alike_each_time() -> None:
    judge = Errs(finds=0.9, fooled=0.05)
    pairs = [(str(number), "x") for number in range(4000)]
    found = [judge.says(*pair, same=True) for pair in pairs]
    fooled = [judge.says(*pair, same=False) for pair in pairs]
    assert np.mean(found) == pytest.approx(0.9, abs=0.02)
    assert np.mean(fooled) == pytest.approx(0.05, abs=0.015)
    assert found == [judge.says(*pair, same=True) for pair in pairs]


def test_the_interval_of_a_share_is_wilsons() -> None:
    assert wilson(0, 600) == pytest.approx((0, 0.00636), abs=1e-4)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0, 0) == (0, 1)
