"""One step while it is planned: what it holds, and what is left of its tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.sequence import Chunk, Sequence


@dataclass(slots=True)
class Step:
    """Owned by the scheduler, from one call of `plan` to its end."""

    chunks: list[Chunk]
    budget: int
    """Tokens that are left of it."""
    lent: int
    """How many of them prompts of tenants that crowd may have (lent.py)."""
    fresh: set[Sequence] = field(default_factory=set)
    """Admitted in this step."""
    gone: set[Sequence] = field(default_factory=set)
    """Set back in this step for somebody else. They do not come back in it."""
    firsts: dict[str, float] = field(default_factory=dict)
    """Tenants one of whose answers begins with this step, and their levels (fair.py) before it."""

    def deal(self, sequence: Sequence, *, crowds: bool) -> bool:
        """Give a prompt its tokens, if any are left. Whether its next token is drawn then."""
        length = min(sequence.to_compute, self.budget)
        if crowds:
            length = min(length, self.lent)
            self.lent -= length
        if length == 0:
            return False
        chunk = Chunk(sequence, length)
        self.chunks.append(chunk)
        self.budget -= length
        return chunk.samples
