"""Labels from live traffic: some requests are answered again by both models, when nobody waits.

Problem. Learning from what was chosen sees only one model's answer per request, and only where the
policy already trusts it. Exploring on the caller's own answer (asking the other model at random)
pays for each label in quality or money, and one-sided labels multiply the variance.

Choice. A sample of answered requests is kept, and while the engine is idle both models answer each
of them; a grade compares, and the row goes where `sluice calibrate` reads. Labels matter where the
cut is: requests that no cut nearby would keep small are drawn `EXPLORED` times as often as the
others, which is the exploration, and each row carries the inverse of the probability that it was
drawn by (promise.py weighs by it).

Feedback (/v1/feedback) about an answer that is still remembered makes a row as well: both models
answer again, and whoever says what was said before has the score that it was given. People complain
when they like, so that such rows teach the models and never test a promise (labels.py).

What is kept says whose it is: scope and labels of the request go into its row, by which it can be
erased like a stored answer, from what waits and from the rows (`Meant`).

Price. The engine's idle time, prompts kept on disk (so it is off unless the tenant's `shadow_share`
is set), and a grade that is only as good as its judge: agreement with the large model counts the
small one's better answers as wrong, which errs on the promise's side. So does feedback: where the
other model says something else, small is taken to be wrong and large to be right.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace

from cascade.cascade import AUTO
from cascade.hold import Hold
from cascade.judge import Answered
from cascade.label_rows import Grades, Meant, write_label
from engine.contract import (
    Answer,
    Answerer,
    AnswerError,
    Call,
    Delta,
    End,
    Trail,
    Waste,
)

SHARE = 0.05
"""Weight in the engine's fair scheduling: any real request goes first."""
IDLE_CHECK_S = 0.25
EXPLORED = 0.1
REMEMBERED = 1_000
LONGEST = 32_768
"""Characters of a prompt that is kept."""


Grade = Callable[[Call, str, str], Awaitable[Grades | None]]
"""(call, small's text, large's text) → grades; None: cannot be told."""


async def agreement(call: Call, small: str, large: str) -> Grades:  # noqa: ARG001
    """Where answers are short and checkable: the same words count as right, large's as truth."""
    return Grades(float(_plain(small) == _plain(large)), 1.0)


def _plain(text: str) -> str:
    return re.sub(r"[\s.!]+", " ", text).strip().casefold()


