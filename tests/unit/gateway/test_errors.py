from __future__ import annotations

import json

import pytest

from engine.contract import AnswerError, BadCall, NotCached, Overloaded, TooMany, UnknownModel
from gateway import errors


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BadCall("x", param="n", code="c"), 400, "invalid_request_error"),
        (errors.Unauthenticated("x"), 401, "authentication_error"),
        (UnknownModel("x"), 404, "invalid_request_error"),
        (errors.BodyTooSlow("x"), 408, "timeout_error"),
        (errors.BodyTooLarge("x"), 413, "invalid_request_error"),
        (TooMany("x"), 429, "rate_limit_error"),
        (Overloaded("x"), 503, "overloaded_error"),
        (NotCached("x"), 504, "not_cached_error"),
    ],
)
def test_an_error_has_openais_shape(error: AnswerError, status: int, kind: str) -> None:
    reply = errors.reply_of(error)
    assert reply.status == status
    assert json.loads(reply.body) == {
        "error": {"message": "x", "type": kind, "param": error.param, "code": error.code}
    }


def test_who_should_come_back_later_is_told_when() -> None:
    for wait_s, said in ((0.2, b"1"), (1.0, b"1"), (1.2, b"2")):
        headers = dict(errors.reply_of(Overloaded("x", retry_after_s=wait_s)).headers)
        assert headers[b"retry-after"] == said
    assert b"retry-after" not in dict(errors.reply_of(Overloaded("x")).headers)


def test_our_mistake_names_the_request_and_nothing_else() -> None:
    assert "req1" in errors.our_mistake("req1").message
