"""Which answers are worth giving again: watches one answer go by and judges it at its end.

Only a complete, well-formed answer that was computed for this very call is stored:

- it has an `End` (one without was cut), and nothing after it;
- every choice asked for has finished, with `stop`, `tool_calls` or `length`;
- nothing was added to a choice after its finish;
- each tool call has a name, and its arguments, put together, are JSON; `tool_calls` has some;
- where JSON was asked for and the choice ended by itself, its text is JSON;
- it came from a model. What a cache answered (exact, joined, semantic) is not recorded: storing a
  near neighbour's answer as the exact one would make a guess into a fact.

A model that writes half a tool call will do so again at temperature 0, but a caller who tries again
deserves that it is tried.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec
import orjson

from cache.replay import Recording, pack_body
from engine.contract import Burst, Call, Delta, End, Event, Finish, Start

_CACHES: Final = frozenset({"exact", "semantic", "joined"})
_GOOD_REASONS: Final = frozenset({"stop", "tool_calls", "length"})


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolDelta(msgspec.Struct):
    """What we need of an OpenAI tool-call delta; its other fields are kept but not looked at."""

    index: int
    function: _Function = msgspec.field(default_factory=_Function)


_tool_reader = msgspec.json.Decoder(_ToolDelta)


@dataclass(slots=True)
class Recorder:
    """Shown every event of one answer, in order; `recording` says whether it may be stored."""

    call: Call
    _start: Start | None = None
    _end: End | None = None
    _events: list[Delta | Finish] = field(default_factory=list)
    _finished: dict[int, str] = field(default_factory=dict)
    _broken: bool = False

    def see(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._broken |= event.index in self._finished
            self._events.append(event)
        elif isinstance(event, Finish):
            self._broken |= event.index in self._finished
            self._finished[event.index] = event.reason
            self._events.append(event)
        elif isinstance(event, Start):
            self._broken |= self._start is not None
            self._start = event
        elif isinstance(event, End):
            self._broken |= self._end is not None
            self._end = event
        else:
            assert isinstance(event, Burst)
            self._broken = True

    def recording(
        self, *, stored_at: float, ttl_s: float, tags: tuple[str, ...] = ()
    ) -> Recording | None:
        """The answer seen so far as a recording, or None where it must not be given again."""
        start, end = self._start, self._end
        if start is None or end is None or self._broken or start.origin in _CACHES:
            return None
        if not (self._all_finished() and self._tools_are_whole() and self._json_as_asked()):
            return None
        return Recording(
            model=start.model,
            created=start.created,
            origin=start.origin,
            usage=end.usage,
            body=pack_body(self._events),
            stored_at=stored_at,
            ttl_s=ttl_s,
            scope=self.call.scope,
            policy=self.call.policy,
            tags=tags,
        )

    def _all_finished(self) -> bool:
        return self._finished.keys() == set(range(self.call.n)) and all(
            reason in _GOOD_REASONS for reason in self._finished.values()
        )

    def _tools_are_whole(self) -> bool:
        names: dict[tuple[int, int], list[str]] = defaultdict(list)
        arguments: dict[tuple[int, int], list[str]] = defaultdict(list)
        for event in self._deltas("tool"):
            try:
                part = _tool_reader.decode(event.payload)
            except msgspec.DecodeError:
                return False
            names[event.index, part.index].append(part.function.name or "")
            arguments[event.index, part.index].append(part.function.arguments or "")
        callers = {choice for choice, _ in names}
        return (
            all("".join(parts) for parts in names.values())
            and all(_is_json("".join(parts)) for parts in arguments.values())
            and all(i in callers for i, why in self._finished.items() if why == "tool_calls")
        )

    def _json_as_asked(self) -> bool:
        asked = self.call.response_format
        if asked is None or '"json_' not in asked:
            return True
        texts: dict[int, list[str]] = {i: [] for i, why in self._finished.items() if why == "stop"}
        for event in self._deltas("text"):
            if event.index in texts:
                texts[event.index].append(event.payload)
        return all(_is_json("".join(parts)) for parts in texts.values())

    def _deltas(self, kind: str) -> Iterable[Delta]:
        return (e for e in self._events if isinstance(e, Delta) and e.kind == kind)


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
