"""The pages of sequences: taken whole, grown one by one, published to the tree, released.

    take      the cached prefix under a lease + pages of its own for all the rest, or nothing
    grow      one more page for each
    publish   its computed full pages become the tree's; the lease moves along, so they stay
    release   its own pages are free, the leased ones stay in the tree and may be evicted

This is the only place of the engine where pages change hands. Between take and release, a
sequence's `pages` are the leased ones first, then its own.
"""

from __future__ import annotations

import numpy as np

from engine.sequence import Sequence
from radix import RadixTree


class Space:
    """The KV pages of one model, as its scheduler sees them."""

    def __init__(self, tree: RadixTree) -> None:
        self._tree = tree
        self.page_size = tree.page_size
        self.capacity = tree.pages.num_free + tree.num_evictable

    def pages_for(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-tokens // self.page_size)

    def held(self, sequence: Sequence) -> int:
        """Tokens that the tree holds of what the sequence must compute (all but the last)."""
        return self._tree.peek(sequence.namespace, sequence.tokens[: sequence.known - 1])

    def common(self, one: Sequence, other: Sequence) -> int:
        """Tokens at the beginning that both have, in whole pages; the last one of `one` is not
        counted, since it is computed in any case."""
        size = self.page_size
        length = min(one.known - 1, other.known) // size * size
        if length == 0 or (one.tokens[:size] != other.tokens[:size]).any():
            return 0
        differs = one.tokens[:length] != other.tokens[:length]
        first = int(differs.argmax()) if differs.any() else length
        return first // size * size

    def take(self, sequence: Sequence, *, headroom: int) -> bool:
        """Pages for all that the sequence has, if `headroom` pages stay available besides."""
        tree = self._tree
        match = tree.match(sequence.namespace, sequence.tokens[: sequence.known - 1])
        lease = tree.lease(match)  # before counting: what it pins cannot be evicted
        need = self.pages_for(sequence.known) - len(match.pages)
        available = tree.pages.num_free + tree.num_evictable
        pages = tree.allocate(need) if available >= need + headroom else None
        if pages is None:
            lease.release()
            return False
        sequence.pages = [*match.pages.tolist(), *pages.tolist()]
        sequence.moved += 1
        sequence.lease = lease
        sequence.computed = match.num_tokens
        return True

    def forget(self) -> int:
        """Drop all cached pages that nobody leases: they may hold anything. Returns how many."""
        return sum(self._tree.drop(namespace) for namespace in list(self._tree.roots))

    def grow(self, sequences: list[Sequence]) -> bool:
        """One more page for each, or for none."""
        pages = self._tree.allocate(len(sequences))
        if pages is None:
            return False
        for sequence, page in zip(sequences, pages.tolist(), strict=True):
            sequence.pages.append(page)
        return True

    def publish(self, sequence: Sequence) -> None:
        """Hand computed full pages to the tree, and read its copy where it had one already.

        "Computed" may mean launched. All steps of a model run one after another on its device, so
        whoever reads or overwrites these pages, or the duplicates that are freed at once, does so
        in a later step. Should the step fail, `Scheduler.forget` empties the tree.
        """
        lease = sequence.lease
        assert lease is not None, "a running sequence has a lease"
        full = min(sequence.computed, sequence.known) // self.page_size
        if full * self.page_size <= lease.num_tokens:
            return
        pages = np.array(sequence.pages[:full], dtype=np.int32)
        tokens = sequence.tokens[: full * self.page_size]
        kept = self._tree.insert(sequence.namespace, tokens, pages, lease=lease)
        sequence.pages[:full] = kept.pages.tolist()
        if len(kept.duplicates):
            sequence.moved += 1
            self._tree.pages.free(kept.duplicates)

    def release(self, sequence: Sequence) -> None:
        """Free its own pages and end the lease on the others. A step in flight may still write to
        them: before the next owner does, for the reason that `publish` gives."""
        lease = sequence.lease
        assert lease is not None, "a running sequence has a lease"
        own = sequence.pages[lease.num_tokens // self.page_size :]
        if own:
            self._tree.pages.free(np.array(own, dtype=np.int32))
        lease.release()
        sequence.lease = None
        sequence.pages = []
        sequence.computed = 0
