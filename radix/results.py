"""What the tree answers: a match, the outcome of an insert, where the pages are."""

from collections.abc import Hashable
from dataclasses import dataclass

from radix.node import Node
from radix.pages import Pages


@dataclass(frozen=True, slots=True)
class Match:
    """What the tree holds of a prompt: its first `num_tokens` tokens, in `pages`, in order.

    Nothing is pinned: lease it before the next eviction. `node` is where the match ends (inside
    the node's edge, if the edge goes on), None if the namespace holds nothing.
    """

    namespace: Hashable
    num_tokens: int
    pages: Pages
    node: Node | None
    evictions: int


@dataclass(frozen=True, slots=True)
class Inserted:
    """What became of the pages handed to `insert`.

    pages        the canonical page of each position: read these from now on
    duplicates   pages handed over that the tree did not want, since it holds the same tokens in
                 other pages; still the caller's, to be freed once no running step uses them
    num_new      how many pages the tree took
    """

    pages: Pages
    duplicates: Pages
    num_new: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Where the pages are: free + running + cached = all; leased is part of cached."""

    free: int
    running: int
    cached: int
    leased: int
    evicted: int  # since the start
    nodes: int
    namespaces: int
    leases: int
