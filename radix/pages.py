"""Who owns each KV page: the free list and the ledger of owners.

Problem. A page written by two sequences is one caller's prompt in another caller's answer, and it
raises no error. So every page has one owner at any time, and every hand-over checks the old one.

                take                 adopt
       FREE ───────────▶ RUNNING ───────────▶ CACHED
         ▲                  │                    │
         ├──────────────────┘ free               │
         └───────────────────────────────────────┘ reclaim

FREE     nobody's; its number is on the stack.
RUNNING  a sequence's: being written, or only partly full, or a duplicate of a cached page.
CACHED   the tree's; full and never written again. Sequences read it under a lease.

Choice. The free list is a stack in one numpy array (take and free are slice copies, whatever the
count) and the owner is one byte a page. Hand-overs take whole arrays and are all or nothing.

Rejected. vLLM's linked free list, whose order doubles as the eviction order: one Python object a
page, and freeing 1,000 pages is 1,000 pointer updates. No ledger (SGLang, mini-sglang): cheaper by
a few µs a call, but double frees there surfaced as wrong text, long afterwards.

Price. 5 bytes a page for stack and owner, 4 more for spotting a page that is named twice in one
call; a few µs a call.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

Pages = npt.NDArray[np.int32]


class PageState(IntEnum):
    """The owner of a page."""

    FREE = 0
    RUNNING = 1
    CACHED = 2


class PageAllocator:
    """The pages 0 … num_pages − 1 of one KV pool, each with one owner.

    A fresh allocator hands out 0, 1, 2 … in order, so a caller that wants page 0 for padding takes
    one page before anything else.
    """

    def __init__(self, num_pages: int) -> None:
        assert num_pages > 0, f"a pool of {num_pages} pages"
        self.num_pages = num_pages
        self.num_free = num_pages
        self.num_cached = 0
        self._stack: Pages = np.arange(num_pages - 1, -1, -1, dtype=np.int32)
        self._state = np.zeros(num_pages, dtype=np.uint8)
        self._mark: Pages = np.zeros(num_pages, dtype=np.int32)

    @property
    def num_running(self) -> int:
        """Pages owned by sequences."""
        return self.num_pages - self.num_free - self.num_cached

    def take(self, count: int) -> Pages | None:
        """FREE → RUNNING: `count` pages, now the caller's; None, and nothing taken, if too few."""
        assert count >= 0, f"cannot take {count} pages"
        if count > self.num_free:
            return None
        self.num_free -= count
        taken = self._stack[self.num_free : self.num_free + count][::-1].copy()
        self._state[taken] = PageState.RUNNING
        return taken

    def free(self, pages: Pages) -> None:
        """RUNNING → FREE: the caller gives up pages that the tree never got, or gave back."""
        self._hand_over(pages, PageState.RUNNING, PageState.FREE)
        self._push(pages)

    def adopt(self, pages: Pages) -> None:
        """RUNNING → CACHED: the tree takes over pages that a sequence has filled."""
        self._hand_over(pages, PageState.RUNNING, PageState.CACHED)
        self.num_cached += len(pages)

    def reclaim(self, pages: Pages) -> None:
        """CACHED → FREE: the tree evicted these."""
        self._hand_over(pages, PageState.CACHED, PageState.FREE)
        self.num_cached -= len(pages)
        self._push(pages)

    def states(self) -> npt.NDArray[np.uint8]:
        """The owner of each page: a copy, for checks and the dashboard's map."""
        return self._state.copy()

    def free_list(self) -> Pages:
        """The free pages, next to go last: a copy, for checks."""
        return self._stack[: self.num_free].copy()

    def _push(self, pages: Pages) -> None:
        self._stack[self.num_free : self.num_free + len(pages)] = pages
        self.num_free += len(pages)

    def _hand_over(self, pages: Pages, old: PageState, new: PageState) -> None:
        assert (self._state[pages] == old).all(), self._complaint(pages, old)
        order = np.arange(len(pages), dtype=np.int32)
        self._mark[pages] = order  # a page named twice keeps its later mark only
        assert (self._mark[pages] == order).all(), f"a page is named twice in {pages.tolist()}"
        self._state[pages] = new

    def _complaint(self, pages: Pages, old: PageState) -> str:
        wrong = pages[self._state[pages] != old]
        states = [PageState(int(s)).name for s in self._state[wrong]]
        return f"pages {wrong.tolist()} are {states}, not {old.name}"
