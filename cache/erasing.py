"""Which answers of a namespace an erasure takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cache.archive import Erasure, doomed_groups
from cache.entry import Entry, Group, Labels, Origin


@dataclass(frozen=True, slots=True)
class Doomed:
    """Numbers of groups: by one of their questions, and by the wording of their answer alone, which
    may have been made for a question that is gone, or was never kept."""

    by_question: frozenset[int]
    by_wording: frozenset[int]


def doomed(
    origin: Origin, entries: Iterable[Entry], groups: Mapping[int, Group], erasure: Erasure
) -> Doomed:
    def row(entry: Entry) -> Labels:
        by = groups[entry.group].recording.model
        return origin.labels(entry.group, by, entry.tags, entry.owner, entry.answer)

    def wording(group: Group) -> Labels:
        by, tags = group.recording.model, group.recording.tags
        return origin.labels(group.number, by, tags, group.owner, group.answer)

    asked = frozenset(number for _, number in doomed_groups(map(row, entries), erasure))
    told = doomed_groups(map(wording, groups.values()), erasure)
    return Doomed(asked, frozenset(number for _, number in told) - asked)
