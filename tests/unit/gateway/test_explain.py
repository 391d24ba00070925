"""A record of the account, told to people: what became of it, and why."""

from __future__ import annotations

from typing import Any

import pytest

from engine.contract import CacheStatus, Decision, Usage, Waste
from gateway.catalog import ModelCard
from gateway.observe.explain import explain, why
from gateway.observe.ledger import NOTHING, Record
from gateway.observe.rollup import Prices

SMALL, LARGE = ModelCard("small", "", None, 0.1, 0.4), ModelCard("large", "", None, 1.0, 4.0)
PRICES = Prices([SMALL, LARGE], LARGE)
MISS = CacheStatus("exact", forward="miss")
CHOICE = Decision("cascade", "small", "easy enough")


def record(origin: str, **more: Any) -> Record:
    plain: dict[str, Any] = {
        "at": 1.0, "id": "r", "tenant": "t", "model": "small", "origin": origin, "status": 200,
        "usage": Usage(10, 4, 0, 14), "seconds": 0.5, "ttft_s": 0.1, "cache": [], "decisions": [],
    }  # fmt: skip
    return Record(**(plain | more))


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (record("exact", cache=[CacheStatus("exact", hit=True)]), "word for word"),
        (record("semantic", cache=[CacheStatus("semantic", hit=True)]), "means the same"),
        (record("joined", usage=Usage(10, 4, 0, 0)), "given to both"),
        (record("joined"), "inherited"),
        (record("small", usage=Usage(10, 4, 8, 6)), "8 prompt tokens were already"),
        (record("none", status=429, usage=NOTHING), "over the tenant's limit"),
        (record("none", status=418, usage=NOTHING), "status 418"),
    ],
)
def test_the_verdict_is_one_sentence_on_what_became_of_it(told: Record, says: str) -> None:
    assert says in explain(told, PRICES)["verdict"]


def test_the_story_goes_from_the_outermost_layer_to_the_answer() -> None:
    semantic = CacheStatus("semantic", forward="miss", detail="p=0.7")
    wasted = [Waste("small", Usage(10, 3), "too weak")]
    whole = record("small", cache=[MISS, semantic], decisions=[CHOICE], wasted=wasted)
    story = explain(whole, PRICES)["story"]
    assert [step["layer"] for step in story] == [
        "Exact cache",
        "Semantic cache",
        "Cascade",
        "Waste",
        "Answer",
    ]
    assert "p=0.7" in story[1]["text"]
    assert story[3]["text"] == "10 prompt tokens and 3 of an answer: too weak"


def test_one_requests_money_adds_up() -> None:
    money = explain(record("small", wasted=[Waste("small", Usage(5, 5), "weak")]), PRICES)
    told = money["money_nano"]
    assert told["counterfactual"] == 10 * 1000 + 4 * 4000
    assert told["counterfactual"] + told["waste"] == told["spent"] + sum(told["avoided"].values())


def test_the_reason_in_a_list_is_the_shortest_that_says_something() -> None:
    assert why(record("small", cache=[MISS], decisions=[CHOICE])) == "cascade: small · easy enough"
    assert why(record("small", cache=[MISS])) == "exact miss"
    assert why(record("small")) == "asked for small by name"
    hit = CacheStatus("exact", hit=True)
    assert why(record("exact", cache=[hit], decisions=[CHOICE])) == "exact hit"
