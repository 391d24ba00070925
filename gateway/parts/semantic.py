"""[cache.semantic] → the layer that answers by meaning, its terms for each tenant, and its life."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cache.agree import Judge
from cache.archive import Archive
from cache.archive_sqlite import SqliteArchive
from cache.entry import SpaceState
from cache.keeper import Keeper
from cache.namespace import Terms, volatile_pattern
from cache.quota import Bounds
from cache.semantic import Semantic, budgeted
from cache.store.base import StoreFault
from cache.verify import Policy
from cache.verify_others import Static, VCache
from engine.contract import Answerer, Call, Trail
from gateway.api.admin_caches import Mark
from gateway.api.feedback import Hearing, Remark
from gateway.observe.logs import Log
from gateway.parts.embedding import Embedding
from gateway.settings import SemanticCache, Tenant
from gateway.tenants.roster import Roster


class SemanticLayer:
    """The layer, and what the lifespan does for it."""

    def __init__(
        self, answerer: Semantic, terms: SemanticTerms, embedding: Embedding, log: Log
    ) -> None:
        self.answerer = answerer
        self._terms = terms
        self._embedding = embedding
        self._log = log
        self._waking: asyncio.Task[None] | None = None
        self._one_thread: threadpool_limits | None = None

    def begin(self) -> None:
        """Wake in the background; until then the layer says "bypass" and why.

        numpy's products are held to one thread: fitting a namespace's odds takes 3 ms so, and 100
        times as long where OpenBLAS waits for a second core that is busy with something else."""
        self._one_thread = threadpool_limits(1, user_api="blas")
        self._waking = asyncio.create_task(self._wake(), name="wake-semantic-cache")

    async def restored(self) -> None:
        """Wait until it is awake, or cannot be woken."""
        if self._waking is not None:
            await asyncio.wait((self._waking,))

    async def _wake(self) -> None:
        embedder = await self._embedding.ready()
        if not embedder.ready:
            return
        try:
            questions = await self.answerer.restore(self._terms.of_scope)
        except StoreFault as error:
            self._log.warning("semantic cache off", why=str(error))
            return
        self._log.info("semantic cache ready", questions=questions)

    async def feedback(self, remark: Remark) -> Hearing:
        """A learner of /v1/feedback: about what was given lately, hits and first answers alike."""
        return await self.answerer.feedback(
            remark.answer_id,
            remark.score,
            tenant=remark.tenant,
            scope=remark.scope,
            correct=remark.correct_answer or None,
        )

    @property
    def problem(self) -> str:
        return self.answerer.problem

    def state(self) -> list[SpaceState]:
        return self.answerer.state()

    async def erase(self, mark: Mark, answer: str | None) -> int:
        """For /admin/caches. Raises StoreFault."""
        return await self.answerer.purge(
            scope=mark.scope, model=mark.model, tag=mark.tag, owner=mark.owner, answer=answer
        )

    async def stop(self) -> None:
        """After the last answer: what it taught is learnt, then the embedder may go."""
        if self._waking is not None and not self._waking.done():
            self._waking.cancel()
            with suppress(asyncio.CancelledError):
                await self._waking
        await self.answerer.close()
        if self._one_thread is not None:
            self._one_thread.restore_original_limits()


class SemanticTerms:
    """Each tenant's terms, made once for each version of the roster.

    Tenants that share a scope share its namespaces, and with them one promise: the strictest."""

    def __init__(self, settings: SemanticCache, roster: Roster) -> None:
        self._settings = settings
        self._roster = roster
        self._volatile = volatile_pattern(settings.volatile)
        self._made: dict[str, Terms] = {}
        self._made_for = roster.in_force

    def __call__(self, _: Call, trail: Trail) -> Terms:
        if self._made_for is not self._roster.in_force:
            self._made, self._made_for = {}, self._roster.in_force
        known = self._made.get(trail.tenant)
        if known is None:
            known = self._made[trail.tenant] = self._shared(self._roster[trail.tenant])
        return known

    def _shared(self, tenant: Tenant) -> Terms:
        own = self._terms(tenant)
        if own.max_error <= 0 or tenant.cache_scope in {"tenant", "user"}:
            return own
        return replace(own, max_error=self.of_scope(tenant.cache_scope).max_error)

    def of_scope(self, scope: str) -> Terms:
        """The terms of those who share `scope`: the strictest that are not off."""
        kind, _, rest = scope.partition(":")
        name = rest.partition("/")[0] if kind in {"tenant", "user"} else None
        sharing = [
            self._terms(tenant)
            for tenant in self._roster
            if tenant.name == name or tenant.cache_scope == scope
        ]
        on = [terms for terms in sharing if terms.max_error > 0]
        return min(on, key=lambda terms: terms.max_error, default=Terms())

    def _terms(self, tenant: Tenant) -> Terms:
        common, own = self._settings, tenant.semantic_max_error
        return Terms(
            max_error=common.max_error if own is None else own,
            ttl_s=common.ttl_s if tenant.cache_ttl_s is None else tenant.cache_ttl_s,
            allow_sampling=common.allow_sampling,
            allow_turns=common.allow_turns,
            volatile=self._volatile,
        )


def owner_of(_: Call, trail: Trail) -> str:
    """The end user where the request names one, else the tenant; no name of a tenant has a
    slash."""
    return f"{trail.tenant}/{trail.user}" if trail.user else trail.tenant


def policy_of(settings: SemanticCache) -> Callable[[Terms, Sequence[Policy]], Policy]:
    """What decides in a new namespace."""

    def bounded(terms: Terms, siblings: Sequence[Policy]) -> Policy:
        return budgeted(terms, siblings, min_evidence=settings.min_evidence)

    def vcache(terms: Terms, _: Sequence[Policy]) -> Policy:
        return VCache(terms.max_error, random.Random())

    def static(_: Terms, __: Sequence[Policy]) -> Policy:
        return Static(settings.threshold, guards=True)

    return {"bounded": bounded, "vcache": vcache, "static": static}[settings.policy]


def build_keeper(settings: SemanticCache, log: Log) -> Keeper | None:
    """What keeps it all across restarts, and for all gateways; None where nothing does."""
    if settings.store == "memory://":
        return None
    archive = _archive(settings, log)
    return Keeper(
        archive, lambda what, error: log.warning("archive fault", doing=what, why=str(error))
    )


def _archive(settings: SemanticCache, log: Log) -> Archive:
    if settings.store.startswith("sqlite:///"):
        path = Path(settings.store.removeprefix("sqlite:///"))
        bounds = (settings.scope_bytes, settings.max_namespaces, settings.max_bytes)
        return SqliteArchive(path, *bounds, on_event=log.warning)
    # The client library is an optional dependency.
    from cache.archive_redis import RedisArchive  # noqa: PLC0415
    from cache.store.redis_line import RedisLine  # noqa: PLC0415

    line = RedisLine(settings.store, on_event=log.warning)
    return RedisArchive(line, settings.scope_bytes, settings.max_namespaces)


def build_semantic(  # noqa: PLR0917
    settings: SemanticCache,
    roster: Roster,
    embedding: Embedding,
    inner: Answerer,
    log: Log,
    judge: Judge | None = None,
) -> SemanticLayer:
    """The layer around what computes."""
    terms = SemanticTerms(settings, roster)
    layer = Semantic(
        inner,
        embedding.embedder,
        terms_of=terms,
        owner_of=owner_of,
        policy_of=policy_of(settings),
        judge=judge,
        keeper=build_keeper(settings, log),
        bounds=Bounds(settings.max_entries, settings.max_per_user, settings.max_namespaces),
        max_spaces=settings.total_namespaces,
        memory_bytes=settings.memory_bytes,
    )
    return SemanticLayer(layer, terms, embedding, log)
