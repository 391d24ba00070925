from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.join import Join
from engine.contract import CUT, Answer, Call, Delta, End, Overloaded, Trail, Usage, Waste
from gateway.catalog import ModelCard
from gateway.observe.ledger import Ledger, LedgerLayer, Record
from gateway.observe.metrics import EngineState, Metrics
from gateway.observe.rollup import Durations, Prices, RollUp
from tests.support.fake import FakeModel

CALL = Call(kind="chat", model="auto", scope="s")
SMALL, LARGE = ModelCard("small", "", None, 0.1, 0.4), ModelCard("large", "", None, 1.0, 4.0)
PRICES = Prices([SMALL, LARGE], LARGE)


def record(origin: str) -> Record:
    return Record(0.0, "id", "t", "large", origin, 200, Usage(10, 4), 0.5, 0.1, [], [])


async def book(model: FakeModel, trail: Trail | None = None, stop_at: int | None = None) -> Record:
    ledger = Ledger()
    answer = LedgerLayer(model, ledger)(CALL, trail or Trail("1", tenant="t"))
    seen = 0
    try:
        async for event in answer:
            seen += 1
            if isinstance(event, End):
                assert len(ledger) == 1, "booked before End is handed on"
            if seen == stop_at:
                break
    except Exception:  # noqa: BLE001 - what is booked is what is tested
        assert len(ledger) == 1
    await answer.aclose()
    (booked,) = ledger.take()
    assert not ledger.take()
    return booked


async def test_a_complete_answer_is_booked_with_its_tokens_before_its_end() -> None:
    booked = await book(FakeModel(name="large"))
    assert (booked.status, booked.model, booked.origin) == (200, "large", "large")
    assert booked.usage.completion_tokens > 0
    assert booked.ttft_s is not None
    assert 0 <= booked.ttft_s <= booked.seconds


@pytest.mark.parametrize(
    ("model", "status"),
    [
        (FakeModel(error=Overloaded("full")), 503),
        (FakeModel(error=ValueError("ours")), 500),
        (FakeModel(late_error=Overloaded("full")), 503),
    ],
)
async def test_a_failure_is_booked_with_its_status(model: FakeModel, status: int) -> None:
    booked = await book(model)
    assert booked.status == status
    assert booked.usage == Usage(0, 0)


async def test_an_answer_that_was_closed_is_booked_as_gone_or_late() -> None:
    model = FakeModel()
    assert (await book(model, stop_at=2)).status == 499
    assert model.closed_early == 1
    assert (await book(FakeModel(), Trail("1", deadline=0.0), stop_at=1)).status == 408


