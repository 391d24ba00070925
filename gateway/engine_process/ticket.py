"""A call that the engine's process has, as the gateway's process knows it."""

from __future__ import annotations

from engine.contract import Usage
from engine.mailbox import Mailbox


class Ticket:
    """Its times are told with its first event."""

    __slots__ = ("admitted", "arrival", "cut", "first_token", "id", "mailbox", "model", "number")

    def __init__(self, number: int, model: str, id_: str, mailbox: Mailbox, arrival: float) -> None:
        self.number = number
        self.model = model
        self.id = id_
        self.mailbox = mailbox
        self.arrival = arrival
        self.admitted: float | None = None
        self.first_token: float | None = None
        self.cut = Usage(0, 0)

    def computed(self) -> Usage:
        """As its last letter says; nothing, where the process ended and nobody knows."""
        return self.cut
