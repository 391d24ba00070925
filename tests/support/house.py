"""The semantic layer with a fake model behind it and an encoder without a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cache.archive import MemoryArchive
from cache.embed import Embedder
from cache.keeper import Keeper
from cache.memory import MEMORY_BYTES
from cache.namespace import Terms
from cache.quota import Bounds
from cache.semantic import Semantic
from cache.verify import Policy
from cache.verify_others import Static
from engine.contract import Answer, Call, Failed, Trail
from tests.support.encoders import BagEncoder
from tests.support.recordings import FakeClock, answer_of, call_of, hear, said

FIRST = "please tell me how to pay my phone bill"
AGAIN = "please tell me how to pay my phone bill quickly"


@dataclass
class Model:
    """Answers a question with what `knows` has for it, else with the question's last word."""

    knows: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    broken: bool = False

    async def __call__(self, call: Call, trail: Trail) -> Answer:
        question = call.messages[-1].text
        self.asked.append(question)
        events = answer_of(self.knows.get(question, f"about {question.split()[-1]}"))
        for event in events[:-1] if self.broken else events:
            yield event
        if self.broken:
            raise Failed("the model broke")


@dataclass
class House:
    model: Model = field(default_factory=Model)
    clock: FakeClock = field(default_factory=FakeClock)
    encoder: BagEncoder = field(default_factory=BagEncoder)
    terms: Terms = field(default_factory=lambda: Terms(max_error=0.05, ttl_s=1000))
    policy: Policy = field(default_factory=lambda: Static(0.8, guards=True))
    bounds: Bounds = field(default_factory=Bounds)
    memory_bytes: int = MEMORY_BYTES
    archive: Any = field(default_factory=MemoryArchive)
    faults: list[str] = field(default_factory=list)
    asked: int = 0
    owner: str | None = None
    name: str = ""
    """What its answers' ids begin with."""

    def __post_init__(self) -> None:
        self._restored = False
        self.embedder = Embedder(self.encoder)
        self.semantic = Semantic(
            self.model,
            self.embedder,
            terms_of=lambda _call, _trail: self.terms,
            owner_of=lambda _call, trail: self.owner or trail.tenant,
            policy_of=lambda _terms, _siblings: self.policy,
            keeper=Keeper(self.archive, lambda what, error: self.faults.append(f"{what}: {error}")),
            bounds=self.bounds,
            memory_bytes=self.memory_bytes,
            clock=self.clock,
        )

    async def restore(self) -> int:
        self._restored = True
        return await self.semantic.restore(lambda _scope: self.terms)

    async def ask(self, call: Call | str, **trail: object) -> tuple[str, Trail]:
        """What was said, and the trail, once everything is learnt."""
        if not self._restored:
            await self.restore()
        return await self.ask_unprepared(call, **trail)

    async def tell(
        self, trail: Trail, score: float = 0, *, correct: str | None = None, **who: str
    ) -> str:
        """Feedback about an answer, by whoever it was given to, or `tenant` and `scope`."""
        speaker = {"tenant": trail.tenant, "scope": "tenant:default", **who}
        return await self.semantic.feedback(trail.id, score, correct=correct, **speaker)

    async def ask_unprepared(self, call: Call | str, **trail: object) -> tuple[str, Trail]:
        """Whatever has become of what was kept."""
        self.asked += 1
        kept = Trail(id=f"{self.name}r{self.asked}", **trail)  # type: ignore[arg-type]
        events = await hear(self.semantic(call_of(call) if isinstance(call, str) else call, kept))
        await self.semantic.settle()
        return said(events), kept
