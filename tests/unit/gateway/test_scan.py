from __future__ import annotations

import pytest

from gateway.scan import line_of

TEXT = """\
# a comment = 1
title = "x"
server.port = 1

[cache.exact]   # trailing
ttl_s = 5

[models."odd.name"]
path = "p"

[[tenants]]
name = "a"
rpm = 1
[[tenants]]
name = "b"
rpm = 2
"""


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("title",), 2),
        (("server", "port"), 3),
        (("cache", "exact", "ttl_s"), 6),
        (("models", "odd.name", "path"), 9),
        (("tenants", 0, "rpm"), 13),
        (("tenants", 1, "rpm"), 16),
        (("tenants", 1), 14),
    ],
)
def test_a_key_is_found_on_its_line(key: tuple[str | int, ...], line: int) -> None:
    assert line_of(TEXT, key) == line


def test_a_missing_key_is_placed_at_the_nearest_table_that_is_there() -> None:
    assert line_of(TEXT, ("cache", "exact", "nothing")) == 5
    assert line_of(TEXT, ("nowhere", "at", "all")) is None
