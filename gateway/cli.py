"""The command `sluice`: serve, doctor, keys, calibrate, chat.

    sluice serve [--config sluice.toml] [--host H] [--port P] [--small PATH] [--large PATH]
    sluice doctor [--config sluice.toml]     the settings that a start would take, with sources
    sluice doctor --tenant NAME              the policy of a tenant, likewise
    sluice keys create|list|rotate|revoke    keys of tenants, in the store that the server reads
    sluice calibrate --tenant T --data FILE  a cascade policy with a promise, from labelled requests
    sluice chat [--url URL] [--model NAME]   talk to a running server

What an operator can mend (a setting, a checkpoint, a port in use) ends with one clear message and
exit status 2; a trace is for our own mistakes.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import socket
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.configure import BadSettings, Loaded, load
from gateway.keys_command import add_arguments
from gateway.keys_command import run as run_keys
from gateway.masked import masked, masked_header
from gateway.settings import BUNDLED, Settings
from gateway.tenants.key_book import KeyRefused
from gateway.tenants.key_store import KeyStoreFault
from gateway.tenants.lease_store import LeaseStoreFault
from gateway.tenants.policy import resolved

EXIT_MENDABLE = 2
CONFIG = Path("sluice.toml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    asked = _parser().parse_args(arguments)
    console = Console(stderr=True, highlight=False)
    command = {"serve": _serve, "doctor": _doctor, "keys": _keys, "chat": _chat,
               "calibrate": _calibrate}[asked.command]  # fmt: skip
    try:
        return command(asked, console)
    except BadSettings as error:
        console.print("[bold red]The settings cannot be used:[/]")
        for problem in error.problems:
            console.print(f"  {escape(str(problem))}", soft_wrap=True)
        return EXIT_MENDABLE
    except _Mendable as error:
        console.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True)
        return EXIT_MENDABLE
    except KeyboardInterrupt:
        return 130


class _Mendable(Exception):
    """The operator can mend it; the text says how."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sluice", description="An LLM gateway with an engine.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve the gateway")
    doctor = commands.add_parser(
        "doctor", help="show the settings that a start would take, and their sources"
    )
    for one in (serve, doctor):
        one.add_argument(
            "--config", type=Path, help="settings; default ./sluice.toml if there is one"
        )
        one.add_argument("--host", help="address to listen on")
        one.add_argument("--port", type=int, help="port to listen on")
        one.add_argument("--small", metavar="PATH", help="checkpoint directory of the small model")
        one.add_argument("--large", metavar="PATH", help="checkpoint directory of the large model")
    doctor.add_argument("--tenant", metavar="NAME", help="only the policy of this tenant")
    add_arguments(
        commands.add_parser("keys", help="create, list, rotate and revoke keys of tenants")
    )
    _add_calibrate_arguments(
        commands.add_parser("calibrate", help="find a cascade policy with a promise, from labels")
    )
    chat = commands.add_parser("chat", help="talk to a running server")
    chat.add_argument("--url", default="http://127.0.0.1:8080")
    chat.add_argument("--model", default="auto")
    chat.add_argument("--key", default=os.environ.get("SLUICE_KEY", ""), help="or SLUICE_KEY")
    return parser


def _add_calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, help="settings; default ./sluice.toml if there is one"
    )
    parser.add_argument("--tenant", required=True, help="whose requests were labelled")
    parser.add_argument("--data", type=Path, help="labelled requests as JSON lines, also .gz")
    parser.add_argument(
        "--collected", action="store_true", help="use what feedback and shadow runs gathered, too"
    )
    parser.add_argument(
        "--embed",
        action="store_true",
        help="look at the meaning, too: with [cache.semantic] embedder",
    )
    parser.add_argument("--target", type=float, help="quality that may be lost; 0.01 is a point")
    parser.add_argument("--delta", type=float, help="how probably the target may be missed")
    parser.add_argument(
        "--hold-tokens", type=int, help="what the judge sees of small's answer; 0: all of it"
    )
    parser.add_argument("--out", type=Path, help="write the policy there, for whomever")
    parser.add_argument("--seed", type=int, default=0, help="of the split into two halves")


def _load(asked: argparse.Namespace) -> Loaded:
    config = asked.config or (CONFIG if CONFIG.exists() else None)
    flags = {
        "server.host": asked.host,
        "server.port": asked.port,
        "models.small.path": asked.small,
        "models.large.path": asked.large,
    }
    return load(config, environ=os.environ, flags=flags)


# --------------------------------------------------------------------------- serve


