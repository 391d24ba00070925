"""Budgets, rates and slots in a Redis that gateways share (tenants/lease_store.py says how they are
counted, tenants/shared_slots.py what slots are).

One hash an account, `sluice:budget:<account>`: `used`, and for each lease what it holds, its last
turn and what that turn was granted. One hash a tenant, `sluice:slots:<tenant>`: for each gateway
how many it holds and until when. One script a move: it happens whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from gateway.tenants.lease_store import (
    LEFT_FOR_OTHERS,
    Account,
    LeaseStoreFault,
    Move,
    Moved,
)
from gateway.tenants.shared_slots import SLOT_TTL_S

PATIENCE_S = 0.5
CLUSTER = "+cluster"
PREFIX = "sluice:budget:"
# KEYS: account. ARGV: lease, turn, give, least, most, beyond, limit, expires at.
_MOVE = f"""
local function number(field) return tonumber(redis.call('HGET', KEYS[1], field) or 0) end
local lease, turn = ARGV[1], tonumber(ARGV[2])
local give, least, most = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local used = number('used')
if number(lease .. ':turn') == turn then
  return {{ string.format('%.0f', number(lease .. ':granted')), string.format('%.0f', used) }}
end
local amount = number(lease .. ':amount')
local back = math.min(give, amount)
local free = tonumber(ARGV[7]) - used + back
local granted = 0
if ARGV[6] == '1' then
  granted = most
elseif free >= least and free > 0 then
  granted = math.min(most, free, least + math.floor((free - least) / {LEFT_FOR_OTHERS}))
end
used = used + granted - back
redis.call('HSET', KEYS[1],
  'used', string.format('%.0f', used),
  lease .. ':amount', string.format('%.0f', amount - back + granted),
  lease .. ':turn', turn,
  lease .. ':granted', string.format('%.0f', granted))
redis.call('EXPIREAT', KEYS[1], ARGV[8])
return {{ string.format('%.0f', granted), string.format('%.0f', used) }}
"""

SLOTS = "sluice:slots:"
# KEYS: slots. ARGV: holder, least, wanted, limit, time to live in ms.
_HOLD = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local others, flat = 0, redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do
  local count, ends = string.match(flat[i + 1], '(%d+) (%d+)')
  if tonumber(ends) <= now then
    redis.call('HDEL', KEYS[1], flat[i])
  elseif flat[i] ~= ARGV[1] then
    others = others + tonumber(count)
  end
end
local held = math.min(tonumber(ARGV[3]), tonumber(ARGV[4]) - others)
held = math.max(held, tonumber(ARGV[2]))
if held > 0 then
  local ends = now + tonumber(ARGV[5])
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%d %.0f', held, ends))
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return held
"""


class RedisLeaseStore:
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

    def move(self, account: Account, move: Move) -> Moved:
        granted, used = self._ask(
            lambda: self._redis.eval(
                _MOVE,
                1,
                PREFIX + account.name,
                move.lease,
                move.turn,
                move.give,
                move.least,
                move.most,
                int(move.beyond),
                account.limit,
                int(account.ends_at + account.kept_s),
            )
        )
        return Moved(int(granted), int(used))

    def used(self, account: Account) -> int:
        return int(self._ask(lambda: self._redis.hget(PREFIX + account.name, "used")) or 0)

    def hold(self, name: str, holder: str, *, least: int, wanted: int, limit: int) -> int:
        """As SlotStore says."""
        ttl_ms = int(SLOT_TTL_S * 1000)
        key = SLOTS + name
        asked = (holder, least, wanted, limit, ttl_ms)
        return int(self._ask(lambda: self._redis.eval(_HOLD, 1, key, *asked)))

    def close(self) -> None:
        self._redis.close()

    def _ask(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except (RedisError, OSError) as error:
            raise LeaseStoreFault(
                f"The budgets' Redis cannot be asked ({error or type(error).__name__}). Start it, "
                "or name another store under `store` in [limits]."
            ) from error
