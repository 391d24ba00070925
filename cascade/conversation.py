"""Which model a conversation is with: what keeps it from being passed to and fro.

Chat requests carry their history and no name, so a conversation is known by what it was when it was
last answered: the messages up to the last assistant turn are exactly the messages of the call
before. Their hash is remembered with the model that answered; the last `capacity` of them, in this
process. A caller that edits its history, or comes back after a restart, is a new conversation,
which costs a fresh decision and nothing else.

Hashes are Python's, keyed per process: cheap (strings keep theirs) and of no use elsewhere.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

from engine.contract import Call


class Turn(Enum):
    FIRST = "first"
    LATER = "later"
    TOOL = "tool"
    """Results of tools that the model called are being handed back: midway in a turn."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a call stands in its conversation. `model` answered before; empty: nobody knows."""

    turn: Turn
    model: str = ""


FIRST = Standing(Turn.FIRST)


class Conversations:
    """Owned by one cascade, used on its event loop only."""

    def __init__(self, capacity: int = 65_536) -> None:
        self._capacity = capacity
        self._models: OrderedDict[int, str] = OrderedDict()

    def standing(self, call: Call) -> Standing:
        """About a microsecond a message the first time, less after."""
        roles = [message.role for message in call.messages]
        if "assistant" not in roles:
            return FIRST
        last = len(roles) - 1 - roles[::-1].index("assistant")
        turn = Turn.TOOL if roles[-1] == "tool" else Turn.LATER
        return Standing(turn, self._models.get(_key(call, last), ""))

    def remember(self, call: Call, model: str) -> None:
        if call.kind != "chat":
            return
        key = _key(call, len(call.messages))
        self._models[key] = model
        self._models.move_to_end(key)
        if len(self._models) > self._capacity:
            self._models.popitem(last=False)


def _key(call: Call, length: int) -> int:
    return hash((call.scope, call.policy, call.messages[:length]))
