"""Who owns each page."""

import numpy as np
import pytest

from radix import PageAllocator, PageState


def pages_of(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int32)


def test_a_fresh_allocator_hands_out_pages_in_order():
    """A caller that wants page 0 for padding takes it first."""
    pages = PageAllocator(4)
    assert pages.take(1).tolist() == [0]
    assert pages.take(2).tolist() == [1, 2]
    assert pages.num_free == 1
    assert pages.num_running == 3


def test_taking_more_than_is_free_takes_nothing():
    """All or nothing."""
    pages = PageAllocator(3)
    assert pages.take(4) is None
    assert pages.num_free == 3
    assert pages.take(3) is not None


def test_taking_none_gives_an_empty_array():
    """Zero pages are a legal wish, also when nothing is free."""
    pages = PageAllocator(1)
    pages.take(1)
    assert pages.take(0).tolist() == []


def test_a_freed_page_is_handed_out_again():
    """Free pages circulate."""
    pages = PageAllocator(2)
    pages.take(2)
    pages.free(pages_of(1))
    assert pages.take(1).tolist() == [1]


def test_a_page_goes_from_running_to_cached_to_free():
    """The three owners, in the order of a page's life, each counted."""
    pages = PageAllocator(2)
    taken = pages.take(2)
    pages.adopt(taken[:1])
    assert pages.states().tolist() == [PageState.CACHED, PageState.RUNNING]
    assert (pages.num_free, pages.num_running, pages.num_cached) == (0, 1, 1)
    pages.reclaim(taken[:1])
    assert pages.states().tolist() == [PageState.FREE, PageState.RUNNING]
    assert pages.free_list().tolist() == [0]


@pytest.mark.parametrize("again", ["free", "adopt", "reclaim"])
def test_a_free_page_cannot_change_hands(again: str):
    """A double free is caught where it happens, naming the page."""
    pages = PageAllocator(2)
    pages.free(pages.take(1))
    with pytest.raises(AssertionError, match=r"pages \[0\] are \['FREE'\]"):
        getattr(pages, again)(pages_of(0))


def test_a_cached_page_cannot_be_freed_by_a_sequence():
    """What the tree owns leaves through the tree."""
    pages = PageAllocator(1)
    pages.adopt(pages.take(1))
    with pytest.raises(AssertionError, match="CACHED"):
        pages.free(pages_of(0))


def test_a_page_named_twice_is_caught():
    """Freeing a page twice in one call would hand it to two sequences."""
    pages = PageAllocator(2)
    pages.take(2)
    with pytest.raises(AssertionError, match="named twice"):
        pages.free(pages_of(0, 1, 0))


def test_the_views_are_copies():
    """Nobody outside can write the ledger."""
    pages = PageAllocator(2)
    pages.states()[:] = PageState.CACHED
    pages.free_list()[:] = 0
    assert pages.states().tolist() == [PageState.FREE, PageState.FREE]
    assert pages.take(2).tolist() == [0, 1]
