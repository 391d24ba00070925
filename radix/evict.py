"""What is evicted next: a queue of evictable leaves, and the policies that order it.

Problem. When pages run out, the coldest must go in about 1 µs a page, in a tree of any size and
after any history. A prefix is useful only whole, so only leaves may go, last page first.

Choice. Exactly the unpinned leaves stand in doubly linked lists threaded through the nodes, cold
end first. Linking, unlinking and taking the coldest are a few pointer writes. A policy divides the
leaves into a few classes with a weight each; a class is a list in order of last use, and

        rank of a leaf = its last use on the policy's clock + the weight of its class

is least at the head of one of the lists. LRU is one class, and its clock counts uses.

Uses are noted at the deepest node only, whatever the length of the path. What a leaf knew passes
to its parent when it goes (`inherit`): last use by maximum, uses by sum. So when the parent becomes
a leaf in its turn, it knows the last use of all that ever hung below it, as if every use had been
written along the whole path. In the usual case it inherits the evicted leaf's use, and its place
is the head. Where it was itself used later, `link_cold` looks for its place among the coldest
SEARCH leaves, and gives up at the hot end.

Evicting takes as many pages off the end of the coldest edge as are wanted and no more: to gain one
page, a 500-page edge loses one, and the other 499 still match. Dropping the whole node (SGLang)
costs a recompute that nobody asked for.

Rejected. A walk that collects all leaves first (SGLang and mini-sglang: O(tree) for each eviction).
A heap with lazy deletion: O(log n) on average, but after a quiet hour each of 100k leaves has a
stale entry, and the first eviction pops them all, a pause of 0.1 s in the engine's thread. A list
of all nodes moved at each use (exact, but O(path) a use). Wall-clock time: only order matters, a
counter has no ties and tests need no sleep.

Price. Two pointers a node; order is approximate in the rare case above; the cost of evicting grows
with the number of classes, so policies have few.

Source: GreedyDual (Young 1994; Cao and Irani 1997 for its clock), LRU over leaves from SGLang.
"""

from collections.abc import Sequence
from typing import Protocol

from radix.node import NO_PAGES, Node

SEARCH = 32


class Policy(Protocol):
    """Orders leaves by rank = last use + weight of class; the lowest goes first."""

    weights: Sequence[float]

    def now(self) -> float:
        """The policy's clock, never going back: written to a node when it is used."""

    def classify(self, node: Node, /) -> int:
        """The class of this leaf: an index into `weights`."""

    def evicted(self, rank: float) -> None:
        """A leaf of this rank has lost pages."""


class LRU:
    """Least recently used first. Parameter-free, and hard to fool."""

    weights: Sequence[float] = (0.0,)

    def __init__(self) -> None:
        self._uses = 0.0

    def now(self) -> float:
        """The number of uses so far."""
        self._uses += 1.0
        return self._uses

    def classify(self, _node: Node, /) -> int:
        """All leaves are equal."""
        return 0

    def evicted(self, rank: float) -> None:
        """Order of use is all there is to know."""


class RecomputeCost:
    """GreedyDual: a leaf outlives idle time in proportion to the work its pages have saved.

    The worth of a leaf is uses × the cost of computing one of its pages again, in units of a page
    at position 0. A token at position d costs 1 + d / `even_tokens`: `even_tokens` is where its
    attention costs as much as its linear layers, P / (2 · layers · q_width) for P parameters
    (8B Llama: 29k tokens). The clock is the rank of the last eviction, so it moves one unit while
    the whole cache turns over once, and worth is how many turns a leaf survives unused.
    Worth is rounded down to a power of two: eight classes. On recorded traffic it saves up to a
    third more work than LRU in a small cache, and loses hits in a large one (bench/radix_hits.py).
    """

    weights: Sequence[float] = tuple(float(2**k) for k in range(8))

    def __init__(self, page_size: int = 16, even_tokens: int = 29_000) -> None:
        self._clock = 0.0
        self._pages_even = even_tokens / page_size

    def now(self) -> float:
        """The rank of the last eviction."""
        return self._clock

    def classify(self, node: Node, /) -> int:
        """log2 of uses × cost a page, within the table."""
        worth = max(1, node.uses) * (1.0 + node.first / self._pages_even)
        return min(int(worth).bit_length(), len(self.weights)) - 1

    def evicted(self, rank: float) -> None:
        """Move the clock."""
        self._clock = max(self._clock, rank)


class EvictionQueue:
    """The unpinned leaves of all namespaces of one tree, coldest first."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._rings = [_ring() for _ in policy.weights]
        self._weighed = list(zip(self._rings, policy.weights, strict=True))

    def use(self, node: Node, *, counts: bool) -> None:
        """Note a use of `node`; `counts` where it is a request's, not merely a look-up."""
        node.last_use = self._policy.now()
        node.uses += counts
        if node.hotter is not None:
            self.unlink(node)
            self.link(node)

    def link(self, node: Node) -> None:
        """Queue a leaf that was used just now: at the hot end."""
        ring = self._rings[self._policy.classify(node)]
        assert ring.colder is not None
        self._insert(node, after=ring.colder)

    def link_cold(self, node: Node) -> None:
        """Queue a node that has become a leaf by losing its last child: where its use says."""
        ring = self._rings[self._policy.classify(node)]
        after = ring
        for _ in range(SEARCH):
            ahead = after.hotter
            assert ahead is not None
            if ahead is ring or ahead.last_use >= node.last_use:
                return self._insert(node, after)
            after = ahead
        return self.link(node)

    def unlink(self, node: Node) -> None:
        """Take a node out of the queue, if it stands there."""
        colder, hotter = node.colder, node.hotter
        if colder is None or hotter is None:
            return
        colder.hotter = hotter
        hotter.colder = colder
        node.colder = node.hotter = None

    def coldest(self) -> Node | None:
        """The leaf that must lose pages next; None when nothing may go. Moves the clock."""
        best: Node | None = None
        lowest = float("inf")
        for ring, weight in self._weighed:
            head = ring.hotter
            if head is None or head is ring:
                continue
            rank = head.last_use + weight
            if rank < lowest:
                best, lowest = head, rank
        if best is not None:
            self._policy.evicted(lowest)
        return best

    def contents(self) -> list[list[Node]]:
        """Each class's nodes, coldest first: for checks."""
        return [_members(ring) for ring in self._rings]

    def _insert(self, node: Node, after: Node) -> None:
        assert node.hotter is None, "queued twice"
        hotter = after.hotter
        assert hotter is not None
        node.colder, node.hotter = after, hotter
        after.hotter = hotter.colder = node


def inherit(parent: Node, leaf: Node) -> None:
    """Pass what an evicted leaf knew to its parent."""
    if leaf.last_use > parent.last_use:  # noqa: PLR1730 — max() costs twice as much here
        parent.last_use = leaf.last_use
    parent.uses += leaf.uses


def _ring() -> Node:
    """An empty circular list: a node that stands between the hottest and the coldest."""
    ring = Node(b"", NO_PAGES, None)
    ring.colder = ring.hotter = ring
    return ring


def _members(ring: Node) -> list[Node]:
    nodes: list[Node] = []
    node = ring.hotter
    while node is not ring:
        assert node is not None
        nodes.append(node)
        node = node.hotter
    return nodes
