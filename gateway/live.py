"""The settings in force while the program runs, and what of new ones can be taken on at once.

Tenants (their keys, limits and policies) and admin keys change without a restart: whoever needs
them is handed the new ones between two requests, all in one turn of the event loop, so that no
request sees half of a change. What else differs is named, and waits for a restart: models are
loaded, the port is taken, stores are open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from gateway.configure import Loaded
from gateway.settings import Admin, Settings, Tenant

Taker = Callable[[tuple[Tenant, ...]], None]
"""Told of the tenants in force; must not fail."""
LIVE = ("tenants", "admin")


class Live:
    """Owned by the event loop's thread."""

    def __init__(self, loaded: Loaded) -> None:
        self.settings = loaded.settings
        self.sources: Mapping[str, str] = loaded.sources
        self.problem: str | None = None
        """Why the newest settings were not taken on; None once good ones were."""
        self.waiting: tuple[str, ...] = ()
        """Keys that the newest settings change and only a restart takes on."""
        self._tenant_takers: list[Taker] = []
        self._admin_takers: list[Callable[[Admin], None]] = []

    def on_tenants(self, taker: Taker) -> None:
        self._tenant_takers.append(taker)

    def on_admin(self, taker: Callable[[Admin], None]) -> None:
        self._admin_takers.append(taker)

    async def said_problem(self) -> str | None:
        """For /readyz, which everybody may read."""
        return self.problem and "the newest settings are not valid: the old ones hold. See the log"

    def said_waiting(self) -> str | None:
        """For /readyz. That something waits makes nobody less ready."""
        count = len(self.waiting)
        return (
            f"Settings changed in the file and waiting for a restart: {count}. See the log"
            if count
            else None
        )

    def take(self, loaded: Loaded) -> None:
        """Put valid settings in force, and keep in `waiting` what they leave to a restart."""
        self.waiting = tuple(differences(self.settings, loaded.settings))
        self.settings = dataclasses.replace(
            self.settings, tenants=loaded.settings.tenants, admin=loaded.settings.admin
        )
        self.sources = loaded.sources
        self.problem = None
        for take_tenants in self._tenant_takers:
            take_tenants(self.settings.tenants)
        for take_admin in self._admin_takers:
            take_admin(self.settings.admin)


def differences(old: Settings, new: Settings) -> list[str]:
    """Dotted keys of what is not the same, without what is taken on live."""
    found: list[str] = []
    for one in dataclasses.fields(old):
        if one.name not in LIVE:
            _compare(one.name, getattr(old, one.name), getattr(new, one.name), found)
    return found


def _compare(key: str, old: Any, new: Any, found: list[str]) -> None:
    if old == new:
        return
    if dataclasses.is_dataclass(old) and type(old) is type(new):
        for one in dataclasses.fields(old):
            _compare(f"{key}.{one.name}", getattr(old, one.name), getattr(new, one.name), found)
    elif isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*old, *(name for name in new if name not in old)]:
            _compare(f"{key}.{name}", old.get(name), new.get(name), found)
    else:
        found.append(key)
