"""The tree against a naive model: random operations, every invariant checked after each step."""

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from radix import LRU, Lease, PageAllocator, Policy, RadixTree, RecomputeCost, check

PAGE = 2
POOL = 24
SPACES = ("a", "b")
prompts = st.lists(st.integers(0, 1), max_size=20).map(lambda t: np.array(t, dtype=np.int32))
spaces = st.sampled_from(SPACES)


class TreeMachine(RuleBasedStateMachine):
    """The model: {(namespace, tokens of a whole-page prefix): page}, and the leased prefixes."""

    policy: type[Policy] = LRU

    def __init__(self) -> None:
        super().__init__()
        self.allocator = PageAllocator(POOL)
        self.tree = RadixTree(self.allocator, PAGE, self.policy(), max_edge_pages=3)
        self.held: dict[tuple[str, tuple[int, ...]], int] = {}
        self.leases: list[tuple[Lease, tuple[int, ...]]] = []
        self.running: list[np.ndarray] = []

    # -- the model ---------------------------------------------------------------------------

    def prefixes(self, tokens: np.ndarray) -> list[tuple[int, ...]]:
        """The whole-page prefixes of a prompt, shortest first."""
        ids = tuple(tokens.tolist())
        return [ids[:end] for end in range(PAGE, len(ids) + 1, PAGE)]

    def expected(self, space: str, tokens: np.ndarray) -> list[int]:
        """The pages of the longest held prefix."""
        pages: list[int] = []
        for prefix in self.prefixes(tokens):
            if (space, prefix) not in self.held:
                break
            pages.append(self.held[space, prefix])
        return pages

    def pinned(self) -> set[tuple[str, tuple[int, ...]]]:
        """The prefixes that some lease protects."""
        keys = set()
        for lease, ids in self.leases:
            keys |= {(lease.namespace, p) for p in self.prefixes(np.array(ids, np.int32))}
        return keys

    def forget(self, pages: set[int]) -> None:
        """Pages have left the tree: no leased one, and no prefix before its extensions."""
        gone = {key for key, page in self.held.items() if page in pages}
        assert not gone & self.pinned(), "a leased page was evicted"
        self.held = {key: page for key, page in self.held.items() if key not in gone}
        for space, ids in self.held:
            assert len(ids) == PAGE or (space, ids[:-PAGE]) in self.held, "a hole in a prefix"

    def sync(self) -> None:
        """Drop from the model what the tree has evicted."""
        cached = set(np.flatnonzero(self.allocator.states() == 2).tolist())
        self.forget(set(self.held.values()) - cached)

    # -- operations --------------------------------------------------------------------------

    @rule(space=spaces, tokens=prompts)
    def match(self, space: str, tokens: np.ndarray) -> None:
        pages = self.expected(space, tokens)
        assert self.tree.peek(space, tokens) == len(pages) * PAGE
        found = self.tree.match(space, tokens)
        assert found.pages.tolist() == pages
        assert found.num_tokens == len(pages) * PAGE

    @rule(space=spaces, tokens=prompts, more=prompts)
    def lease(self, space: str, tokens: np.ndarray, more: np.ndarray) -> None:
        found = self.tree.match(space, tokens)
        self.insert(space, more)  # inserts between match and lease may split and grow
        if found.evictions != self.tree.evictions:
            return
        lease = self.tree.lease(found)
        assert lease.num_tokens == found.num_tokens
        assert lease.pages.tolist() == found.pages.tolist()
        self.leases.append((lease, tuple(tokens[: lease.num_tokens].tolist())))

    @rule(space=spaces, tokens=prompts)
    def insert(self, space: str, tokens: np.ndarray) -> None:
        count = len(tokens) // PAGE
        pages = self.tree.allocate(count)
        self.sync()
        if pages is None:
            return
        before = self.expected(space, tokens)
        done = self.tree.insert(space, tokens, pages)
        self.settle(space, tokens, pages, before, done)

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 99), more=prompts, data=st.data())
    def extend(self, which: int, more: np.ndarray, data: st.DataObject) -> None:
        index = which % len(self.leases)
        lease, ids = self.leases[index]
        tokens = np.concatenate((np.array(ids, np.int32), more))
        fresh = self.tree.allocate(data.draw(st.integers(0, len(more) // PAGE)))
        self.sync()
        if fresh is None:
            return
        space = str(lease.namespace)
        pages = np.concatenate((lease.pages, fresh))
        before = self.expected(space, tokens)[: len(pages)]
        done = self.tree.insert(space, tokens, pages, lease=lease)
        self.settle(space, tokens, pages, before, done)
        assert lease.pages.tolist() == done.pages.tolist()
        self.leases[index] = (lease, tuple(tokens[: len(pages) * PAGE].tolist()))

    def settle(self, space, tokens, pages, before, done) -> None:
        canonical = before + pages[len(before) :].tolist()
        assert done.pages.tolist() == canonical
        assert done.num_new == len(pages) - len(before)
        spare = [page for page, kept in zip(pages.tolist(), canonical, strict=True) if page != kept]
        assert done.duplicates.tolist() == spare
        self.allocator.free(done.duplicates)
        for prefix, page in zip(self.prefixes(tokens), canonical, strict=False):
            self.held[space, prefix] = page

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 99))
    def release(self, which: int) -> None:
        lease, _ = self.leases.pop(which % len(self.leases))
        lease.release()

    @rule(count=st.integers(0, 8))
    def evict(self, count: int) -> None:
        could = self.tree.num_evictable
        assert self.tree.evict(count) == min(count, could)
        self.sync()

    @rule(count=st.integers(0, 10))
    def allocate(self, count: int) -> None:
        could = self.allocator.num_free + self.tree.num_evictable
        pages = self.tree.allocate(count)
        assert (pages is None) == (count > could)
        self.sync()
        if pages is not None:
            self.running.append(pages)

    @precondition(lambda self: self.running)
    @rule()
    def free(self) -> None:
        self.allocator.free(self.running.pop())

    @rule(space=spaces)
    def drop(self, space: str) -> None:
        keep = {key for key in self.pinned() if key[0] == space}
        mine = {key for key in self.held if key[0] == space}
        assert self.tree.drop(space) == len(mine - keep)
        self.sync()
        assert {key for key in self.held if key[0] == space} == keep

    # -- what always holds -------------------------------------------------------------------

    @invariant()
    def sound(self) -> None:
        check(self.tree)
        stats = self.tree.stats()
        assert stats.cached == len(self.held)
        assert stats.leased == len(self.pinned())
        assert stats.running == sum(map(len, self.running))
        assert stats.free == POOL - stats.cached - stats.running
        assert stats.leases == len(self.leases)
        live = {key[0] for key in self.held} | {lease.namespace for lease, _ in self.leases}
        assert set(self.tree.roots) == live

    def teardown(self) -> None:
        for lease, _ in self.leases:
            lease.release()
        for pages in self.running:
            self.allocator.free(pages)
        self.tree.evict(POOL)
        check(self.tree)
        assert self.allocator.num_free == POOL
        assert not self.tree.roots


class CostMachine(TreeMachine):
    """The same under the recompute-cost policy."""

    policy = RecomputeCost


effort = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLRU = TreeMachine.TestCase
TestLRU.settings = effort
TestRecomputeCost = CostMachine.TestCase
TestRecomputeCost.settings = effort
