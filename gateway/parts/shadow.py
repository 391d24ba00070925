"""[cascade] shadow_share → labels from live traffic, for `sluice calibrate --collected`."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cascade.calibrate import first_look
from cascade.routes.base import Route
from cascade.routes.learned import Quality
from cascade.shadow import Book, Sampling, Shadow, agreement
from engine.contract import Call, Waste
from gateway.api.feedback import Hearing, Learner, Remark
from gateway.backend import Backend
from gateway.observe.ledger import NOTHING, Ledger, Record
from gateway.observe.logs import Log
from gateway.parts.cascade import Auto
from gateway.parts.policies import collected_path
from gateway.settings import Settings
from gateway.tenants.roster import Roster

MOST_BYTES = 64 << 20
"""Of one tenant's collected labels: some 100,000 rows, more than a calibration has use for."""
NEARBY = 0.1
"""A request whose first look lies this far above the cut will not be kept small by the next one."""
ORIGIN = "shadow"


@dataclass(frozen=True, slots=True)
class Labels:
    """Tenant → its file of labels, readable by this user alone. Owned by the event loop's thread:
    a row is a few hundred bytes, and the engine is idle when one is written."""

    folder: Path
    log: Log

    def keep(self, tenant: str, row: str) -> None:
        path = collected_path(self.folder, tenant)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size > MOST_BYTES:
                return
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(handle, "a", encoding="utf-8") as file:
                file.write(row + "\n")
        except OSError as error:
            self.log.warning("label not kept", tenant=tenant, reason=str(error))


def build_shadow(
    settings: Settings, auto: Auto, backend: Backend, roster: Roster, *, ledger: Ledger, log: Log
) -> Shadow:
    """The layer around the cascade. Its task is the lifespan's to run."""
    cascade = settings.cascade

    def share(tenant: str) -> float:
        own = roster[tenant].shadow_share
        return cascade.shadow_share if own is None else own

    return Shadow(
        auto.layer,
        {name: backend.answerers[name] for name in (cascade.small, cascade.large)},
        sampling=Sampling(share, undecided(auto.policies.routes)),
        rng=random.Random(),
        grade=agreement,
        is_idle=lambda: not any(one.running or one.waiting for one in backend.states().values()),
        keep=Labels(cascade.folder, log).keep,
        book=booking(ledger),
        logprobs=backend.cards[cascade.small].logprobs,
    )


def learner_of(shadow: Shadow) -> Learner:
    """The cascade's side of /v1/feedback."""

    async def learn(remark: Remark) -> Hearing:
        known = shadow.feedback(
            remark.answer_id,
            remark.score,
            tenant=remark.tenant,
            scope=remark.scope,
            correct_answer=remark.correct_answer,
        )
        return "taught" if known else "unknown"

    return learn


def undecided(routes: Mapping[str, Route]) -> Callable[[Call], bool]:
    """Whether a cut near the one in force could keep the call small. Without a calibrated cut, or
    where the first look needs the embedding, every call may be."""

    def near(call: Call) -> bool:
        route = routes.get(call.policy)
        if not isinstance(route, Quality) or not route.cut.promised:
            return True
        if "embedding" in route.scorer.route.uses:
            return True
        return float(first_look(route, [call])[0]) <= route.cut.threshold + NEARBY

    return near


def booking(ledger: Ledger, origin: str = ORIGIN) -> Book:
    """A shadow run, or a judgement, is a call of ours: all of it is waste."""
    numbers = itertools.count(1)

    def book(tenant: str, spent: list[Waste]) -> None:
        model = spent[0].model
        made = Record(
            time.time(), f"{origin}-{next(numbers)}", tenant, model, origin, 200, NOTHING, 0.0,
            None, [], [], wasted=spent,
        )  # fmt: skip
        ledger.append(made)

    return book
