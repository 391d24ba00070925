"""One edge of the tree: whole pages of tokens as bytes, and the page numbers that hold their KV.

    root ── "system prompt" (4 pages) ─┬─ "question A" (2 pages)
                                       └─ "question B" (3 pages) ── "follow-up" (1 page)

Problem. Matching compares thousands of token ids on the host for each request, and the time must
depend on the prompt, not on Python.

Choice. An edge's tokens are one `bytes` object of whole pages. `bytes.startswith(edge, at)` is a
memcmp without a copy (8k tokens: under 1 µs), and children are found by the bytes of their first
page, so two children never share a whole page and every split falls on a page border. An edge
holds at most MAX_EDGE_PAGES pages; longer runs are chains. With that, every operation that copies
an edge (split, grow, cut) has a bound, about 32 kB at 16 tokens a page, however long the prompt.

Rejected. Token lists compared in Python (1 ms for 8k tokens); numpy compare (1.7 µs, and slow to
hash as a child's key); one node a page keyed by a chained hash as in vLLM (each 8k prompt costs
512 look-ups and 314 µs of SHA-256, and a hash says nothing about which pages are neighbours);
re-joining a node with its only child after an eviction (it would move the ends that leases
point to, to save about 0.3 µs a match).

Price. A match that ends inside an edge pays one numpy compare (about 5 µs) to find the page.

Source: SGLang's RadixAttention (Zheng et al., 2024), whose edges are Python lists of tokens, and
the rax tree of Redis, whose split cases are the model for this one.
"""

from collections.abc import Hashable

import numpy as np

from radix.pages import Pages

MAX_EDGE_PAGES = 512
NO_PAGES: Pages = np.empty(0, dtype=np.int32)
NO_PAGES.flags.writeable = False


class Node:
    """An edge and the subtree below it; a root has an empty edge and a namespace.

    key       the edge's tokens, int32 little or big as the machine is, whole pages
    pages     the same pages' numbers; never written in place
    first     how many pages lie above this edge
    pins      leases that end here + children that are pinned (see lease.py)
    last_use, uses   what the eviction policy knows (see evict.py)
    colder, hotter   neighbours in the eviction queue; None when not queued
    """

    __slots__ = (
        "children",
        "colder",
        "first",
        "hotter",
        "key",
        "last_use",
        "namespace",
        "pages",
        "parent",
        "pins",
        "uses",
    )

    def __init__(
        self, key: bytes, pages: Pages, parent: "Node | None", namespace: Hashable = None
    ) -> None:
        self.key = key
        self.pages = pages
        self.parent = parent
        self.namespace = namespace
        self.first: int = parent.end if parent is not None else 0
        self.children: dict[bytes, Node] = {}
        self.pins = 0
        self.last_use = 0.0
        self.uses = 0
        self.colder: Node | None = None
        self.hotter: Node | None = None

    @property
    def end(self) -> int:
        """How many pages lie above this edge's end."""
        return self.first + len(self.pages)

    @property
    def is_root(self) -> bool:
        """True for the top of a namespace (an evicted node is never asked)."""
        return self.parent is None

    def path(self) -> "list[Node]":
        """The nodes from just below the root down to this one."""
        nodes: list[Node] = []
        node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


def page_bytes(node: Node) -> int:
    """Bytes of one page of tokens on this edge (not a root's)."""
    return len(node.key) // len(node.pages)


def own(pages: Pages) -> Pages:
    """A private, read-only copy: what the tree keeps, nobody else can write."""
    kept = pages.copy()
    kept.flags.writeable = False
    return kept


def common_pages(node: Node, data: bytes, at: int) -> int:
    """How many first pages of the edge equal data[at:]; less than the whole edge."""
    size = page_bytes(node)
    whole = min(len(node.key), len(data) - at) // size
    mine = np.frombuffer(node.key, dtype=np.int32, count=whole * size // 4)
    theirs = np.frombuffer(data, dtype=np.int32, count=whole * size // 4, offset=at)
    differs = mine != theirs
    first = int(differs.argmax())
    return first * 4 // size if differs[first] else whole


def descend(path: list[Node], data: bytes, size: int) -> int:
    """Follow `data`, pages of `size` bytes, down from the last node of `path`.

    Appends the nodes entered, the last of which may be held in part, and returns how many pages
    of `data` are held.
    """
    node = path[-1]
    at = 0
    while at < len(data):
        child = node.children.get(data[at : at + size])
        if child is None:
            break
        path.append(child)
        if not data.startswith(child.key, at):
            return at // size + common_pages(child, data, at)
        at += len(child.key)
        node = child
    return at // size


def whole(path: list[Node], held: int) -> Node:
    """The deepest node of a path that is held to its end."""
    return path[-1] if path[-1].end <= held else path[-2]


def pages_on(path: list[Node], first: int, end: int) -> Pages:
    """Page numbers of positions first … end along consecutive nodes that start at `first`."""
    if not path:
        return NO_PAGES
    parts = [node.pages for node in path]
    return np.concatenate(parts)[: end - first] if len(parts) > 1 else parts[0][: end - first]


def split(node: Node, count: int) -> Node:
    """Put a new node above `node` that takes its first `count` pages; return the new one.

        before   parent ── ABCDE (node)
        after    parent ── AB (new) ── CDE (node)

    `node` stays the same object with the same end, so leases and queue entries that name it stay
    right. The new head has a pinned child if `node` is pinned, and was itself never used.
    """
    parent = node.parent
    assert parent is not None, "a root has no edge to split"
    assert 0 < count < len(node.pages), "a split falls inside an edge"
    size = page_bytes(node)
    head = Node(node.key[: count * size], node.pages[:count], parent)
    parent.children[head.key[:size]] = head
    node.key = node.key[count * size :]
    node.pages = node.pages[count:]
    node.parent = head
    node.first = head.end
    head.children[node.key[:size]] = node
    head.pins = 1 if node.pins else 0
    return head


def grow(node: Node, key: bytes, pages: Pages) -> None:
    """Lengthen a leaf's edge in place."""
    node.key += key
    node.pages = own(np.concatenate((node.pages, pages)))


def cut(node: Node, count: int) -> Pages:
    """Take the last `count` pages off a leaf's edge and return their numbers."""
    keep = len(node.pages) - count
    node.key = node.key[: keep * page_bytes(node)]
    gone = node.pages[keep:]
    node.pages = node.pages[:keep]
    return gone
