"""Leases: which cached pages a running sequence reads, so that nobody evicts them.

Problem. A lease pins its whole path from the root, and the scheduler asks at every admission how
many pages could be evicted, so that number must be exact and at hand.

Choice. A node's `pins` = leases that end at it + its children that are pinned. Pinning climbs from
the lease's end and stops at the first node that was pinned before: behind a shared system prompt
that is one step. A node with pins > 0 cannot go; below a node with pins = 0 nothing is pinned. So
`Pins.num_pages`, kept up on the way, is exactly what cannot be evicted, and all the rest can.

        root(1) ── A(2) ─┬─ B(1) ◀ lease 1      A: pinned children B and C
                         ├─ C(1) ◀ lease 2
                         └─ D(0)                D may be evicted

Rejected. Counting every lease in every ancestor (SGLang's lock_ref): the whole path is climbed at
each lock and unlock. Marking only the end: enough for eviction, since an inner node is never a
leaf, but then the number of evictable pages takes a walk.

Price. One integer a node. A lease that is forgotten pins its pages for good; `check` and the
`leases` figure of `stats` show it.
"""

from collections.abc import Callable, Hashable
from types import TracebackType

import numpy as np

from radix.node import NO_PAGES, Node
from radix.pages import Pages


class Pins:
    """Pin counts of all nodes of one tree, and how many pages they hold."""

    def __init__(self) -> None:
        self.num_pages = 0

    def pin(self, node: Node) -> None:
        """Count one more pin at `node`; its ancestors are pinned with it."""
        above: Node | None = node
        while above is not None:
            above.pins += 1
            if above.pins > 1:
                return
            self.num_pages += len(above.pages)
            above = above.parent

    def unpin(self, node: Node) -> None:
        """Take back one pin of `node`."""
        above: Node | None = node
        while above is not None:
            assert above.pins > 0, "unpinned more often than pinned"
            above.pins -= 1
            if above.pins:
                return
            self.num_pages -= len(above.pages)
            above = above.parent


class Lease:
    """The right to read the pages from the root down to `node`, until `release()`.

    Made by `RadixTree.lease`; moved deeper, in place, by `RadixTree.insert(..., lease=)`.
    Releasing twice is an error of ours and is asserted. As a context manager it releases on exit.
    """

    __slots__ = ("_release", "_tokens_a_page", "namespace", "node", "released")

    def __init__(
        self,
        namespace: Hashable,
        node: Node,
        tokens_a_page: int,
        release: "Callable[[Lease], None]",
    ) -> None:
        self.namespace = namespace
        self.node = node
        self.released = False
        self._tokens_a_page = tokens_a_page
        self._release = release

    @property
    def num_tokens(self) -> int:
        """How many tokens the leased pages hold."""
        return self.node.end * self._tokens_a_page

    @property
    def pages(self) -> Pages:
        """The leased page numbers in token order, int32 [num_pages]."""
        assert not self.released, "a released lease has no pages"
        path = self.node.path()
        return np.concatenate([node.pages for node in path]) if path else NO_PAGES

    def covers(self, namespace: Hashable, pages: Pages) -> bool:
        """True if `pages` go on from the leased ones (spot-checked at the last of them)."""
        node = self.node
        if self.released or self.namespace != namespace or len(pages) < node.end:
            return False
        return node.is_root or bool(node.pages[-1] == pages[node.end - 1])

    def release(self) -> None:
        """Unpin the path; its pages stay cached and may now be evicted."""
        assert not self.released, "this lease was released before"
        self.released = True
        self._release(self)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