@given(
    st.sampled_from(["exact", "joined", "semantic", "small", "large", "elsewhere"]),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.data(),
)
def test_what_was_delivered_is_what_was_spent_and_what_was_avoided(
    origin: str, prompt: int, completion: int, data: st.DataObject
) -> None:
    cached = data.draw(st.integers(0, prompt))
    computed = data.draw(st.integers(0, 10**6))
    model = origin if origin in {"small", "large"} else data.draw(st.sampled_from(["small", "x"]))
    money = PRICES.account(model, origin, Usage(prompt, completion, cached, computed))
    assert money.counterfactual == prompt * 1000 + completion * 4000
    assert money.counterfactual + money.waste == money.spent + sum(money.avoided.values())
    assert prompt + completion == money.on_large + sum(money.tokens.values())


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["exact", "joined", "small", "large"]),
            st.sampled_from([200, 499, 503]),
            st.builds(Usage, st.integers(0, 99), st.integers(0, 99), st.just(0), st.integers(0, 9)),
            st.integers(0, 99),
        )
    )
)
def test_a_sum_is_priced_as_its_records_are(rows: list[tuple[str, int, Usage, int]]) -> None:
    ledger = Ledger()
    rollup = RollUp(ledger, PRICES)
    spent = avoided = wasted = counterfactual = 0
    for origin, status, usage, cut in rows:
        model = origin if origin in {"small", "large"} else "large"
        given = usage if status == 200 else Usage(0, 0)
        thrown = Usage(0, 0) if status == 200 else Usage(cut, cut // 2, cut // 3)
        trail = Trail("i")
        trail.cut(model, thrown)
        ledger.append(
            Record(0.0, "i", "t", model, origin, status, given, 0.1, 0.1, [], [],
                   wasted=trail.wasted)
        )  # fmt: skip
        one = PRICES.account(model, origin, given)
        lost = PRICES.account_waste(model, thrown)
        spent += one.spent + lost.spent
        wasted += lost.waste
        counterfactual += one.counterfactual
        avoided += sum(one.avoided.values())
    rollup.fold()
    assert sum(rollup.spent().values()) == spent
    assert sum(rollup.wasted().values()) == wasted
    assert sum(rollup.avoided()[1].values()) == avoided
    assert counterfactual + wasted == spent + avoided


def test_a_follower_pays_nothing_and_an_heir_the_whole() -> None:
    assert PRICES.account("large", "joined", Usage(10, 4, 0, 0)).spent == 0
    heir = PRICES.account("large", "joined", Usage(10, 4, 3, 11))
    assert (heir.spent, heir.avoided["prefix"]) == (23_000, 3_000)


def test_what_a_layer_threw_away_is_spent_and_wasted_at_the_price_of_who_computed_it() -> None:
    ledger = Ledger()
    rollup = RollUp(ledger, PRICES)
    thrown = [Waste("small", Usage(10, 3, 2), "too weak"), Waste("small", Usage(1, 0), "too weak")]
    row = Record(
        0.0, "i", "t", "large", "large", 200, Usage(10, 4), 0.1, 0.1, [], [], wasted=thrown
    )
    ledger.append(row)
    rollup.fold()
    lost = 9 * 100 + 3 * 400
    assert rollup.wasted() == {("t", "large"): 0, ("t", "small"): lost}
    assert rollup.spent() == {("t", "large"): 26_000, ("t", "small"): lost}


async def test_what_was_computed_for_who_hung_up_is_waste() -> None:
    booked = await book(FakeModel(lambda _: ["a", "b", "c"], name="large"), stop_at=3)
    assert (booked.status, booked.usage) == (499, Usage(0, 0))
    assert booked.wasted == [Waste("large", Usage(7, 2, 2, 7), CUT)]
    assert not (await book(FakeModel())).wasted


def test_a_record_of_an_older_version_still_counts_what_was_cut() -> None:
    ledger = Ledger()
    rollup = RollUp(ledger, PRICES)
    ledger.append(
        Record(0.0, "i", "t", "large", "large", 499, Usage(0, 0), 0.1, 0.1, [], [], cut_tokens=3)
    )
    rollup.fold()
    assert rollup.wasted() == {("t", "large"): 3 * 4000}


@given(plan=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5),
       fails=st.booleans())  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_of_a_shared_generation_every_token_is_paid_once(
    plan: list[tuple[int, int]], fails: bool
) -> None:
    """Whoever joins, leaves, inherits or stays, and however it ends: what the account says was
    spent is what the model computed, no more and no less. `plan`: of each listener, after how many
    turns it comes and how many events it hears."""
    ledger, model = asyncio.run(share(plan, fails))
    rollup = RollUp(ledger, PRICES)
    rollup.fold()
    computed = sum(5_000 + 4_000 * said for said in model.said)
    assert sum(rollup.spent().values()) == computed
    for _, money in rollup.money():
        assert money.counterfactual + money.waste == money.spent + sum(money.avoided.values())


async def share(plan: list[tuple[int, int]], fails: bool) -> tuple[Ledger, Counting]:
    ledger, model = Ledger(), Counting(Overloaded("broke") if fails else None)
    layer = LedgerLayer(Join(model, may_share=lambda _call, _trail: True), ledger)

    async def listen(name: str, comes: int, hears: int) -> None:
        for _ in range(comes):
            await asyncio.sleep(0)
        answer = layer(CALL, Trail(name))
        with suppress(Overloaded, StopAsyncIteration):
            for _ in range(hears):
                await anext(answer)
        await answer.aclose()

    await asyncio.gather(*(listen(str(at), *one) for at, one in enumerate(plan)))
    return ledger, model


