"""The engine thread: schedule → run → deliver, for every model, until it is stopped.

    inbox ──▶ receive ─▶ expire ─▶ each lane:  plan ─▶ launch ─▶ result ─▶ append ──▶ outbox
    (any thread)                                                                (event loops)

A runner of depth 2 (a GPU's) is given step N before step N−1 is read, so that it always has work:

    engine thread    launch 1 │ launch 2 │ read 1, launch 3 │ read 2, launch 4 │ …
    GPU                       │ step 1   │ step 2           │ step 3           │ …

What step N−1 draws stays on the device for step N, and the host learns it meanwhile. A sequence
that ended with it has been run one token too far; that token is dropped. With depth 1 (a CPU's) the
same loop reads each step before it plans the next.

One thread owns all state behind the inbox, so nothing in scheduler, tree or sequences is locked.
Submissions and cancellations wait in the inbox until a step ends; what a step produced leaves in
one wake-up of the event loop. Idle, the thread sleeps on a condition.

Whatever goes wrong stays small. A step for which memory runs out is tried again in smaller ones:
what was launched before it is read, nothing is lost, and only who does not fit alone, a token at a
time, fails (ceiling.py). A step that raises anything else fails the requests in it: their pages are
freed and not published, since nobody knows what they hold. One that fails after its launch takes
all of its model's running requests along, and the cached prefixes: the pages it should have filled
may be anybody's by now. A text that raises fails its request. A device that is lost ends the
thread, as anything does that it does not expect: it fails everyone on its way out, and later
submissions at once, with the reason: nobody waits for a dead thread.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from engine.contract import (
    AnswerError,
    DeadlineExceeded,
    End,
    Failed,
    Finish,
    FinishReason,
    Overloaded,
)
from engine.lane import Lane, LaneStats, Tally
from engine.mailbox import Item, Outbox
from engine.request import Choice, Request
from engine.sequence import Chunk, OutOfMemory, Pending, RunnerLost, Sampled, Sequence
from engine.stream import token_logprob

STATS_EVERY_S = 0.1
BACK_S = 5.0
"""After which a lost card's successor may be asked."""
STALL_S = 0.005
REMEDY = (
    "set engine.kv_memory_mib lower, or engine.max_batched_tokens and engine.max_running, or end "
    "what else takes the device's memory"
)
"""Where memory runs out in steps."""
LOOK_S = 20e-6
"""Between two looks at which of several models' steps is done."""

Report = Callable[[str, BaseException], None]


