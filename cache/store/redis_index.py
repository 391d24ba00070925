"""Where things lie in Redis, and the three changes that have to be made in one piece.

A family is the entries of one scope (cache/key.py). Its keys share a hash tag, so that a Redis
Cluster keeps them in one slot and a script may change them together:

    sluice:1:{family}:e:member   string   the whole key, then encode(recording); has a TTL
    sluice:1:{family}:i          hash     member → size and labels; "bytes", "age" (below)
    sluice:1:{family}:o          zset     member → priority, as in cache/store/memory.py

An entry that the index does not name is dead, whatever it holds. Everything follows from that one
rule: a purge walks an index instead of all entries, and what Redis may lose on its own (an index
evicted for room, a flush in the middle, half of a failover) loses entries and never makes one that
a purge cannot find. All keys have a TTL, so `maxmemory-policy volatile-*` may take any of them.

Eviction is that of cache/store/memory.py ("age" is its rising floor, "bytes" the sum of the sizes),
but for a hit, which adds its value to an entry's priority (up to MAX_USES above the floor) where
the original counts uses: this needs no count. The bound is per family: one scope may fill its own
room and nobody else's. What all scopes hold together is bounded by the server's `maxmemory`.

Price: entries that expired stay in the index until they sink. A script's text travels with every
call; a batch of writes is far larger, and nothing has to be loaded again after a restart.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from cache.key import FAMILY_BYTES
from cache.replay import Recording, decode, encode
from cache.store.base import Labels
from cache.store.memory import MAX_USES
from cache.store.redis_client import Command

PREFIX: Final = b"sluice:1:"
ROW_BYTES: Final = 400
"""What an entry occupies beside its data: three keys' worth of Redis objects. Measured with MEMORY
USAGE in tests/unit/cache/test_redis.py."""
INDICES: Final = PREFIX + b"{*}:i"

_PUT: Final = b"""
local index, order, prefix, member = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local ttl_ms, value, room = tonumber(ARGV[4]), tonumber(ARGV[6]), tonumber(ARGV[7])
local function size_of(row) return row and struct.unpack('>I4', row) or 0 end

local rows, places = redis.pcall('HLEN', index), redis.pcall('ZCARD', order)
if type(rows) ~= 'number' or type(places) ~= 'number' or rows ~= places + 2 then
  redis.call('DEL', index, order)
  redis.call('HSET', index, 'bytes', 0, 'age', 0)
end
redis.call('SET', prefix .. member, ARGV[3], 'PX', ttl_ms)
local old = redis.call('HGET', index, member)
local bytes = redis.call('HINCRBY', index, 'bytes', size_of(ARGV[5]) - size_of(old))
redis.call('HSET', index, member, ARGV[5])
redis.call('ZADD', order, redis.call('HGET', index, 'age') + value, member)
local life_ms = math.max(ttl_ms, redis.call('PTTL', index))
redis.call('PEXPIRE', index, life_ms)
redis.call('PEXPIRE', order, life_ms)

local evicted, age = 0, nil
while bytes > room do
  local popped = redis.call('ZPOPMIN', order)
  local victim = popped[1]
  if not victim then break end
  age = popped[2]
  bytes = redis.call('HINCRBY', index, 'bytes', -size_of(redis.call('HGET', index, victim)))
  redis.call('HDEL', index, victim)
  redis.call('DEL', prefix .. victim)
  evicted = evicted + 1
end
if age then redis.call('HSET', index, 'age', age) end
return evicted
"""

FORGET: Final = b"""
local index, order, prefix, forgotten = KEYS[1], KEYS[2], ARGV[1], 0
for i = 2, #ARGV do
  local row = redis.call('HGET', index, ARGV[i])
  redis.call('DEL', prefix .. ARGV[i])
  if row then
    redis.call('HDEL', index, ARGV[i])
    redis.call('ZREM', order, ARGV[i])
    redis.pcall('HINCRBY', index, 'bytes', -struct.unpack('>I4', row))
    forgotten = forgotten + 1
  end
