"""From a call to what the engine computes: checked, tokenised, one sequence for each choice.

Everything that only the model can know is checked here, before anything is queued: the gateway
does not know a model's context, vocabulary or abilities. What this engine does not do is refused by
name, with the remedy; nothing is dropped in silence.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace

import numpy as np

from engine.contract import BadCall, Call, Sampling, Trail, Usage
from engine.lane import Lane
from engine.mailbox import Addressee
from engine.sequence import LogitBias, SamplingParams, Sequence, Tokens
from engine.stream import ChoiceStream

MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
NORMALISED = 4
"""Characters of a prompt that a tokenizer may make one of, before it looks for tokens."""


@dataclass(slots=True, eq=False)
class Choice:
    """One of a request's `n` answers."""

    request: Request
    index: int
    sequence: Sequence
    stream: ChoiceStream


@dataclass(slots=True, eq=False)
class Request:
    """A call in the engine. Once submitted it belongs to the engine thread, but for the mailbox."""

    id: str
    lane: Lane
    mailbox: Addressee
    arrival: float
    deadline: float | None
    choices: list[Choice] = field(default_factory=list)
    num_open: int = 0
    """Choices that have not finished; 0 also when it was never queued."""
    first_token: float | None = None
    done: bool = False
    """Nothing more will be delivered."""

    @property
    def admitted(self) -> float | None:
        """When its first choice left the queue."""
        return min((s.admitted for s in self.sequences if s.admitted is not None), default=None)

    @property
    def sequences(self) -> list[Sequence]:
        return [choice.sequence for choice in self.choices]

    def usage(self) -> Usage:
        """The prompt counts once, however many choices there are. The last token of a choice is
        generated but never computed on; here it counts as computed, so that prompt − cached +
        completion is what one undisturbed choice computes. A step that was launched before the end
        was known does not count."""
        sequences = self.sequences
        return Usage(
            prompt_tokens=sequences[0].num_prompt,
            completion_tokens=sum(s.known - s.num_prompt for s in sequences),
            cached_tokens=min(s.cached for s in sequences),
            computed_tokens=sum(s.spent + 1 - s.ahead for s in sequences),
        )

    def computed(self) -> Usage:
        """What was computed of an answer that was cut, counted as `usage` does: a prompt as far as
        it was read, and whatever was drawn, also what was not yet delivered. To be asked by the
        engine thread, or once it has let go of the request."""
        begun = [s for s in self.sequences if s.spent]
        return Usage(
            prompt_tokens=max((s.prompt_read for s in begun), default=0),
            completion_tokens=sum(s.known - s.num_prompt for s in begun),
            cached_tokens=min((s.cached for s in begun), default=0),
            computed_tokens=sum(s.spent for s in begun),
        )


def check(call: Call, lane: Lane) -> None:
    """Raise BadCall for what this model cannot do, before its prompt is read."""
    _check_parameters(call, lane)
    if call.kind == "chat" and not call.messages:
        raise BadCall("messages is empty; send at least one message.", param="messages")
    if call.n < 1 or call.n > MAX_CHOICES:
        raise BadCall(f"n must be 1 to {MAX_CHOICES}, not {call.n}.", param="n")
    if call.max_tokens is not None and call.max_tokens < 1:
        raise BadCall(f"max_tokens must be at least 1, not {call.max_tokens}.", param="max_tokens")
    if not 0 <= call.top_logprobs <= MAX_TOP_LOGPROBS:
        raise BadCall(
            f"top_logprobs must be 0 to {MAX_TOP_LOGPROBS}, not {call.top_logprobs}.",
            param="top_logprobs",
        )
    ids = () if isinstance(call.prompt, str) else call.prompt
    if ids and not (min(ids) >= 0 and max(ids) < lane.vocab):
        raise BadCall(
            f"The prompt holds token ids outside 0 to {lane.vocab - 1}; use the tokenizer of "
            f"{lane.name}.",
            param="prompt",
        )
    _check_length(call, lane)
    for token, _ in call.sampling.logit_bias:
        if not 0 <= token < lane.vocab:
            raise BadCall(
                f"logit_bias names token {token}; {lane.name} has tokens 0 to {lane.vocab - 1}.",
                param="logit_bias",
            )


def _check_length(call: Call, lane: Lane) -> None:
    """Refuse at a glance what cannot fit by far. Tokenising takes seconds a megabyte, in a few
    threads that everybody shares; the exact count is taken of what may fit."""
    characters = sum(len(part.body) for message in call.messages for part in message.parts)
    if isinstance(call.prompt, str):
        characters += len(call.prompt)
    least = characters // (NORMALISED * lane.text.longest_token)
    if least > lane.context:
        raise BadCall(
            f"{lane.name} has a context of {lane.context} tokens; the prompt has {characters} "
            f"characters, which are at least {least} tokens. Shorten it.",
            param="messages" if call.kind == "chat" else "prompt",
            code="context_length_exceeded",
        )


