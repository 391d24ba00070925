from __future__ import annotations

from engine.parts import LINGER_S, LOOK_S, Parts


def parts_of(slots: int, **running: int) -> Parts:
    parts = Parts(slots)
    for tenant, count in running.items():
        parts.come(tenant, 1.0, max(1, count), now=0.0)
        for _ in range(count):
            parts.begin(tenant)
    return parts


def test_a_tenant_alone_holds_everything() -> None:
    parts = parts_of(8, lone=8)
    assert parts.part("lone", 8) == 8
    assert not parts.divided
    assert not parts.over("lone")
    assert not parts.crowds("lone")


def test_parts_follow_the_shares_and_are_never_nothing() -> None:
    parts = Parts(8)
    parts.come("big", 3.0, 1, now=0.0)
    parts.come("small", 1.0, 1, now=0.0)
    assert (parts.part("big", 8), parts.part("small", 8)) == (6, 2)
    assert parts.part("small", 3) == 1


def test_over_is_more_than_the_part_and_under_is_less() -> None:
    parts = parts_of(8, many=5, none=0)
    assert parts.over("many")
    assert not parts.under("many")
    assert parts.under("none")
    parts.end("many")
    assert not parts.over("many")
    assert not parts.under("many"), "what it has is its part"


def test_who_crowds_has_many_slots_and_more_than_its_part_of_those_taken() -> None:
    parts = parts_of(32, flood=20, quiet=4)
    assert parts.crowds("flood"), "though 20 of 64 slots would not be too many"
    assert not parts.crowds("quiet")
    few = parts_of(32, one=4, none=0)
    assert not few.crowds("one"), "an eighth of the slots is nobody's business"
    assert few.crowds("one", 1)


def test_a_part_is_kept_for_a_while_after_the_last_request() -> None:
    parts = parts_of(8, stays=1, leaves=0)
    parts.go("leaves", now=1.0)
    parts.look(1.0 + LINGER_S)
    assert parts.divided
    parts.look(1.0 + LINGER_S + 2 * LOOK_S)
    assert not parts.divided
    assert parts.part("stays", 8) == 8


def test_who_waits_or_runs_keeps_its_part_however_long() -> None:
    parts = parts_of(8, stays=1, waits=0)
    parts.look(100 * LINGER_S)
    assert parts.divided
