"""`sluice calibrate` as an operator runs it, on made-up labels; the models are named, not asked."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from cascade.label_rows import Grades, write_label
from cascade.labels import Labelled
from cascade.policy import read_policy
from gateway.cli import main
from gateway.configure import load
from gateway.parts.policies import Policies, Surroundings
from gateway.parts.weights import team_weights_of
from tests.support.labelled import labelled

TOML = """
[models.small]
kind = "openai"
base_url = "https://models.example/v1"
price_out = 0.1

[models.large]
kind = "openai"
base_url = "https://models.example/v1"
price_out = 1.0

[cascade]
folder = "{folder}"
target = 0.05

[[tenants]]
name = "acme"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "sluice.toml"
    path.write_text(TOML.format(folder=tmp_path / "cascade"))
    return path


def labels(path: Path, rows: list[Labelled]) -> Path:
    def line(row: Labelled) -> str:
        assert row.answer is not None
        return write_label(row.call, row.answer, Grades(row.small, row.large))

    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.write("\n".join(map(line, rows)))
    return path


def run(config: Path, data: Path, *more: str) -> int:
    named = ["--config", str(config), "--tenant", "acme", "--data", str(data)]
    return main(["calibrate", *named, *more])


def test_labels_become_a_policy_that_the_gateway_takes(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config, labels(tmp_path / "labels.jsonl.gz", labelled(1200))) == 0
    said = capsys.readouterr()
    assert "With 90 % confidence at most 5 points are lost" in said.out
    assert not [name for name in ("random", "prompt length", "oracle") if name not in said.out]
    assert "done" in said.err
    assert (tmp_path / "cascade/acme.png").read_bytes().startswith(b"\x89PNG")
    settings = load(config, environ={}).settings
    found = Policies(settings, Surroundings(team_weights_of(settings))).by_tenant["acme"]
    assert found.calibrated
    assert found.labels == 600
    assert found.report["target"] == 0.05
    assert [curve["name"] for curve in found.report["curves"]][-1] == "oracle"


@pytest.mark.parametrize(("count", "why"), [(30, "fit on 40 or more"), (60, "It takes at least")])
def test_too_few_labels_are_refused_and_nothing_is_written(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, why: str
) -> None:
    assert run(config, labels(tmp_path / "labels.jsonl", labelled(count)), "--target", "0.01") == 2
    said = capsys.readouterr()
    assert why in said.out + said.err
    assert "No policy was written" in said.err
    assert not (tmp_path / "cascade").exists()


def test_flags_go_before_the_settings(config: Path, tmp_path: Path) -> None:
    data, out = labels(tmp_path / "labels.jsonl", labelled(800)), tmp_path / "other.json"
    flags = ("--target", "0.1", "--delta", "0.2", "--hold-tokens", "0", "--out", str(out))
    assert run(config, data, *flags) == 0
    policy = read_policy(out.read_text())
    assert (policy.route.promise.epsilon, policy.route.promise.delta) == (0.1, 0.2)
    assert policy.route.hold_tokens is None


def test_a_bad_row_is_told_with_its_line(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text('{"messages": [{"role": "user", "content": "x"}], "small": 1}\n')
    assert run(config, data) == 2
    assert "line 1: 'large' is missing" in " ".join(capsys.readouterr().err.split())


def test_an_unknown_tenant_and_a_missing_file_are_told(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config, tmp_path / "none.jsonl") == 2
    assert "cannot be read" in " ".join(capsys.readouterr().err.split())
    named = ["--config", str(config), "--tenant", "nobody", "--data", "x"]
    assert main(["calibrate", *named]) == 2
    assert "the settings name acme" in " ".join(capsys.readouterr().err.split())


def test_the_doctor_tells_how_auto_chooses_and_what_does_not_fit(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> str:
        assert main(["doctor", "--config", str(config), "--tenant", "acme"]) == 0
        return " ".join(capsys.readouterr().out.split())

    assert "quality; uncalibrated" in told()
    assert run(config, labels(tmp_path / "labels.jsonl", labelled(1200))) == 0
    capsys.readouterr()
    calibrated = told()
    assert not [words for words in ("max-loss=0.05", "labels=600") if words not in calibrated]
    config.write_text(config.read_text().replace("target = 0.05", "target = 0.01"))
    strict = told()
    assert "quality; uncalibrated" in strict
    assert "passed over" in strict