@dataclass(frozen=True, slots=True)
class Feedback:
    """What somebody said about the answer `given`. `truth`: what would be right."""

    given: str
    score: float
    truth: str = ""

    def grades(self, small: str, large: str) -> Grades:
        return Grades(self._grade(small, 0.0), self._grade(large, 1.0))

    def _grade(self, text: str, otherwise: float) -> float:
        if self.truth:
            words, right = _plain(text).split(), _plain(self.truth).split()
            return float(words[-len(right) :] == right)
        if _plain(text) == _plain(self.given):
            return self.score
        return otherwise


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which answered requests are drawn. `share`: tenant → of its requests, 0: none; `undecided`:
    whether a cut nearby could keep the call small."""

    share: Callable[[str], float]
    undecided: Callable[[Call], bool] = lambda _: True
    waiting: int = 1_000

    def drawn(self, call: Call, tenant: str, rng: random.Random) -> float:
        """The probability by which the call was drawn; 0: it was not."""
        share = self.share(tenant)
        if rng.random() >= share:
            return 0.0
        if self.undecided(call):
            return share
        return share * EXPLORED if rng.random() < EXPLORED else 0.0


@dataclass(frozen=True, slots=True)
class _Case:
    """A request that waits for both models. `labels` are those of its stored answer. `drawn`: the
    probability; 0 for feedback."""

    call: Call
    tenant: str
    labels: tuple[str, ...]
    drawn: float
    feedback: Feedback | None = None
    answer_id: str = ""
    """Of feedback: what it is about."""


@dataclass(frozen=True, slots=True)
class _Known:
    """An answer that feedback may still be about."""

    call: Call
    tenant: str
    labels: tuple[str, ...]
    text: str


Keep = Callable[[str, str], None]
"""(tenant, row)."""
Book = Callable[[str, list[Waste]], None]
"""(tenant, what both models computed)."""


class Shadow:
    """A layer around the cascade that passes answers through, and a task (`run`) that labels.

    Owned by one event loop. `is_idle` is asked before each run; `keep` gets each finished row, and
    `book` what it cost.
    """

    def __init__(
        self,
        inner: Answerer,
        sides: Mapping[str, Answerer],
        *,
        sampling: Sampling,
        rng: random.Random,
        grade: Grade,
        is_idle: Callable[[], bool],
        keep: Keep,
        book: Book,
        logprobs: bool = True,
    ) -> None:
        """`sides`: small and large by name, in this order. `logprobs`: small can report them."""
        self._inner = inner
        self._small = next(iter(sides))
        self._sides = sides
        self._sampling = sampling
        self._rng = rng
        self._grade = grade
        self._is_idle = is_idle
        self._keep = keep
        self._book = book
        self._logprobs = logprobs
        self._waiting: deque[_Case] = deque(maxlen=sampling.waiting)
        self._arrived = asyncio.Event()
        self._at_work: _Case | None = None
        self._answered: OrderedDict[str, _Known] = OrderedDict()
        self.labels = self.dropped = 0

    def __call__(self, call: Call, trail: Trail) -> Answer:
        """Whoever keeps no labels pays nothing: the inner answer is not wrapped."""
        answer = self._inner(call, trail)
        if call.model != AUTO or self._sampling.share(trail.tenant) <= 0.0:
            return answer
        if not _can_be_kept(call):
            return answer
        return self._watched(answer, call, trail)

    async def _watched(self, answer: Answer, call: Call, trail: Trail) -> Answer:
        said: list[str] = []
        async with aclosing(answer):
            async for event in answer:
                if isinstance(event, Delta) and event.kind == "text":
                    said.append(event.payload)
                elif isinstance(event, End):
                    self._sample(call, trail)
                    self._remember(call, trail, "".join(said))
                yield event

    def _sample(self, call: Call, trail: Trail) -> None:
        drawn = self._sampling.drawn(call, trail.tenant, self._rng)
        if drawn:
            self._put(_Case(call, trail.tenant, trail.tags, drawn))

    def _put(self, case: _Case) -> None:
        self._waiting.append(case)
        self._arrived.set()

    def _remember(self, call: Call, trail: Trail, text: str) -> None:
        self._answered[trail.id] = _Known(call, trail.tenant, trail.tags, text)
        if len(self._answered) > REMEMBERED:
            self._answered.popitem(last=False)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def feedback(
        self, answer_id: str, score: float, *, tenant: str, scope: str, correct_answer: str = ""
    ) -> bool:
        """Whether the answer was still known, and given to `tenant` in this `scope`; then both
        models will answer it again.
        `score` in [0, 1]. Of an answer that is graded again the last word counts (labels.py), and
        one that waits is replaced."""
        known = self._answered.get(answer_id)
        if known is None or known.tenant != tenant or known.call.scope != scope:
            return False
        told = Feedback(known.text, score, correct_answer)
        case = _Case(known.call, tenant, known.labels, 0.0, told, answer_id)
        for place, waiting in enumerate(self._waiting):
            if waiting.answer_id == answer_id:
                self._waiting[place] = case
                return True
        self._put(case)
        return True

    def erase(self, meant: Meant) -> None:
        """Forget what is meant of all that was not written yet."""
        left = [case for case in self._waiting if not meant(case.call.scope, case.labels)]
        self._waiting.clear()
        self._waiting.extend(left)
        if not left:
            self._arrived.clear()
        now = self._at_work
        if now is not None and meant(now.call.scope, now.labels):
            self._at_work = None
        for answer_id, known in list(self._answered.items()):
            if meant(known.call.scope, known.labels):
                del self._answered[answer_id]

    async def run(self) -> None:
        """Labels what is waiting, one at a time, for ever. Cancel it to stop."""
        while True:
            await self._arrived.wait()
            if not self._is_idle():
                await asyncio.sleep(IDLE_CHECK_S)
                continue
            case = self._at_work = self._waiting.popleft()
            if not self._waiting:
                self._arrived.clear()
            row = await self._label(case)
            if row is None or self._at_work is not case:
                self.dropped += 1
                continue
            self.labels += 1
            self._keep(case.tenant, row)

    async def _label(self, case: _Case) -> str | None:
        """None where a model failed or nobody can tell who was right: such a row is dropped."""
        spent: list[Waste] = []
        try:
            small, large = [
                await _whole(answerer, self._asked(case.call, name), spent)
                for name, answerer in self._sides.items()
            ]
        except AnswerError:
            return None
        finally:
            if spent:
                self._book(case.tenant, spent)
        if case.feedback is not None:
            grades = case.feedback.grades(small.text, large.text)
        else:
            agreed = await self._grade(case.call, small.text, large.text)
            if agreed is None:
                return None
            grades = agreed
        tokens = spent[-1].usage.completion_tokens
        return write_label(
            case.call,
            small,
            grades,
            large_tokens=tokens,
            drawn=case.drawn,
            answer_id=case.answer_id,
            labels=case.labels,
        )

    def _asked(self, call: Call, model: str) -> Call:
        judged = self._logprobs and model == self._small
        return replace(call, model=model, n=1, logprobs=judged, top_logprobs=0)


def _can_be_kept(call: Call) -> bool:
    """A row of labels holds text: no images, no calls of tools, one answer, nothing endless."""
    if call.n != 1 or (call.kind == "text" and not isinstance(call.prompt, str)):
        return False
    length = len(call.prompt) if isinstance(call.prompt, str) else 0
    for message in call.messages:
        if message.tool_calls or any(part.kind != "text" for part in message.parts):
            return False
        length += len(message.text)
    return length <= LONGEST


async def _whole(answerer: Answerer, call: Call, spent: list[Waste]) -> Answered:
    hold = Hold(1, None)
    answer = answerer(call, Trail("shadow", tenant="shadow", share=SHARE, wasted=spent))
    async with aclosing(answer):
        async for event in answer:
            hold.add(event)
            if isinstance(event, End):
                spent.append(Waste(call.model, event.usage, "shadow run"))
    (answered,) = hold.answers()
    return answered
