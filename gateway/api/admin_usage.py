"""GET /admin/usage: what the account says, as JSON or CSV.

Everything booked until the moment of asking is in the answer. The book is asked on its own thread;
the event loop only waits.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from engine.contract import BadCall, Overloaded
from gateway.api.admin_gate import AdminGate
from gateway.observe import usage
from gateway.observe.batch import COLUMNS
from gateway.observe.book import FIELDS, BookFault
from gateway.observe.book import Field as Name
from gateway.observe.book import Query as Question
from gateway.observe.keeper import Keeper
from gateway.settings import Tenant

DAY_S = 86_400
LATEST = 32_503_680_000
"""The year 3000: widened to whole days it is still a date."""


class UsageIn(BaseModel):
    """What is asked. Times are ISO 8601 or UNIX seconds."""

    model_config = ConfigDict(extra="forbid")

    start: str = Field("", description="a day before `end`")
    end: str = Field("", description="now")
    step: Literal["total", "minute", "hour", "day"] = "total"
    by: str = Field("tenant,model,origin", description="of tenant, model, origin, status")
    tenant: str | None = None
    model: str | None = None
    origin: str | None = None
    format: Literal["json", "csv"] = "json"


PART_CODE = "own"
"""A row of CSV says in one word what the JSON says in sentences."""


class UsageOut(BaseModel):
    """Sums of the account. Money is in nano-US-dollars (1e-9), and adds up exactly:
    counterfactual + waste = spent + the avoided_* of all techniques. So do tokens:
    prompt_tokens + completion_tokens = on_large_tokens + the tokens_* of all techniques."""

    start: str = Field(description="of the range, widened to whole grains (UTC)")
    end: str
    grain_s: int = Field(description="seconds of the sums that were read")
    part: str = Field(description="whose account it is, where others have theirs; else empty")
    totals: dict[str, int]
    rows: list[dict[str, Any]]


def router(
    keeper: Keeper, gate: AdminGate, part: str, tenants: Callable[[], Iterable[Tenant]]
) -> APIRouter:
    """`part`: whose account it is (parts/ledger.py). `tenants`: those in force."""
    routes = APIRouter(prefix="/admin", tags=["admin"])
    admin = Depends(gate)

    @routes.get("/usage", summary="Tokens and money by tenant, model, origin and time",
                response_model=UsageOut)  # fmt: skip
    async def read_usage(asked: Annotated[UsageIn, Query()], _: str = admin) -> Response:
        found = await _ask(keeper, question_of(asked, time.time()))
        if asked.tenant and not found.lines:
            await _check_known(asked.tenant, {tenant.name for tenant in tenants()}, keeper)
        return _csv(found, part) if asked.format == "csv" else JSONResponse(_json(found, part))

    return routes


def question_of(asked: UsageIn, now: float) -> Question:
    """Raises BadCall."""
    until = _moment(asked.end, now, "end")
    since = _moment(asked.start, until - DAY_S, "start")
    if since >= until:
        raise BadCall("`start` must be before `end`.", param="start")
    step_s = usage.STEPS_S[asked.step]
    named: dict[Name, str | None] = {
        "tenant": asked.tenant,
        "model": asked.model,
        "origin": asked.origin,
    }
    return Question(
        start=int(since),
        end=int(until) + 1,
        grain_s=usage.grain_for(int(since), int(until), step_s),
        step_s=step_s,
        fields=_fields(asked.by),
        only={name: value for name, value in named.items() if value is not None},
    )


async def _ask(keeper: Keeper, question: Question) -> usage.Answer:
    try:
        return await keeper.ask(lambda book: usage.answer(book, question))
    except usage.TooMuch as error:
        raise BadCall(str(error), param="by") from None
    except BookFault as error:
        raise Overloaded(str(error), code="ledger_unavailable", retry_after_s=1.0) from error


async def _check_known(tenant: str, in_force: set[str], keeper: Keeper) -> None:
    """Raise BadCall for a tenant that neither is nor was: one that has gone keeps its rows."""
    if tenant in in_force:
        return
    ever = Question(0, int(time.time()) + 1, DAY_S, 0, ("tenant",), {})
    found = await _ask(keeper, ever)
    known = sorted(in_force | {line.names[0] for line in found.lines} - {""})
    if tenant not in known:
        raise BadCall(
            f"No tenant is or was called {tenant!r}; there are: {', '.join(known)}.",
            param="tenant",
            code="no_such_tenant",
        )


def _json(found: usage.Answer, part: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for line in found.lines:
        at = {"time": usage.iso(line.at)} if found.query.step_s else {}
        names = zip(found.query.fields, line.names, strict=True)
        numbers = dict(zip(COLUMNS, line.numbers, strict=True))
        rows.append(at | dict(names) | numbers | {"part": part})
    return {
        "start": usage.iso(found.start),
        "end": usage.iso(found.end),
        "grain_s": found.query.grain_s,
        "part": part,
        "totals": dict(zip(COLUMNS, found.totals, strict=True)),
        "rows": rows,
    }


def _csv(found: usage.Answer, part: str) -> Response:
    name = f"sluice-usage-{usage.iso(found.start)[:10]}-{usage.iso(found.end)[:10]}.csv"
    return Response(
        usage.as_csv(found, PART_CODE if part else ""),
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )


def _fields(by: str) -> tuple[Name, ...]:
    asked = [one.strip() for one in by.split(",") if one.strip()]
    for one in asked:
        if one not in FIELDS:
            raise BadCall(f"`by` takes {', '.join(FIELDS)}; got {one!r}.", param="by")
    return tuple(name for name in FIELDS if name in asked)


def _moment(text: str, default: float, name: str) -> float:
    """UNIX seconds of ISO 8601 or of UNIX seconds; a time without a zone is UTC."""
    if not text:
        return default
    try:
        if re.fullmatch(r"\d{1,12}(\.\d*)?", text):
            moment = float(text)
        else:
            read = datetime.fromisoformat(text)
            moment = (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        moment = -1.0
    if not 0 <= moment <= LATEST:
        raise BadCall(
            f"`{name}` must be ISO 8601, as 2026-01-31T12:00:00Z, or UNIX seconds, from 1970 to "
            f"2999; got {text!r}.",
            param=name,
        )
    return moment
