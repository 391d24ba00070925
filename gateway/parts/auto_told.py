"""How `auto` chooses for a tenant, for `sluice doctor --tenant`: as a gateway with these settings
would find it, without loading a model. The weights are read for their fingerprint."""

from __future__ import annotations

from dataclasses import replace

from gateway.backend import CannotLoad
from gateway.parts.policies import Policies, Surroundings
from gateway.parts.weights import Unreadable, team_weights_of
from gateway.settings import Settings
from gateway.verify.caches import semantic_lacks

Line = tuple[str, str, str, str]
"""What, its value, where from, and why."""


def auto_lines(settings: Settings, tenant: str) -> list[Line]:
    """The policy in force, and each file that was found and does not fit."""
    own = tuple(one for one in settings.tenants if one.name == tenant)
    team = (settings.cascade.small, settings.cascade.large)
    allowed = [name for name in team if not own[0].models or name in own[0].models]
    if len(allowed) < len(team):
        asked = allowed[0] if allowed else "none of the cascade's"
        return [("auto", f"always {asked}", f"tenants.{tenant}.models", "may ask no other of them")]
    try:
        around = Surroundings(team_weights_of(settings), lambda: embedder_of(settings))
        found = Policies(replace(settings, tenants=own), around).by_tenant[tenant]
    except (Unreadable, CannotLoad) as error:
        return [("auto", "unusable", "–", str(error))]
    lines = [("auto", found.note, found.source or "–", found.why)]
    return lines + [("auto", "passed over", "–", reason) for reason in found.passed_over]


def embedder_of(settings: Settings) -> str:
    """The fingerprint of what would make vectors; empty where nothing would, or has not yet."""
    if semantic_lacks(settings):
        return ""
    from gateway.parts.embedding import fingerprint_of  # noqa: PLC0415  optional packages

    return fingerprint_of(settings.semantic)