def _serve(asked: argparse.Namespace, console: Console) -> int:
    loaded = _load(asked)
    settings = loaded.settings
    _check_paths(settings)
    # The port is taken before models are loaded: finding it in use costs a second, not a minute.
    with _listen(settings) as listener:
        _check_stores(settings)
        _check_ledger(settings)
        return _serve_on(listener, loaded, console)


def _serve_on(listener: socket.socket, loaded: Loaded, console: Console) -> int:
    settings = loaded.settings
    with console.status("importing the engine") as status:
        from gateway.assemble import assemble  # noqa: PLC0415
        from gateway.backend import CannotLoad  # noqa: PLC0415
        from gateway.observe.logs import LineWriter, build_log, wants_json  # noqa: PLC0415
        from gateway.parts.models import load_models  # noqa: PLC0415 - 3 s of torch

        writer = LineWriter(sys.stderr.buffer)
        log = build_log(writer, settings.logs.level, wants_json(settings.logs.format))
        try:
            backend = load_models(
                settings, os.environ, log, lambda text: status.update(escape(text))
            )
            system = assemble(loaded, backend, log)
        except (CannotLoad, KeyStoreFault, LeaseStoreFault) as error:
            writer.close()
            raise _Mendable(str(error)) from None
    from gateway.server import build_server, run  # noqa: PLC0415

    port = listener.getsockname()[1]
    server = build_server(
        system.app,
        settings.server,
        system.drain,
        log,
        on_ready=lambda: _greet(console, settings, port),
        on_hangup=system.reloader.ask,
        is_lost=backend.lost,
    )
    try:
        run(server, [listener])
    finally:
        why = None if server.told_to_stop else backend.lost()
        if why is not None:
            log.error("restarting", why=why)
        writer.close()
    if why is not None:
        _begin_anew(listener)
    return 0 if server.started else EXIT_MENDABLE


def _begin_anew(listener: socket.socket) -> None:
    """Become another process with the same command: a CUDA error ends a process's use of its card,
    and only its own. Callers are refused for the seconds that loading takes."""
    listener.close()
    os.closerange(3, 1 << 16)  # among them the card's
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - our own command


def _listen(settings: Settings) -> socket.socket:
    host, port = settings.server.host, settings.server.port
    try:
        return socket.create_server((host, port), family=_family(host))
    except OSError as error:
        raise _Mendable(
            f"cannot listen on {host}:{port}: {error.strerror}. Choose another with --port, "
            "or stop what is there."
        ) from None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _check_paths(settings: Settings) -> None:
    for name, model in settings.models.items():
        if model.path is not None and not (model.path / "config.json").is_file():
            if model.path == BUNDLED / name:
                raise _Mendable(
                    f"there is no model at {model.path}: the bundled models come with the "
                    "repository and not with the package. Run from a clone of it, or name your "
                    "own, Hugging Face directories with safetensors and a tokenizer: sluice serve "
                    "--small PATH --large PATH, or [models.*] path (or base_url) in a settings "
                    "file given with --config."
                )
            raise _Mendable(
                f"models.{name}.path: {model.path} is not a checkpoint directory (it has no "
                "config.json). Name a Hugging Face directory with safetensors and a tokenizer."
            )


def _check_stores(settings: Settings) -> None:
    for name in ("exact", "semantic"):
        cache = getattr(settings, name)
        if cache.enabled is not False and cache.store.startswith("sqlite:///"):
            _check_file(f"cache.{name}.store", Path(cache.store.removeprefix("sqlite:///")))


def _check_file(setting: str, path: Path) -> None:
    from cache.store.sqlite_open import check_usable  # noqa: PLC0415 - the doctor needs none of it

    try:
        check_usable(path)
    except (OSError, sqlite3.Error) as error:
        raise _Mendable(
            f"{setting}: {path} cannot be used ({error}). Name a file in a folder that may "
            "be written to, or set memory://."
        ) from None


def _check_ledger(settings: Settings) -> None:
    """What the account needs, before models are loaded."""
    from gateway.observe.book import BookFault  # noqa: PLC0415 - the doctor needs none of it
    from gateway.observe.journal import JournalFault, check_writable  # noqa: PLC0415
    from gateway.parts.ledger import open_book, places  # noqa: PLC0415

    try:
        open_book(settings.ledger).close()
        if (folder := places(settings.ledger)[1]) is not None:
            check_writable(folder)
    except (BookFault, JournalFault) as error:
        raise _Mendable(str(error)) from None


