from __future__ import annotations

import pytest

from engine.contract import BadCall, CacheStatus, Directives
from gateway.wire.headers import (
    LONGEST_TAG,
    MOST_TAGS,
    cache_status,
    directives_of,
    server_timing,
    tags_of,
)


@pytest.mark.parametrize(
    ("header", "means"),
    [
        (None, Directives()),
        (b"no-store", Directives(no_store=True)),
        (b"No-Cache, max-age=60", Directives(no_cache=True, max_age_s=60.0)),
        (b'only-if-cached,max-age="0"', Directives(only_if_cached=True, max_age_s=0.0)),
        (b"private, stale-while-revalidate=5,", Directives()),
    ],
)
def test_cache_control_is_understood(header: bytes | None, means: Directives) -> None:
    assert directives_of(header) == means


@pytest.mark.parametrize("header", [b"max-age=-1", b"max-age=x", b"max-age="])
def test_an_age_that_is_no_number_is_refused(header: bytes) -> None:
    with pytest.raises(BadCall, match="whole seconds"):
        directives_of(header)


def test_the_layer_nearest_the_origin_comes_first() -> None:
    members = [
        CacheStatus("exact", forward="miss"),
        CacheStatus("semantic", hit=True, ttl_s=3412.9, detail='p="1"'),
    ]
    expected = b'semantic; hit; ttl=3412; detail="p=\\"1\\"", exact; fwd=miss'
    assert cache_status(members) == expected
    assert cache_status([CacheStatus("exact", collapsed=True)]) == b"exact; fwd=miss; collapsed"


def test_timings_are_in_milliseconds() -> None:
    assert server_timing({"exact": 0.05, "queue": 12.0}) == b"exact;dur=0.050, queue;dur=12.000"


def test_tags_are_split() -> None:
    assert tags_of(b" a, b ,,") == ("a", "b")
    assert tags_of(b"a,b,a") == ("a", "b")
    assert tags_of(None) == ()


def test_an_answer_carries_so_many_tags_of_such_a_length() -> None:
    most = [str(number).rjust(LONGEST_TAG, "x") for number in range(MOST_TAGS)]
    assert tags_of(",".join(most).encode()) == tuple(most)
    for header in (",".join([*most, "one more"]), "x" * (LONGEST_TAG + 1)):
        with pytest.raises(BadCall, match="32 tags of up to 128 characters") as refused:
            tags_of(header.encode())
        assert refused.value.param == "Sluice-Tags"


def test_a_detail_cannot_break_out_of_its_header() -> None:
    header = cache_status([CacheStatus("exact", detail="a\r\nset-cookie: x")])
    assert b"\r" not in header
    assert b"\n" not in header
