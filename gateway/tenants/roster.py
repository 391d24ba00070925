"""The tenants in force: found by name, and replaced whole when settings are reloaded.

A request in flight belongs to the tenant it came in as, even if a reload has removed it meanwhile:
who was ever known stays findable by name, and only admission (tenants/keys.py) asks who still is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gateway.settings import Tenant


class Roster:
    """Owned by the event loop's thread. Iterating gives those in force."""

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        self._now: tuple[Tenant, ...] = ()
        self._ever: dict[str, Tenant] = {}
        self.replace(tenants)

    def replace(self, tenants: Iterable[Tenant]) -> None:
        self._now = tuple(tenants)
        self._ever |= {tenant.name: tenant for tenant in self._now}

    @property
    def in_force(self) -> tuple[Tenant, ...]:
        """Another object after each reload."""
        return self._now

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._now)

    def __getitem__(self, name: str) -> Tenant:
        """The tenant of that name, as it is or last was; KeyError for a name that never was."""
        return self._ever[name]

    def get(self, name: str) -> Tenant | None:
        """The tenant of that name if it is in force."""
        return next((tenant for tenant in self._now if tenant.name == name), None)