def log_error(message: str, error: BaseException) -> None:
    """The default report: the standard library's log, with the traceback."""
    logging.getLogger("sluice.engine").error(message, exc_info=error)


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that was launched and not read."""

    chunks: list[Chunk]
    pending: Pending


@dataclass(frozen=True, slots=True)
class _Submit:
    request: Request


@dataclass(frozen=True, slots=True)
class _Cancel:
    request: Request


class Loop:
    """Runs the lanes. `submit`, `cancel`, `stop` and `stats` may be called from any thread."""

    def __init__(
        self, lanes: Mapping[str, Lane], clock: Callable[[], float], report: Report = log_error
    ) -> None:
        self._lanes = list(lanes.values())
        self._clock = clock
        self._report = report
        self._wake = threading.Condition()
        self._inbox: list[_Submit | _Cancel] = []
        self._stopping = False
        self._ended = False
        self._outbox = Outbox(clock)
        self._live: set[Request] = set()
        self._choices: dict[Sequence, Choice] = {}
        self._deadlines: list[tuple[float, int, Request]] = []
        self._order = itertools.count()
        self._tallies = {lane.name: Tally(lane, clock) for lane in self._lanes}
        self._stats = {name: tally.stats() for name, tally in self._tallies.items()}
        self._stats_at = clock()
        self._stalled = False
        self._flying: dict[str, deque[_Flight]] = {lane.name: deque() for lane in self._lanes}
        self._lost: str | None = None

    # -- any thread --------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request; its answer, or why there is none, comes to its mailbox. Raises
        Overloaded or Failed where the engine has ended."""
        with self._wake:
            if self._ended or self._stopping:
                raise self._too_late_to_begin()
            self._inbox.append(_Submit(request))
            self._wake.notify()

    def cancel(self, request: Request) -> None:
        """Give up a request: its pages are free within one step, and its mailbox gets a last item
        that says so. Harmless when it is done: then the last is there, or on its way."""
        if request.done:
            return
        with self._wake:
            self._inbox.append(_Cancel(request))
            self._wake.notify()

    def stop(self) -> None:
        """Fail what still runs, and end."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    @property
    def num_live(self) -> int:
        """Requests that are queued or running, about."""
        return len(self._live) + len(self._inbox)

    @property
    def lost(self) -> str | None:
        """Why the engine does not compute any more, if a device was lost."""
        return self._lost

    def stats(self) -> dict[str, LaneStats]:
        """Figures by model, at most a step and a tenth of a second old; the speed is of now, since
        it falls while this thread sleeps."""
        return {
            name: replace(one, tokens_per_s=self._tallies[name].tokens_per_s())
            for name, one in self._stats.items()
        }

    # -- the engine thread -------------------------------------------------------------------

    def run(self) -> None:
        """The thread's body."""
        try:
            while self._receive():
                self._expire()
                self._stalled = not self._turn()
                self._note_stats()
            for request in list(self._live):
                self._drop(request)
                self._close(request, self._stopped())
        except RunnerLost as lost:
            self._lost = str(lost)
        finally:
            self._end()

    def _turn(self) -> bool:
        """Launch what can be launched and read what is done, of every model. Waits where nothing
        else is to do; False: there is nothing to wait for either."""
        moved = [self._launch(lane) for lane in self._lanes]
        moved += [self._read(lane) for lane in self._lanes if self._is_due(lane)]
        if any(moved):
            return True
        flying = [lane for lane in self._lanes if self._flying[lane.name]]
        if len(flying) == 1:
            return self._read(flying[0])
        if flying:
            time.sleep(LOOK_S)
        return bool(flying)

    def _is_due(self, lane: Lane) -> bool:
        flying = self._flying[lane.name]
        return bool(flying) and flying[0].pending.ready()

    def _launch(self, lane: Lane) -> bool:
        """Launch the lane's next step, if it may have one more in flight."""
        flying = self._flying[lane.name]
        if len(flying) >= lane.runner.depth or not lane.scheduler.has_work:
            return False
        chunks: list[Chunk] = []
        try:
            chunks = lane.scheduler.plan()
            if not chunks:
                return False
            pending = lane.runner.launch(chunks)
            lane.scheduler.advance(chunks)
        except OutOfMemory as lack:
            self._make_do(lane, chunks, lack)
            return True
        except Exception as error:  # noqa: BLE001 — a broken step must not end the engine
            self._fail_step(lane, chunks, error)
            return False
        flying.append(_Flight(chunks, pending))
        return True

    def _read(self, lane: Lane) -> bool:
        """Wait for the lane's oldest step and append what it drew."""
        flight = self._flying[lane.name].popleft()
        try:
            sampled = flight.pending.result()
        except Exception as error:  # noqa: BLE001 — as above
            self._fail_step(lane, flight.chunks, error)
            return True
        self._tallies[lane.name].step(flight.chunks, len(sampled))
        for drawn in sampled:
            self._append(drawn)
        self._flush()
        return True

    def _append(self, drawn: Sampled) -> None:
        choice = self._choices.get(drawn.sequence)
        if choice is None:  # a sibling failed in this step
            return
        try:
            self._extend(choice, drawn)
        except Exception as error:  # noqa: BLE001 — nor must one request's text
            self._fail([choice.request], "reading an answer's text", error)

    def _extend(self, choice: Choice, drawn: Sampled) -> None:
        """Add one token to a choice, send what it completes, and see whether it ends."""
        request, sequence = choice.request, choice.sequence
        if request.first_token is None:
            request.first_token = self._clock()
        sequence.append(drawn.token)
        if drawn.token in request.lane.stop_ids:
            return self._finish(choice, "stop")
        logprob = None
        if sequence.params.logprobs >= 0:
            pieces = request.lane.text.pieces
            logprob = token_logprob(pieces, drawn.token, drawn.logprob, drawn.top)
        delta = choice.stream.add(drawn.token, logprob)
        if delta is not None:
            self._outbox.add(request.mailbox, delta)
        if choice.stream.stopped:
            return self._finish(choice, "stop")
        if sequence.known >= sequence.max_known:
            return self._finish(choice, "length")
        return None

    def _finish(self, choice: Choice, reason: FinishReason) -> None:
        request = choice.request
        delta = choice.stream.finish()
        if delta is not None:
            self._outbox.add(request.mailbox, delta)
        if choice.stream.stopped:  # the last bytes completed a stop string
            reason = "stop"
        request.lane.scheduler.finish(choice.sequence)
        del self._choices[choice.sequence]
        self._outbox.add(request.mailbox, Finish(choice.index, reason))
        request.num_open -= 1
        if request.num_open == 0:
            usage = request.usage()
            self._tallies[request.lane.name].cached(usage.cached_tokens)
            self._close(request, End(usage))

    # -- coming and going --------------------------------------------------------------------

    def _prepare(self) -> None:
        """While nothing is to do, let the runners get ready for steps to come."""
        for lane in self._lanes:
            try:
                while not (self._inbox or self._stopping or self._has_work()):
                    if not lane.runner.prepare():
                        break
            except Exception as error:  # noqa: BLE001 — as in a step
                self._fail_step(lane, [], error)

    def _receive(self) -> bool:
        """Take the inbox; sleep while there is nothing to do. False: the engine ends."""
        self._prepare()
        with self._wake:
            while not self._inbox and not self._stopping and not self._has_work():
                self._wake.wait()
            if self._stalled and not self._inbox and not self._stopping:
                self._wake.wait(STALL_S)  # all wait for pages that nobody frees: a deadline may
            inbox, self._inbox = self._inbox, []
        for message in inbox:
            if isinstance(message, _Submit):
                self._accept(message.request)
            elif message.request in self._live:
                self._drop(message.request)
                self._close(message.request, Failed("The request was given up."))
        self._flush()
        return not self._stopping

    def _accept(self, request: Request) -> None:
        if request.deadline is not None and request.deadline <= self._clock():
            return self._close(request, _too_late(request))
        try:
            request.lane.scheduler.submit(request.sequences)
        except AnswerError as error:
            return self._close(request, error)
        except Exception as error:  # noqa: BLE001 — as in a step
            return self._fail([request], "queueing", error)
        self._live.add(request)
        self._choices.update({choice.sequence: choice for choice in request.choices})
        if request.deadline is not None:
            self._watch(request, request.deadline)
        return None

    def _watch(self, request: Request, deadline: float) -> None:
        if len(self._deadlines) > 64 + 2 * len(self._live):  # most of them are done: forget those
            self._deadlines = [entry for entry in self._deadlines if entry[2] in self._live]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (deadline, next(self._order), request))

    def _expire(self) -> None:
        """End what has run out of time."""
        while self._deadlines and self._deadlines[0][0] <= self._clock():
            request = heapq.heappop(self._deadlines)[2]
            if request in self._live:
                self._drop(request)
                self._close(request, _too_late(request))
        self._flush()

    def _drop(self, request: Request, *, publish: bool = True) -> None:
        """Free everything that a request holds."""
        for sequence in request.sequences:
            if self._choices.pop(sequence, None) is not None:
                request.lane.scheduler.drop(sequence, publish=publish)
        self._live.discard(request)
        request.done = True

    def _make_do(self, lane: Lane, chunks: list[Chunk], lack: OutOfMemory) -> None:
        """Memory ran out while a step was launched: do with smaller ones."""
        while self._flying[lane.name]:  # these are whole, and hold what the next one computes on
            self._read(lane)
        lane.runner.recover()
        if lane.scheduler.shrink(chunks):
            tokens, rows = lane.scheduler.most
            self._report(
                f"memory ran out in a step of {lane.name}; for now its steps hold at most {tokens} "
                f"tokens of {rows} sequences; if this comes again, {REMEDY}",
                lack,
            )
        else:
            requests = self._requests_of(chunk.sequence for chunk in chunks)
            self._fail(requests, f"the smallest step of {lane.name}", lack, REMEDY)
            self._flush()

    def _fail_step(self, lane: Lane, chunks: list[Chunk], error: Exception) -> None:
        """Fail those in the step. Where planning raised and nothing runs, whoever is next in line
        is all that can have been in it; if it was not, the next failure is the next one's."""
        flying = self._flying[lane.name]
        sequences = [chunk.sequence for chunk in chunks]
        if lane.runner.depth > 1:  # other steps may stand on this one
            sequences += [chunk.sequence for flight in flying for chunk in flight.chunks]
            sequences += lane.scheduler.running
        sequences = sequences or lane.scheduler.running or lane.scheduler.waiting[:1]
        self._fail(self._requests_of(sequences), f"a step of {lane.name}", error)
        if lane.runner.depth > 1:
            flying.clear()
            lane.scheduler.forget()
        self._flush()
        lane.runner.recover()

    def _requests_of(self, sequences: Iterable[Sequence]) -> set[Request]:
        return {self._choices[s].request for s in sequences if s in self._choices}

    def _fail(
        self, requests: Iterable[Request], doing: str, error: Exception, advice: str = "try again"
    ) -> None:
        """Each is told its own id only: the others may be another tenant's."""
        requests = list(requests)
        ids = ", ".join(sorted(request.id for request in requests))
        self._report(f"{doing} failed for requests {ids}", error)
        for request in requests:
            self._drop(request, publish=False)
            failed = Failed(
                f"The engine failed ({type(error).__name__}) in {doing}, for request {request.id}. "
                f"It goes on; {advice}."
            )
            self._close(request, failed)

    def _close(self, request: Request, last: Item) -> None:
        """Send the last that a request will get."""
        self._outbox.add(request.mailbox, last)
        self._live.discard(request)
        request.done = True

    def _flush(self) -> None:
        closed = self._outbox.flush()
        if closed:
            for request in [r for r in self._live if r.mailbox.office in closed]:
                self._drop(request)

    def _has_work(self) -> bool:
        return any(lane.scheduler.has_work or self._flying[lane.name] for lane in self._lanes)

    def _note_stats(self) -> None:
        now = self._clock()
        if now - self._stats_at >= STATS_EVERY_S or not self._has_work():
            self._stats = {name: tally.stats() for name, tally in self._tallies.items()}
            self._stats_at = now

    def _end(self) -> None:
        """Leave nobody waiting."""
        with self._wake:
            self._ended = True
            inbox, self._inbox = self._inbox, []
        # No page is given back here: if the thread dies, its books may be what killed it.
        for message in inbox:
            if isinstance(message, _Submit):
                self._close(message.request, self._too_late_to_begin())
        for request in list(self._live):
            self._close(request, self._stopped())
        self._outbox.flush()

    def _too_late_to_begin(self) -> AnswerError:
        """For who was not begun with: where a card was lost, another engine is soon there."""
        stopped = self._stopped()
        return Overloaded(str(stopped), retry_after_s=BACK_S) if self._lost else stopped

    def _stopped(self) -> Failed:
        reason = f" ({self._lost})" if self._lost else ""
        return Failed(f"The engine has stopped{reason}; try again when it is back.")


def _too_late(request: Request) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"The deadline passed before request {request.id} was answered; allow it more time, or ask "
        "for fewer tokens."
    )
