"""All that needs an embedder, imported and built only where its packages are installed.

The embedder is there for the semantic cache, the cascade and /v1/embeddings alike, also where the
semantic cache is switched off; then it is loaded when it is first asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.registry import Collector

from cascade.cascade import Embed
from engine.contract import Answerer
from gateway.api.embeddings import Vectors
from gateway.api.feedback import Learner
from gateway.observe.logs import Log
from gateway.parts.judge import ModelJudge
from gateway.settings import Settings
from gateway.tenants.roster import Roster
from gateway.verify.caches import semantic_lacks

if TYPE_CHECKING:
    from gateway.parts.embedding import Embedding
    from gateway.parts.semantic import SemanticLayer


@dataclass(slots=True)
class Meaning:
    """Owned by gateway/assemble.py. `embedding` is None where its packages are missing, `semantic`
    where the semantic cache is off."""

    settings: Settings
    roster: Roster
    embedding: Embedding | None
    log: Log
    judge: ModelJudge | None = None
    """Set before `around`, where there is one."""
    semantic: SemanticLayer | None = None

    def around(self, inner: Answerer) -> Answerer:
        """The semantic layer around what computes; called once."""
        if self.settings.semantic.enabled is False or self.embedding is None:
            return inner
        from gateway.parts.semantic import build_semantic  # noqa: PLC0415  optional packages

        self.semantic = build_semantic(
            self.settings.semantic, self.roster, self.embedding, inner, self.log, self.judge
        )
        return self.semantic.answerer

    def vectors(self) -> Vectors | None:
        """For /v1/embeddings."""
        if self.embedding is None:
            return None
        from gateway.parts.embedding import OwnVectors  # noqa: PLC0415  optional packages

        return OwnVectors(self.embedding)

    def embed(self) -> Embed | None:
        """For the cascade: a call's vector, or None where it has none (yet)."""
        if self.embedding is None:
            return None
        from gateway.parts.embedding import call_vectors  # noqa: PLC0415  optional packages

        return call_vectors(self.embedding)

    def embedder(self) -> str:
        """The fingerprint of what makes vectors; empty where it was never made."""
        if self.embedding is None:
            return ""
        from gateway.parts.embedding import fingerprint_of  # noqa: PLC0415  optional packages

        return fingerprint_of(self.settings.semantic)

    def learners(self) -> dict[str, Learner]:
        """For /v1/feedback."""
        return {} if self.semantic is None else {"semantic": self.semantic.feedback}

    def metrics(self) -> list[Collector]:
        if self.semantic is None:
            return []
        from gateway.observe.semantic_metrics import SemanticNow  # noqa: PLC0415  its packages

        return [SemanticNow(self.semantic.state)]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """What was built is loaded in the background, nobody waits for it; it is let go of after
        the last answer."""
        if self.semantic is not None:
            self.semantic.begin()
        try:
            yield
        finally:
            if self.semantic is not None:
                await self.semantic.stop()
            if self.embedding is not None:
                await self.embedding.stop()


def build_meaning(
    settings: Settings, roster: Roster, log: Log, embedding: Embedding | None = None
) -> Meaning:
    """What is missing is said once. `embedding`: one that is there."""
    lacking = semantic_lacks(settings) if embedding is None else []
    if lacking and settings.semantic.enabled is not False:
        log.info(
            "semantic cache off",
            missing=", ".join(lacking),
            remedy="pip install 'sluice-gateway[semantic]', or enabled = false to say so",
        )
    if embedding is None and not lacking:
        from gateway.parts.embedding import build_embedding  # noqa: PLC0415  optional packages

        embedding = build_embedding(settings.semantic, log)
    return Meaning(settings, roster, embedding, log)
