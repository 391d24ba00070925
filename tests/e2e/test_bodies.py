"""Bodies that are not what a server hopes for, over raw sockets: the real server goes on."""

from __future__ import annotations

import json
import socket
import time

import pytest

from tests.support.program import CHAT, PATIENCE_S, post_bytes, read_reply
from tests.support.served import MAX_BODY_BYTES, chat

HUNDRED_MB = 100 << 20
CHUNKED_HEAD = (
    f"POST {CHAT} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
    "transfer-encoding: chunked\r\n\r\n"
).encode()


@pytest.fixture(autouse=True)
def goes_on(server, question):
    """After each of them, somebody else is answered."""
    yield
    assert server.post(chat(question(), max_tokens=1)).status == 200


def test_half_a_body_and_then_nothing_is_a_408(server) -> None:
    body = json.dumps(chat("x")).encode()
    with server.connect() as connection:
        connection.sendall(post_bytes(body[:20], length=len(body)))
        reply = read_reply(connection)
    assert reply.status == 408
    assert reply.error["code"] == "body_timeout"
    assert reply.headers["connection"] == "close"


def test_half_a_body_and_a_hang_up_is_only_noted(server) -> None:
    with server.connect() as connection:
        connection.sendall(post_bytes(b'{"model": ', length=500))
    server.wait_idle()


def test_a_body_that_drips_is_not_waited_for_without_end(server) -> None:
    """A byte every tenth of a second would hold a place for an hour; the whole has a time limit."""
    body = json.dumps(chat("x" * 40_000)).encode()
    started = time.monotonic()
    with server.connect() as connection:
        connection.sendall(post_bytes(b"", length=len(body)))
        connection.settimeout(0.1)
        for byte in body:
            try:
                connection.sendall(bytes([byte]))
                early = connection.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                continue
            except OSError:
                break
            assert early, "closed without a word"
            break
        connection.settimeout(PATIENCE_S)
        reply = read_reply(connection)
    assert reply.status == 408
    assert time.monotonic() - started < PATIENCE_S


def test_100_mb_that_are_announced_are_refused_before_they_are_sent(server) -> None:
    with server.connect() as connection:
        connection.sendall(post_bytes(b"", length=HUNDRED_MB))
        reply = read_reply(connection)
    assert reply.status == 413
    assert str(MAX_BODY_BYTES) in reply.error["message"]


def test_100_mb_in_chunks_are_refused_and_the_refusal_can_be_read(server) -> None:
    """The client sends all it has before it listens. It must find the answer and no reset."""
    piece = b"%x\r\n" % (1 << 16) + b"x" * (1 << 16) + b"\r\n"
    with server.connect() as connection:
        connection.sendall(CHUNKED_HEAD)
        try:
            for _ in range(HUNDRED_MB >> 16):
                connection.sendall(piece)
            connection.sendall(b"0\r\n\r\n")
        except OSError:
            pass  # it closed on us; what it said before is what counts
        reply = read_reply(connection)
    assert reply.status == 413


def test_a_body_in_chunks_is_put_together(server, question) -> None:
    body = json.dumps(chat(question())).encode()
    with server.connect() as connection:
        connection.sendall(CHUNKED_HEAD)
        for at in range(0, len(body), 7):
            part = body[at : at + 7]
            connection.sendall(b"%x\r\n%b\r\n" % (len(part), part))
        connection.sendall(b"0\r\n\r\n")
        assert read_reply(connection).status == 200


def test_a_character_that_is_cut_by_a_packet_is_whole_again(server, question) -> None:
    text = question() + " 🦜"
    body = json.dumps(chat(text), ensure_ascii=False).encode()
    cut = body.index("🦜".encode()) + 2
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(post_bytes(body[:cut], length=len(body)))
        time.sleep(0.05)
        connection.sendall(body[cut:])
        cut_reply = read_reply(connection)
    assert cut_reply.text == server.post(chat(text)).text


NOT_HTTP = {
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x99" * 40,
    "words": b"hello?\r\n\r\n",
    "no path": b"POST\r\n\r\n",
    "version": b"GET / HTTP/9.9\r\n\r\n",
    "negative length": b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
    "two lengths": b"POST /x HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
    "bad chunk": b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n\r\n",
    "bad header": b"POST /x HTTP/1.1\r\nhost: a\r\nbad header: x\r\n\r\n",
}


@pytest.mark.parametrize("sent", NOT_HTTP.values(), ids=NOT_HTTP)
def test_what_is_not_http_gets_a_400_or_a_closed_line(server, sent) -> None:
    with server.connect() as connection:
        connection.sendall(sent)
        connection.settimeout(PATIENCE_S)
        try:
            said = connection.recv(4096)
        except ConnectionResetError:
            said = b""
    assert said == b"" or said.startswith(b"HTTP/1.1 400 ")
    assert said == b"" or b'"invalid_http"' in said


def test_a_length_and_chunks_together_are_not_read_in_two_ways(server) -> None:
    """A proxy that believes the one and a server that believes the other would let a second
    request be smuggled inside the first."""
    smuggled = b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n"
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: {5 + len(smuggled)}\r\n"
        "transfer-encoding: chunked\r\n\r\n"
    )
    with server.connect() as connection:
        connection.sendall(head.encode() + b"0\r\n\r\n" + smuggled)
        connection.settimeout(PATIENCE_S)
        said = b""
        try:
            while piece := connection.recv(4096):
                said += piece
        except (TimeoutError, ConnectionResetError):
            pass
    assert said.startswith(b"HTTP/1.1 400"), said
    assert b"context_length" not in said


@pytest.mark.parametrize("size", [2 << 20, 50 << 20])
def test_a_head_of_megabytes_is_refused(server, question, size) -> None:
    body = json.dumps(chat(question())).encode()
    with server.connect() as connection:
        connection.settimeout(PATIENCE_S)
        try:
            connection.sendall(post_bytes(body, headers=f"x-long: {'a' * size}\r\n"))
            said = connection.recv(4096)
        except ConnectionError:
            said = b""
    assert said == b"" or said.split()[1] == b"431", said[:200]


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.2"])
def test_an_offer_to_change_protocols_is_declined_and_the_body_read(
    server, question, protocol
) -> None:
    """Java's HTTP client makes it with its first request; curl with --http2."""
    body = json.dumps(chat(question())).encode()
    offer = (
        f"connection: Upgrade, HTTP2-Settings\r\nupgrade: {protocol}\r\nhttp2-settings: AAMA\r\n"
    )
    for pieces in ((body,), (body[:9], body[9:])):
        with server.connect() as connection:
            connection.sendall(post_bytes(pieces[0], headers=offer, length=len(body)))
            for piece in pieces[1:]:
                time.sleep(0.05)
                connection.sendall(piece)
            reply = read_reply(connection)
        assert reply.status == 200
        assert reply.headers["connection"] == "close"


def test_an_offer_to_change_protocols_without_a_body_is_declined(server) -> None:
    with server.connect() as connection:
        connection.sendall(
            b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
        )
        assert read_reply(connection, "GET").json == {"status": "ok"}
