"""What a request looks like, as numbers."""

from __future__ import annotations

import math

import pytest

from cascade.features import BEFORE, before
from engine.contract import Call, Message, Part


def seen(text: str) -> dict[str, float]:
    call = Call("chat", "auto", "t", messages=(Message("user", (Part("text", text),)),))
    return dict(zip(BEFORE, before(call).tolist(), strict=True))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("HALF of it, 1/2 of it, a Third", 3),
        ("50% each, twice daily, every day", 4),
        ("halfway thirdly eachother 1 / 2", 0),
        ("½ of it, Half of it, 5%", 2),
        ("", 0),
    ],
)
def test_parts_of_a_whole_are_counted_in_any_letters(text: str, count: int) -> None:
    assert seen(text)["parts"] == pytest.approx(math.log1p(count))
