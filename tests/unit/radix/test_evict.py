"""What goes first, and how much of it. Pages of 2 tokens."""

import numpy as np
import pytest

from radix import LRU, PageAllocator, Policy, RadixTree, RecomputeCost, check
from radix.evict import SEARCH

PAGE = 2


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def tree_of(policy: Policy | None = None, num_pages: int = 64) -> RadixTree:
    return RadixTree(PageAllocator(num_pages), PAGE, policy)


def put(tree: RadixTree, *tokens: int, space: str = "a") -> None:
    done = tree.insert(space, ids(*tokens), tree.allocate(len(tokens) // PAGE))
    tree.pages.free(done.duplicates)


def use(tree: RadixTree, *tokens: int, space: str = "a") -> None:
    """A request that holds its whole prompt for a while."""
    tree.lease(tree.match(space, ids(*tokens))).release()


def survivors(tree: RadixTree, *prompts: tuple[int, ...]) -> list[int]:
    """How many tokens of each prompt are left; every invariant holds."""
    check(tree)
    return [tree.peek("a", ids(*prompt)) for prompt in prompts]


def test_the_least_recently_used_goes_first():
    """Across all namespaces of the pool."""
    tree = tree_of()
    put(tree, 1, 1)
    put(tree, 2, 2, space="b")
    put(tree, 3, 3)
    use(tree, 1, 1)
    tree.evict(1)
    assert tree.peek("b", ids(2, 2)) == 0
    tree.evict(1)
    assert survivors(tree, (1, 1), (3, 3)) == [2, 0]


def test_a_long_edge_loses_only_its_tail():
    """To gain one page costs one page, and the rest still matches."""
    tree = tree_of()
    put(tree, *range(20))
    assert tree.evict(1) == 1
    assert survivors(tree, tuple(range(20))) == [18]
    assert tree.num_nodes == 1


def test_a_prefix_outlives_its_extensions():
    """The parent becomes evictable when its last child has gone."""
    tree = tree_of()
    put(tree, 1, 1, 2, 2)
    put(tree, 1, 1, 3, 3)
    tree.evict(2)
    assert survivors(tree, (1, 1, 2, 2), (1, 1, 3, 3)) == [2, 2]
    tree.evict(1)
    assert not tree.roots


def test_a_shared_beginning_is_as_warm_as_the_last_request_through_it():
    """Nobody ends at 1 1, and still it outlives 4 4."""
    tree = tree_of()
    put(tree, 1, 1, 2, 2)
    put(tree, 1, 1, 3, 3)
    put(tree, 4, 4)
    use(tree, 1, 1, 3, 3)
    tree.evict(2)  # 2 2, then 4 4: 1 1 is as warm as 3 3
    assert survivors(tree, (1, 1, 3, 3), (4, 4)) == [4, 0]


def test_a_parent_inherits_the_last_use_of_its_children():
    """Its rank counts from then, not from when a request ended at it, which was never."""
    tree = tree_of(RecomputeCost())
    put(tree, 9, 9)
    tree.evict(1)  # moves the clock on, so that the next uses have a date
    put(tree, 1, 1, 2, 2)
    put(tree, 1, 1, 3, 3)
    tree.evict(2)
    put(tree, 4, 4)
    tree.evict(1)
    assert survivors(tree, (1, 1), (4, 4)) == [2, 0]


def test_a_parent_inherits_the_uses_of_its_children():
    """Four requests passed through 1 1, one through 4 4."""
    tree = tree_of(RecomputeCost())
    for branch in (2, 3, 5, 6):
        put(tree, 1, 1, branch, branch)
    tree.evict(4)
    put(tree, 4, 4)
    tree.evict(1)
    assert survivors(tree, (1, 1), (4, 4)) == [2, 0]


def test_a_parent_that_was_used_later_than_its_children_takes_its_place_among_the_leaves():
    """It is not the next to go only because its last child just went."""
    tree = tree_of()
    put(tree, 1, 1, 2, 2)
    put(tree, 3, 3)
    use(tree, 1, 1)
    put(tree, 4, 4)
    tree.evict(2)  # 2 2, then 3 3
    assert survivors(tree, (1, 1), (3, 3), (4, 4)) == [2, 0, 2]
    tree.evict(1)
    assert survivors(tree, (1, 1), (4, 4)) == [0, 2]


def test_the_search_for_that_place_is_bounded():
    """Behind many colder leaves the parent goes to the hot end: kept too long, never too short."""
    tree = tree_of(num_pages=SEARCH * 2 + 10)
    put(tree, 1, 1, 2, 2)
    for token in range(10, 10 + SEARCH + 5):
        put(tree, token, token)
    use(tree, 1, 1)
    put(tree, 5, 5)
    tree.evict(1)
    tree.evict(SEARCH + 6)
    assert survivors(tree, (1, 1), (5, 5)) == [2, 0]


def test_a_mere_look_inside_an_edge_does_not_warm_all_of_it():
    """Only the part of the prompt that matched to a node's end was used."""
    tree = tree_of()
    put(tree, 1, 1, 2, 2)
    put(tree, 3, 3)
    tree.match("a", ids(1, 1, 9, 9))
    tree.evict(1)
    assert survivors(tree, (1, 1, 2, 2), (3, 3)) == [2, 2]


def test_evicting_more_than_there_is_says_how_much_went():
    """The count is what was freed."""
    tree = tree_of()
    put(tree, 1, 1, 2, 2)
    assert tree.evict(10) == 2
    assert tree.evict(10) == 0
    assert tree.evict(0) == 0


def test_with_one_class_and_a_still_clock_the_order_is_that_of_use():
    """Leaves of equal rank stand in line."""
    tree = tree_of(RecomputeCost())
    for token in (1, 2, 3):
        put(tree, token, token)
    tree.evict(2)
    assert survivors(tree, (1, 1), (2, 2), (3, 3)) == [0, 0, 2]


def test_recompute_cost_keeps_what_was_used_often():
    """One request after another that nobody repeats does not wash out the system prompt."""
    prompt, once = (1, 1), [(token, token) for token in range(10, 20)]
    left = {}
    for policy in (LRU(), RecomputeCost()):
        tree = tree_of(policy, num_pages=4)
        put(tree, *prompt)
        use(tree, *prompt)
        use(tree, *prompt)
        for tokens in once[:6]:
            put(tree, *tokens)
        left[type(policy)] = survivors(tree, prompt)
    assert left == {LRU: [0], RecomputeCost: [2]}


def test_recompute_cost_forgets_in_time():
    """The clock moves on with each eviction: what was popular once does not stay for ever."""
    tree = tree_of(RecomputeCost(), num_pages=4)
    put(tree, 1, 1)
    use(tree, 1, 1)
    use(tree, 1, 1)
    for token in range(10, 40):
        put(tree, token, token)
    assert survivors(tree, (1, 1)) == [0]


def test_recompute_cost_keeps_deep_pages_before_shallow_ones():
    """A page far into a prompt costs more to compute again."""
    tree = tree_of(RecomputeCost(page_size=PAGE, even_tokens=4))
    put(tree, 1, 1, 2, 2, 3, 3)
    with tree.lease(tree.match("a", ids(1, 1, 2, 2))):
        pass  # splits: 3 3 starts at token 4 and costs twice as much as one at 0
    use(tree, 1, 1, 2, 2, 3, 3)
    put(tree, 4, 4)
    tree.evict(1)
    assert survivors(tree, (1, 1, 2, 2, 3, 3), (4, 4)) == [6, 0]


@pytest.mark.parametrize("uses", [1, 2, 3, 4, 1_000_000])
def test_classes_stay_within_the_table(uses: int):
    """Worth is rounded down to a power of two, and ends at the last class."""
    tree = tree_of(RecomputeCost())
    put(tree, 1, 1)
    node = tree.match("a", ids(1, 1)).node
    assert node is not None
    node.uses = uses
    policy = RecomputeCost()
    weight = policy.weights[policy.classify(node)]
    assert weight == min(2 ** (uses.bit_length() - 1), policy.weights[-1])
