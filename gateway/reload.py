"""Settings read again while serving: when the file has changed, and at SIGHUP.

    the file changed, and then was still for a second       SIGHUP
                          └──────────► read ◄──────────────────┘
                                        │
                  not valid, or not with what runs?  ──► said why, and the old ones hold
                                        │
                  Live.take: tenants and admin keys, in one turn of the event loop

A file is looked at once a second (a call of `stat`); watching by inotify would see neither network
file systems nor the link that Kubernetes swaps. It must have been still for a second, because half
of a file can be valid, too, and would lock out the tenants of the other half. An operator who sends
SIGHUP says that the file is whole.

What is valid by itself may not be so with what runs: a file that closes the address to loopback and
opens a tenant to everybody is fine for a restart, and would open the running gateway to the world.
Nor does a reload ever do away with keys that callers were asked for: an empty file is valid, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from gateway.configure import BadSettings, Loaded, Problem, dotted
from gateway.live import Live
from gateway.observe.logs import Log
from gateway.settings import Settings
from gateway.verify import impossibilities
from gateway.verify.rules import Finding

LOOK_S = 1.0

Mark = tuple[int, int, int] | None
"""When a file was changed, its size and its inode; None: there is none."""


class Reloader:
    """Owned by the event loop's thread; `run` is its one task."""

    def __init__(self, live: Live, loaded: Loaded, log: Log) -> None:
        """`loaded`: what is in force, which knows how it was read."""
        self._live = live
        self._loaded = loaded
        self._log = log
        self._asked = asyncio.Event()
        self._read_at = mark_of(loaded.file)
        self._seen = self._read_at

    def ask(self) -> None:
        """Read now (SIGHUP)."""
        self._asked.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._asked.wait()
            except TimeoutError:
                await self.look()
            else:
                self._asked.clear()
                await self.read()

    async def look(self) -> None:
        """Read if the file is another than the one that was read, and still since the last look."""
        mark = await asyncio.to_thread(mark_of, self._loaded.file)
        still, self._seen = mark == self._seen, mark
        if still and mark != self._read_at:
            await self.read()

    async def read(self) -> None:
        """Put what is there in force, or say why not."""
        self._read_at = await asyncio.to_thread(mark_of, self._loaded.file)
        try:
            loaded = await asyncio.to_thread(self._loaded.read_again)
            fit(self._live, loaded)
        except BadSettings as error:
            self._refuse(error.problems)
            return
        self._live.take(loaded)
        self._log.info("settings taken on", tenants=len(loaded.settings.tenants))
        if self._live.waiting:
            self._log.warning("settings wait for a restart", keys=list(self._live.waiting))

    def _refuse(self, problems: Sequence[Problem]) -> None:
        self._live.problem = "; ".join(map(str, problems))
        self._log.error("settings not taken on: the old ones hold",
                        problems=[str(one) for one in problems])  # fmt: skip


def fit(live: Live, loaded: Loaded) -> None:
    """Raises BadSettings where new tenants are impossible with what runs."""
    new = loaded.settings
    together = replace(live.settings, tenants=new.tenants, admin=new.admin)
    problems = [
        Problem(
            dotted(key),
            loaded.sources.get(dotted(key), ""),
            f"{message} (with what runs now; a restart may take it on)",
        )
        for key, message in (*impossibilities(together), *_opened(live.settings, new))
    ]
    if problems:
        raise BadSettings(problems)


def _opened(old: Settings, new: Settings) -> Iterator[Finding]:
    """What asked for a key and would not any more. A file that was cut short, or written to a full
    disk, says just that, and may be valid."""
    before, after = (
        {tenant.name for tenant in one.tenants if not tenant.asks_for_key} for one in (old, new)
    )
    if len(before) < len(old.tenants):
        for name in sorted(after - before):
            yield ("tenants",), f"callers needed a key, and for tenant {name!r} would need none"
        if len(after) == len(new.tenants):
            yield ("tenants",), "callers needed a key, and nobody would be asked for one"
    if old.admin.keys and not new.admin.keys:
        yield ("admin", "keys"), "admins needed a key, and none is left"


def mark_of(file: Path | None) -> Mark:
    try:
        found = file.stat() if file is not None else None
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino) if found is not None else None
