"""What everything that can answer a request has in common.

    Answerer = (Call, Trail) -> async generator of events

An engine, a remote server, a cache and a cascade all have this one face, so that each layer wraps
the next and is tested alone with a fake of ten lines. A `Call` says *what* is asked and is all that
a cache key is made of; a `Trail` says *who* asks and collects what happened on the way. Keeping the
two apart is what makes it impossible to answer differently by who asks without it being in the key.

An answer is a sequence of events:

    Start  Delta*  (Finish per choice, mixed with Deltas)  End

A stored answer sends its whole middle as one `Burst` instead; only renderers look inside it.

`Start` is the commit point: before it a failure is raised as an `AnswerError` and becomes an HTTP
status; after it, it can only become an error event inside the stream. An answer without `End` was
cut: it is never stored and never counted as complete. Whoever computed it says what that took
(`Trail.cut`) before it has closed or raised, so that all who settle an account settle the same.

Whoever iterates an answer and may stop early closes it (`contextlib.aclosing`), because closing is
how a hang-up travels inwards to the engine and frees its memory.

This module imports the standard library only: all five packages meet here.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Literal, NewType, Protocol, TypeAlias

Json = NewType("Json", str)
"""Text that is known to be canonical JSON (sorted keys, no spaces): hashable, unlike a dict."""

Role = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


# --------------------------------------------------------------------------- what is asked


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a message's content. `body` is its text, or another kind's canonical JSON."""

    kind: str
    body: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    parts: tuple[Part, ...] = ()
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The text parts, joined as OpenAI's servers join them: without a separator."""
        return "".join(part.body for part in self.parts if part.kind == "text")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. None means that the caller did not say: the model's default applies,
    and the exact cache may store the answer (see cache/exact.py). Off is a thing to say: `top_k` 0,
    `top_p` 1, `min_p` 0 and `repetition_penalty` 1 hold against a model's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One request, resolved: aliases, clamps and defaults applied; nothing inside validates again.

    `scope` is the tenant's isolation scope and `fingerprint` names the weights of every model that
    may answer, and the settings that change what they say; both are set by the gateway, never by
    the caller, and both are in every cache key and every prefix namespace. `policy` names what an
    answer may cost in quality (empty: nothing).
    """

    kind: Literal["chat", "text"]
    model: str
    scope: str
    fingerprint: str = ""
    policy: str = ""
    messages: tuple[Message, ...] = ()
    prompt: str | tuple[int, ...] = ""
    sampling: Sampling = Sampling()
    n: int = 1
    max_tokens: int | None = None
    longest: int | None = None
    """Where `max_tokens` is unset and who pays has a budget: what a model that has no bound of its
    own is told instead. One that has (its context) needs none."""
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    tools: Json | None = None
    tool_choice: Json | None = None
    parallel_tool_calls: bool = True
    response_format: Json | None = None
    chat_template_kwargs: Json | None = None
    extra: Json | None = None
    """Parameters that we do not know, for a remote model: forwarded and keyed, never dropped."""


# --------------------------------------------------------------------------- what is answered


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """`top` holds the most likely alternatives, best first. `logprob` is a natural logarithm."""

    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer. `cached_tokens`: prompt tokens whose KV came from the prefix tree.
    `computed_tokens`: what was really computed for this request (0 on a cache hit)."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    computed_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """`id` is the asking request's `trail.id`; the wire adds its endpoint's prefix."""

    id: str
    created: int
    model: str
    origin: str
    """exact | semantic | joined | small | large | an upstream's name"""


@dataclass(frozen=True, slots=True)
class Delta:
    """What was added to choice `index`. For kind "tool", `payload` is the canonical JSON of an
    OpenAI tool-call delta. `token_ids` are the model's own, empty where it does not tell."""

    index: int
    kind: Literal["text", "tool", "reasoning"]
    payload: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    index: int
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class End:
    usage: Usage


@dataclass(frozen=True, slots=True)
class Burst:
    """All Deltas and Finishes of an answer that was there at once, as one event: Start Burst End.

    An exact hit of 35 deltas costs 30 µs on its way through three layers event by event, 12 µs so,
    and its rendering costs more than both. `memo` therefore lives as long as the stored answer: a
    renderer keeps there, under its own name, the bytes that it made, and the next hit neither calls
    `read` nor renders. What depends on the request (id, created) does not belong in it.
    `read_whole` gives texts that follow each other as one, for who wants the answer in one piece.
    """

    read: Callable[[], tuple[Delta | Finish, ...]]
    memo: MutableMapping[str, bytes]
    read_whole: Callable[[], tuple[Delta | Finish, ...]]


Event: TypeAlias = Start | Delta | Finish | Burst | End
Answer: TypeAlias = AsyncGenerator[Event, None]


def unroll(event: Event) -> tuple[Start | Delta | Finish | End, ...]:
    """The events that a Burst stands for; any other event alone."""
    return event.read() if isinstance(event, Burst) else (event,)


# ----------------------------------------------------------------------- who asks, what happened


