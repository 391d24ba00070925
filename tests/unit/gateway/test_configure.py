from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gateway.configure import BadSettings, Loaded, load

SHA = "a" * 64
NOTHING = hashlib.sha256(b"").hexdigest()


def load_text(tmp_path: Path, text: str, **more: object) -> Loaded:
    path = tmp_path / "sluice.toml"
    path.write_text(text)
    return load(path, **more)  # type: ignore[arg-type]


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(BadSettings) as raised:
        load_text(tmp_path, text)
    return [str(problem) for problem in raised.value.problems]


def test_no_file_gives_the_embedded_default() -> None:
    settings = load().settings
    assert list(settings.models) == ["small", "large"]
    assert settings.models["small"].path.parts[-2:] == ("demo", "small")
    assert [tenant.name for tenant in settings.tenants] == ["default"]
    assert settings.server.host == "127.0.0.1"
    assert settings.exact.store == "sqlite:///.sluice/exact.db"


def test_the_file_changes_what_it_names_and_the_source_of_each_value_is_known(
    tmp_path: Path,
) -> None:
    loaded = load_text(tmp_path, "[server]\nport = 9000\n\n[cache.exact]\nttl_s = 5\n")
    assert loaded.settings.server.port == 9000
    assert loaded.settings.exact.ttl_s == 5.0
    assert loaded.settings.server.host == "127.0.0.1"
    assert loaded.sources["server.port"] == "sluice.toml:2"


def test_the_environment_beats_the_file_and_a_flag_beats_both(tmp_path: Path) -> None:
    environ = {"SLUICE_SERVER__PORT": "1", "SLUICE_CACHE__EXACT__ENABLED": "false", "HOME": "/"}
    loaded = load_text(tmp_path, "[server]\nport = 9\n", environ=environ)
    assert loaded.settings.server.port == 1
    assert loaded.settings.exact.enabled is False
    assert loaded.sources["server.port"] == "SLUICE_SERVER__PORT"
    loaded = load_text(tmp_path, "[server]\nport = 9\n", environ=environ, flags={"server.port": 7})
    assert loaded.settings.server.port == 7


def test_a_flag_replaces_one_bundled_model_and_keeps_the_other() -> None:
    models = load(flags={"models.small.path": "/m", "models.large.path": None}).settings.models
    assert models["small"].path == Path("/m")
    assert models["large"].path.name == "large"


def test_a_file_that_names_models_serves_just_those(tmp_path: Path) -> None:
    text = '[models.mine]\npath = "/m"\n[cascade]\nsmall = "mine"\nlarge = "mine"\n'
    assert list(load_text(tmp_path, text).settings.models) == ["mine"]


def test_every_error_is_told_at_once_with_key_and_line(tmp_path: Path) -> None:
    text = """\
[server]
prot = 1
max_inflight = "many"

[cache.exakt]
ttl_s = 1

[models.small]
kind = "vllm"

[[tenants]]
rpm = 5
"""
    found = problems(tmp_path, text)
    assert found[0].startswith("sluice.toml:2: server.prot: unknown key; did you mean 'port'?")
    assert any(text.startswith("sluice.toml:3: server.max_inflight: Expected") for text in found)
    assert any("cache.exakt: unknown key; did you mean 'exact'?" in text for text in found)
    assert any(text.startswith("sluice.toml:9: models.small.kind:") for text in found)
    assert any("tenants[0]: name is missing" in text for text in found)
    assert len(found) == 5


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSettings) as raised:
        load(environ={"SLUICE_PORT": "1", "SLUICE_SERVER__PORT": "x"})
    text = str(raised.value)
    assert "SLUICE_PORT: write SLUICE_SECTION__KEY" in text
    assert "SLUICE_SERVER__PORT: server.port: Expected" in text


def test_the_key_of_the_chat_command_is_no_setting_and_a_near_miss_is_told() -> None:
    assert load(environ={"SLUICE_KEY": "sk-1"}).settings
    with pytest.raises(BadSettings, match="SLUICE_KEYS: write SLUICE_SECTION__KEY"):
        load(environ={"SLUICE_KEYS": "sk-1"})


@pytest.mark.parametrize(
    "text",
    [
        '[admin]\nkeys = "sk-secret"\n',
        '[[tenants]]\nname = "a"\nkeys = [["sk-secret"]]\n',
        '[cache.exact]\nstore = ["redis://:sk-secret@host"]\n',
    ],
)
def test_what_may_be_a_secret_is_not_repeated(tmp_path: Path, text: str) -> None:
    found = problems(tmp_path, text)
    assert found
    assert "sk-secret" not in str(found)