end
if redis.call('ZCARD', order) == 0 then redis.call('DEL', index, order) end
return forgotten
"""
"""Also for the archive's families, whose index has no age. A full Redis refuses HINCRBY and lets
the rest through: the sum is then too high until the family is empty; the scope has less room."""

_TOUCH: Final = b"""
local index, order, member, value = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2])
local now, age = redis.call('ZSCORE', order, member), redis.call('HGET', index, 'age')
if not now or not age then return 0 end
local raised = math.min(now + value, age + ARGV[3] * value)
if raised > tonumber(now) then redis.call('ZADD', order, raised, member) end
return 1
"""


@dataclass(frozen=True, slots=True)
class Family:
    """The names of one family's keys. `tail` is what the keys of its entries end with."""

    prefix: bytes
    tail: bytes

    @classmethod
    def of(cls, key: bytes) -> Family:
        return cls.named(key[-FAMILY_BYTES:])

    @classmethod
    def named(cls, family: bytes) -> Family:
        return cls(b"%s{%s}:" % (PREFIX, family.hex().encode()), family)

    @classmethod
    def of_index(cls, index: bytes) -> Family | None:
        """The family whose index has this name; None for another's key."""
        with suppress(ValueError):
            family = bytes.fromhex(index[len(PREFIX) + 1 : -3].decode("ascii", "replace"))
            if cls.named(family).index == index:
                return cls.named(family)
        return None

    @property
    def index(self) -> bytes:
        return self.prefix + b"i"

    @property
    def order(self) -> bytes:
        return self.prefix + b"o"

    @property
    def entries(self) -> bytes:
        return self.prefix + b"e:"


def member_of(key: bytes) -> bytes:
    return key[:-FAMILY_BYTES]


# --------------------------------------------------------------------------- rows and payloads


class Row(msgspec.Struct, array_like=True, frozen=True):
    """The labels of an entry, as the index holds them behind its size."""

    scope: str
    model: str
    tags: tuple[str, ...]


_packer = msgspec.msgpack.Encoder()
_row_reader = msgspec.msgpack.Decoder(Row)


def pack_row(size: int, labels: Labels) -> bytes:
    return struct.pack(">I", size) + _packer.encode(Row(labels.scope, labels.model, labels.tags))


def read_row(raw: bytes) -> Row | None:
    """None for what is not a row ("bytes", "age", or rubbish)."""
    try:
        return _row_reader.decode(raw[4:])
    except msgspec.DecodeError:
        return None


def pack_entry(key: bytes, recording: Recording) -> bytes:
    return key + encode(recording)


def read_entry(key: bytes, raw: object) -> Recording | None:
    """None for what was not written under this very key: rubbish, or another entry's bytes."""
    if not isinstance(raw, bytes) or not raw.startswith(key):
        return None
    return decode(raw[len(key) :])


# --------------------------------------------------------------------------- commands


def look_up(key: bytes) -> tuple[Command, Command]:
    """The entry, and whether the index names it."""
    family, member = Family.of(key), member_of(key)
    return ("GET", family.entries + member), ("HGET", family.index, member)


def put(key: bytes, recording: Recording, entry: bytes, ttl_s: float, room: int) -> Command:
    """Replies with the number of entries that had to leave."""
    family, size = Family.of(key), len(entry) + ROW_BYTES
    value = max(1.0, recording.cost_tokens) / size
    row = pack_row(size, recording)
    ttl_ms = max(1, int(ttl_s * 1e3))
    names = (family.index, family.order, family.entries, member_of(key))
    return ("EVAL", _PUT, 2, *names, entry, ttl_ms, row, value, room)


def forget(family: Family, members: list[bytes]) -> Command:
    """Replies with the number of entries that the index named."""
    return ("EVAL", FORGET, 2, family.index, family.order, family.entries, *members)


def touch(key: bytes, recording: Recording) -> Command:
    size = len(recording.body) + ROW_BYTES
    value = max(1.0, recording.cost_tokens) / size
    family = Family.of(key)
    return ("EVAL", _TOUCH, 2, family.index, family.order, member_of(key), value, MAX_USES)
