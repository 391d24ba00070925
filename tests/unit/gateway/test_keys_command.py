from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli import main
from gateway.tenants.key import mint
from gateway.tenants.key_store import SqliteKeyStore

TOML = """
[keys]
store = "sqlite:///{folder}/keys.db"

[[tenants]]
name = "acme"
stored_keys = true
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "sluice.toml"
    path.write_text(TOML.format(folder=tmp_path))
    return str(path)


def keys(config: str, *arguments: str) -> int:
    return main(["keys", "--config", config, *arguments])


def test_a_key_is_made_listed_rotated_and_revoked(
    config: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert keys(config, "create", "acme", "--name", "ci", "--lives", "90d") == 0
    text = capsys.readouterr().out.strip()
    key_id, secret = text.split("-", 2)[1:]
    assert keys(config, "list") == 0
    listed = capsys.readouterr().out
    assert not [word for word in ("never", "active", key_id) if word not in listed]
    assert secret not in listed
    assert keys(config, "rotate", key_id, "--grace", "0s") == 0
    new_id = capsys.readouterr().out.split("-", 2)[1]
    assert keys(config, "revoke", new_id) == 0
    states = {key.id: key.state(2e9) for key in SqliteKeyStore(tmp_path / "keys.db").all()}
    assert states == {key_id: "expired", new_id: "revoked"}


def test_what_cannot_be_done_ends_with_the_remedy(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys(config, "create", "nobody") == 2
    assert "there are: acme" in capsys.readouterr().err
    assert keys(config, "revoke", "nobody") == 2
    with pytest.raises(SystemExit):
        keys(config, "create", "acme", "--lives", "soon")
    assert "90d" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x\x1b[31mred", "two\nlines", "a\u202eb", "\x7f", "\ud800"])
def test_a_name_that_could_steer_a_terminal_is_refused(
    config: str, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert keys(config, "create", "acme", "--name", name) == 2
    told = capsys.readouterr().err
    assert "printable" in told
    assert name not in told


def test_a_name_that_was_stored_before_cannot_steer_the_terminal(
    config: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = mint("acme", 1.0, name="x\x1b[31mred\n é[b]").key
    SqliteKeyStore(tmp_path / "keys.db").put([made])
    assert keys(config, "list") == 0
    listed = capsys.readouterr().out
    assert "x\\x1b[31mred\\n é[b]" in listed
    assert "\x1b" not in listed


def test_a_life_may_be_told_in_years(config: str, tmp_path: Path) -> None:
    assert keys(config, "create", "acme", "--lives", "1y") == 0
    [key] = SqliteKeyStore(tmp_path / "keys.db").all()
    assert key.expires_at == key.created_at + 365 * 86_400


@pytest.mark.parametrize("length", ["0s", "0.0000001s", "0.9s", "9999999999w", "101y"])
def test_a_life_whose_end_cannot_be_shown_is_refused_and_nothing_is_stored(
    config: str, capsys: pytest.CaptureFixture[str], length: str
) -> None:
    assert keys(config, "create", "acme", "--lives", length) == 2
    assert "at least 1 s and at most 100 years" in capsys.readouterr().err
    assert keys(config, "list") == 0
    assert "acme" not in capsys.readouterr().out


def test_a_grace_whose_end_cannot_be_shown_is_refused_and_the_key_stays_as_it_was(
    config: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keys(config, "create", "acme")
    key_id = capsys.readouterr().out.split("-", 2)[1]
    assert keys(config, "rotate", key_id, "--grace", "9999999999w") == 2
    assert [key.expires_at for key in SqliteKeyStore(tmp_path / "keys.db").all()] == [None]
