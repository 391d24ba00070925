"""Whatever a user can set, run, send or scrape stands in REFERENCE.md."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cache.entry import SpaceState
from gateway.api.exchange import READ
from gateway.catalog import ModelCard
from gateway.cli import explained
from gateway.observe.budget_metrics import BudgetsNow
from gateway.observe.ledger import Ledger
from gateway.observe.metrics import EngineState, Metrics, UpstreamErrors
from gateway.observe.rollup import Prices, RollUp
from gateway.observe.semantic_metrics import SemanticNow
from gateway.settings import Settings, bundled_models
from gateway.tenants.budgets import BudgetState

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = (ROOT / "REFERENCE.md").read_text()


def _settings_by_section() -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    for key, _, _ in explained(Settings(models=bundled_models())):
        table, name = key.rsplit(".", 1)
        heading = re.sub(r"^models\..*", "models.NAME", table)
        heading = "[[tenants]]" if table.startswith("tenants") else f"[{heading}]"
        sections.setdefault(heading, []).append(name)
    return sections


@pytest.mark.parametrize("heading", _settings_by_section())
def test_every_setting_is_documented_under_its_table(heading: str) -> None:
    body = REFERENCE.split(f"### `{heading}`", 1)[1].split("###", 1)[0]
    missing = [name for name in _settings_by_section()[heading] if f"| `{name}` |" not in body]
    assert not missing


def test_every_request_header_that_is_read_is_documented() -> None:
    spoken = REFERENCE.lower()
    known = {name.decode() for name in READ} - {"content-length"}
    assert not [name for name in known if name not in spoken]


def test_every_metric_is_documented() -> None:
    card = ModelCard("m", "", 1, 0.0, 0.0, 0)
    rollup = RollUp(Ledger(), Prices([card], card))
    metrics = Metrics(
        rollup,
        lambda: {"m": EngineState(pages={"free": 1}, computed={"prompt": 1})},
        lambda: 0,
        [
            SemanticNow(lambda: [SpaceState("n", "tenant:t", "m", 1, 1, 1, {"equal": 1}, None)]),
            BudgetsNow(lambda: [BudgetState("t", "day", 1, 1, 1)]),
            UpstreamErrors(lambda: {("m", "silent"): 1}),
        ],
    )
    families = text_string_to_metric_families(metrics.render().decode())
    names = [f.name + ("_total" if f.type == "counter" else "") for f in families]
    assert len(names) > 10
    assert not [name for name in names if f"`{name}`" not in REFERENCE]


def test_every_make_target_is_documented() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE)
    assert "run" in targets
    assert not [name for name in targets if f"`make {name}`" not in REFERENCE]


def test_every_command_is_documented() -> None:
    commands = re.findall(r'add_parser\(\s*"([a-z]+)"', (ROOT / "gateway/cli.py").read_text())
    assert "serve" in commands
    assert not [name for name in commands if f"`sluice {name}`" not in REFERENCE]
