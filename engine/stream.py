"""One choice's tokens → the deltas that its reader sees.

Problem. Tokens end in the middle of characters, stop strings begin in the middle of tokens, and
what has been sent cannot be taken back.

Choice. Bytes go through an incremental UTF-8 decoder, so half a character waits. Characters go
through a finder of stop strings that keeps back only the longest suffix which may still become one.
Tokens wait in a queue with the place where their text begins and ends, and leave with the delta
that completes them; tokens that lie wholly in or behind a stop string never leave.

    tokens    [ "The" ][ " en" ][ "d.\n" ][ "\nUs" ][ "er" ]      stop = "\n\nUser"
    sent       The      ⏐ en     ⏐ d.     (the third token leaves: part of its text was sent)
    kept back                       \n      \nUs     er          → found: never sent

Where several stop strings match, the one that is complete first wins, and of those the longest: the
same answer however the text was cut into tokens (tested).

Price. O(1) a token, plus (longest stop string)² characters of comparing where there are any.
"""

from __future__ import annotations

import codecs
from collections import deque
from dataclasses import dataclass

from engine.contract import Delta, TokenLogprob
from engine.text import Pieces

_utf8 = codecs.getincrementaldecoder("utf-8")


class Detokeniser:
    """Tokens to text, never half a character. `fresh`: the text does not go on with a prompt's."""

    def __init__(self, pieces: Pieces, *, fresh: bool) -> None:
        self._pieces = pieces
        self._decoder = _utf8("replace")
        self._first = fresh
        self._strip = pieces.strip if fresh else 0

    @property
    def pending(self) -> bool:
        """Whether bytes wait for the rest of their character."""
        return bool(self._decoder.getstate()[0])

    def add(self, token: int) -> str:
        """The text that this token completes."""
        if self._pieces.special(token):
            return ""
        piece = self._pieces.text_bytes(token, first=self._first)
        self._first = False
        text = self._decoder.decode(piece)
        return self._stripped(text) if self._strip and text else text

    def flush(self) -> str:
        """The end: an incomplete character becomes "�"."""
        return self._decoder.decode(b"", final=True)

    def _stripped(self, text: str) -> str:
        kept = text
        while self._strip and kept.startswith(" "):
            kept = kept[1:]
            self._strip -= 1
        if kept:
            self._strip = 0
        return kept


class StopFinder:
    """Finds the first stop string in a text that comes in pieces."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """What may be sent now; after `found`, nothing more."""
        if not self._stops:
            return text
        text = self._held + text
        ends = [(at + len(s), at) for s in self._stops if (at := text.find(s)) >= 0]
        if ends:
            self.found = True
            self._held = ""
            return text[: min(ends)[1]]
        keep = self._may_become_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The end: what was kept back is ordinary text."""
        held, self._held = self._held, ""
        return held

    def _may_become_stop(self, text: str) -> int:
        """Length of the longest suffix of `text` that a stop string begins with."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A token whose text, characters [begin, end) of the answer, has not all been sent."""

    token: int
    begin: int
    end: int
    logprob: TokenLogprob | None


class ChoiceStream:
    """Turns one choice's tokens into deltas. Owned by the engine thread."""

    def __init__(
        self, index: int, pieces: Pieces, stops: tuple[str, ...] = (), *, fresh: bool = True
    ) -> None:
        self._index = index
        self._detokeniser = Detokeniser(pieces, fresh=fresh)
        self._finder = StopFinder(stops)
        self._waiting: deque[_Waiting] = deque()
        self._decoded = 0  # characters
        self._sent = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found: nothing more may be added."""
        return self._finder.found

    def add(self, token: int, logprob: TokenLogprob | None = None) -> Delta | None:
        """The delta that this token makes possible, if any."""
        begin = self._decoded
        text = self._detokeniser.add(token)
        self._decoded += len(text)
        pending = self._detokeniser.pending
        ready = self._finder.add(text)
        if ready == text and text and not pending and not self._waiting:
            self._sent = self._decoded  # nearly every token: all of it leaves, and nothing else
            return Delta(self._index, "text", text, (token,), () if logprob is None else (logprob,))
        # A token that ends inside a character leaves with that character.
        self._waiting.append(_Waiting(token, begin, self._decoded + pending, logprob))
        if not ready and not self.stopped:
            return None
        return self._delta(ready, last=self.stopped)

    def finish(self) -> Delta | None:
        """The end without a stop string: everything that was kept back."""
        if self.stopped:
            return None
        tail = self._detokeniser.flush()
        text = self._finder.add(tail)
        if not self.stopped:
            text += self._finder.flush()
        return self._delta(text, last=True)

    def _delta(self, text: str, *, last: bool) -> Delta | None:
        self._sent += len(text)
        tokens = self._release(last)
        if not text and not tokens:
            return None
        return Delta(
            index=self._index,
            kind="text",
            payload=text,
            token_ids=tuple(waiting.token for waiting in tokens),
            logprobs=tuple(w.logprob for w in tokens if w.logprob is not None),
        )

    def _release(self, last: bool) -> list[_Waiting]:
        """Take the tokens whose text has been sent; of a last, cut one, those partly sent."""
        released = []
        waiting = self._waiting
        while waiting and waiting[0].end <= self._sent:
            released.append(waiting.popleft())
        if not last:
            return released
        rest = [w for w in waiting if not self.stopped or w.begin < self._sent]
        waiting.clear()
        return released + rest


def token_logprob(
    pieces: Pieces, token: int, logprob: float, top: tuple[tuple[int, float], ...] = ()
) -> TokenLogprob:
    """A token as OpenAI reports it; bytes that are no text alone are shown by their values."""
    raw = pieces.own_bytes(token)
    return TokenLogprob(
        token=_shown(raw),
        token_bytes=raw,
        logprob=logprob,
        top=tuple(token_logprob(pieces, other, value) for other, value in top),
    )


def _shown(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
