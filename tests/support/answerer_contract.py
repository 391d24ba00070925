"""What every answerer must do, whatever is behind it: engine, remote model, cache, fake.

A suite subclasses `AnswererContract` and gives `answering()`, an async context manager that yields
an answerer which takes more than one turn of the event loop for two deltas or more, and `broken()`,
one that cannot answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from engine.contract import Answerer, AnswerError, Call, Delta, End, Finish, Start, Trail, unroll
from tests.support.engines import ask, chat


class AnswererContract:
    """Test methods state facts of engine/contract.py."""

    def call(self, **fields: object) -> Call:
        return chat("Hello there, how are you?", **{"max_tokens": 12, **fields})

    def answering(self) -> contextlib.AbstractAsyncContextManager[Answerer]:
        raise NotImplementedError

    def broken(self) -> contextlib.AbstractAsyncContextManager[Answerer]:
        raise NotImplementedError

    async def test_start_comes_once_and_first_end_once_and_last(self) -> None:
        async with self.answering() as answerer:
            events = [event async for event in answerer(self.call(), Trail("r1"))]
        kinds = [type(event) for event in events]
        assert (kinds[0], kinds[-1]) == (Start, End)
        assert (kinds.count(Start), kinds.count(End)) == (1, 1)

    async def test_the_answer_bears_the_id_of_who_asks(self) -> None:
        async with self.answering() as answerer:
            assert (await ask(answerer, self.call(), Trail("mine"))).start.id == "mine"

    async def test_every_choice_finishes_once_after_its_last_delta(self) -> None:
        async with self.answering() as answerer:
            events = [
                inner
                async for event in answerer(self.call(n=2), Trail("r1"))
                for inner in unroll(event)
            ]
        for index in range(2):
            mine = [e for e in events if isinstance(e, Delta | Finish) and e.index == index]
            assert [type(event) for event in mine].count(Finish) == 1
            assert isinstance(mine[-1], Finish)
            assert len(mine) > 1

    async def test_usage_counts_what_was_asked_and_answered(self) -> None:
        async with self.answering() as answerer:
            usage = (await ask(answerer, self.call())).usage
        assert usage.prompt_tokens > 0
        assert usage.completion_tokens > 0
        assert 0 <= usage.cached_tokens <= usage.prompt_tokens

    async def test_a_reader_may_leave_at_any_event_and_others_are_answered(self) -> None:
        async with self.answering() as answerer:
            for events_read in range(4):
                answer = answerer(self.call(), Trail("r1"))
                async with contextlib.aclosing(answer):
                    for _ in range(events_read):
                        await anext(answer)
            assert (await ask(answerer, self.call())).text()

    async def test_who_leaves_early_is_told_what_was_computed_until_then(self) -> None:
        async with self.answering() as answerer:
            trail, said = Trail("r1"), 0
            async with contextlib.aclosing(answerer(self.call(n=2), trail)) as answer:
                async for event in answer:
                    if isinstance(event, Delta):
                        said += len(event.token_ids)
                        if said >= 3:
                            break
            whole = Trail("r2")
            usage = (await ask(answerer, self.call(n=2), whole)).usage
        [cut] = trail.wasted
        assert cut.usage.prompt_tokens == usage.prompt_tokens
        assert cut.usage.cached_tokens < cut.usage.prompt_tokens
        assert said <= cut.usage.completion_tokens <= usage.completion_tokens
        assert not whole.wasted

    async def test_a_reader_may_be_cancelled_and_others_are_answered(self) -> None:
        async with self.answering() as answerer:
            task = asyncio.create_task(ask(answerer, self.call()))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await ask(answerer, self.call())).text()

    async def test_answers_at_the_same_time_do_not_mix(self) -> None:
        async with self.answering() as answerer:
            alone = await ask(answerer, self.call())
            together = await asyncio.gather(*(ask(answerer, self.call()) for _ in range(4)))
        assert {said.text() for said in together} == {alone.text()}

    async def test_a_failure_before_start_is_an_answer_error(self) -> None:
        async with self.broken() as answerer:
            with pytest.raises(AnswerError) as caught:
                await ask(answerer, self.call())
        assert caught.value.message


@contextlib.asynccontextmanager
async def always(answerer: Answerer) -> AsyncIterator[Answerer]:
    """An answerer that needs no starting and stopping."""
    yield answerer