def _check_parameters(call: Call, lane: Lane) -> None:
    if call.extra is not None and (unknown := sorted(json.loads(call.extra))):
        raise BadCall(
            f"{lane.name} does not know the parameter{'s' * (len(unknown) > 1)} "
            f"{', '.join(unknown)}; leave out what is not in the OpenAI API or its extensions "
            "top_k, min_p, repetition_penalty and chat_template_kwargs.",
            param=unknown[0],
        )
    if call.tools is not None and json.loads(call.tools):
        raise _unsupported(lane, "tools", "leave tools out, or ask a model that calls tools")
    if call.tool_choice is not None and json.loads(call.tool_choice) not in ("none", "auto"):
        raise _unsupported(lane, "tool_choice", "leave tool_choice out")
    if call.response_format is not None and json.loads(call.response_format) != {"type": "text"}:
        raise _unsupported(
            lane, "response_format", 'use {"type": "text"} and ask for JSON in the prompt'
        )
    if call.chat_template_kwargs is not None and call.kind != "chat":
        raise _unsupported(lane, "chat_template_kwargs", "a raw prompt has no template")


def _unsupported(lane: Lane, param: str, remedy: str) -> BadCall:
    return BadCall(f"{lane.name} does not support {param} here; {remedy}.", param=param)


def make_request(
    call: Call,
    trail: Trail,
    lane: Lane,
    tokens: Tokens,
    *,
    mailbox: Addressee,
    arrival: float,
    first_id: int,
    seed: int,
) -> Request:
    """The request for a checked call whose prompt is `tokens`, int32 [num_prompt].

    `first_id`: the first of call.n free sequence ids. `seed`: used where the call names none.
    """
    assert trail.share > 0, f"tenant {trail.tenant} has share {trail.share}"
    max_known = _max_known(call, lane, tokens)
    request = Request(trail.id, lane, mailbox, arrival, trail.deadline, num_open=call.n)
    base = seed if call.sampling.seed is None else call.sampling.seed
    params = _params(call, lane.defaults, base)
    for index in range(call.n):
        sequence = Sequence(
            id=first_id + index,
            namespace=call.scope,
            tenant=trail.tenant,
            share=trail.share,
            tokens=_with_room(tokens, max_known),
            num_prompt=len(tokens),
            max_known=max_known,
            params=replace(params, seed=seed_of(base, index)),
            arrival=arrival,
            deadline=trail.deadline,
            known=len(tokens),
        )
        stream = ChoiceStream(index, lane.text.pieces, call.stop, fresh=call.kind == "chat")
        request.choices.append(Choice(request, index, sequence, stream))
    return request


def seed_of(seed: int, index: int) -> int:
    """Choice 0 draws with the call's own seed, so it does not depend on n; 63 bits."""
    if index == 0:
        return seed % (1 << 63)
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _max_known(call: Call, lane: Lane, tokens: Tokens) -> int:
    """Where generation ends with "length". Raises BadCall where the prompt cannot be read."""
    count = len(tokens)
    param = "messages" if call.kind == "chat" else "prompt"
    if count == 0:
        raise BadCall("The prompt is empty; send at least one token.", param=param)
    if count >= lane.context:
        raise BadCall(
            f"{lane.name} has a context of {lane.context} tokens; the prompt has {count}. Shorten "
            f"it by at least {count + 1 - lane.context} tokens.",
            param=param,
            code="context_length_exceeded",
        )
    if call.max_tokens is None:
        return max(count + 1, lane.max_tokens)
    if count + call.max_tokens > lane.context:
        raise BadCall(
            f"{lane.name} has a context of {lane.context} tokens; the prompt has {count} and "
            f"max_tokens asks for {call.max_tokens} more. Shorten the prompt, or ask for at most "
            f"{lane.context - count}.",
            param="max_tokens",
            code="context_length_exceeded",
        )
    return count + call.max_tokens


def _with_room(tokens: Tokens, max_known: int) -> Tokens:
    """A copy with room for a first stretch of the answer; `Sequence.append` makes more."""
    buffer = np.empty(min(max_known, len(tokens) + 256), dtype=np.int32)
    buffer[: len(tokens)] = tokens
    return buffer


def _params(call: Call, defaults: SamplingParams, seed: int) -> SamplingParams:
    said: Sampling = call.sampling
    return SamplingParams(
        temperature=_or(said.temperature, defaults.temperature),
        top_p=_or(said.top_p, defaults.top_p),
        top_k=int(_or(said.top_k, defaults.top_k)),
        min_p=_or(said.min_p, defaults.min_p),
        frequency_penalty=said.frequency_penalty,
        presence_penalty=said.presence_penalty,
        repetition_penalty=_or(said.repetition_penalty, defaults.repetition_penalty),
        logit_bias=LogitBias.of(said.logit_bias),
        seed=seed,
        logprobs=call.top_logprobs if call.logprobs else -1,
    )


def _or(said: float | None, default: float) -> float:
    return default if said is None else said
