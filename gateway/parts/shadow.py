"""[cascade] shadow_share → labels from live traffic, for `sluice calibrate --collected`."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cache.store.base import StoreFault, Which
from cascade.calibrate import first_look
from cascade.label_rows import Meant, row_is_meant
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


class LabelFiles:
    """Tenant → its file of labels, readable by this user alone. Owned by the event loop's thread:
    a row is a few hundred bytes, and the engine is idle when one is written."""

    def __init__(self, folder: Path, log: Log) -> None:
        self._folder = folder
        self._log = log
        self._erasing = asyncio.Lock()
        self._held: list[tuple[str, str]] = []
        """Rows that came while the files were written anew."""

    def keep(self, tenant: str, row: str) -> None:
        if self._erasing.locked():
            self._held.append((tenant, row))
            return
        path = collected_path(self._folder, tenant)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size > MOST_BYTES:
                return
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(handle, "a", encoding="utf-8") as file:
                file.write(row + "\n")
        except OSError as error:
            self._log.warning("label not kept", tenant=tenant, reason=str(error))

    async def erase(self, meant: Meant) -> int:
        """How many rows went. Raises OSError where a file could not be written anew."""
        try:
            async with self._erasing:
                paths = self._folder.glob(collected_path(self._folder, "*").name)
                return sum([await asyncio.to_thread(_without, path, meant) for path in paths])
        finally:
            held, self._held = self._held, []
            for tenant, row in held:
                self.keep(tenant, row)


def _without(path: Path, meant: Meant) -> int:
    """The file as it would be if nobody had written what is meant; whole at any moment."""
    with path.open(encoding="utf-8") as file:
        rows = file.readlines()
    left = [row for row in rows if not row_is_meant(row, meant)]
    if len(left) < len(rows):
        anew = path.with_suffix(".anew")
        with os.fdopen(
            os.open(anew, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
        ) as file:
            file.writelines(left)
            file.flush()
            os.fsync(file.fileno())
        anew.replace(path)
    return len(rows) - len(left)


@dataclass(frozen=True, slots=True)
class Learning:
    """The layer around the cascade that collects labels, whose task is the lifespan's to run, and
    what it wrote."""

    shadow: Shadow
    files: LabelFiles
    models: tuple[str, ...]
    """That answer in each row."""

    async def erase(self, which: Which) -> int:
        """How many rows went, if what is learnt is meant as well. Raises StoreFault."""
        if not which.learnt or which.model not in {None, *self.models}:
            return 0

        def meant(scope: str, labels: tuple[str, ...]) -> bool:
            return which.scope in {None, scope} and (which.tag is None or which.tag in labels)

        self.shadow.erase(meant)
        try:
            return await self.files.erase(meant)
        except OSError as error:
            raise StoreFault(f"The labels of the cascade could not be erased: {error}") from error


def build_shadow(
    settings: Settings, auto: Auto, backend: Backend, roster: Roster, *, ledger: Ledger, log: Log
) -> Learning:
    cascade = settings.cascade
    files = LabelFiles(cascade.folder, log)

    def share(tenant: str) -> float:
        own = roster[tenant].shadow_share
        return cascade.shadow_share if own is None else own

    shadow = Shadow(
        auto.layer,
        {name: backend.answerers[name] for name in (cascade.small, cascade.large)},
        sampling=Sampling(share, undecided(auto.policies.routes)),
        rng=random.Random(),
        grade=agreement,
        is_idle=lambda: not any(one.running or one.waiting for one in backend.states().values()),
        keep=files.keep,
        book=booking(ledger),
        logprobs=backend.cards[cascade.small].logprobs,
    )
    return Learning(shadow, files, (cascade.small, cascade.large))


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
