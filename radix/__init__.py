"""The prefix tree: token ids in, KV page numbers out; integers only.

Read in this order: `pages` (who owns a page), `node` (one edge), `tree` (match and insert),
`lease` (what may not be evicted), `evict` (what goes first), `shared` (who reads the same pages),
`check` (every invariant). One tree serves the pool of one model; one thread calls it.
"""

from radix.check import InvariantBroken, check
from radix.evict import LRU, Policy, RecomputeCost
from radix.lease import Lease
from radix.pages import PageAllocator, PageState
from radix.results import Inserted, Match, Stats
from radix.shared import Shared
from radix.tree import RadixTree

__all__ = [
    "LRU",
    "Inserted",
    "InvariantBroken",
    "Lease",
    "Match",
    "PageAllocator",
    "PageState",
    "Policy",
    "RadixTree",
    "RecomputeCost",
    "Shared",
    "Stats",
    "check",
]