class Counting(FakeModel):
    """Four words, and how many were computed of each answer."""

    def __init__(self, late_error: Exception | None) -> None:
        super().__init__(lambda _: ["a", "b", "c", "d"], name="large", late_error=late_error)
        self.said: list[int] = []

    async def __call__(self, call: Call, trail: Trail) -> Answer:
        said, begun = 0, False
        async with aclosing(super().__call__(call, trail)) as answer:
            try:
                async for event in answer:
                    begun = True
                    said += isinstance(event, Delta)
                    yield event
                    await asyncio.sleep(0)
            finally:
                if begun:
                    self.said.append(said)


async def test_a_generation_that_is_inherited_is_paid_once() -> None:
    ledger = Ledger()
    model = FakeModel(lambda _: ["a", "b", "c", "d"], name="large", pause_s=0.001)
    layer = LedgerLayer(Join(model, may_share=lambda _call, _trail: True), ledger)
    leader, heir = layer(CALL, Trail("1")), layer(CALL, Trail("2"))
    for _ in range(3):
        await anext(leader)
    await anext(heir)
    await leader.aclose()
    assert [event async for event in heir]
    left, stayed = ledger.take()
    assert (left.status, left.wasted) == (499, [])
    assert (stayed.status, stayed.origin) == (200, "joined")
    assert PRICES.account("large", stayed.origin, stayed.usage).spent > 0


def test_a_hit_costs_nothing_and_avoids_all() -> None:
    money = PRICES.account("large", "exact", Usage(10, 4, 3))
    assert (money.spent, money.avoided, money.tokens) == (0, {"exact": 26_000}, {"exact": 14})


def test_a_small_answer_avoids_the_difference_and_what_was_not_prefilled() -> None:
    money = PRICES.account("small", "small", Usage(10, 4, 3))
    assert money.avoided == {"cascade": 26_000 - 2_600, "prefix": 300}
    assert money.tokens == {"cascade": 11, "prefix": 3}


@given(st.lists(st.floats(1e-6, 900.0), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_percentiles_are_right_to_a_bucket(times: list[float], share: float) -> None:
    durations = Durations()
    for one in times:
        durations.add(one)
    rank = sorted(times)[max(0, -(-int(share * len(times) * 10**9) // 10**9) - 1)]
    found = durations.percentile(share)
    assert found is not None
    assert found >= min(max(times), max(rank, 1e-5)) * 0.98 or found >= rank * 0.98
    assert Durations().percentile(0.5) is None


def test_cumulative_buckets_never_fall_and_end_with_all() -> None:
    durations = Durations()
    for one in (1e-9, 0.001, 0.3, 5000.0):
        durations.add(one)
    counts = [count for _, count in durations.cumulative()]
    assert counts == sorted(counts)
    assert counts[-1] == 4
    assert counts[0] == 1


def test_metrics_are_the_folded_account() -> None:
    ledger = Ledger()
    rollup = RollUp(ledger, PRICES)
    states = {"large": EngineState(2, 1, 3, {"free": 7}, computed={"completion": 5})}
    metrics = Metrics(rollup, lambda: states, lambda: 5)
    ledger.append(record("exact"))
    ledger.append(record("large"))
    text = metrics.render().decode()
    labels = 'model="large",origin="exact",status="200",tenant="t"'
    assert f"sluice_requests_total{{{labels}}} 1.0" in text
    assert 'sluice_tokens_avoided_total{by="exact",tenant="t"} 14.0' in text
    assert 'sluice_request_seconds_bucket{le="0.464",origin="exact"} 0.0' in text
    assert 'sluice_request_seconds_bucket{le="1.0",origin="exact"} 1.0' in text
    assert 'sluice_kv_pages{model="large",state="free"} 7.0' in text
    assert 'sluice_running_sequences{model="large"} 2.0' in text
    assert 'sluice_engine_tokens_total{kind="completion",model="large"} 5.0' in text
    assert "sluice_inflight_requests 5.0" in text
    assert len(ledger) == 0
