"""How long a call that came now would wait for its first token."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from cascade.ttft import HALF_LIFE_S, FirstTokens
from engine.contract import Answer, Call, End, Event, Start, Trail, Usage
from tests.support.routing import chat


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def taking(clock: Clock, seconds: float) -> Answer:
    async def answer(call: Call, trail: Trail) -> AsyncGenerator[Event, None]:
        clock.now += seconds
        yield Start("r", 1, "m", "m")
        yield End(Usage(1, 1))

    return answer  # type: ignore[return-value]


async def ask(first_tokens: FirstTokens, answerer: object) -> None:
    async for _ in first_tokens.watched("m", answerer)(chat("Hi"), Trail("r")):  # type: ignore[arg-type]
        pass


async def test_nothing_is_expected_of_a_model_that_nobody_asked() -> None:
    assert FirstTokens(Clock()).expected_s("m") == 0.0


async def test_the_mean_follows_what_was_seen_and_fades_while_nothing_comes() -> None:
    clock = Clock()
    first_tokens = FirstTokens(clock)
    for _ in range(30):
        await ask(first_tokens, taking(clock, 2.0))
    assert abs(first_tokens.expected_s("m") - 2.0) < 0.01
    clock.now += HALF_LIFE_S
    assert abs(first_tokens.expected_s("m") - 1.0) < 0.01


async def test_a_call_that_still_waits_says_more_than_those_before_it() -> None:
    clock = Clock()
    first_tokens = FirstTokens(clock)
    seen: list[float] = []

    async def slow(call: Call, trail: Trail) -> AsyncGenerator[Event, None]:
        clock.now += 7.0
        seen.append(first_tokens.expected_s("m"))
        yield Start("r", 1, "m", "m")

    await ask(first_tokens, slow)
    assert seen == [7.0]


async def test_a_call_that_was_closed_waits_no_longer() -> None:
    clock = Clock()
    first_tokens = FirstTokens(clock)
    answer = first_tokens.watched("m", taking(clock, 0.0))(chat("Hi"), Trail("r"))  # type: ignore[arg-type]
    await anext(answer)
    await answer.aclose()
    clock.now += 100.0
    assert first_tokens.expected_s("m") == 0.0
