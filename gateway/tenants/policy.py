"""A tenant's policy as it holds: every value, what it means, and where it came from.

A field of a tenant that is unset may inherit another setting (`inherits` in gateway/settings.py);
what is shown is then the value that holds, with that setting's source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.settings import Settings, Tenant


@dataclass(frozen=True, slots=True)
class Resolved:
    """One line of a policy. `source`: `sluice.toml:12`, a variable, a flag, or `default`."""

    name: str
    value: Any
    source: str
    meaning: str


def resolved(settings: Settings, sources: Mapping[str, str], name: str) -> list[Resolved]:
    """The policy of the tenant `name`, in the order of its fields; KeyError if there is none."""
    for index, tenant in enumerate(settings.tenants):
        if tenant.name == name:
            return [_line(settings, sources, index, tenant, one)
                    for one in dataclasses.fields(tenant)]  # fmt: skip
    raise KeyError(name)


def _line(
    settings: Settings,
    sources: Mapping[str, str],
    index: int,
    tenant: Tenant,
    one: dataclasses.Field[Any],
) -> Resolved:
    value, meaning = getattr(tenant, one.name), one.metadata["doc"]
    source = sources.get(f"tenants[{index}].{one.name}", "default")
    inherits = one.metadata.get("inherits")
    if value is None and inherits:
        value = _at(settings, inherits)
        source = f"{inherits} ({sources.get(inherits, 'default')})"
    return Resolved(one.name, value, source, meaning)


def _at(settings: Settings, key: str) -> Any:
    """The value of a dotted key; a cache's table is an attribute by its last name."""
    value: Any = settings
    for step in key.removeprefix("cache.").split("."):
        value = getattr(value, step)
    return value
