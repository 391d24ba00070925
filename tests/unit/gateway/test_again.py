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
    assert again(BODY).calls(HERE) is again(bytes(bytearray(BODY))).calls(HERE)
    assert parse.count == 1


def test_the_same_body_of_another_tenant_is_another_call() -> None:
    again = remembering(Counted())
    assert again(BODY).calls(HERE)[0].scope == "tenant:a"
    assert again(BODY).calls(THERE)[0].scope == "tenant:b"


def test_what_is_remembered_is_what_is_parsed() -> None:
    parse = Counted()
    again = remembering(parse)
    again(BODY)
    assert again(BODY).calls(HERE) == parse(BODY).calls(HERE)


def test_a_bad_body_is_refused_each_time() -> None:
    parse = Counted()
    again = remembering(parse)
    for _ in range(2):
        with pytest.raises(BadCall):
            again(b"{")
    assert parse.count == 2


def test_a_long_body_is_not_remembered() -> None:
    parse = Counted()
    again = remembering(parse)
    long = BODY.replace(b"hi", b"x" * BODY_BYTES)
    again(long)
    again(long)
    assert parse.count == 2
