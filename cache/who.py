"""Who stands behind an owner and a scope, so that every bound counts the same people.

An *owner* is an end user, TENANT/USER, or a tenant that named none, TENANT; no name of a tenant has
a slash. A *scope* is who may share answers: tenant:TENANT, user:TENANT/USER, public, group:NAME.
A *room* is all that is bounded together. It is the scope, but for scopes of single end users: they
share their tenant's, since names of users are made up by whoever asks.
"""

from __future__ import annotations

from typing import Final

_USER: Final = "user:"
_TENANT: Final = "tenant:"


def tenant_of(owner: str) -> str:
    return owner.partition("/")[0]


def room_of(scope: str) -> str:
    return tenant_of(scope) if scope.startswith(_USER) else scope


def owner_of(scope: str) -> str:
    """Whoever a scope belongs to, where it is not known who asked; a group's is its name."""
    return scope.removeprefix(_USER).removeprefix(_TENANT)
