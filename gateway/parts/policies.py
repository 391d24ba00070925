"""[cascade] and each tenant's own words on it → how `auto` chooses for that tenant, and why so.

A calibrated policy is looked for in the order of who said so: the tenant's `cascade_policy_file`,
`[cascade] policy_file`, FOLDER/TENANT.json (where `sluice calibrate` writes), and, for the bundled
models, the file that comes with them. One that was named and does not fit stops the start; one that
was only found is passed over, and whoever looks (`sluice doctor --tenant`, /admin/cascade, the log)
is told.

A policy fits when it was calibrated on these very weights, with this embedder if it uses one, and
promises no less than `target` and `delta` ask. Without any, `auto` is uncalibrated: it keeps what
the small model is plainly sure of and promises nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cascade.gain import ModelFileError
from cascade.policy import Policy, read_policy
from cascade.promise import Promise
from cascade.routes.base import Route
from cascade.routes.budget import Budget, Meter, MoneyMeter, ShareMeter
from cascade.routes.cautious import Cautious
from cascade.routes.fixed import fixed
from cascade.routes.latency import ExpectedTtft, Latency
from gateway.backend import CannotLoad
from gateway.settings import BUNDLED, Settings, Tenant

SHIPPED = BUNDLED / "policy.json"
"""Calibrated on the bundled models' graded tasks: demo/README.md says how."""
CALIBRATE = "run `sluice calibrate`"


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """How `auto` chooses for one tenant. `key` is `Call.policy`; `note` the Sluice-Policy header's
    value; `why` a sentence for people."""

    tenant: str
    policy: str
    key: str
    route: Route
    note: str
    why: str
    source: str = ""
    promise: Promise | None = None
    labels: int = 0
    report: Mapping[str, Any] = field(default_factory=dict)
    """The curves of its calibration, for people."""
    passed_over: tuple[str, ...] = ()
    """Files that were found and do not fit, each with the reason."""

    @property
    def calibrated(self) -> bool:
        return self.promise is not None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a policy has to fit, and what routes are made with. `weights` names both models,
    `embedder` what makes vectors here: asked at each reload, as one may be made meanwhile."""

    weights: str
    embedder: Callable[[], str] = lambda: ""
    expected_ttft_s: ExpectedTtft = lambda _: 0.0
    clock: Callable[[], float] = time.monotonic


def weights_of(small: str, large: str) -> str:
    """The fingerprint that a calibrated policy carries, from those of the two models."""
    return hashlib.blake2b(f"{small} {large}".encode(), digest_size=16).hexdigest()


class Policies:
    """The policies of the tenants in force, and what is looked up for each request: `routes` by
    `Call.policy`, `keys` and `notes` (Sluice-Policy) by tenant. Owned by the event loop's thread.

    Nothing is ever taken out: a request in flight keeps the tenant that it came in as."""

    def __init__(self, settings: Settings, around: Surroundings) -> None:
        """Raises CannotLoad for a file that was named and cannot be used."""
        self._settings = settings
        self._around = around
        self.by_tenant: dict[str, TenantPolicy] = {}
        self.routes: dict[str, Route] = {}
        self.keys: dict[str, str] = {}
        self.notes: dict[str, bytes] = {}
        resolver = _Resolver(settings, around)
        for tenant in settings.tenants:
            self._put(resolver.resolve(tenant))

    def take(self, tenants: Iterable[Tenant], warn: Callable[..., None]) -> None:
        """Tenants were reloaded: read every file again. Who cannot have what it names keeps what
        it had, or is uncalibrated."""
        resolver = _Resolver(self._settings, self._around)
        for tenant in tenants:
            try:
                self._put(resolver.resolve(tenant))
            except CannotLoad as error:
                warn("cascade policy not taken on", tenant=tenant.name, reason=str(error))
                if tenant.name not in self.by_tenant:
                    self._put(resolver.uncalibrated(tenant, (str(error),)))

    def _put(self, new: TenantPolicy) -> None:
        """A policy that has not changed stays, with the budget that it has spent."""
        if new.key in self.routes:
            new = replace(new, route=self.routes[new.key])
        self.by_tenant[new.tenant] = new
        self.keys[new.tenant] = new.key
        self.notes[new.tenant] = new.note.encode("ascii", "replace")
        if new.key:
            self.routes[new.key] = new.route


@dataclass(slots=True)
class _Found:
    policy: Policy | None = None
    source: str = ""
    passed_over: list[str] = field(default_factory=list)


class _Resolver:
    """Reads each file once, however many tenants share it."""

    def __init__(self, settings: Settings, around: Surroundings) -> None:
        self._settings = settings
        self._around = around
        self._read: dict[Path, Policy | ModelFileError] = {}

    def resolve(self, tenant: Tenant) -> TenantPolicy:
        cascade = self._settings.cascade
        kind = tenant.cascade_policy or cascade.policy
        if kind == "fixed" or cascade.small == cascade.large:
            return self._fixed(tenant)
        found = self._find(tenant)
        if kind == "budget":
            return self._budget(tenant, found)
        quality = self._quality(tenant, found)
        return self._latency(quality, tenant) if kind == "latency" else quality

    # ---------------------------------------------------------------- the four policies

    def _fixed(self, tenant: Tenant) -> TenantPolicy:
        large = self._settings.cascade.large
        return TenantPolicy(
            tenant.name, "fixed", "", fixed(large), "fixed", f"always {large}", "settings"
        )

    def _quality(self, tenant: Tenant, found: _Found) -> TenantPolicy:
        passed_over = tuple(found.passed_over)
        if found.policy is None:
            return self.uncalibrated(tenant, passed_over)
        policy, route = found.policy, found.policy.route
        promise = route.promise if route.cut.promised else None
        note = f"quality; uncalibrated; labels={route.cut.labels}"
        if promise is not None:
            note = (
                f"quality; max-loss={promise.epsilon:g}; confidence={1 - promise.delta:g}; "
                f"labels={route.cut.labels}"
            )
        why = route.name
        if found.source == str(SHIPPED):
            note += "; on=bundled-tasks"
            why += (
                ". The labels are graded tasks that come with the bundled models: the promise is "
                f"about such requests. {CALIBRATE.capitalize()} on your own"
            )
        return TenantPolicy(tenant.name, "quality", policy.key, route, note, why, found.source,
                            promise, route.cut.labels, policy.report, passed_over)  # fmt: skip

    def uncalibrated(self, tenant: Tenant, passed_over: tuple[str, ...]) -> TenantPolicy:
        why = (
            "uncalibrated: keeps only what the small model is plainly sure of, and promises "
            f"nothing; {CALIBRATE} on labelled requests of this tenant"
        )
        return TenantPolicy(tenant.name, "quality", "cautious", Cautious(), "quality; uncalibrated",
                            why, passed_over=passed_over)  # fmt: skip

    def _latency(self, inner: TenantPolicy, tenant: Tenant) -> TenantPolicy:
        objective_s = tenant.ttft_objective_s or self._settings.cascade.ttft_objective_s
        route = Latency(inner.route, objective_s, self._around.expected_ttft_s)
        note = inner.note.replace("quality", f"latency; ttft={objective_s:g}", 1)
        why = (
            f"small answers while large's first token is expected later than {objective_s:g} s, "
            f"without a promise; else {inner.why}"
        )
        return TenantPolicy(inner.tenant, "latency", f"latency/{objective_s:g}/{inner.key}", route,
                            note, why, inner.source, inner.promise, inner.labels, inner.report,
                            inner.passed_over)  # fmt: skip

    def _budget(self, tenant: Tenant, found: _Found) -> TenantPolicy:
        if found.policy is None:
            reasons = "; ".join(found.passed_over) or "there is none"
            raise CannotLoad(
                f"cascade.policy: budget ranks requests by a calibrated policy's gain model, and "
                f"for tenant {tenant.name!r} {reasons}. {CALIBRATE.capitalize()} first, or set "
                "policy = 'quality'."
            )
        meter = self._meter(tenant)
        route = Budget(found.policy.route.scorer.route, meter)
        key = f"budget/{tenant.name}/{found.policy.version}/{meter.describe()}"
        return TenantPolicy(tenant.name, "budget", key, route, f"budget; {meter.describe()}",
                            f"{meter.describe()}, where it gains most; no promise on quality",
                            found.source, report=found.policy.report,
                            passed_over=tuple(found.passed_over))  # fmt: skip

    def _meter(self, tenant: Tenant) -> Meter:
        """One limit of the tenant's own, or [cascade]'s; gateway.verify has seen to it."""
        own = (tenant.max_large_share, tenant.usd_per_day)
        cascade = self._settings.cascade
        share, usd = own if any(one is not None for one in own) else (
            cascade.max_large_share, cascade.usd_per_day
        )  # fmt: skip
        if usd is not None:
            return MoneyMeter(round(usd * 1e9), self._around.clock)
        assert share is not None, "gateway.verify has looked"
        return ShareMeter(share)

    # ---------------------------------------------------------------- the files

    def _find(self, tenant: Tenant) -> _Found:
        cascade = self._settings.cascade
        named = tenant.cascade_policy_file or cascade.policy_file
        if named is not None:
            return self._named(named, "tenants" if tenant.cascade_policy_file else "cascade")
        found = _Found()
        for path in (policy_path(cascade.folder, tenant.name), SHIPPED):
            if not path.is_file():
                continue
            policy = self._policy(path)
            fault = str(policy) if isinstance(policy, ModelFileError) else self._fault(policy)
            if not fault and isinstance(policy, Policy):
                found.policy, found.source = policy, str(path)
                return found
            found.passed_over.append(f"{path} does not fit: {fault}")
        return found

    def _named(self, path: Path, table: str) -> _Found:
        key = "cascade_policy_file" if table == "tenants" else "policy_file"
        if not path.is_file():
            raise CannotLoad(
                f"{table}.{key}: there is no file {path}; {CALIBRATE}, or leave it out"
            )
        policy = self._policy(path)
        fault = str(policy) if isinstance(policy, ModelFileError) else self._fault(policy)
        if fault or isinstance(policy, ModelFileError):
            raise CannotLoad(f"{table}.{key}: {path}: {fault}")
        return _Found(policy, str(path))

    def _policy(self, path: Path) -> Policy | ModelFileError:
        if path not in self._read:
            try:
                self._read[path] = read_policy(path.read_text("utf-8"))
            except ModelFileError as error:
                self._read[path] = error
            except (OSError, UnicodeDecodeError) as error:
                self._read[path] = ModelFileError(f"cannot be read ({error})")
        return self._read[path]

    def _fault(self, policy: Policy) -> str:
        """Why the policy is not for this gateway; empty: it is."""
        cascade, promise = self._settings.cascade, policy.route.promise
        if policy.fingerprint != self._around.weights:
            return f"it was calibrated on other models; {CALIBRATE} again"
        scorer = policy.route.scorer
        for model in (scorer.route, scorer.judge):
            if model and "embedding" in model.uses and model.embedder != self._around.embedder():
                needed = model.embedder or "of an unknown name"
                return f"it needs the embedder {needed}, which does not run here; {CALIBRATE} again"
        if promise.epsilon > cascade.target or promise.delta > cascade.delta:
            return (
                f"it promises a loss of {promise.epsilon:g} with delta {promise.delta:g}, and "
                f"[cascade] asks for target {cascade.target:g}, delta {cascade.delta:g}"
            )
        return ""


def policy_path(folder: Path, tenant: str) -> Path:
    return folder / f"{tenant}.json"


def collected_path(folder: Path, tenant: str) -> Path:
    """Labels from feedback and shadow runs, as `sluice calibrate --collected` reads them."""
    return folder / f"{tenant}.labels.jsonl"
