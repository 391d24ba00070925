"""compose.yaml, its settings and the Dockerfile are what they say."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from gateway.configure import load

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


COMPOSES = ("compose.yaml", "deploy/compose.gpu.yaml", "deploy/compose.two.yaml")
TWO = yaml.safe_load((ROOT / "deploy/compose.two.yaml").read_text())


@pytest.mark.parametrize("name", COMPOSES)
def test_compose_files_follow_the_compose_specification(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", name],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_that_compose_mounts_is_there() -> None:
    mounts = [volume for one in COMPOSE["services"].values() for volume in one.get("volumes", [])]
    files = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert len(files) >= 5
    assert not [name for name in files if not (ROOT / name).exists()]


def test_settings_are_mounted_by_their_folder_so_that_a_saved_file_is_seen() -> None:
    """An editor that saves replaces the file; a mount of the file would go on showing the old."""
    (command,) = re.findall(r'^CMD \["serve", "--config", "([^"]+)"\]$', DOCKERFILE, re.MULTILINE)
    mounts = [volume.split(":") for volume in COMPOSE["services"]["gateway"]["volumes"]]
    (source,) = [one[0] for one in mounts if one[1] == str(Path(command).parent)]
    assert (ROOT / source).is_dir()
    assert (ROOT / source / Path(command).name).is_file()


def test_nothing_is_published_beyond_this_machine() -> None:
    services = [*COMPOSE["services"].values(), *TWO["services"].values()]
    ports = [port for one in services for port in one.get("ports", [])]
    assert len(ports) >= 4
    assert len(set(ports)) == len(ports)
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_container_may_more_than_it_needs() -> None:
    services = COMPOSE["services"] | {"gateway-b": TWO["services"]["gateway-b"]}
    for one in (*services.values(), TWO["services"]["kept"]):
        assert one["cap_drop"] == ["ALL"]
        assert one["security_opt"] == ["no-new-privileges:true"]
        assert one["read_only"] is True
        if one["image"].startswith("redis:"):
            assert one["user"] == "redis", "its image starts as root to become that"


def test_grafana_has_no_user_with_a_password_that_everybody_knows() -> None:
    set_to = COMPOSE["services"]["grafana"]["environment"]
    assert set_to["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert set_to["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert set_to["GF_AUTH_BASIC_ENABLED"] == "false"
    assert set_to["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_two_gateways_share_every_store_and_keep_keys_and_limits_where_nothing_is_evicted() -> None:
    first, second, kept = (TWO["services"][name] for name in ("gateway", "gateway-b", "kept"))
    assert first["environment"] == second["environment"]
    settings = load(ROOT / "deploy/sluice.toml", environ=first["environment"]).settings
    caches, lasting = (settings.exact, settings.semantic), (settings.keys, settings.limits)
    assert all(one.store.startswith("redis://redis:") for one in caches)
    assert all(one.store.startswith("redis://kept:") for one in lasting)
    assert len({one.store for one in (*caches, *lasting)}) == 4
    words = kept["command"]
    assert words[words.index("--maxmemory-policy") + 1] == "noeviction"
    assert words[words.index("--appendonly") + 1] == "yes"
    assert "noeviction" not in COMPOSE["services"]["redis"]["command"]


def test_the_mounted_settings_are_valid_and_take_the_keys_that_compose_names() -> None:
    settings = load(ROOT / "deploy/sluice.toml").settings
    named = re.findall(r"key: +(sk-[\w-]+)", (ROOT / "compose.yaml").read_text())
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    keys = [*named, job["authorization"]["credentials"]]
    assert len(set(keys)) == 3
    tenant, admin, metrics = (hashlib.sha256(key.encode()).hexdigest() for key in keys)
    assert settings.tenants[0].keys == (tenant,)
    assert settings.admin.keys == (admin,)
    assert settings.admin.metrics_keys == (metrics,)
    assert settings.exact.store.startswith("redis://redis:")


def test_the_image_runs_as_nobody_in_particular_and_carries_every_package() -> None:
    copied = re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE)
    assert set(copied) == {"gateway", "cache", "cascade", "engine", "radix", "demo"}
    assert re.search(r"^USER sluice$", DOCKERFILE, re.MULTILINE)
    assert "HEALTHCHECK" in DOCKERFILE


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A port where any path is answered by that status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (500, False)])
def test_the_health_check_asks_where_the_server_listens(status: int, healthy: bool) -> None:
    (command,) = re.findall(r"^HEALTHCHECK .*\\\n  CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    python, *arguments = json.loads(command)
    assert python == "python"
    with answering(status) as port:
        environ = {**os.environ, "SLUICE_SERVER__PORT": str(port)}
        done = subprocess.run(
            [sys.executable, *arguments], env=environ, stderr=subprocess.DEVNULL, check=False
        )
    assert (done.returncode == 0) is healthy


def test_a_port_in_the_settings_does_not_move_the_images(tmp_path: Path) -> None:
    (port,) = re.findall(r"^ENV SLUICE_SERVER__PORT=(\d+)$", DOCKERFILE, re.MULTILINE)
    (exposed,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    assert port == exposed
    file = tmp_path / "sluice.toml"
    file.write_text("[server]\nport = 9000\n")
    settings = load(file, environ={"SLUICE_SERVER__PORT": port}).settings
    assert settings.server.port == int(port)


def test_the_build_context_holds_what_the_image_copies_and_no_more() -> None:
    kept = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    sources = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert kept == {name for line in sources for name in line.split()}


def test_the_extras_that_the_image_installs_exist() -> None:
    extras = re.findall(r"--extra (\w+)", DOCKERFILE)
    assert extras
    declared = re.findall(r"^(\w+) = \[$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(extras) <= set(declared)
