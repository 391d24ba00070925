"""What a route says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """The model that is to answer, and why, for people."""

    model: str
    reason: str