def _greet(console: Console, settings: Settings, port: int) -> None:
    """What to do next. Goes to the terminal, not to the log."""
    host = settings.server.host
    shown = f"[{host}]" if ":" in host else host
    base = f"http://{shown}:{port}"
    key = "YOUR-KEY" if any(tenant.asks_for_key for tenant in settings.tenants) else "unused"
    header = "" if key == "unused" else " -H 'authorization: Bearer YOUR-KEY'"
    text = f"""
Serving {", ".join(settings.models)} and auto at {base}/v1   (dashboard: {base}/dashboard)

  curl {base}/v1/chat/completions{header} -d '{{"model": "auto", "messages": \
[{{"role": "user", "content": "What is 7 + 5?"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{base}/v1", api_key="{key}")
  question = [{{"role": "user", "content": "What is 7 + 5?"}}]
  answer = client.chat.completions.create(model="auto", messages=question)
  print(answer.choices[0].message.content)
"""
    console.print(escape(text), soft_wrap=True)


# --------------------------------------------------------------------------- doctor


def _doctor(asked: argparse.Namespace, console: Console) -> int:
    """The settings that a start would take. Its output is for people and goes to stdout."""
    del console
    loaded = _load(asked)
    rows = [
        (key, _shown(key, value), loaded.sources.get(key, "default"), doc)
        for key, value, doc in explained(loaded.settings)
    ]
    if asked.tenant is not None:
        rows = _policy_rows(loaded, asked.tenant)
        from gateway.parts.auto_told import auto_lines  # noqa: PLC0415 - 3 s of torch

        rows += auto_lines(loaded.settings, asked.tenant)
    table = Table("key", "value", "from", "meaning", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)
    return 0


def _policy_rows(loaded: Loaded, tenant: str) -> list[tuple[str, str, str, str]]:
    try:
        lines = resolved(loaded.settings, loaded.sources, tenant)
    except KeyError:
        known = ", ".join(one.name for one in loaded.settings.tenants)
        raise _Mendable(f"there is no tenant {tenant!r}; there are: {known}") from None
    return [(one.name, _shown(one.name, one.value), one.source, one.meaning) for one in lines]


def explained(settings: Settings) -> list[tuple[str, Any, str]]:
    """(key, value, meaning) of every setting, in the order of the file."""
    tables: list[tuple[str, Any]] = [("server", settings.server)]
    tables += [(f"models.{name}", model) for name, model in settings.models.items()]
    tables += [("engine", settings.engine), ("cascade", settings.cascade)]
    tables += [("cache.exact", settings.exact), ("cache.semantic", settings.semantic)]
    tables += [("ledger", settings.ledger), ("logs", settings.logs), ("admin", settings.admin)]
    tables += [("traces", settings.traces)]
    tables += [("keys", settings.keys), ("limits", settings.limits)]
    tables += [(f"tenants[{i}]", tenant) for i, tenant in enumerate(settings.tenants)]
    return [
        (f"{name}.{one.name}", getattr(table, one.name), one.metadata["doc"])
        for name, table in tables
        for one in dataclasses.fields(table)
    ]


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if key.endswith(".headers"):
        value = {name: masked_header(text) for name, text in value.items()}
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "–"
    if isinstance(value, tuple):
        return ", ".join(_key(str(item)) for item in value) or "–"
    return masked(str(value))


def _key(text: str) -> str:
    """A key's hash is recognised by its first digits."""
    return f"{text[:8]}…" if len(text) == hashlib.sha256().digest_size * 2 else text


# --------------------------------------------------------------------------- keys


def _keys(asked: argparse.Namespace, console: Console) -> int:
    config = asked.config or (CONFIG if CONFIG.exists() else None)
    try:
        run_keys(asked, load(config, environ=os.environ).settings, console)
    except (KeyRefused, KeyStoreFault) as error:
        raise _Mendable(str(error)) from None
    return 0


# --------------------------------------------------------------------------- calibrate


def _calibrate(asked: argparse.Namespace, console: Console) -> int:
    from gateway.calibrate_command import CannotCalibrate, run  # noqa: PLC0415 - not to serve

    config = asked.config or (CONFIG if CONFIG.exists() else None)
    try:
        run(asked, load(config, environ=os.environ).settings, console)
    except CannotCalibrate as error:
        raise _Mendable(str(error)) from None
    return 0


# --------------------------------------------------------------------------- chat


def _chat(asked: argparse.Namespace, console: Console) -> int:
    from gateway.chat import Refused, converse  # noqa: PLC0415 - httpx is not needed to serve

    try:
        converse(asked.url, asked.model, asked.key, console)
    except Refused as error:
        raise _Mendable(str(error)) from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
