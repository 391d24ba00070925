from __future__ import annotations

from dataclasses import replace

from gateway.configure import Loaded
from gateway.live import Live
from gateway.settings import Admin, Server, Tenant
from gateway.tenants.roster import Roster
from tests.support.serving import settings_for_tests

OLD = settings_for_tests(tenants=(Tenant(name="a"), Tenant(name="b", keys=("0" * 64,))))


def test_tenants_and_admin_keys_are_handed_on_and_nothing_else_changes() -> None:
    live = Live(Loaded(OLD))
    told: list[object] = []
    live.on_tenants(told.append)
    live.on_admin(told.append)
    new = replace(OLD, tenants=(Tenant(name="c"),), admin=Admin(keys=("1" * 64,)))
    live.take(Loaded(new))
    assert live.waiting == ()
    assert live.said_waiting() is None
    assert told == [new.tenants, new.admin]
    assert live.settings == new


def test_what_cannot_change_live_is_named_and_keeps_its_old_value() -> None:
    live = Live(Loaded(OLD))
    models = {**OLD.models, "third": OLD.models["small"]}
    new = replace(OLD, server=Server(port=9, host="::1"), models=models)
    live.take(Loaded(new))
    assert live.waiting == ("server.host", "server.port", "server.shutdown_grace_s",
                            "models.third")  # fmt: skip
    assert live.settings.server == OLD.server
    assert "third" not in live.settings.models
    assert (
        live.said_waiting()
        == "Settings changed in the file and waiting for a restart: 4. See the log"
    )
    live.take(Loaded(OLD))
    assert live.said_waiting() is None, "the file says again what runs"


def test_a_removed_tenant_is_found_by_requests_in_flight_and_by_nobody_else() -> None:
    roster = Roster(OLD.tenants)
    roster.replace([Tenant(name="a", rpm=5)])
    assert roster["a"].rpm == 5
    assert roster["b"].name == "b"
    assert roster.get("b") is None
    assert [tenant.name for tenant in roster] == ["a"]
