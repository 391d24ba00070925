"""Stored keys in a Redis that gateways share (tenants/key_store.py says what a store is).

    {sluice:keys}:all      hash   id → the key, as JSON
    {sluice:keys}:log      sorted set   id by the version of its last change
    {sluice:keys}:version  the last version
    {sluice:keys}:used     hash   id → when it was last used

A change is one script, so that a version is never seen before the key that it belongs to. The name
in braces puts all four on one node of a cluster. Run this Redis with persistence: what it forgets
are keys, and nobody but their holders can make them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from gateway.tenants.key import Key
from gateway.tenants.key_store import Changes, KeyStoreFault

T = TypeVar("T")
PATIENCE_S = 1.0
CLUSTER = "+cluster"
_ROOT = "{sluice:keys}"
ALL, LOG, VERSION, USED = (f"{_ROOT}:{name}" for name in ("all", "log", "version", "used"))
_PUT = """
for i = 1, #ARGV, 2 do
  local version = redis.call('INCR', KEYS[3])
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('ZADD', KEYS[2], version, ARGV[i])
end
"""


class RedisKeyStore:
    """Connects when it is first asked."""

    def __init__(self, url: str, patience_s: float = PATIENCE_S) -> None:
        kind: Any = RedisCluster if CLUSTER in url else Redis
        self._redis: Redis = kind.from_url(
            url.replace(CLUSTER, "", 1),
            protocol=2,
            socket_timeout=patience_s,
            socket_connect_timeout=patience_s,
            retry=Retry(NoBackoff(), 0),
        )

    def put(self, keys: Iterable[Key]) -> None:
        pairs = [part for key in keys for part in (key.id, msgspec.json.encode(key))]
        self._ask(lambda: self._redis.eval(_PUT, 3, ALL, LOG, VERSION, *pairs))

    def get(self, key_id: str) -> Key | None:
        found = self._read([key_id])
        return found[0] if found else None

    def all(self) -> list[Key]:
        ids = self._ask(lambda: self._redis.hkeys(ALL))
        return sorted(self._read(ids), key=lambda key: (key.created_at, key.id))

    def changes(self, since: int) -> Changes:
        newest = int(self._ask(lambda: self._redis.get(VERSION)) or 0)
        if newest == since:
            return Changes(since, [])
        if newest < since:
            return Changes(newest, self.all(), whole=True)
        ids = self._ask(lambda: self._redis.zrangebyscore(LOG, f"({since}", newest))
        return Changes(newest, self._read(ids))

    def note_used(self, when: Mapping[str, float]) -> None:
        times: dict[Any, Any] = dict(when)
        if times:
            self._ask(lambda: self._redis.hset(USED, mapping=times))

    def close(self) -> None:
        self._redis.close()

    def _read(self, ids: list[Any]) -> list[Key]:
        if not ids:
            return []
        texts = self._ask(lambda: self._redis.hmget(ALL, ids))
        used = self._ask(lambda: self._redis.hmget(USED, ids))
        keys = []
        for text, at in zip(texts, used, strict=True):
            if text is not None:
                key = msgspec.json.decode(text, type=Key)
                keys.append(msgspec.structs.replace(key, used_at=float(at) if at else None))
        return keys

    def _ask(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except (RedisError, OSError) as error:
            raise KeyStoreFault(
                f"The key store in Redis cannot be asked ({error or type(error).__name__}). Start "
                "Redis, or name another store under `store` in [keys]."
            ) from error
