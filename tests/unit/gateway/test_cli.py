from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import settings as shape
from gateway.cli import explained, main
from gateway.configure import load
from tests.support.program import PATIENCE_S

ROOT = Path(__file__).resolve().parents[3]


def test_a_missing_checkpoint_is_one_clear_message_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--port", "0", "--small", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert "models.small.path" in said
    assert "is not a checkpoint directory" in said
    assert "Traceback" not in said


def test_a_port_in_use_is_found_before_any_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert "--port" in capsys.readouterr().err


def test_a_cache_file_that_cannot_be_is_told_before_any_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for path in ("/proc/x/y.db", str(tmp_path / "file" / "y.db"), str(tmp_path)):
        monkeypatch.setenv("SLUICE_CACHE__EXACT__STORE", f"sqlite:///{path}")
        assert main(["serve", "--port", "0"]) == 2
        said = capsys.readouterr().err
        assert f"cache.exact.store: {path} cannot be used" in said.replace("\n", " ")
        assert "Traceback" not in said


def test_a_typo_in_the_settings_is_told_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "sluice.toml"
    config.write_text("[server]\nprot = 1\n")
    assert main(["doctor", "--config", str(config)]) == 2
    assert "sluice.toml:2: server.prot: unknown key" in capsys.readouterr().err


def test_the_doctor_shows_every_setting_and_where_it_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "sluice.toml"
    config.write_text("[server]\nport = 9000\n")
    assert main(["doctor", "--config", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "sluice.toml:2" in shown
    for key, _, _ in explained(load(config).settings):
        assert key in shown


def test_every_setting_says_what_it_means() -> None:
    for key, _, meaning in explained(shape.Settings(models=shape.bundled_models())):
        assert meaning, key


def test_a_settings_error_needs_no_engine_and_no_server() -> None:
    """`sluice doctor` answers at once: neither torch nor the web is imported for it."""
    code = (
        "import sys; from gateway.cli import main; main(['doctor']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'uvicorn', 'fastapi')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr


def test_doctor_hides_a_password(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "sluice.toml"
    config.write_text(
        '[cache.exact]\nstore = "redis://user:secret@cache.internal:6379/0"\n'
        '[limits]\nstore = "redis://h:1/0?username=me&password=secret"\n'
        '[models.far]\nkind = "openai"\nbase_url = "https://h/v1?api_key=secret"\n'
        'headers = {X-Key = "secret", X-Org = "env:ORG"}\n'
        '[cascade]\nsmall = "far"\nlarge = "far"\n'
    )
    assert main(["doctor", "--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert "secret" not in said
    assert "redis://…@cache" in said
    assert "env:ORG" in said


def test_doctor_makes_no_promise_to_who_may_ask_one_model_only(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "sluice.toml"
    config.write_text('[[tenants]]\nname = "acme"\nmodels = ["small"]\n')
    assert main(["doctor", "--config", str(config), "--tenant", "acme"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("auto")]
    assert "always small" in line
    assert "points" not in line


def test_doctor_shows_a_tenants_policy_and_where_each_value_came_from(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "sluice.toml"
    config.write_text(
        '[cache.exact]\nttl_s = 60\n[[tenants]]\nname = "acme"\nrpm = 7\nstored_keys = true\n'
    )
    assert main(["doctor", "--config", str(config), "--tenant", "acme"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert rows["rpm"][1:3] == ["7", "sluice.toml:5"]
    assert rows["share"][1:3] == ["1.0", "default"]
    assert rows["cache_ttl_s"][1:4] == ["60.0", "cache.exact.ttl_s", "(sluice.toml:2)"]
    assert main(["doctor", "--config", str(config), "--tenant", "nobody"]) == 2
    assert "there are: acme" in capsys.readouterr().err


def test_where_the_bundled_models_are_not_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who installed the package alone has none of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gateway.settings.BUNDLED", tmp_path / "demo")
    monkeypatch.setattr("gateway.cli.BUNDLED", tmp_path / "demo")
    status = main(["serve"])
    said = " ".join(capsys.readouterr().err.split())
    assert status == 2
    assert "not with the package" in said
    assert "--small PATH --large PATH" in said
