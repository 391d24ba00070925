"""When an engine's process is taken to hang, and when not."""

from __future__ import annotations

import pytest

from engine.mailbox import Mailbox
from gateway.engine_process.ticket import Ticket
from gateway.engine_process.watch import Bounds, Watch, step_bound
from gateway.observe.metrics import EngineState

BOUNDS = Bounds(silent_s=20.0, loading_s=180.0)
STEP_S = 100.0


class House:
    """A watch, its clock, and one model's figures."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.watch = Watch(lambda: self.now, BOUNDS)
        self.tickets: list[Ticket] = []
        self.computed = 0

    def look(self, after_s: float = 1.0, *, loading: bool = False) -> str | None:
        self.now += after_s
        states = {"m": EngineState(computed={"prompt": self.computed})}
        return self.watch.look(self.tickets, states, STEP_S, loading=loading)

    def beat_until(self, seconds: int) -> list[str]:
        """What is found meanwhile."""
        found = []
        for _ in range(seconds):
            self.watch.heard()
            if (why := self.look()) is not None:
                found.append(why)
        return found


async def ask(house: House) -> None:
    house.tickets.append(Ticket(1, "m", "r", Mailbox(), house.now))


def test_silence_hangs_after_its_bound_and_while_loading_after_a_longer_one() -> None:
    for loading, bound_s in ((False, 20), (True, 180)):
        house = House()
        assert [house.look(loading=loading) for _ in range(bound_s)] == [None] * bound_s
        assert "nothing came" in str(house.look(loading=loading))


def test_a_gateway_that_stood_still_itself_blames_nobody() -> None:
    house = House()
    house.look()
    assert house.look(after_s=3_600.0) is None
    house.watch.heard()
    assert house.beat_until(100) == []


def test_an_idle_engine_may_compute_nothing_for_ever() -> None:
    assert House().beat_until(1_000) == []


@pytest.mark.asyncio
async def test_a_step_hangs_when_its_model_computes_nothing_though_it_was_asked() -> None:
    house = House()
    house.beat_until(500)
    await ask(house)
    assert house.beat_until(int(STEP_S)) == []
    (why,) = house.beat_until(1)
    assert "a step of m hangs" in why


@pytest.mark.asyncio
async def test_a_call_may_wait_as_long_as_its_model_computes_for_others() -> None:
    house = House()
    await ask(house)
    for _ in range(20):
        house.computed += 1
        assert house.beat_until(90) == []


@pytest.mark.asyncio
async def test_calls_that_are_refused_at_once_are_no_sign_of_a_step() -> None:
    house = House()
    for _ in range(300):
        await ask(house)
        assert house.beat_until(1) == []
        house.tickets.clear()
        await ask(house)


def test_a_step_may_take_longer_on_a_cpu_and_what_the_settings_say() -> None:
    assert step_bound(None, "cpu") > step_bound(None, "cuda") > 60
    assert step_bound(7.0, "cuda") == 7.0
