"""From `sluice.toml`, the environment and flags to `Settings`, or to a list of every error.

An operator fixes a file once, not once per start: all errors are gathered, each naming its key,
its line and the remedy. TOML parsers forget lines, so the line is found again by scanning the text
for the key (`line_of`); the scan knows table headers and dotted keys, and only ever decorates a
message, so that a spelling it does not know costs a line number and nothing else.

Precedence, last wins: default · file · environment (`SLUICE_SERVER__PORT=9000`) · flag. Lists of
tables ([[tenants]]) come from the file only.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from gateway import settings as shape
from gateway.masked import masked
from gateway.scan import line_of
from gateway.verify import impossibilities

T = TypeVar("T")

Key = tuple[str | int, ...]

TABLES: Mapping[str, type[Any]] = MappingProxyType(
    {
        "server": shape.Server,
        "engine": shape.Engine,
        "cascade": shape.Cascade,
        "cache.exact": shape.ExactCache,
        "cache.semantic": shape.SemanticCache,
        "ledger": shape.LedgerSettings,
        "logs": shape.Logs,
        "traces": shape.Traces,
        "admin": shape.Admin,
        "keys": shape.Keys,
        "limits": shape.Limits,
    }
)
PREFIX = "SLUICE_"
NOT_SETTINGS = frozenset({"SLUICE_KEY"})
"""Variables of ours that other commands read (`sluice chat`)."""
_UNTOLD = frozenset({"keys", "store", "headers"})
"""Settings whose value may hold a secret, and is not repeated in a message."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the settings. `where` is `sluice.toml:12`, a variable, or a flag."""

    key: str
    where: str
    message: str

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.key}: {self.message}"


class BadSettings(Exception):
    """The settings cannot be used. `problems` holds every reason, in the order of the file."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, where each value that is not a default came from (`server.port` →
    `sluice.toml:3`), and what they were read from, to be read again."""

    settings: shape.Settings
    sources: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    file: Path | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    flags: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def read_again(self) -> Loaded:
        """Raises BadSettings."""
        return load(self.file, environ=self.environ, flags=self.flags)


@dataclass(slots=True)
class Draft:
    """Settings under construction. Owned by one `load`."""

    file: str = ""
    text: str = ""
    own_models: bool = False
    """Whether the file names the models itself, so that the bundled ones are not served."""
    sources: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def where(self, key: Key) -> str:
        """`sluice.toml:12` if the file holds the key, else the source that set it."""
        known = self.sources.get(dotted(key))
        if known is not None and not known.startswith(self.file or "\0"):
            return known
        line = line_of(self.text, key) if self.text else None
        return f"{self.file}:{line}" if line else self.file

    def wrong(self, key: Key, message: str) -> None:
        self.problems.append(Problem(dotted(key), self.where(key), masked(message)))


def load(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] = MappingProxyType({}),
    flags: Mapping[str, Any] = MappingProxyType({}),
) -> Loaded:
    """Resolve the settings. `flags` maps dotted keys to values, None meaning "not given".

    Raises BadSettings with every problem at once.
    """
    draft = Draft()
    document = _read(draft, path)
    draft.own_models = "models" in document
    _override(draft, document, _from_environment(draft, environ))
    _override(draft, document, {k: (v, "flag") for k, v in flags.items() if v is not None})
    built = _build(draft, document)
    if not draft.problems:
        for key, message in impossibilities(built):
            draft.wrong(key, message)
    if draft.problems:
        raise BadSettings(draft.problems)
    return Loaded(built, MappingProxyType(draft.sources), path, environ, flags)


def dotted(key: Key) -> str:
    """("tenants", 0, "rpm") → "tenants[0].rpm"."""
    text = ""
    for step in key:
        text += f"[{step}]" if isinstance(step, int) else (f".{step}" if text else step)
    return text


# --------------------------------------------------------------------------- the three sources


