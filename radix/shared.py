"""Which running sequences read the same pages: what shared-prefix attention asks at each step.

Problem. 128 sequences behind one system prompt read its KV 128 times a decode step. A kernel that
reads it once for all of them needs to know who shares what.

Choice. A segment is a longest run of nodes that the same two or more leases pass through. Segments
nest as the tree does: they come outermost first, a deeper one's members are a subset of the one
above, and each sequence's own pages start where its last segment ends. The kernel may use one
level (take the segment that saves most pages, `saved`) or all.

        system(A B C) ─┬─ few-shot(A B) ─┬─ A      segments: system   A B C
                       │                 └─ B                few-shot A B
                       └─ C

Rejected. Comparing page lists of the sequences (O(pages) a step, and the tree knows already).
Keeping the segments up to date at each lease and release: the answer changes only when a sequence
joins, leaves or moves its lease, so the engine asks then and keeps the answer between.

Price. O(leases × depth): 256 leases on paths of 2 nodes take 65 µs.

Source: Hydragen (Juravsky et al., 2024) and FlashInfer's cascade attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from radix.lease import Lease
from radix.node import Node
from radix.pages import Pages


@dataclass(frozen=True, slots=True)
class Shared:
    """Pages that all `members` read: positions first_page … first_page + len(pages) of each.

    `members` are indices into the leases that were asked about, ascending, two or more.
    """

    first_page: int
    pages: Pages
    members: tuple[int, ...]

    @property
    def saved(self) -> int:
        """Page reads saved by reading this segment once."""
        return (len(self.members) - 1) * len(self.pages)


def shared(leases: Sequence[Lease]) -> list[Shared]:
    """The segments that two or more of the leases pass through, outermost first."""
    members = _members(leases)
    run_on = {
        node.parent
        for node, who in members.items()
        if node.parent in members and len(members[node.parent]) == len(who)
    }
    segments = [
        _segment(node, members)
        for node, who in members.items()
        if len(who) > 1 and node not in run_on
    ]
    return sorted(segments, key=lambda segment: (segment.first_page, segment.members))


def _members(leases: Sequence[Lease]) -> dict[Node, list[int]]:
    """Each node on the path of a lease → the indices of the leases that pass through it."""
    members: dict[Node, list[int]] = {}
    for index, lease in enumerate(leases):
        assert not lease.released, "a released lease shares nothing"
        node = lease.node
        while node.parent is not None:
            members.setdefault(node, []).append(index)
            node = node.parent
    return members


def _segment(last: Node, members: dict[Node, list[int]]) -> Shared:
    """The segment that ends with `last`: up while the same leases pass through."""
    who = members[last]
    nodes = [last]
    above = last.parent
    while above in members and len(members[above]) == len(who):
        nodes.append(above)
        above = above.parent
    pages = np.concatenate([node.pages for node in reversed(nodes)])
    return Shared(nodes[-1].first, pages, tuple(who))