def test_a_missing_file_and_broken_toml_are_errors_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="name an existing file"):
        load(tmp_path / "none.toml")
    assert "not valid TOML" in problems(tmp_path, "[server\n")[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[server]\nhost = "0.0.0.0"\n', "sluice.toml:2: server.host: listening on '0.0.0.0'"),
        ("[server]\nport = 70000\n", "must be 0 to 65535"),
        ("[server]\nmax_body_bytes = 0\n", "must be above 0"),
        ('[cascade]\nlarge = "huge"\n', "no model is named 'huge'"),
        ('[cache.semantic]\njudge = "huge"\n', "no model is named 'huge'"),
        ('[cache.exact]\nstore = "mongodb://x"\n', "must be memory://, sqlite:///PATH or redis:"),
        ('[cache.exact]\nstore = "redis://"\n', "must be memory://, sqlite:///PATH or redis:"),
        (
            '[cache.exact]\nstore = "redis://x:port"\n',
            "must be memory://, sqlite:///PATH or redis:",
        ),
        ("[cache.exact]\nscope_bytes = 0\n", "must be above 0"),
        ('[[tenants]]\nname = "a"\nkeys = ["sk-123"]\n', "must be SHA-256 hashes"),
        (f'[[tenants]]\nname = "a"\nkeys = ["{NOTHING}"]\n', "the hash of nothing at all"),
        (f'[admin]\nkeys = ["{NOTHING}"]\n', "the hash of nothing at all"),
        ('[admin]\nmetrics_keys = ["sk-123"]\n', "must be SHA-256 hashes"),
        ('[[tenants]]\nname = "a/b"\n', "a name is 1 to 64"),
        ('[[tenants]]\nname = "a"\ncache_scope = "team"\n', "must be tenant, user, public"),
        ('[[tenants]]\nname = "a"\nmodels = ["gpt"]\n', "no model is named 'gpt'"),
        ('[[tenants]]\nname = "a"\n[[tenants]]\nname = "a"\n', "two tenants are named 'a'"),
        ('[[tenants]]\nname = "a"\n[[tenants]]\nname = "b"\n', "only one tenant may be without"),
        (
            f'[[tenants]]\nname="a"\nkeys=["{SHA}"]\n[[tenants]]\nname="b"\nkeys=["{SHA}"]\n',
            "shares a key with tenant 'a'",
        ),
        ('[engine]\ndevice = "gpu"\n', "sluice.toml:2: engine.device: 'gpu' is no device"),
        (
            "[engine]\nmax_running = 64\nmax_batched_tokens = 64\n",
            "must be above max_running (64)",
        ),
        ("[engine]\nmax_batched_tokens = 1\n", "must be at least 2, or prompts starve; got 1"),
        ("[engine]\nstep_timeout_s = 0\n", "engine.step_timeout_s"),
        ("[models.small]\nkv_share = 0\n", "kv_share: must be above 0; got 0"),
        ("[server]\nheartbeat_s = nan\n", "server.heartbeat_s: must be a number that ends"),
        ("[models.small]\nprice_in = inf\n", "price_in: must be a number that ends"),
        ('[[tenants]]\nname = "a"\nshare = nan\n', "share: must be a number that ends"),
        ('[logs]\nformat = "yaml"\n', "must be one of auto, json, console; got 'yaml'"),
        ('[models.auto]\npath = "x"\n[cascade]\nsmall="auto"\nlarge="auto"\n', "not 'auto'"),
    ],
)
def test_what_cannot_work_together_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert any(said in problem for problem in problems(tmp_path, text))


def test_other_addresses_are_allowed_once_every_tenant_has_a_key(tmp_path: Path) -> None:
    text = f'[server]\nhost = "0.0.0.0"\n[[tenants]]\nname = "a"\nkeys = ["{SHA}"]\n'
    assert load_text(tmp_path, text).settings.server.host == "0.0.0.0"


@pytest.mark.parametrize(
    ("tenant", "said"),
    [
        ('default_route = "huge"', "no model is named 'huge'"),
        ('default_route = "large"\nmodels = ["small"]', "it may not ask 'large'"),
        ("budget_usd_day = 0", "above 0"),
        ("budget_usd_month = nan", "ends"),
        ("tpm = -1", "above 0"),
        ("ttft_objective_s = 0", "above 0"),
    ],
)
def test_an_impossible_policy_is_refused(tmp_path: Path, tenant: str, said: str) -> None:
    file = tmp_path / "sluice.toml"
    file.write_text(f'[[tenants]]\nname = "a"\n{tenant}\n')
    with pytest.raises(BadSettings, match=said):
        load(file)
