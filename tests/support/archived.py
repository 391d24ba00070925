"""What an archive of the semantic cache is given in tests."""

from __future__ import annotations

import numpy as np

from cache.archive import Archive, Kept, Lesson, Summary
from cache.key import family_of
from cache.replay import encode
from cache.verify import SIGNS
from tests.support.recordings import recording_of

SCOPE = "tenant:default"
TOLD = Kept | Summary | Lesson


def namespace(number: int, scope: str = SCOPE) -> bytes:
    return number.to_bytes(8, "big") * 3 + family_of(scope)


def kept(
    key: int,
    *,
    space: int = 1,
    scope: str = SCOPE,
    group: int | None = None,
    model: str = "small",
    answered_by: str = "demo",
    owner: str = "default",
    tags: tuple[str, ...] = (),
    expires_at: float = 1e12,
    words: str = "in the app",
) -> Kept:
    """Question number `key`."""
    return Kept(
        namespace=namespace(space, scope),
        scope=scope,
        model=model,
        answered_by=answered_by,
        key=key,
        group=key if group is None else group,
        question=f"question {key}",
        owner=owner,
        answer=f"answer-{scope}-{key}",
        tags=tags,
        expires_at=expires_at,
        cost_tokens=7.0,
        vector=np.full(8, key % 128, np.int8).tobytes(),
        recording=encode(recording_of(words, scope=scope, tags=tags, model=answered_by)),
    )


def lesson(
    number: int, *, teller: str = "me", space: int = 1, at: float = 1000.0, right: bool = True
) -> Lesson:
    return Lesson(
        namespace=namespace(space),
        teller=teller,
        number=number,
        at=at,
        key=1,
        group=1,
        similarity=0.9,
        guarded=False,
        signs=np.zeros(len(SIGNS), np.float32).tobytes(),
        p_right=0.8,
        chance=1.0,
        right=right,
        source="equal",
        asked=np.zeros(2, np.float32).tobytes(),
        served=1,
        expected=0.1,
        scope=SCOPE,
    )


def summary(*, space: int = 1, at: float = 1000.0, **heard: int) -> Summary:
    return Summary(namespace(space), SCOPE, "small", at, heard, b"all of it")


async def loaded(archive: Archive) -> list[TOLD]:
    return [told async for told in archive.load()]


async def keys_of(archive: Archive, scope: str | None = None) -> list[int]:
    told = await loaded(archive)
    return [one.key for one in told if isinstance(one, Kept) and scope in (None, one.scope)]
