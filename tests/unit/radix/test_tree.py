"""Match, insert, allocate, drop; and what they cost as the tree grows. Pages of 2 tokens."""

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import radix
from radix import LRU, PageAllocator, Policy, RadixTree, RecomputeCost, check

PAGE = 2
HERE = str(Path(radix.__file__).parent)


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def tree_of(num_pages: int = 16, **options: Any) -> RadixTree:
    return RadixTree(PageAllocator(num_pages), PAGE, **options)


def put(tree: RadixTree, tokens: np.ndarray, space: str = "a") -> list[int]:
    """Insert a whole prompt in fresh pages, duplicates freed; its canonical pages."""
    pages = tree.allocate(len(tokens) // PAGE)
    assert pages is not None
    done = tree.insert(space, tokens, pages)
    tree.pages.free(done.duplicates)
    check(tree)
    return done.pages.tolist()


# -- match -------------------------------------------------------------------------------------


def test_an_empty_tree_matches_nothing_and_makes_no_namespace():
    """A look-up leaves nothing behind."""
    tree = tree_of()
    found = tree.match("a", ids(1, 2))
    assert (found.num_tokens, found.pages.tolist(), found.node) == (0, [], None)
    assert tree.peek("a", ids(1, 2)) == 0
    assert not tree.roots


def test_only_whole_pages_match():
    """A page that is partly filled belongs to its sequence."""
    tree = tree_of()
    pages = put(tree, ids(1, 2, 3, 4))
    assert tree.match("a", ids(1, 2, 3)).pages.tolist() == pages[:1]
    assert tree.match("a", ids(1, 2, 3, 4, 5)).pages.tolist() == pages
    assert tree.peek("a", ids(1)) == 0


def test_a_match_inside_an_edge_does_not_split_it():
    """Matching reads; only leases and inserts split."""
    tree = tree_of()
    put(tree, ids(1, 2, 3, 4))
    assert tree.match("a", ids(1, 2, 9, 9)).num_tokens == 2
    assert tree.num_nodes == 1


def test_namespaces_do_not_see_each_other():
    """The same tokens of another tenant are other pages."""
    tree = tree_of()
    mine, yours = put(tree, ids(1, 2), "a"), put(tree, ids(1, 2), "b")
    assert mine != yours
    assert tree.match("a", ids(1, 2)).pages.tolist() == mine
    assert tree.peek("c", ids(1, 2)) == 0


def test_tokens_must_be_int32():
    """Other widths would compare other bytes."""
    tree = tree_of()
    put(tree, ids(1, 2))
    with pytest.raises(AssertionError, match="int64"):
        tree.match("a", np.array([1, 2]))


def test_a_match_touches_and_a_peek_does_not():
    """The last page to be looked for outlives the others; asking alone changes nothing."""
    tree = tree_of()
    put(tree, ids(1, 1))
    put(tree, ids(2, 2))
    tree.peek("a", ids(1, 1))
    tree.evict(1)
    assert tree.peek("a", ids(1, 1)) == 0
    put(tree, ids(3, 3))
    tree.match("a", ids(2, 2))
    tree.evict(1)
    assert tree.peek("a", ids(2, 2)) == 2


# -- insert ------------------------------------------------------------------------------------


def test_diverging_prompts_share_their_beginning():
    """A split falls on the page border before the first difference."""
    tree = tree_of()
    first = put(tree, ids(1, 2, 3, 4, 5, 6))
    second = put(tree, ids(1, 2, 3, 9, 5, 6))
    assert second[0] == first[0]
    assert not set(first[1:]) & set(second[1:])
    assert tree.num_nodes == 3


def test_duplicates_come_back_and_stay_the_callers():
    """Two sequences computed the same page: the first in is canonical."""
    tree = tree_of()
    first = put(tree, ids(1, 2, 3, 4))
    pages = tree.allocate(3)
    done = tree.insert("a", ids(1, 2, 3, 4, 5, 6), pages)
    assert done.pages.tolist() == [*first, pages[2]]
    assert done.duplicates.tolist() == pages[:2].tolist()
    assert done.num_new == 1
    assert tree.pages.num_running == 2
    tree.pages.free(done.duplicates)
    check(tree)


def test_inserting_what_was_matched_gives_no_duplicates():
    """Pages with the canonical number are known already, with a lease or without."""
    tree = tree_of()
    put(tree, ids(1, 2))
    held = tree.match("a", ids(1, 2, 3, 4))
    pages = np.concatenate((held.pages, tree.allocate(1)))
    with tree.lease(held) as lease:
        for by in (None, lease, None):
            done = tree.insert("a", ids(1, 2, 3, 4), pages, lease=by)
            assert done.duplicates.tolist() == []
            assert done.pages.tolist() == pages.tolist()
            check(tree)


def test_a_partly_filled_page_cannot_be_inserted():
    """The tree takes whole pages."""
    tree = tree_of()
    with pytest.raises(AssertionError, match="partly filled"):
        tree.insert("a", ids(1, 2, 3), tree.allocate(2))


def test_inserting_nothing_leaves_nothing():
    """No pages, no namespace."""
    tree = tree_of()
    done = tree.insert("a", ids(1), tree.allocate(0))
    assert (done.pages.tolist(), done.num_new, tree.roots) == ([], 0, {})


def test_the_callers_array_is_copied():
    """A later write to it does not reach the tree."""
    tree = tree_of()
    pages = tree.allocate(1)
    tree.insert("a", ids(1, 2), pages)
    pages[0] = 9
    assert tree.match("a", ids(1, 2)).pages.tolist() == [0]


def test_long_runs_become_chains_of_bounded_edges():
    """No operation copies more than an edge."""
    tree = tree_of(max_edge_pages=3)
    pages = put(tree, np.arange(16, dtype=np.int32))
    assert tree.num_nodes == 3
    assert tree.match("a", np.arange(16, dtype=np.int32)).pages.tolist() == pages


def test_a_sequence_that_inserts_page_by_page_makes_one_node():
    """A leaf that nobody else leases grows in place."""
    tree = tree_of()
    tokens = np.arange(12, dtype=np.int32)
    pages = tree.allocate(6)
    with tree.lease(tree.match("a", tokens)) as lease:
        for end in range(1, 7):
            tree.insert("a", tokens, pages[:end], lease=lease)
            check(tree)
        assert (tree.num_nodes, lease.num_tokens) == (1, 12)


def test_a_leaf_that_another_leases_does_not_grow():
    """Its lease would pin pages that it never asked for."""
    tree = tree_of()
    put(tree, ids(1, 2))
    with tree.lease(tree.match("a", ids(1, 2))) as other:
        put(tree, ids(1, 2, 3, 4))
        assert (tree.num_nodes, other.num_tokens, tree.stats().leased) == (2, 2, 1)


# -- allocate and drop ---------------------------------------------------------------------------


def test_allocate_evicts_only_what_is_short():
    """Free pages first, then the coldest."""
    tree = tree_of(4)
    put(tree, ids(1, 2, 3, 4, 5, 6))
    assert len(tree.allocate(2)) == 2
    assert tree.peek("a", ids(1, 2, 3, 4, 5, 6)) == 4
    assert tree.stats().evicted == 1


def test_allocate_that_cannot_succeed_evicts_nothing():
    """All or nothing, also for the cache."""
    tree = tree_of(4)
    put(tree, ids(1, 2))
    put(tree, ids(3, 4))
    with tree.lease(tree.match("a", ids(1, 2))):
        assert tree.num_evictable == 1
        assert tree.allocate(4) is None
        assert tree.stats().cached == 2
        assert len(tree.allocate(3)) == 3
        assert tree.peek("a", ids(1, 2)) == 2


def test_an_emptied_namespace_is_forgotten():
    """Roots are made on demand and go with their last page."""
    tree = tree_of()
    put(tree, ids(1, 2), "a")
    put(tree, ids(1, 2), "b")
    tree.evict(1)
    assert list(tree.roots) == ["b"]


def test_drop_frees_one_namespace_but_not_what_is_leased():
    """Purging a tenant does not pull pages from under a running sequence."""
    tree = tree_of()
    put(tree, ids(1, 2, 3, 4, 5, 6))
    put(tree, ids(7, 8))
    put(tree, ids(1, 2), "b")
    lease = tree.lease(tree.match("a", ids(1, 2, 3, 4)))
    assert tree.drop("a") == 2
    check(tree)
    assert tree.peek("a", ids(1, 2, 3, 4, 5, 6)) == 4
    assert tree.peek("b", ids(1, 2)) == 2
    lease.release()
    assert tree.drop("a") == 2
    assert list(tree.roots) == ["b"]
    assert tree.drop("a") == 0


def test_dropped_nodes_leave_nothing_to_collect():
    """Parents and children name each other; the collector should not have to find that out."""
    tree = tree_of(64)
    for token in range(10):
        put(tree, ids(1, 1, token, 2, 3, 3))
    gc.collect()
    tree.drop("a")
    assert gc.collect() == 0


def test_stats_account_for_every_page():
    """free + running + cached = all; leased is part of cached."""
    tree = tree_of(8)
    put(tree, ids(1, 2, 3, 4))
    tree.allocate(1)
    with tree.lease(tree.match("a", ids(1, 2))):
        stats = tree.stats()
    assert (stats.free, stats.running, stats.cached, stats.leased) == (5, 1, 2, 1)
    assert (stats.nodes, stats.namespaces, stats.leases, stats.evicted) == (2, 1, 1, 0)


# -- growth ----------------------------------------------------------------------------------------


def lines_run(action: Callable[[], object]) -> int:
    """How many lines of the package an action executes: a count of work that no clock disturbs."""
    count = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def forest(prompts: int, policy: Policy) -> RadixTree:
    """Prompts of two shared pages and two of their own, each used once more later."""
    tree = tree_of(prompts * 4 + 100, policy=policy)
    tokens = [ids(i % 7, 0, i % 7, 1, i, 2, i, 3) for i in range(10, 10 + prompts)]
    for prompt in tokens:
        done = tree.insert("a", prompt, tree.allocate(4))
        tree.pages.free(done.duplicates)
    for prompt in tokens:
        tree.lease(tree.match("a", prompt)).release()
    return tree


def work_in(prompts: int, policy: Policy) -> dict[str, int]:
    """Lines run by each operation in a tree of that many prompts."""
    tree = forest(prompts, policy)
    prompt = ids(12 % 7, 0, 12 % 7, 1, 12, 2, 12, 3)
    fresh = tree.allocate(4)
    found = tree.match("a", prompt)
    return {
        "match": lines_run(lambda: tree.match("a", prompt)),
        "lease": lines_run(lambda: tree.lease(found).release()),
        "insert": lines_run(lambda: tree.insert("a", ids(1, 0, 1, 1, 1, 1, 1, 1), fresh)),
        "evict 20": lines_run(lambda: tree.evict(20)),
        "stats": lines_run(tree.stats),
    }


@pytest.mark.parametrize("policy", [LRU, RecomputeCost])
def test_the_work_of_an_operation_does_not_grow_with_the_tree(policy: type[Policy]):
    """Fifty times the prompts, all used since the last eviction: the same lines run."""
    assert work_in(2_000, policy()) == work_in(40, policy())


def test_matching_runs_lines_by_nodes_not_by_tokens():
    """Comparing tokens is memcmp: a prompt of 4,000 tokens runs as many lines as one of 4."""
    tree = tree_of(4_096, max_edge_pages=4_096)
    long = np.arange(4_000, dtype=np.int32)
    put(tree, long)
    put(tree, ids(9, 9, 9, 9))
    short = lines_run(lambda: tree.match("a", ids(9, 9, 9, 9)))
    assert lines_run(lambda: tree.match("a", long)) == short
