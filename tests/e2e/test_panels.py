"""Every panel of the Grafana dashboard shows data, and every alert can be asked: a real Prometheus
scrapes a real gateway that had real traffic."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.program import Program, running, wait_until
from tests.support.prometheus_server import Prometheus, find, running_prometheus
from tests.support.redis_server import free_port
from tests.support.served import ALICE, Models, chat

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BOARD = json.loads((DEPLOY / "grafana/dashboards/sluice.json").read_text())
TARGETS = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in BOARD["panels"]
    for target in panel.get("targets", [])
]
GRAFANA = {"$__rate_interval": "1h", "$__range": "1h", "$tenant": ".*"}
"""What Grafana puts for its variables; spans that hold the traffic however long the tests take."""

pytestmark = pytest.mark.slow


MORE = """
[models.gone]
kind = "openai"
base_url = "http://127.0.0.1:{closed}/v1"
allow_private = true

[[tenants]]
name = "idle"
keys = ["{idle}"]
budget_usd_day = 5.0
"""


@pytest.fixture(scope="module")
def gateway(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    settings = models.settings.replace('name = "alice"', 'name = "alice"\nbudget_usd_month = 9.0')
    more = MORE.format(closed=free_port(), idle=hashlib.sha256(b"sk-idle").hexdigest())
    with running(tmp_path_factory.mktemp("scraped"), settings + more) as program:
        _traffic(program, 1)
        yield program


def _traffic(program: Program, first: int) -> None:
    """A bit of everything that a panel counts, about numbers from `first` on."""
    key = {"authorization": f"Bearer {ALICE}"}
    for number in range(first, first + 3):
        for model in ("small", "large", "auto"):
            asked = chat(f"What is {number} + 4?", model=model, max_tokens=20)
            for _ in range(2):
                assert program.post(asked, **key).status == 200
        assert program.post(chat(f"Who is {number}?", model="gone"), **key).status in {502, 503}
    assert program.post(chat("Hello"), authorization="Bearer wrong").status == 401
    assert program.post(chat("Hello", model="nobody"), **key).status == 404


def _config(target: str) -> str:
    """The one that compose.yaml mounts, pointed at the gateway here and in more of a hurry."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "2s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "alerts.yml")]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    return yaml.safe_dump(config)


@pytest.fixture(scope="module")
def prometheus(gateway: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    home = tmp_path_factory.mktemp("prometheus")
    with running_prometheus(home, _config(f"127.0.0.1:{gateway.port}")) as server:
        wait_until(lambda: server.query("rate(sluice_requests_total[1h])"), "two scrapes")
        _traffic(gateway, 10)  # between scrapes, so that rates are not 0
        before = _answered(server)
        wait_until(lambda: _answered(server) > before, "a scrape after the traffic")
        yield server


def _answered(server: Prometheus) -> float:
    (total,) = server.query("sum(sluice_requests_total)")
    return float(total["value"][1])


@pytest.mark.parametrize("expression", TARGETS)
def test_every_panel_shows_data(prometheus: Prometheus, expression: str) -> None:
    for name, value in GRAFANA.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    found = prometheus.query(expression)
    assert found
    assert any(series["value"][1] != "NaN" for series in found)


RATIOS = [
    pytest.param(target["expr"], id=panel["title"])
    for panel in BOARD["panels"]
    for target in panel.get("targets", [])
    if panel["fieldConfig"]["defaults"].get("unit") == "percentunit"
]


@pytest.mark.parametrize("expression", RATIOS)
@pytest.mark.parametrize("tenant", [".*", "alice", "idle", "nobody"])
def test_no_ratio_is_more_than_all_or_not_a_number(
    prometheus: Prometheus, expression: str, tenant: str
) -> None:
    """Neither of one tenant, nor where nobody asked."""
    for name, value in {**GRAFANA, "$tenant": tenant}.items():
        expression = expression.replace(name, value)
    values = [float(series["value"][1]) for series in prometheus.query(expression)]
    assert all(0 <= value <= 1 for value in values), values


def test_both_sides_of_a_ratio_are_of_the_same_tenants() -> None:
    for panel in BOARD["panels"]:
        for target in panel.get("targets", []):
            sides = target["expr"].split(" / ")
            assert len({"$tenant" in side for side in sides}) == 1, target["expr"]


def test_the_panels_ask_for_metrics_that_the_gateway_has(gateway: Program) -> None:
    scraped = gateway.get("/metrics").body.decode()
    asked = re.findall(r"sluice_\w+", json.dumps(BOARD["panels"]))
    assert not {name for name in asked if name not in scraped}


def test_the_tenants_of_the_variable_are_those_that_asked(prometheus: Prometheus) -> None:
    (variable,) = BOARD["templating"]["list"]
    metric = re.fullmatch(r"label_values\((\w+), tenant\)", variable["definition"])
    assert metric is not None
    names = {series["metric"].get("tenant") for series in prometheus.query(metric[1])}
    assert "alice" in names


def test_every_alert_is_evaluated_without_an_error(prometheus: Prometheus) -> None:
    """What is in it may be pending: the traffic for the panels has failures among it."""
    named = re.findall(r"- alert: (\w+)", (DEPLOY / "alerts.yml").read_text())

    def evaluated() -> bool:
        rules = prometheus.alerts()
        return {rule["name"] for rule in rules if rule["health"] == "ok"} == {*named}

    assert named
    assert wait_until(evaluated, "every rule is evaluated, and none fails")


def test_the_alerts_ring_when_they_should_and_not_before() -> None:
    done = subprocess.run(
        [find("promtool"), "test", "rules", ROOT / "tests/data/alerts_test.yml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_its_configuration_and_rules() -> None:
    done = subprocess.run(
        [find("promtool"), "check", "config", DEPLOY / "prometheus.yml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
