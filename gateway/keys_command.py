"""`sluice keys`: make, list, rotate and revoke keys, with or without a server running.

The key itself is all that goes to stdout, so that it can be piped into a secret's file; what is for
people goes to stderr. A running server sees a change within a second.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.parts.keys import build_key_store
from gateway.settings import Settings
from gateway.tenants.key import Key, Minted
from gateway.tenants.key_book import KeyBook

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_LENGTH = re.compile(r"(\d+(?:\.\d+)?)([smhdwy])")


def add_arguments(keys: argparse.ArgumentParser) -> None:
    keys.add_argument("--config", type=Path, help="settings; default ./sluice.toml if there is one")
    actions = keys.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="make a key; it is printed once")
    create.add_argument("tenant", help="whose key it is")
    create.add_argument("--name", default="", help="for people: whose, what for")
    create.add_argument("--lives", type=length_s, metavar="LENGTH", help="as 90d; unset: for ever")
    listing = actions.add_parser("list", help="show keys, their last use and expiry")
    listing.add_argument("--tenant", help="only this tenant's")
    rotate = actions.add_parser("rotate", help="make a key in place of another")
    rotate.add_argument("id", help="the middle of sk-<id>-<secret>")
    rotate.add_argument(
        "--grace", type=length_s, default=86_400.0, metavar="LENGTH",
        help="how long the old key still opens, as 24h (default) or 0s",
    )  # fmt: skip
    revoke = actions.add_parser("revoke", help="end a key at once")
    revoke.add_argument("id", help="the middle of sk-<id>-<secret>")


def length_s(text: str) -> float:
    """`90d` → seconds."""
    found = _LENGTH.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"write a length as 30m, 24h, 90d or 1y; got {text!r}")
    return float(found[1]) * _UNITS_S[found[2]]


def run(asked: argparse.Namespace, settings: Settings, console: Console) -> None:
    """Raises KeyRefused and KeyStoreFault, whose texts are for the operator."""
    store = build_key_store(settings.keys)
    try:
        book = KeyBook(store)
        if asked.action == "create":
            made = book.create(settings.tenants, asked.tenant, name=asked.name, lives_s=asked.lives)
            _show_new(made, console)
        elif asked.action == "rotate":
            _show_new(book.rotate(asked.id, asked.grace), console)
        elif asked.action == "revoke":
            key = book.revoke(asked.id)
            console.print(f"Revoked {key.id} of tenant {escape(key.tenant)}.")
        else:
            _show_all(book.list(asked.tenant))
    finally:
        store.close()


def _show_new(made: Minted, console: Console) -> None:
    console.print(
        f"Key {made.key.id} of tenant {escape(made.key.tenant)}, expires "
        f"{_when(made.key.expires_at, 'never')}. It is shown this once:"
    )
    sys.stdout.write(f"{made.text}\n")


def _show_all(keys: list[Key]) -> None:
    table = Table("id", "tenant", "name", "state", "created", "last used", "expires", box=None)
    now = time.time()
    for key in keys:
        table.add_row(
            key.id,
            escape(key.tenant),
            escape(_printable(key.name)),
            key.state(now),
            _when(key.created_at, ""),
            _when(key.used_at, "never"),
            _when(key.expires_at, "never"),
        )
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)


def _printable(text: str) -> str:
    """Names that were stored before they were looked at may hold what steers a terminal."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def _when(at: float | None, otherwise: str) -> str:
    return otherwise if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
