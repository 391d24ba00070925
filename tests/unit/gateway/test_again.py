"""A body that comes again is not read again, and means the same."""

from __future__ import annotations

import pytest

from engine.contract import BadCall
from gateway.api import chat
from gateway.api.again import BODY_BYTES, remembering
from gateway.api.endpoint import Asked
from gateway.catalog import Place

BODY = b'{"model": "large", "messages": [{"role": "user", "content": "hi"}]}'
HERE = Place("large", "tenant:a", "print", None)
THERE = Place("large", "tenant:b", "print", None)


class Counted:
    def __init__(self) -> None:
        self.parse = chat.new_parser()
        self.count = 0

    def __call__(self, body: bytes) -> Asked:
        self.count += 1
        return self.parse(body)


def test_the_same_body_is_parsed_once() -> None:
    parse = Counted()
    again = remembering(parse)
    assert again("a", BODY).calls(HERE) is again("a", bytes(bytearray(BODY))).calls(HERE)
    assert parse.count == 1


def test_the_same_body_of_another_tenant_is_another_call() -> None:
    again = remembering(Counted())
    assert again("a", BODY).calls(HERE)[0].scope == "tenant:a"
    assert again("a", BODY).calls(THERE)[0].scope == "tenant:b"


def test_what_one_tenant_has_sent_is_not_read_faster_for_another() -> None:
    parse = Counted()
    again = remembering(parse)
    again("a", BODY)
    again("b", BODY)
    assert parse.count == 2


def test_what_is_remembered_is_what_is_parsed() -> None:
    parse = Counted()
    again = remembering(parse)
    again("a", BODY)
    assert again("a", BODY).calls(HERE) == parse(BODY).calls(HERE)


def test_a_bad_body_is_refused_each_time() -> None:
    parse = Counted()
    again = remembering(parse)
    for _ in range(2):
        with pytest.raises(BadCall):
            again("a", b"{")
    assert parse.count == 2


def test_a_long_body_is_not_remembered() -> None:
    parse = Counted()
    again = remembering(parse)
    long = BODY.replace(b"hi", b"x" * BODY_BYTES)
    again("a", long)
    again("a", long)
    assert parse.count == 2
