"""What a lease protects, and for how long. Pages of 2 tokens."""

import numpy as np
import pytest

from radix import Lease, PageAllocator, RadixTree, check

PAGE = 2


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


@pytest.fixture
def tree() -> RadixTree:
    """Holds 1 2 3 4 5 6 in namespace "a"."""
    tree = RadixTree(PageAllocator(12), PAGE)
    tree.insert("a", ids(1, 2, 3, 4, 5, 6), tree.allocate(3))
    return tree


def hold(tree: RadixTree, *tokens: int) -> Lease:
    return tree.lease(tree.match("a", ids(*tokens)))


def test_leased_pages_are_never_evicted(tree: RadixTree):
    """Evicting everything leaves what is leased."""
    lease = hold(tree, 1, 2, 3, 4)
    assert tree.evict(12) == 1
    check(tree)
    assert tree.peek("a", ids(1, 2, 3, 4, 5, 6)) == lease.num_tokens == 4
    lease.release()
    assert tree.evict(12) == 2


def test_a_lease_pins_exactly_the_match(tree: RadixTree):
    """A match inside an edge splits it: the rest may go."""
    lease = hold(tree, 1, 2, 9, 9)
    assert lease.pages.tolist() == [0]
    assert (tree.pins.num_pages, tree.num_evictable) == (1, 2)


def test_two_leases_on_one_prefix_count_its_pages_once(tree: RadixTree):
    """Leased pages are pages, not leases."""
    first, second = hold(tree, 1, 2), hold(tree, 1, 2, 3, 4)
    assert tree.pins.num_pages == 2
    second.release()
    assert tree.pins.num_pages == 1
    first.release()
    assert tree.pins.num_pages == 0
    check(tree)


def test_releasing_twice_is_our_error(tree: RadixTree):
    """It would unpin what another sequence reads."""
    lease = hold(tree, 1, 2)
    lease.release()
    with pytest.raises(AssertionError, match="released before"):
        lease.release()
    with pytest.raises(AssertionError, match="no pages"):
        _ = lease.pages
    check(tree)


def test_a_lease_is_a_context_manager(tree: RadixTree):
    """It is released on the way out, also by an exception."""
    with pytest.raises(KeyError), hold(tree, 1, 2) as lease:
        raise KeyError
    assert lease.released
    assert not tree.leases


def test_a_lease_on_nothing_keeps_its_namespace(tree: RadixTree):
    """An empty match gives a lease that an insert can extend."""
    lease = tree.lease(tree.match("new", ids(1, 2)))
    assert (lease.num_tokens, lease.pages.tolist()) == (0, [])
    assert "new" in tree.roots
    check(tree)
    lease.release()
    assert "new" not in tree.roots


def test_a_stale_match_on_an_empty_root_still_leases(tree: RadixTree):
    """The root may have gone and come back since the match."""
    first = tree.lease(tree.match("new", ids(1, 2)))
    found = tree.match("new", ids(1, 2))
    first.release()
    tree.lease(found).release()
    check(tree)


def test_an_insert_moves_the_lease(tree: RadixTree):
    """What a running sequence has inserted cannot be evicted, and others match it."""
    tokens = ids(1, 2, 3, 4, 7, 7, 8, 8)
    found = tree.match("a", tokens)
    lease = tree.lease(found)
    pages = np.concatenate((found.pages, tree.allocate(2)))
    tree.insert("a", tokens, pages, lease=lease)
    check(tree)
    assert lease.num_tokens == 8
    assert lease.pages.tolist() == pages.tolist()
    assert tree.evict(12) == 1
    assert tree.peek("a", tokens) == 8
    lease.release()


def test_an_insert_that_ends_inside_an_edge_leases_up_to_there(tree: RadixTree):
    """Another sequence was there first and went further."""
    lease = tree.lease(tree.match("a", ids(9)))
    done = tree.insert("a", ids(1, 2, 3, 4), tree.allocate(2), lease=lease)
    assert lease.pages.tolist() == done.pages.tolist() == [0, 1]
    assert done.duplicates.tolist() == [3, 4]
    assert tree.num_evictable == 1
    tree.pages.free(done.duplicates)
    check(tree)


@pytest.mark.parametrize("wrong", ["namespace", "pages", "length", "released"])
def test_a_lease_extends_only_along_its_own_pages(tree: RadixTree, wrong: str):
    """Extending past other pages would pin what the sequence does not read."""
    lease = hold(tree, 1, 2, 3, 4)
    space, pages = "a", np.array([0, 1], np.int32)
    if wrong == "namespace":
        space = "b"
    elif wrong == "pages":
        pages = np.array([0, 5], np.int32)
    elif wrong == "length":
        pages = pages[:1]
    else:
        lease.release()
    with pytest.raises(AssertionError, match="other pages"):
        tree.insert(space, ids(1, 2, 3, 4), pages, lease=lease)


def test_a_match_can_be_leased_after_inserts(tree: RadixTree):
    """Splits and growth move no end."""
    inside, at_end = tree.match("a", ids(1, 2, 3, 4)), tree.match("a", ids(1, 2, 3, 4, 5, 6))
    done = tree.insert("a", ids(1, 2, 8, 8), tree.allocate(2))
    tree.pages.free(done.duplicates)
    tree.insert("a", ids(1, 2, 3, 4, 5, 6, 7, 7), np.array([0, 1, 2, *tree.allocate(1)], np.int32))
    assert tree.lease(inside).pages.tolist() == [0, 1]
    assert tree.lease(at_end).pages.tolist() == [0, 1, 2]
    check(tree)


def test_a_match_from_before_an_eviction_cannot_be_leased(tree: RadixTree):
    """Its pages may hold other tokens by now."""
    found = tree.match("a", ids(1, 2))
    tree.evict(1)
    with pytest.raises(AssertionError, match="since this match"):
        tree.lease(found)
