"""The prefix tree: which KV pages hold the beginning of this prompt.

Problem. Requests share beginnings: system prompts, examples, the earlier turns of a conversation.
The KV of a shared beginning must be found, shared while it is still being computed, protected while
it is read, and dropped coldest first, in microseconds on the host and in a tree of any size.

Choice. One tree per KV pool, a root for each namespace, edges of whole pages (see node.py). The
life of a prompt:

    match  = tree.match(namespace, tokens)     what is held; pins nothing
    lease  = tree.lease(match)                 now it cannot go
    pages  = tree.allocate(n)                  for the rest; evicts what nobody leases
    ...      compute; after each chunk:
    result = tree.insert(namespace, tokens, pages_so_far, lease=lease)
    ...      swap to result.pages, free result.duplicates
    lease.release()                            the pages stay, coldest last

Namespaces are tenant scope × model and never see each other: a shared prefix cache tells by its
timing what others asked (CVE-2025-46570). The caller of the HTTP API never chooses one.

Rejected. Splitting in `match` (SGLang): a look-up that changes the tree makes ranking a queue of
waiting requests a write. Extending a leaf only by new children: a sequence that inserts page by
page would leave 512 nodes where one does; a leaf that nobody else leases grows in place.

Price. Only whole pages match: up to page_size − 1 tokens at the end of a prompt are computed
again. A match is good until the next eviction; `lease` asserts it.

Source: RadixAttention (Zheng et al., SGLang, 2024); engine-level namespaces after vLLM's salts.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from radix.evict import LRU, EvictionQueue, Policy, inherit
from radix.lease import Lease, Pins
from radix.node import (
    MAX_EDGE_PAGES,
    NO_PAGES,
    Node,
    cut,
    descend,
    grow,
    own,
    pages_on,
    split,
    whole,
)
from radix.pages import PageAllocator, Pages
from radix.results import Inserted, Match, Stats
from radix.shared import Shared, shared

Tokens = npt.NDArray[np.int32]
TOKEN_BYTES = 4


class RadixTree:
    """Token ids → page numbers, for one KV pool. Not thread-safe: one thread owns it.

    Token arrays are int32 [num_tokens]; page arrays are int32 [num_pages].
    """

    def __init__(
        self,
        pages: PageAllocator,
        page_size: int = 16,
        policy: Policy | None = None,
        max_edge_pages: int = MAX_EDGE_PAGES,
    ) -> None:
        assert page_size > 0, f"pages of {page_size} tokens"
        self.pages = pages
        self.page_size = page_size
        self.max_edge_pages = max_edge_pages
        self._page_bytes = page_size * TOKEN_BYTES
        self.roots: dict[Hashable, Node] = {}
        self.leases: set[Lease] = set()
        self.pins = Pins()
        self.queue = EvictionQueue(policy or LRU())
        self.num_nodes = 0
        self.num_evicted = 0
        self.evictions = 0  # times that pages have left the tree: dates a Match

    # -- asking ------------------------------------------------------------------------------

    def match(self, namespace: Hashable, tokens: Tokens) -> Match:
        """The longest held prefix of `tokens`, in whole pages. Counts as a look, not as a use.

        A prompt that is held to its last token leaves nothing to compute logits from: to get at
        least one token to compute, match tokens[:-1].
        """
        path, held = self._find(namespace, tokens)
        if not path:
            return Match(namespace, 0, NO_PAGES, None, self.evictions)
        self.queue.use(whole(path, held), counts=False)
        pages = pages_on(path[1:], 0, held)
        return Match(namespace, held * self.page_size, pages, path[-1], self.evictions)

    def peek(self, namespace: Hashable, tokens: Tokens) -> int:
        """How many tokens of the prompt are held; leaves no trace."""
        return self._find(namespace, tokens)[1] * self.page_size

    def shared(self, leases: Sequence[Lease]) -> list[Shared]:
        """Which of these leases read the same pages (see shared.py)."""
        return shared(leases)

    @property
    def num_evictable(self) -> int:
        """Cached pages that no lease pins: free + evictable is what `allocate` can give."""
        return self.pages.num_cached - self.pins.num_pages

    def stats(self) -> Stats:
        """Where the pages are, for metrics."""
        pages = self.pages
        return Stats(
            free=pages.num_free,
            running=pages.num_running,
            cached=pages.num_cached,
            leased=self.pins.num_pages,
            evicted=self.num_evicted,
            nodes=self.num_nodes,
            namespaces=len(self.roots),
            leases=len(self.leases),
        )

    # -- holding -----------------------------------------------------------------------------

    def lease(self, match: Match) -> Lease:
        """Pin the matched pages. Splits the edge that the match ends in; an empty match gives a
        lease on nothing, which `insert` can extend."""
        assert match.evictions == self.evictions, "pages were evicted since this match"
        count = match.num_tokens // self.page_size
        node = match.node
        if node is None or count == 0:
            node = self._root(match.namespace)
        while node.first >= count and node.parent is not None:
            node = node.parent  # inserts since the match have split its edge
        if count < node.end:
            node = self._split(node, count - node.first)
        lease = Lease(match.namespace, node, self.page_size, self._released)
        self.pins.pin(node)
        self.queue.unlink(node)
        self.leases.add(lease)
        return lease

    def insert(
        self, namespace: Hashable, tokens: Tokens, pages: Pages, lease: Lease | None = None
    ) -> Inserted:
        """Hand over computed pages: pages[i] holds tokens[i·page_size : (i+1)·page_size].

        Pages at positions that the tree does not hold become the tree's (they must be RUNNING).
        At positions that it holds, a page of the same number is known already, and a page of
        another number comes back among `duplicates` and stays the caller's.

        With a lease, `pages` must begin with the leased ones; only what follows is looked at, so
        inserting chunk by chunk costs the chunk. The lease moves, in place, to the end of `pages`:
        what was inserted cannot be evicted.
        """
        assert len(pages) * self.page_size <= len(tokens), "a page is partly filled"
        base = lease.node if lease is not None else self._root(namespace)
        known = base.end
        assert lease is None or lease.covers(namespace, pages), "the lease is for other pages"
        path = [base]
        data = self._to_bytes(tokens, known, len(pages))
        held = known + descend(path, data, self._page_bytes)
        canonical, duplicates = _merge(pages, pages_on(path[1:], known, held), known)
        end = self._add(path, data[(held - known) * self._page_bytes :], pages[held:], held, lease)
        self._settle(end, lease)
        return Inserted(canonical, duplicates, len(pages) - held)

    # -- giving back -------------------------------------------------------------------------

    def allocate(self, count: int) -> Pages | None:
        """`count` pages for a sequence, evicting as needed; None, and nothing evicted, when even
        that would not do."""
        short = count - self.pages.num_free
        if short > self.num_evictable:
            return None
        if short > 0:
            self.evict(short)
        return self.pages.take(count)

    def evict(self, count: int) -> int:
        """Free up to `count` cached pages, coldest first, never leased ones; returns how many."""
        gone: list[Pages] = []
        left = count
        while left > 0:
            leaf = self.queue.coldest()
            if leaf is None:
                break
            gone.append(cut(leaf, left) if len(leaf.pages) > left else self._remove(leaf))
            left -= len(gone[-1])
        self._reclaim(gone)
        return count - left

    def drop(self, namespace: Hashable) -> int:
        """Free all pages of a namespace that no lease pins; returns how many. What is leased
        stays, and can be matched, until it is released and dropped again or evicted."""
        root = self.roots.get(namespace)
        if root is None:
            return 0
        gone: list[Pages] = []
        pinned = [root]
        while pinned:
            node = pinned.pop()
            pinned += [child for child in node.children.values() if child.pins]
            self._prune(node, gone)
        self._forget_if_empty(root)
        self._reclaim(gone)
        return sum(map(len, gone))

    # -- inside ------------------------------------------------------------------------------

    def _find(self, namespace: Hashable, tokens: Tokens) -> tuple[list[Node], int]:
        """(the nodes from the root down that hold the prompt's beginning, pages held)."""
        root = self.roots.get(namespace)
        if root is None:
            return [], 0
        path = [root]
        data = self._to_bytes(tokens, 0, len(tokens) // self.page_size)
        return path, descend(path, data, self._page_bytes)

    def _to_bytes(self, tokens: Tokens, first: int, end: int) -> bytes:
        """Pages `first` … `end` of the tokens, once, for memcmp and hashing."""
        assert tokens.dtype == np.int32, f"tokens are int32, not {tokens.dtype}"
        return tokens[first * self.page_size : end * self.page_size].tobytes()

    def _add(
        self, path: list[Node], key: bytes, pages: Pages, held: int, lease: Lease | None
    ) -> Node:
        """Put the pages that are not held below the end of the path; returns the end."""
        tip = path[-1]
        if held < tip.end:
            if lease is None and not len(pages):
                return whole(path, held)
            tip = self._split(tip, held - tip.first)
        if len(pages):
            self.pages.adopt(pages)
            room = self._grow(tip, key, pages, lease)
            tip = self._extend(tip, key[room * self._page_bytes :], pages[room:])
        return tip

    def _grow(self, tip: Node, key: bytes, pages: Pages, lease: Lease | None) -> int:
        """Lengthen the tip in place if it is a leaf that no other lease ends at; returns by how
        many pages."""
        others = tip.pins - (lease is not None and lease.node is tip)
        if tip.is_root or tip.children or others:
            return 0
        room = min(self.max_edge_pages - len(tip.pages), len(pages))
        if room > 0:
            grow(tip, key[: room * self._page_bytes], pages[:room])
            self.pins.num_pages += room if tip.pins else 0
        return room

    def _extend(self, tip: Node, key: bytes, pages: Pages) -> Node:
        """Hang a chain of edges below the tip; returns its end, not yet queued."""
        size = self._page_bytes
        for at in range(0, len(pages), self.max_edge_pages):
            edge = key[at * size : (at + self.max_edge_pages) * size]
            child = Node(edge, own(pages[at : at + self.max_edge_pages]), tip)
            tip.children[edge[:size]] = child
            self.queue.unlink(tip)
            self.num_nodes += 1
            tip = child
        return tip

    def _settle(self, end: Node, lease: Lease | None) -> None:
        """Move the lease to the end of an insert, or note the use and queue the end."""
        if lease is not None:
            if end is not lease.node:
                self.queue.unlink(end)
                self.pins.pin(end)
                self.pins.unpin(lease.node)
                lease.node = end
            return
        self._used(end)

    def _released(self, lease: Lease) -> None:
        self.leases.remove(lease)
        self.pins.unpin(lease.node)
        self._used(lease.node)

    def _used(self, end: Node) -> None:
        """A request ended at this node: note it, and queue the node if it may go."""
        self.queue.use(end, counts=True)
        if end.is_root:
            self._forget_if_empty(end)
        elif not end.pins and not end.children and end.hotter is None:
            self.queue.link(end)

    def _root(self, namespace: Hashable) -> Node:
        root = self.roots.get(namespace)
        if root is None:
            root = self.roots[namespace] = Node(b"", NO_PAGES, None, namespace)
        return root

    def _forget_if_empty(self, root: Node) -> None:
        if not root.children and not root.pins:
            del self.roots[root.namespace]

    def _split(self, node: Node, count: int) -> Node:
        self.num_nodes += 1
        return split(node, count)

    def _remove(self, leaf: Node) -> Pages:
        """Take a whole leaf out of the tree; its parent may become a leaf."""
        parent = leaf.parent
        assert parent is not None
        assert not leaf.children, "only a leaf may go"
        assert not leaf.pins, "a leased node may not go"
        self.queue.unlink(leaf)
        del parent.children[leaf.key[: self._page_bytes]]
        self.num_nodes -= 1
        inherit(parent, leaf)
        if not parent.children and not parent.pins:
            if parent.is_root:
                del self.roots[parent.namespace]
            else:
                self.queue.link_cold(parent)
        return leaf.pages

    def _prune(self, top: Node, gone: list[Pages]) -> None:
        """Cut off the unpinned branches of a node, appending their pages to `gone`."""
        branches = [child for child in top.children.values() if not child.pins]
        top.children = {key: child for key, child in top.children.items() if child.pins}
        while branches:
            node = branches.pop()
            branches += node.children.values()
            self.queue.unlink(node)
            gone.append(node.pages)
            self.num_nodes -= 1
            node.children, node.parent = {}, None  # no cycles left for the collector

    def _reclaim(self, gone: list[Pages]) -> None:
        if not gone:
            return
        pages = np.concatenate(gone)
        self.pages.reclaim(pages)
        self.num_evicted += len(pages)
        self.evictions += 1


def _merge(pages: Pages, held: Pages, known: int) -> tuple[Pages, Pages]:
    """(canonical pages, duplicates) where the tree holds positions from `known` on."""
    given = pages[known : known + len(held)]
    canonical = pages.copy()
    canonical[known : known + len(held)] = held
    return canonical, given[given != held]
