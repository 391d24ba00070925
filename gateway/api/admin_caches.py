"""/admin/caches: what is stored and what the semantic promise rests on; and how to erase it.

Nothing here shows a question or an answer. An erasure reaches both caches, memory and store, and,
where no layer is named, what the cascade keeps to learn from; where gateways share a store all of
them; what is being answered at that moment may be stored after
it. Answers are found by the labels that they were stored with (gateway/wire/headers.py): whoever
asked first in a scope of several tenants or users is who the stored answer belongs to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from cache.entry import SpaceState
from cache.store.base import Store, StoreFault, Which
from engine.contract import BadCall, Overloaded
from gateway.api.admin_gate import AdminGate
from gateway.api.feedback import own_id
from gateway.wire.headers import tenant_tag, user_tag

T = TypeVar("T")
Layer = Literal["exact", "semantic"]


@dataclass(frozen=True, slots=True)
class Mark:
    """What to erase: whatever matches all that is named."""

    scope: str | None = None
    model: str | None = None
    tag: str | None = None
    owner: str | None = None
    """Who asked a question, where it has another label than its answer (semantic)."""


class ByMeaning(Protocol):
    """The semantic cache, as it is looked at from here."""

    @property
    def problem(self) -> str:
        """Why it gives nothing now; empty where it does."""

    def state(self) -> list[SpaceState]: ...

    async def erase(self, mark: Mark, answer: str | None) -> int:
        """Raises StoreFault."""


class Erase(BaseModel):
    """What is named must all match. Name at least one, or say `everything`."""

    model_config = ConfigDict(extra="forbid")
    tenant: str | None = Field(None, description="all that this tenant's requests stored")
    user: str | None = Field(None, description="of them, one end user's (the request's `user`)")
    scope: str | None = Field(None, description="instead of a tenant, as /admin/caches shows it")
    model: str | None = Field(None, description="the model that answered")
    tag: str | None = Field(None, description="one of Sluice-Tags")
    answer: str | None = Field(None, description="id of one answer; semantic cache alone")
    layer: Layer | None = Field(None, description="unset: both, and the cascade's labels")
    everything: bool = False


class Erased(BaseModel):
    """How many entries went, by layer, and how many rows of the cascade's labels here."""

    exact: int
    semantic: int
    labels: int


Unlearn = Callable[[Which], Awaitable[int]]
"""Erases what the cascade learns from. Raises StoreFault."""


def router(store: Store, meaning: ByMeaning | None, unlearn: Unlearn, gate: AdminGate) -> APIRouter:
    """`meaning` is None where there is no semantic cache."""
    routes = APIRouter(prefix="/admin", tags=["admin"])
    admin = Depends(gate)

    @routes.get("/caches", summary="What is stored, and what the semantic promise rests on")
    async def look(
        limit: Annotated[int, Query(ge=0, le=10_000)] = 100,
        scope: str | None = None,
        _: str = admin,
    ) -> dict[str, Any]:
        exact = asdict(await _told(store.stats()))
        return {"exact": exact, "semantic": _semantic(meaning, scope, limit)}

    @routes.post("/caches/erase", summary="Forget stored answers")
    async def erase(asked: Erase, who: str = admin) -> Erased:
        marks = list(_marks(asked))
        answer = None if asked.answer is None else own_id(asked.answer)
        exact = semantic = labels = 0
        for mark in marks:
            if asked.layer != "semantic" and asked.answer is None and mark.owner is None:
                learnt = asked.layer is None
                which = Which(scope=mark.scope, model=mark.model, tag=mark.tag, learnt=learnt)
                exact += await _told(store.purge(which))
                labels += await _told(unlearn(which))
            if asked.layer != "exact" and meaning is not None:
                semantic += await _told(meaning.erase(mark, answer))
        named = {name: value for name, value in asked.model_dump().items() if value}
        gate.audit(who, "caches.erase", **named, exact=exact, semantic=semantic, labels=labels)
        return Erased(exact=exact, semantic=semantic, labels=labels)

    return routes


async def _told(asked: Awaitable[T]) -> T:
    try:
        return await asked
    except StoreFault as fault:
        raise Overloaded(
            f"The cache's store could not be told: {str(fault).rstrip('.')}. "
            "What was stored may still be there; send the request again.",
            code="store_away",
            retry_after_s=1.0,
        ) from None


def _marks(asked: Erase) -> Iterator[Mark]:
    """What is asked, in labels: one tenant's answers carry their scope or its name."""
    _check(asked)
    model, tenant = asked.model, asked.tenant
    if tenant is None:
        yield Mark(asked.scope, model, asked.tag)
    elif asked.user is not None:
        yield Mark(asked.scope, model, user_tag(tenant, asked.user))
        yield Mark(asked.scope, model, owner=f"{tenant}/{asked.user}")
    else:
        yield Mark(f"tenant:{tenant}", model, asked.tag)
        yield Mark(None, model, tenant_tag(tenant, asked.tag or ""))


def _check(asked: Erase) -> None:
    """Raises BadCall for what would erase more than somebody meant."""
    named = asked.model_dump(exclude={"layer", "everything"}, exclude_none=True)
    if bool(named) == asked.everything:
        raise _bad("name what to erase, or say everything = true, and not both", "everything")
    if any(value == "" for value in named.values()):
        raise _bad("a name must not be empty", next(n for n, v in named.items() if v == ""))
    if asked.user is not None and asked.tenant is None:
        raise _bad("an end user is one of a tenant: name `tenant`, too", "user")
    if asked.user is not None and asked.tag is not None:
        raise _bad("name a user or a tag", "tag")
    if asked.scope is not None and asked.tenant is not None:
        raise _bad("name a tenant or a scope", "scope")


def _bad(what: str, param: str) -> BadCall:
    return BadCall(f"{what}.".capitalize(), param=param, code="invalid_value")


def _semantic(meaning: ByMeaning | None, scope: str | None, limit: int) -> dict[str, Any] | None:
    if meaning is None:
        return None
    spaces = [one for one in meaning.state() if scope in {None, one.scope}]
    return {
        "problem": meaning.problem,
        "namespaces": len(spaces),
        "questions": sum(one.entries for one in spaces),
        "answers": sum(one.answers for one in spaces),
        "held_bytes": sum(one.held_bytes for one in spaces),
        "by_namespace": [_space(one) for one in spaces[:limit]],
    }


def _space(state: SpaceState) -> dict[str, Any]:
    """`promise` says how much of `max_error` is spent, on what evidence, and why nothing is given
    where nothing is."""
    told = asdict(state)
    promise = state.promise
    if promise is not None:
        allowed = promise.allowed_wrong
        told["promise"]["spent"] = promise.expected_wrong / allowed if allowed else 0.0
    return told