@dataclass(frozen=True, slots=True)
class Directives:
    """The request's Cache-Control (RFC 9111), and its Sluice-Max-Error."""

    no_store: bool = False
    no_cache: bool = False
    only_if_cached: bool = False
    max_age_s: float | None = None
    max_error: float | None = None
    """Tightens what the tenant allows the semantic cache; never loosens it."""


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """One member of the Cache-Status response header (RFC 9211)."""

    layer: Literal["exact", "semantic"]
    hit: bool = False
    forward: str = ""
    """Why the request went on: miss | bypass | stale | request (the caller's Cache-Control)."""
    collapsed: bool = False
    ttl_s: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """Text that may be close to the answer: a near-miss of the cache, a rejected small answer."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a layer did what it did, for people: shown in /admin and on the dashboard."""

    layer: str
    choice: str
    reason: str
    policy: str = ""
    """`Call.policy` that it was made under."""
    score: float | None = None
    cut: float | None = None
    """The score decides by being above the cut or not."""
    costs_nano: tuple[tuple[str, int], ...] = ()
    """What each candidate was expected to cost, in nano-USD."""


CUT = "the answer was cut"


@dataclass(frozen=True, slots=True)
class Waste:
    """What was computed for a request and not delivered: an answer that was cut, a small model's
    that was judged too weak, an audit, a shadow run. `usage` counts as in an answer of `model`."""

    model: str
    usage: Usage
    why: str
    estimated: bool = False
    """A model elsewhere did not say, and its tokens are guessed from the text."""


class Purse(Protocol):
    """What is reserved for an answer, in the name of the tenant that pays for it."""

    async def pass_on(self, heir: str) -> bool:
        """Reserve in another tenant's name instead. False: too late, the first has paid. Raises
        AnswerError where the heir has not got what it takes; then nothing has changed."""
        ...


@dataclass(slots=True)
class Trail:
    """Who asks, until when, and what happened on the way. Owned by one request, never shared:
    a layer that starts work for several requests (cache/join.py) gives that work its own."""

    id: str
    tenant: str = "default"
    user: str = ""
    """The tenant's end user, if the request names one."""
    share: float = 1.0
    """Weight among tenants that compete for the engine."""
    deadline: float | None = None
    """In `time.monotonic()` seconds."""
    whole: bool = False
    """The caller gets the answer in one piece (JSON): who judges it may wait for its end first."""
    directives: Directives = Directives()
    tags: tuple[str, ...] = ()
    """What a stored answer can be purged by, beside its tenant and model (Sluice-Tags)."""
    drafts: list[Draft] = field(default_factory=list)
    spans_ms: dict[str, float] = field(default_factory=dict)
    spans_at: dict[str, float] = field(default_factory=dict)
    """When each of those began, in `time.perf_counter()` seconds."""
    cache: list[CacheStatus] = field(default_factory=list)
    age_s: float | None = None
    decisions: list[Decision] = field(default_factory=list)
    wasted: list[Waste] = field(default_factory=list)
    """What was computed on the way and not delivered: this request pays for it."""
    traceparent: str = ""
    """The W3C trace context that what happens inside belongs to; empty: none."""
    client_id: str = ""
    """What the caller calls this request (its own `x-request-id`); empty: nothing."""
    purse: Purse | None = None
    """What is reserved for this answer; None where nothing is (yet)."""

    def remaining_s(self) -> float | None:
        """Seconds until the deadline, never below 0; None without one."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - time.monotonic())

    def cut(self, model: str, usage: Usage, *, estimated: bool = False) -> None:
        """`model` began an answer that will not end: the prompt tokens that it has computed (and
        found), and the tokens that it has drawn. Nothing, if it has not begun."""
        if usage.prompt_tokens or usage.completion_tokens:
            self.wasted.append(Waste(model, usage, CUT, estimated))

    def span(self, name: str, started: float) -> None:
        """Book the time since `started` (`time.perf_counter()` seconds) under `name`."""
        self.stage(name, started, time.perf_counter())

    def stage(self, name: str, started: float, ended: float) -> None:
        """Book a stage whose end is known, too."""
        self.spans_ms[name] = (ended - started) * 1e3
        self.spans_at[name] = started


class Answerer(Protocol):
    """An async generator function or an object that is called like one."""

    def __call__(self, call: Call, trail: Trail) -> Answer: ...


# --------------------------------------------------------------------------- when it cannot answer


class AnswerError(Exception):
    """Why a call was not answered, worded for the caller, with the remedy.

    AnswerError
    ├── BadCall            400  the caller can mend it
    ├── Denied             403  the tenant's policy forbids it
    ├── UnknownModel       404
    ├── DeadlineExceeded   408
    ├── TooMany            429  this tenant's own limit; `retry_after_s`
    ├── Failed             500  we broke; the request may be tried again
    ├── UpstreamFailed     502  a remote model broke
    ├── Overloaded         503  everybody's limit; `retry_after_s`
    └── NotCached          504  only-if-cached, and it is not
    """

    status = 500
    kind = "server_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


class BadCall(AnswerError):
    status = 400
    kind = "invalid_request_error"


class Denied(AnswerError):
    status = 403
    kind = "permission_error"


class UnknownModel(AnswerError):
    status = 404
    kind = "invalid_request_error"


class DeadlineExceeded(AnswerError):
    status = 408
    kind = "timeout_error"


class TooMany(AnswerError):
    status = 429
    kind = "rate_limit_error"


class Failed(AnswerError):
    status = 500


class UpstreamFailed(AnswerError):
    status = 502


class Overloaded(AnswerError):
    status = 503
    kind = "overloaded_error"


class NotCached(AnswerError):
    status = 504
    kind = "not_cached_error"
