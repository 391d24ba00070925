"""A call that the engine's process has, as the gateway's process knows it."""

from __future__ import annotations

from engine.contract import Usage
from engine.mailbox import Mailbox
from gateway.engine_process.frames import Letter


class Ticket:
    """Its times, and what its prompt took, are told with its first event."""

    __slots__ = (
        "_begun",
        "_cut",
        "_sent",
        "admitted",
        "arrival",
        "first_token",
        "id",
        "mailbox",
        "model",
        "number",
    )

    def __init__(self, number: int, model: str, id_: str, mailbox: Mailbox, arrival: float) -> None:
        self.number = number
        self.model = model
        self.id = id_
        self.mailbox = mailbox
        self.arrival = arrival
        self.admitted: float | None = None
        self.first_token: float | None = None
        self._begun = Usage(0, 0)
        self._sent = 0
        self._cut: Usage | None = None

    def read(self, letter: Letter) -> None:
        """Keep what a letter tells beside its texts."""
        if letter.first_token is not None:
            self.admitted, self.first_token = letter.admitted, letter.first_token
        if letter.begun is not None:
            self._begun = letter.begun
        self._sent += sum(len(delta.token_ids) for delta in letter.deltas)
        self._cut = letter.usage

    def computed(self) -> Usage:
        """As its last letter says. Where the process ended before it: the prompt, and the tokens
        that came. Of an answer of which none came nobody knows whether it was begun; it is taken
        not to have been, in its caller's favour."""
        if self._cut is not None:
            return self._cut
        begun = self._begun
        read = begun.prompt_tokens - begun.cached_tokens
        return Usage(begun.prompt_tokens, self._sent, begun.cached_tokens, read + self._sent)
