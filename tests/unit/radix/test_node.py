"""Edges: comparing, splitting, growing, cutting. Pages of 2 tokens."""

import numpy as np
import pytest

from radix.node import Node, common_pages, cut, descend, grow, own, pages_on, split, whole

SIZE = 8  # bytes of a page of 2 tokens


def key_of(*tokens: int) -> bytes:
    return np.array(tokens, dtype=np.int32).tobytes()


def chain(*edges: tuple[int, ...]) -> list[Node]:
    """A root and one child below another; page numbers count from 0."""
    path = [Node(b"", own(np.empty(0, np.int32)), None, "space")]
    for edge in edges:
        first = path[-1].end
        pages = np.arange(first, first + len(edge) // 2, dtype=np.int32)
        path.append(Node(key_of(*edge), own(pages), path[-1]))
        path[-2].children[path[-1].key[:SIZE]] = path[-1]
    return path


@pytest.mark.parametrize(
    ("tokens", "common"),
    [
        ((1, 2, 3, 4, 5, 9), 2),  # differs in the second token of a page
        ((1, 2, 9, 4, 5, 6), 1),
        ((1, 2, 3, 4), 2),  # ends inside the edge
        ((1, 2), 1),
        ((1, 9), 0),
    ],
)
def test_common_pages_are_whole_pages(tokens: tuple[int, ...], common: int):
    """A page that differs in one token is not common."""
    node = chain((1, 2, 3, 4, 5, 6))[1]
    assert common_pages(node, key_of(0, 0, *tokens), SIZE) == common


def test_descend_follows_whole_edges_and_stops_inside_one():
    """The path lists the nodes entered, also the one held in part."""
    root, first, second = chain((1, 2), (3, 4, 5, 6))
    path = [root]
    assert descend(path, key_of(1, 2, 3, 4, 7, 7), SIZE) == 2
    assert path == [root, first, second]
    assert whole(path, 2) is first
    assert pages_on(path[1:], 0, 2).tolist() == [0, 1]


def test_descend_of_an_unknown_page_enters_nothing():
    """Children are found by their whole first page."""
    root, _ = chain((1, 2))
    path = [root]
    assert descend(path, key_of(1, 3), SIZE) == 0
    assert path == [root]
    assert whole(path, 0) is root
    assert pages_on([], 0, 0).tolist() == []


def test_a_split_keeps_the_lower_part_as_the_same_object():
    """Leases that name the node keep their end."""
    root, node = chain((1, 2, 3, 4, 5, 6))
    head = split(node, 1)
    assert root.children == {key_of(1, 2): head}
    assert head.children == {key_of(3, 4): node}
    assert (head.key, node.key) == (key_of(1, 2), key_of(3, 4, 5, 6))
    assert (head.pages.tolist(), node.pages.tolist()) == ([0], [1, 2])
    assert (head.first, head.end, node.first, node.end) == (0, 1, 1, 3)
    assert node.path() == [head, node]


@pytest.mark.parametrize(("pins", "head_pins"), [(0, 0), (1, 1), (3, 1)])
def test_the_head_of_a_split_has_one_pinned_child_or_none(pins: int, head_pins: int):
    """Pins count pinned children, not the leases below them."""
    _, node = chain((1, 2, 3, 4))
    node.pins = pins
    assert split(node, 1).pins == head_pins
    assert node.pins == pins


@pytest.mark.parametrize("count", [0, 2])
def test_a_split_leaves_no_empty_edge(count: int):
    """Both parts have a page."""
    _, node = chain((1, 2, 3, 4))
    with pytest.raises(AssertionError, match="inside an edge"):
        split(node, count)


def test_growing_and_cutting_work_at_the_end():
    """The beginning of an edge outlives its end."""
    _, node = chain((1, 2))
    grow(node, key_of(3, 4, 5, 6), np.array([7, 8], np.int32))
    assert node.key == key_of(1, 2, 3, 4, 5, 6)
    assert node.pages.tolist() == [0, 7, 8]
    assert cut(node, 2).tolist() == [7, 8]
    assert (node.key, node.pages.tolist()) == (key_of(1, 2), [0])


def test_the_pages_of_an_edge_cannot_be_written():
    """What the tree hands out are views; a write to one would corrupt it."""
    _, node = chain((1, 2))
    with pytest.raises(ValueError, match="read-only"):
        node.pages[0] = 5
