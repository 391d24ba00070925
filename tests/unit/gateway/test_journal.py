from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.contract import CacheStatus, Decision, Usage, Waste
from gateway.observe.journal import (
    Journal,
    JournalFault,
    Position,
    check_writable,
    claim,
    find,
    find_client,
    read_from,
    release,
    segments_of,
)
from gateway.observe.ledger import Record
from gateway.observe.rollup import PriceList


def record(number: int) -> Record:
    return Record(
        at=float(number),
        id=f"r{number:04d}",
        tenant="t",
        model="large",
        origin="large",
        status=200,
        usage=Usage(10, number),
        seconds=0.5,
        ttft_s=None,
        cache=[CacheStatus("exact", forward="miss")],
        decisions=[Decision("cascade", "large", "asked for")],
        wasted=[Waste("small", Usage(10, 2), "too weak")],
    )


def read(folder: Path, since: Position | None) -> list[Record]:
    return [record for segment in read_from(folder, since) for record in segment.records]


def found(folder: Path, request_id: str) -> list[Record]:
    return find(folder, request_id)[0]


def opened(folder: Path, keep_bytes: int = 1 << 20, events: list[str] | None = None) -> Journal:
    def tell(what: str, **_: Any) -> None:
        (events if events is not None else []).append(what)

    journal = Journal(folder, keep_bytes, tell)
    journal.open()
    return journal


def test_what_was_appended_is_read_again_whole(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    written = [record(number) for number in range(5)]
    for one in written:
        journal.append(one)
    assert list(read(tmp_path / "0", None)) == written, "without closing"
    journal.close()


def test_reading_goes_on_where_a_saving_ended(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append(record(1))
    saved = journal.position()
    journal.append(record(2))
    assert [one.id for one in read(tmp_path / "0", saved)] == ["r0002"]
    assert list(read(tmp_path / "0", journal.position())) == []
    journal.close()


@pytest.mark.parametrize("lost", [1, 7, 60])
def test_a_torn_record_ends_the_segment_and_nothing_before_it_is_lost(
    tmp_path: Path, lost: int
) -> None:
    journal = opened(tmp_path)
    for number in range(3):
        journal.append(record(number))
    journal.close()
    path = tmp_path / "0" / "00000001.journal"
    os.truncate(path, path.stat().st_size - lost)
    again = opened(tmp_path)
    again.append(record(9))
    assert [one.id for one in read(tmp_path / "0", None)] == ["r0000", "r0001", "r0009"]
    again.close()


def test_each_process_has_a_folder_of_its_own_and_takes_over_a_free_one(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    assert (first.number, second.number) == (0, 1)
    first.close()
    third = opened(tmp_path)
    assert third.number == 0
    assert third.segment == 2, "never appended to what another process wrote"
    assert claim(tmp_path / "1") is None
    second.close()
    lock = claim(tmp_path / "1")
    assert lock is not None
    release(lock)
    third.close()


def test_the_oldest_saved_segments_leave_and_unsaved_ones_stay(tmp_path: Path) -> None:
    journal = opened(tmp_path, keep_bytes=16 * 4096)
    for number in range(1000):
        journal.append(record(number))
        journal.position()
    written = segments_of(tmp_path / "0")
    journal.prune(Position(0, 3, 0))
    assert segments_of(tmp_path / "0") == written[2:]
    journal.prune(journal.position())
    held = sum(path.stat().st_size for path in (tmp_path / "0").glob("*.journal"))
    assert 8 * 4096 < held <= 16 * 4096
    journal.close()


def test_a_request_is_found_in_any_process_folder_and_segment(tmp_path: Path) -> None:
    journals = [opened(tmp_path, keep_bytes=16 * 4096) for _ in range(2)]
    for number in range(400):
        journals[number % 2].append(record(number))
        journals[number % 2].position()
    assert found(tmp_path, "r0007") == [record(7)]
    assert found(tmp_path, "r0398") == [record(398)]
    assert found(tmp_path, "r000") == []
    for one in journals:
        one.close()


def test_requests_are_found_by_what_their_callers_named_them(tmp_path: Path) -> None:
    journals = [opened(tmp_path, keep_bytes=16 * 4096) for _ in range(2)]
    for number in range(400):
        one = msgspec.structs.replace(
            record(number), client_id="a" if number % 10 == 7 else "r0008"
        )
        journals[number % 2].append(one)
        journals[number % 2].position()
    latest = [one.id for one, _ in find_client(tmp_path, "a", 3)]
    assert latest == ["r0397", "r0387", "r0377"]
    assert {one.id for one, _ in find_client(tmp_path, "a", 400)} >= {"r0007", "r0397"}
    assert find_client(tmp_path, "b", 3) == []
    assert [one.id for one in find(tmp_path, "r0008")[0]] == ["r0008"], "an id of ours is ours"
    for one in journals:
        one.close()


def test_what_an_older_version_kept_is_still_read(tmp_path: Path) -> None:
    """Before callers' ids were kept a record was shorter by one."""
    older = msgspec.msgpack.encode(msgspec.structs.astuple(record(1))[:-1])
    assert msgspec.msgpack.decode(older, type=Record) == record(1)


def test_a_full_disk_is_told_once_and_costs_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    journal = opened(tmp_path, events=events)
    journal.append(record(1))
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr("os.write", lambda file, held: write(file, held[:9]))
        journal.append(record(2))
        journal.append(record(3))
    journal.append(record(4))
    assert events == ["ledger journal cannot be written"]
    assert [one.id for one in read(tmp_path / "0", None)] == ["r0001", "r0004"]
    journal.close()


def test_a_folder_that_cannot_be_made_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(JournalFault, match=r"memory://"):
        check_writable(tmp_path / "taken")
    with pytest.raises(JournalFault, match=r"ledger\.store"):
        opened(tmp_path / "taken")


def test_a_segment_knows_the_prices_that_it_was_booked_at(tmp_path: Path) -> None:
    listed = PriceList("large", {"large": (1000, 4000), "small": (100, 400)})
    journal = Journal(tmp_path, 4096, lambda *_, **__: None, listed)
    journal.open()
    for number in range(60):
        journal.append(record(number))
        journal.position()
    journal.close()
    segments = list(read_from(tmp_path / "0", None))
    assert len(segments) > 1
    assert {segment.prices == listed for segment in segments} == {True}
    assert [one.id for segment in segments for one in segment.records][-1] == "r0059"
    assert find(tmp_path, "r0003") == ([record(3)], listed)


def test_a_record_of_an_older_version_is_still_read(tmp_path: Path) -> None:
    """As version 0.1 packed it: 13 fields, waste without `estimated`, a segment without prices."""
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0, "computed_tokens": 0}
    waste = {"model": "small", "usage": usage | {"prompt_tokens": 4}, "why": "too weak"}
    old = [1.0, "r1", "t", "large", "large", 499, usage, 0.5, None, [], [], 7, [waste]]
    packed = msgspec.msgpack.encode(old)
    (tmp_path / "0").mkdir()
    frame = struct.pack("<II", len(packed), zlib.crc32(packed)) + packed
    (tmp_path / "0" / "00000001.journal").write_bytes(frame)
    [segment] = read_from(tmp_path / "0", None)
    assert segment.prices is None
    [one] = segment.records
    assert (one.cut_tokens, one.wasted) == (7, [Waste("small", Usage(4, 0), "too weak")])
