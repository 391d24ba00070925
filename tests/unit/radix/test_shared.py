"""Which leases read the same pages. Pages of 2 tokens."""

import numpy as np
import pytest

from radix import Lease, PageAllocator, RadixTree, Shared

PAGE = 2


@pytest.fixture
def tree() -> RadixTree:
    return RadixTree(PageAllocator(64), PAGE)


def serve(tree: RadixTree, *tokens: int, space: str = "a") -> Lease:
    """A running sequence whose prompt is in the tree."""
    prompt = np.array(tokens, dtype=np.int32)
    found = tree.match(space, prompt)
    lease = tree.lease(found)
    pages = np.concatenate((found.pages, tree.allocate(len(prompt) // PAGE - len(found.pages))))
    tree.insert(space, prompt, pages, lease=lease)
    return lease


def facts(groups: list[Shared]) -> list[tuple[int, list[int], tuple[int, ...]]]:
    return [(group.first_page, group.pages.tolist(), group.members) for group in groups]


def test_one_sequence_shares_nothing(tree: RadixTree):
    """Neither with itself nor with pages that nobody runs on."""
    serve(tree, 1, 1, 2, 2).release()
    assert tree.shared([serve(tree, 1, 1, 3, 3)]) == []
    assert tree.shared([]) == []


def test_segments_nest_outermost_first(tree: RadixTree):
    """All share the system prompt, two also the examples."""
    leases = [
        serve(tree, 1, 1, 2, 2, 3, 3, 4, 4),
        serve(tree, 1, 1, 2, 2, 3, 3, 5, 5),
        serve(tree, 1, 1, 6, 6),
    ]
    groups = tree.shared(leases)
    assert facts(groups) == [(0, [0], (0, 1, 2)), (1, [1, 2], (0, 1))]
    assert [group.saved for group in groups] == [2, 2]


def test_a_run_of_nodes_with_the_same_members_is_one_segment(tree: RadixTree):
    """Where the tree was split for others does not matter."""
    serve(tree, 1, 1, 2, 2, 3, 3).release()
    serve(tree, 1, 1, 9, 9).release()
    leases = [serve(tree, 1, 1, 2, 2, 3, 3), serve(tree, 1, 1, 2, 2, 4, 4)]
    assert facts(tree.shared(leases)) == [(0, [0, 1], (0, 1))]


def test_a_sequence_that_ends_where_another_goes_on_shares_up_to_there(tree: RadixTree):
    """n > 1 samples of one prompt, one of them ahead."""
    leases = [serve(tree, 1, 1), serve(tree, 1, 1), serve(tree, 1, 1, 2, 2)]
    assert facts(tree.shared(leases)) == [(0, [0], (0, 1, 2))]


def test_namespaces_share_nothing(tree: RadixTree):
    """The same tokens of two tenants are two segments or none."""
    leases = [serve(tree, 1, 1), serve(tree, 1, 1, space="b")]
    assert tree.shared(leases) == []


def test_a_released_lease_is_our_error(tree: RadixTree):
    """Its pages may be gone."""
    lease = serve(tree, 1, 1)
    lease.release()
    with pytest.raises(AssertionError, match="released"):
        tree.shared([lease])
