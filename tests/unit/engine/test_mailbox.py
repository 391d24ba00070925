"""The hand-over: a few streams get each token, many get them in bundles, ends never wait."""

from __future__ import annotations

from engine.contract import Delta, End, Finish, Usage
from engine.mailbox import FEW, GAP_S, Item, Mail, Outbox

END = End(Usage(1, 1))


class Office:
    """Hands out what it is given at once."""

    closed = False

    def deliver(self, mail: Mail) -> bool:
        for box, items in mail:
            assert isinstance(box, Box)
            box.items += items
        return not self.closed


class Box:
    """A mailbox without an event loop."""

    def __init__(self, office: Office) -> None:
        self.office = office
        self.due = 0.0
        self.items: list[Item] = []


class House:
    def __init__(self, count: int) -> None:
        self.now = 100.0
        self.office = Office()
        self.outbox = Outbox(lambda: self.now)
        self.boxes = [Box(self.office) for _ in range(count)]

    def step(self, token: int, seconds: float = GAP_S) -> None:
        """A token for each."""
        for box in self.boxes:
            self.outbox.add(box, Delta(0, "text", f"{token} ", (token,)))
        self.outbox.flush()
        self.now += seconds


def test_a_few_streams_get_each_token_by_itself() -> None:
    house = House(FEW)
    for token in range(5):
        house.step(token)
    assert [len(box.items) for box in house.boxes] == [5] * FEW


def test_many_streams_get_their_first_token_at_once_and_then_bundles() -> None:
    house = House(FEW + 20)
    for token in range(21):
        house.step(token)
    for box in house.boxes:
        first, bundle = box.items
        assert first == Delta(0, "text", "0 ", (0,))
        assert isinstance(bundle, Delta)
        assert bundle.payload == "".join(f"{token} " for token in range(1, 21))
        assert bundle.token_ids == tuple(range(1, 21))


def test_an_end_takes_along_what_was_held() -> None:
    house = House(FEW + 20)
    house.step(0)
    house.step(1)
    ending = house.boxes[3]
    house.outbox.add(ending, Finish(0, "length"))
    house.outbox.add(ending, END)
    house.outbox.flush()
    assert ending.items == [
        Delta(0, "text", "0 ", (0,)),
        Delta(0, "text", "1 ", (1,)),
        Finish(0, "length"),
        END,
    ]
    assert len(house.boxes[0].items) == 1


def test_choices_are_never_mixed() -> None:
    house = House(FEW + 20)
    house.step(0)
    box = house.boxes[0]
    for index in (0, 1, 1, 0):
        house.outbox.add(box, Delta(index, "text", "x", (7,)))
    house.now += 1.0
    house.outbox.flush()
    assert [(i.index, i.payload) for i in box.items[1:] if isinstance(i, Delta)] == [
        (0, "x"),
        (1, "xx"),
        (0, "x"),
    ]


def test_an_office_whose_readers_are_gone_is_named() -> None:
    house = House(1)
    house.office.closed = True
    house.outbox.add(house.boxes[0], END)
    assert house.outbox.flush() == [house.office]
    assert house.outbox.flush() == []
