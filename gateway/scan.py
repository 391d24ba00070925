"""Find the line of a key in TOML text.

`tomllib` returns values without places, and a parser that keeps them would be one more dependency
for an error message. This scan reads line by line: a header sets the table, `key =` is compared
below it. Multi-line strings and arrays may hold text that looks like a key; the first match at the
right table wins, and a wrong guess costs a line number, never a value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_ENTRY = re.compile(
    r"""^\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_STEP = re.compile(r"""[\w-]+|"([^"]*)"|'([^']*)'""")


def line_of(text: str, key: Sequence[str | int]) -> int | None:
    """The line (from 1) that sets `key`, or that opens the nearest table around it; None if the
    text knows neither. ("tenants", 1, "rpm") is `rpm` in the second [[tenants]]."""
    wanted = tuple(key)
    best: tuple[int, int] | None = None
    table: tuple[str | int, ...] = ()
    seen: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        header = _HEADER.match(line)
        entry = None if header else _ENTRY.match(line)
        if header:
            table = _table(header.group(1), _steps(header.group(2)), seen)
            here = table
        elif entry:
            here = (*table, *_steps(entry.group(1)))
        else:
            continue
        if here == wanted:
            return number
        if wanted[: len(here)] == here and (best is None or len(here) > best[1]):
            best = (number, len(here))
    return best[0] if best else None


def _steps(text: str) -> tuple[str, ...]:
    """`a."b.c".d` → ("a", "b.c", "d")."""
    return tuple(
        match.group(1) or match.group(2) or match.group(0).strip("\"'")
        for match in _STEP.finditer(text)
    )


def _table(
    bracket: str, steps: tuple[str, ...], seen: dict[tuple[str, ...], int]
) -> tuple[str | int, ...]:
    """The path of a header; an array of tables counts its own."""
    if bracket == "[":
        return steps
    index = seen.get(steps, -1) + 1
    seen[steps] = index
    return (*steps, index)