def _read(draft: Draft, path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    draft.file = path.name
    try:
        draft.text = path.read_text("utf-8")
        return tomllib.loads(draft.text)
    except OSError as error:
        remedy = "name an existing file with --config, or leave it out for the embedded default"
        draft.problems.append(Problem(str(path), "", f"{error.strerror}; {remedy}"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        draft.problems.append(Problem(path.name, "", f"not valid TOML: {error}"))
    return {}


def _from_environment(draft: Draft, environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """SLUICE_CACHE__EXACT__TTL_S=60 → {"cache.exact.ttl_s": ("60", "SLUICE_…")}."""
    found = {}
    for name, value in sorted(environ.items()):
        if not name.startswith(PREFIX) or name in NOT_SETTINGS:
            continue
        steps = name[len(PREFIX) :].lower().split("__")
        if len(steps) < 2 or not all(steps) or steps[0] == "tenants":
            message = (
                f"write {PREFIX}SECTION__KEY, as {PREFIX}SERVER__PORT; tenants are set in a file"
            )
            draft.problems.append(Problem(name, "environment", message))
            continue
        found[".".join(steps)] = (value, name)
    return found


def _override(
    draft: Draft, document: dict[str, Any], overrides: Mapping[str, tuple[Any, str]]
) -> None:
    for key, (value, source) in overrides.items():
        *tables, last = key.split(".")
        table = document
        for step in tables:
            inner = table.setdefault(step, {})
            if not isinstance(inner, dict):
                inner = table[step] = {}
            table = inner
        table[last] = value
        draft.sources[key] = source


# --------------------------------------------------------------------------- tables to values


def _build(draft: Draft, document: dict[str, Any]) -> shape.Settings:
    """Take every table the document may hold; what is left over is unknown."""
    rest = dict(document)
    tables = {name: _table(draft, rest, name, kind) for name, kind in TABLES.items()}
    models = _models(draft, rest.pop("models", None))
    tenants = _tenants(draft, rest.pop("tenants", None))
    _leftovers(draft, rest)
    return shape.Settings(
        server=tables["server"],
        models=MappingProxyType(models),
        engine=tables["engine"],
        cascade=tables["cascade"],
        exact=tables["cache.exact"],
        semantic=tables["cache.semantic"],
        ledger=tables["ledger"],
        logs=tables["logs"],
        traces=tables["traces"],
        admin=tables["admin"],
        keys=tables["keys"],
        limits=tables["limits"],
        tenants=tenants,
    )


def _table(draft: Draft, rest: dict[str, Any], name: str, kind: type[T]) -> T:
    """One fixed table, taken out of `rest`."""
    outer, _, inner = name.partition(".")
    if not inner:
        return _record(draft, (outer,), rest.pop(outer, {}), kind) or kind()
    group = rest.get(outer, {})
    if not isinstance(group, dict):
        draft.wrong((outer,), f"must hold tables, as [{name}]")
        rest[outer] = {}
        return kind()
    rest[outer] = {other: table for other, table in group.items() if other != inner}
    return _record(draft, (outer, inner), group.get(inner, {}), kind) or kind()


def _leftovers(draft: Draft, rest: dict[str, Any]) -> None:
    """What no table took. Of a group, such as [cache], only its tables can be left."""
    groups: dict[str, list[str]] = {}
    for name in TABLES:
        outer, _, inner = name.partition(".")
        if inner:
            groups.setdefault(outer, []).append(inner)
    for name, table in rest.items():
        if name not in groups:
            _unknown(draft, (name,), ["models", "tenants", *TABLES])
            continue
        for other in table:
            _unknown(draft, (name, other), groups[name])


def _models(draft: Draft, raw: Any) -> dict[str, shape.Model]:
    """The configured models. One that is named like a bundled one may leave out its path; flags
    and the environment alone change the bundled ones and keep the rest."""
    if raw is None:
        return shape.bundled_models()
    if not isinstance(raw, dict) or not raw:
        draft.wrong(("models",), "must hold one table per model, as [models.small]")
        return {}
    bundled = shape.bundled_models()
    built = {}
    for name, table in raw.items():
        base = bundled.get(name)
        given = table
        if base is not None and isinstance(table, dict) and not {"path", "kind"} & table.keys():
            given = {"path": str(base.path), **table}
        model = _record(draft, ("models", name), given, shape.Model)
        if model is not None:
            built[name] = model
    return built if draft.own_models else {**bundled, **built}


def _tenants(draft: Draft, raw: Any) -> tuple[shape.Tenant, ...]:
    if raw is None:
        return (shape.Tenant(name="default"),)
    if not isinstance(raw, list) or not raw:
        draft.wrong(("tenants",), "must be one or more [[tenants]] tables")
        return ()
    records = (_record(draft, ("tenants", i), table, shape.Tenant) for i, table in enumerate(raw))
    return tuple(tenant for tenant in records if tenant is not None)


def _record(draft: Draft, key: Key, raw: Any, kind: type[T]) -> T | None:
    """A table as a frozen value; None (and problems) if it cannot be."""
    if not isinstance(raw, dict):
        draft.wrong(key, "must be a table of keys and values")
        return None
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, kind))}
    before = len(draft.problems)
    values = {}
    for name, value in raw.items():
        if name not in fields:
            _unknown(draft, (*key, name), list(fields))
            continue
        values[name] = _value(draft, (*key, name), value, hints[name])
    missing = [
        f.name
        for f in fields.values()
        if f.name not in raw
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    for name in missing:
        draft.wrong(key, f"{name} is missing: {fields[name].metadata['doc']}")
    return kind(**values) if len(draft.problems) == before else None


def _value(draft: Draft, key: Key, value: Any, wanted: Any) -> Any:
    """One leaf, converted. Text from the environment is read as the type that is wanted."""
    name = dotted(key)
    lax = name in draft.sources
    if not lax and draft.file:
        line = line_of(draft.text, key)
        draft.sources[name] = f"{draft.file}:{line}" if line else draft.file
    if lax and isinstance(value, str) and typing.get_origin(wanted) is tuple:
        value = [part.strip() for part in value.split(",") if part.strip()]
    target = _plain(wanted)
    try:
        converted = msgspec.convert(value, target, strict=not lax, str_keys=True)
    except msgspec.ValidationError as error:
        draft.wrong(key, _why_not(key, value, wanted, error))
        return None
    if _is_path(wanted) and converted is not None:
        return Path(converted).expanduser()
    return MappingProxyType(converted) if isinstance(converted, dict) else converted


def _why_not(key: Key, value: Any, wanted: Any, error: msgspec.ValidationError) -> str:
    got = f"got {type(value).__name__}" if key[-1] in _UNTOLD else f"got {value!r}"
    if typing.get_origin(wanted) is typing.Literal:
        return f"must be one of {', '.join(map(str, typing.get_args(wanted)))}; {got}"
    return f"{error}; {got}"


def _plain(wanted: Any) -> Any:
    """The type that msgspec converts to: it knows neither Path nor Mapping."""
    if _is_path(wanted):
        return str
    if typing.get_origin(wanted) in {Mapping, dict}:
        return dict[str, str]
    return wanted


def _is_path(wanted: Any) -> bool:
    """Path, or Path | None (null is not a value in TOML)."""
    return wanted is Path or Path in typing.get_args(wanted)


def _unknown(draft: Draft, key: Key, known: list[str]) -> None:
    near = difflib.get_close_matches(str(key[-1]), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    draft.wrong(key, f"unknown key; {hint}known here: {', '.join(sorted(known))}")
