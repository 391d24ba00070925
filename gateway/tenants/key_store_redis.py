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
from gateway.tenants.key_store import Changes, Found, KeyStoreFault

T = TypeVar("T")
PATIENCE_S = 1.0
CLUSTER = "+cluster"
_ROOT = "{sluice:keys}"
ALL, LOG, VERSION, USED = (f"{_ROOT}:{name}" for name in ("all", "log", "version", "used"))
# KEYS: all, log, version. ARGV: the id that must not have changed (or empty) and its version; then
# id and key, again and again.
_PUT = """
if ARGV[1] ~= '' and tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1])) ~= tonumber(ARGV[2]) then
  return 0
end
for i = 3, #ARGV, 2 do
  local version = redis.call('INCR', KEYS[3])
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('ZADD', KEYS[2], version, ARGV[i])
end
return 1
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

    def put(self, keys: Iterable[Key], unless_changed: Found | None = None) -> bool:
        held = (unless_changed.key.id, unless_changed.version) if unless_changed else ("", 0)
        pairs = [part for key in keys for part in (key.id, msgspec.json.encode(key))]
        return bool(self._ask(lambda: self._redis.eval(_PUT, 3, ALL, LOG, VERSION, *held, *pairs)))

    def find(self, key_id: str) -> Found | None:
        """The version is read first: of a change between the two, `put` says that there was one."""
        version = self._ask(lambda: self._redis.zscore(LOG, key_id))
        found = self._read([key_id])
        return Found(found[0], int(version)) if found and version is not None else None

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
