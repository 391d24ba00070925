from __future__ import annotations

import json
import logging
from io import BytesIO
from pathlib import Path

import pytest

from gateway.observe.logs import Bridge, LineWriter, Log, build_log, build_relay
from gateway.parts.exact import build_cache
from gateway.settings import ExactCache


class Broken(BytesIO):
    def write(self, data: object) -> int:
        raise OSError("nobody reads")


def lines(stream: BytesIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def new_log(level: str = "info", as_json: bool = True) -> tuple[Log, LineWriter, BytesIO]:
    stream = BytesIO()
    writer = LineWriter(stream, every_s=0.001)
    return build_log(writer, level, as_json), writer, stream


def test_a_line_is_one_json_object_with_time_and_level() -> None:
    log, writer, stream = new_log()
    log.info("request", id="x", status=200)
    writer.close()
    (line,) = lines(stream)
    assert line["event"] == "request"
    assert line["level"] == "info"
    assert str(line["time"]).endswith("Z")


def test_what_is_below_the_level_is_not_written() -> None:
    log, writer, stream = new_log("warning")
    log.info("no")
    log.warning("yes")
    writer.close()
    assert [line["event"] for line in lines(stream)] == ["yes"]


def test_a_trace_is_text_in_the_line() -> None:
    log, writer, stream = new_log()
    log.error("broke", exc_info=ValueError("ours"))
    writer.close()
    assert "ValueError: ours" in str(lines(stream)[0]["exception"])


def test_libraries_log_through_the_same_lines() -> None:
    log, writer, stream = new_log()
    record = logging.LogRecord("uvicorn", logging.WARNING, "f", 1, "bad %s", ("thing",), None)
    Bridge(log).emit(record)
    writer.close()
    assert lines(stream)[0]["event"] == "bad thing"
    assert lines(stream)[0]["level"] == "warning"


def test_the_console_form_is_for_people() -> None:
    log, writer, stream = new_log(as_json=False)
    log.info("request", id="x")
    writer.close()
    assert b"request" in stream.getvalue()
    assert not stream.getvalue().startswith(b"{")


@pytest.mark.parametrize("as_json", [True, False])
def test_a_trace_holds_nothing_of_a_request(as_json: bool) -> None:
    def breaks(prompt: str) -> None:
        try:
            int(prompt)
        except ValueError:
            raise KeyError({"content": prompt}["content"]) from None

    secret = "what was " + "asked"
    log, writer, stream = new_log(as_json=as_json)
    try:
        breaks(secret)
    except KeyError:
        log.exception("broke")
    try:
        int(secret)
    except ValueError as error:
        Bridge(log).emit(logging.LogRecord("x", 40, "f", 1, "m", (), (ValueError, error, None)))
    writer.close()
    text = stream.getvalue()
    assert b"KeyError" in text
    assert b"in breaks" in text
    assert b"invalid literal" in text
    assert secret.encode() not in text


def test_a_reader_that_went_away_stops_nothing() -> None:
    writer = LineWriter(Broken(), every_s=0.001)
    writer.line(b"x")
    writer.close()


def test_a_flood_is_bounded_and_what_was_dropped_is_counted() -> None:
    stream = BytesIO()
    writer = LineWriter(stream, every_s=60.0, most=2)
    for _ in range(5):
        writer.line(b'{"event": "x"}')
    writer.close()
    assert lines(stream)[-1] == {"event": "log lines dropped", "count": 3}
    assert len(lines(stream)) == 3


async def test_a_cache_file_that_was_moved_aside_is_told(tmp_path: Path) -> None:
    path = tmp_path / "exact.db"
    path.write_bytes(b"not a database" * 100)
    log, writer, stream = new_log()
    store = build_cache(ExactCache(store=f"sqlite:///{path}"), log).store
    await store.open()
    await store.close()
    writer.close()
    assert b"was moved to" in stream.getvalue()


def test_a_relayed_line_arrives_with_its_level_and_without_what_a_trace_quotes() -> None:
    told: list[tuple[str, dict[str, object]]] = []
    relay = build_relay(lambda level, event: told.append((level, dict(event))), "info")
    relay.debug("too low")
    relay.error("engine", what="a step", exc_info=RuntimeError("about 'a secret'"))
    ((level, event),) = told
    assert (level, event["event"], event["what"]) == ("error", "engine", "a step")
    assert "RuntimeError" in str(event["exception"])
    assert "secret" not in str(event["exception"])
