"""The check finds what is broken: a sound tree is corrupted in each way, one at a time."""

from collections.abc import Callable

import numpy as np
import pytest

from radix import InvariantBroken, PageAllocator, PageState, RadixTree, check
from radix.node import NO_PAGES, Node

PAGE = 2


def sound() -> RadixTree:
    """Two namespaces, a branch, a lease, a free and a running page."""
    tree = RadixTree(PageAllocator(10), PAGE)
    for space, tokens in (("a", (1, 1, 2, 2, 3, 3)), ("a", (1, 1, 4, 4)), ("b", (5, 5))):
        done = tree.insert(space, np.array(tokens, np.int32), tree.allocate(len(tokens) // PAGE))
        tree.pages.free(done.duplicates)
    tree.lease(tree.match("a", np.array([1, 1, 4, 4], np.int32)))
    tree.allocate(1)
    check(tree)
    return tree


def stem(tree: RadixTree) -> Node:
    """The shared first page of namespace a."""
    return next(iter(tree.roots["a"].children.values()))


def leaf(tree: RadixTree) -> Node:
    """The unleased branch 2 2 3 3."""
    return next(node for node in stem(tree).children.values() if not node.pins)


def lose_a_child_link(tree: RadixTree) -> None:
    node = leaf(tree)
    stem(tree).children[b"elsewhere"] = stem(tree).children.pop(node.key[:8])


def swap_page(tree: RadixTree) -> None:
    leaf(tree).pages = np.array([0, leaf(tree).pages[1]], np.int32)


def name_a_running_page(tree: RadixTree) -> None:
    running = np.flatnonzero(tree.pages.states() == PageState.RUNNING)
    leaf(tree).pages = np.array([running[0], leaf(tree).pages[1]], np.int32)


def empty_an_edge(tree: RadixTree) -> None:
    leaf(tree).pages, leaf(tree).key = NO_PAGES, b""


def reach_a_node_twice(tree: RadixTree) -> None:
    stem(tree).children[b"again"] = leaf(tree)


def queue_what_is_leased(tree: RadixTree) -> None:
    tree.queue.link(next(iter(tree.leases)).node)


def break_a_link(tree: RadixTree) -> None:
    leaf(tree).colder = leaf(tree)


def link_a_stem(tree: RadixTree) -> None:
    stem(tree).colder = stem(tree).hotter = leaf(tree)


def forget_the_queue(tree: RadixTree) -> None:
    tree.queue.unlink(leaf(tree))


def list_a_page_twice(tree: RadixTree) -> None:
    tree.pages._stack[1] = tree.pages._stack[0]


def list_a_used_page(tree: RadixTree) -> None:
    tree.pages._stack[0] = leaf(tree).pages[0]


def lose_a_free_page(tree: RadixTree) -> None:
    tree.pages.num_free -= 1


def disown_a_page(tree: RadixTree) -> None:
    tree.pages.num_cached -= 1


def keep_an_empty_root(tree: RadixTree) -> None:
    tree.roots["c"] = Node(b"", NO_PAGES, None, "c")


def swap_roots(tree: RadixTree) -> None:
    tree.roots["a"], tree.roots["b"] = tree.roots["b"], tree.roots["a"]


def drop_a_leased_node(tree: RadixTree) -> None:
    next(iter(tree.leases)).node = Node(b"", NO_PAGES, None, "gone")


def adopt_a_child(tree: RadixTree) -> None:
    leaf(tree).parent = tree.roots["b"]


def miscount(field: str) -> Callable[[RadixTree], None]:
    """Add one to a number of the tree, its pins, or a node."""

    def corrupt(tree: RadixTree) -> None:
        owner, name = field.split(".")
        target = {"tree": tree, "pins": tree.pins, "stem": stem(tree), "leaf": leaf(tree)}[owner]
        setattr(target, name, getattr(target, name) + 1)

    return corrupt


def cut_tokens(tree: RadixTree) -> None:
    leaf(tree).key = leaf(tree).key[:8]


@pytest.mark.parametrize(
    ("corrupt", "rule"),
    [
        (lose_a_child_link, "child key"),
        (swap_page, "one place a page"),
        (name_a_running_page, "page owner"),
        (disown_a_page, "page owner"),
        (empty_an_edge, "edge length"),
        (cut_tokens, "edge tokens"),
        (miscount("leaf.first"), "edge position"),
        (reach_a_node_twice, "one parent"),
        (adopt_a_child, "parent link"),
        (miscount("tree.num_nodes"), "node count"),
        (keep_an_empty_root, "empty namespace"),
        (swap_roots, "root"),
        (list_a_page_twice, "free list"),
        (list_a_used_page, "free list"),
        (lose_a_free_page, "free list"),
        (miscount("stem.pins"), "pin count"),
        (miscount("pins.num_pages"), "pinned pages"),
        (drop_a_leased_node, "lease"),
        (forget_the_queue, "eviction queue"),
        (queue_what_is_leased, "eviction queue"),
        (link_a_stem, "eviction queue"),
        (break_a_link, "queue links"),
    ],
)
def test_each_corruption_is_named(corrupt: Callable[[RadixTree], None], rule: str):
    """The error names the rule that broke first."""
    tree = sound()
    corrupt(tree)
    with pytest.raises(InvariantBroken) as broken:
        check(tree)
    assert broken.value.rule == rule
    assert str(broken.value).startswith(rule)


def test_an_edge_longer_than_allowed_is_found():
    """The bound on edges is an invariant."""
    tree = sound()
    tree.max_edge_pages = 1
    with pytest.raises(InvariantBroken, match="edge length"):
        check(tree)


def test_a_forgotten_lease_is_found():
    """A lease that was dropped without release leaves pins behind."""
    tree = sound()
    tree.leases.clear()
    with pytest.raises(InvariantBroken, match="pin count"):
        check(tree)
