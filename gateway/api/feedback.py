"""POST /v1/feedback: what somebody says of an answer, told to everyone who can learn from it.

The semantic cache learns whether a near answer was good enough, the cascade whether the small model
was. Each remembers its last answers in memory, by tenant and scope: nobody grades an answer that is
not theirs, and nobody learns whether it exists. Where a tenant keeps its end users apart, whoever
speaks of an answer names the `user` that it was given to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from fastapi import APIRouter, Request

from engine.contract import BadCall
from gateway.api.desk import Desk, body_of
from gateway.catalog import scope_of
from gateway.errors import NoSuchPath
from gateway.settings import Tenant
from gateway.wire.parse import Decoder

PATH = "/v1/feedback"
PREFIXES = ("chatcmpl-", "cmpl-")
"""What the wire puts before an id."""


class FeedbackRequest(msgspec.Struct):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    """Of the answer, as it stands in it."""
    score: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    """0 is wrong, 1 is right; needed where there is no correct answer."""
    correct_answer: Annotated[str, msgspec.Meta(max_length=100_000)] = ""
    """What would have been right; it is compared with what was given, whatever the score."""
    user: str | None = None
    """As in the request that was answered; needed where cache_scope = user."""


@dataclass(frozen=True, slots=True)
class Remark:
    """`answer_id` without what the wire puts before it; `scope`: whose answers the speaker shares;
    `correct_answer` may be empty."""

    answer_id: str
    tenant: str
    scope: str
    score: float
    correct_answer: str = ""


Hearing: TypeAlias = Literal["taught", "unchanged", "unknown"]
"""`unchanged`: there was nothing to be learnt any more. `unknown`: no such answer is remembered, of
this tenant and scope."""
Learner: TypeAlias = Callable[[Remark], Awaitable[Hearing]]


def router(desk: Desk, learners: Mapping[str, Learner]) -> APIRouter:
    routes = APIRouter(tags=["answers"])
    decoder = Decoder(FeedbackRequest)

    @routes.post(PATH, summary="Say how good an answer was", openapi_extra=body_of(FeedbackRequest))
    async def take_feedback(request: Request) -> dict[str, Any]:
        async with desk.admitted(request) as tenant:
            said = await desk.read(request, decoder)
            remark = _remark(said, tenant)
            heard = {name: await learn(remark) for name, learn in learners.items()}
        if all(hearing == "unknown" for hearing in heard.values()):
            raise NoSuchPath(
                f"Nothing can be learnt about answer {said.id!r}: it is not known here, or not any "
                "more. Feedback is for semantic hits and for answers of `auto` where shadow_share "
                "is set, soon after they were given and to the gateway that gave them, and where "
                "cache_scope is user it names the `user` that the answer was given to.",
                param="id",
                code="no_such_answer",
            )
        return {
            "object": "feedback",
            "id": said.id,
            "taught": [name for name, hearing in heard.items() if hearing == "taught"],
            "unchanged": [name for name, hearing in heard.items() if hearing == "unchanged"],
        }

    return routes


def _remark(said: FeedbackRequest, tenant: Tenant) -> Remark:
    if said.score is None and not said.correct_answer:
        raise BadCall(
            "score: say how good the answer was, from 0 (wrong) to 1 (right), or give the "
            "`correct_answer`.",
            param="score",
        )
    answer_id = own_id(said.id)
    scope = scope_of(tenant, said.user, answer_id)
    return Remark(answer_id, tenant.name, scope, said.score or 0.0, said.correct_answer)


def own_id(answer_id: str) -> str:
    """An answer's id without what the wire puts before it."""
    for prefix in PREFIXES:
        answer_id = answer_id.removeprefix(prefix)
    return answer_id
