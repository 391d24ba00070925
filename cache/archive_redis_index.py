"""Where the semantic cache's archive lies in Redis, and the changes that are made in one piece.

What belongs to one scope shares a hash tag (its family, cache/key.py), so that a Redis Cluster
keeps it in one slot and a script may change it together. `space` is a namespace without its family:

    sluice:1:s:{family}:e:space+key   string   the whole name, then the question; has a TTL
    sluice:1:s:{family}:i             hash     space+key → size and labels; "bytes" their sum
    sluice:1:s:{family}:o             zset     space+key → when it was asked
    sluice:1:s:{family}:n             zset     space → when it last learnt
    sluice:1:s:{family}:k:space       string   its summary
    sluice:1:s:{family}:l:space       zset     its lessons since, by time

As in cache/store/redis_index.py, a question that the index does not name is dead, so what Redis may
lose on its own never makes one that an erasure cannot find; all keys have a TTL.

A scope has `room` bytes of questions and loses its oldest beyond them, and learns in so many
namespaces; of each the lessons without a summary are as many as a policy uses.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from cache.archive import KEPT_TAIL, LIFE_S, Kept, Lesson, Summary
from cache.entry import Labels
from cache.key import FAMILY_BYTES
from cache.store.redis_client import Command
from cache.store.redis_index import FORGET

PREFIX: Final = b"sluice:1:s:"
INDICES: Final = PREFIX + b"{*}:i"
SPACES: Final = PREFIX + b"{*}:n"
ROW_BYTES: Final = 500
"""What a question occupies beside its data: its name three times, its labels, Redis objects."""
_LIFE_MS: Final = int(LIFE_S * 1e3)
_KEY_BITS: Final = 20
"""Below them a key is its time in milliseconds: cache/space.py."""

_KEEP: Final = b"""
local index, order, prefix, member = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local ttl_ms, room = tonumber(ARGV[4]), tonumber(ARGV[7])
local function size_of(row) return row and struct.unpack('>I4', row) or 0 end

local rows, places = redis.pcall('HLEN', index), redis.pcall('ZCARD', order)
if type(rows) ~= 'number' or type(places) ~= 'number' or rows ~= places + 1 then
  redis.call('DEL', index, order)
  redis.call('HSET', index, 'bytes', 0)
end
redis.call('SET', prefix .. member, ARGV[3], 'PX', ttl_ms)
local old = redis.call('HGET', index, member)
local bytes = redis.call('HINCRBY', index, 'bytes', size_of(ARGV[5]) - size_of(old))
redis.call('HSET', index, member, ARGV[5])
redis.call('ZADD', order, ARGV[6], member)
local life_ms = math.max(ttl_ms, redis.call('PTTL', index))
redis.call('PEXPIRE', index, life_ms)
redis.call('PEXPIRE', order, life_ms)

local expired = 0
while true do
  local oldest = redis.call('ZRANGE', order, 0, 0)[1]
  if not oldest then break end
  if bytes <= room then
    if expired == 2 or redis.call('EXISTS', prefix .. oldest) == 1 then break end
    expired = expired + 1
  end
  bytes = redis.call('HINCRBY', index, 'bytes', -size_of(redis.call('HGET', index, oldest)))
  redis.call('HDEL', index, oldest)
  redis.call('ZREM', order, oldest)
  redis.call('DEL', prefix .. oldest)
end
return bytes
"""

_BOOK: Final = b"""
redis.call('ZADD', KEYS[2], at_ms, ARGV[2])
redis.call('PEXPIRE', KEYS[2], life_ms)
while redis.call('ZCARD', KEYS[2]) > tonumber(ARGV[5]) do
  local oldest = redis.call('ZPOPMIN', KEYS[2])[1]
  redis.call('DEL', ARGV[1] .. 'k:' .. oldest, ARGV[1] .. 'l:' .. oldest)
end
return 1
"""

_TEACH: Final = (
    b"""
local at_ms, life_ms = ARGV[3], ARGV[4]
redis.call('ZADD', KEYS[1], at_ms, ARGV[6])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -tonumber(ARGV[7]) - 1)
redis.call('PEXPIRE', KEYS[1], life_ms)
"""
    + _BOOK
)

_SUM_UP: Final = (
    b"""
local at_ms, life_ms, heard = ARGV[3], ARGV[4], {}
redis.call('SET', KEYS[3], ARGV[6], 'PX', life_ms)
for i = 7, #ARGV, 2 do heard[ARGV[i]] = tonumber(ARGV[i + 1]) end
for _, lesson in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local size = string.byte(lesson, 1)
  local upto = heard[string.sub(lesson, 2, size + 1)]
  if upto and struct.unpack('>I8', string.sub(lesson, size + 2, size + 9)) <= upto then
    redis.call('ZREM', KEYS[1], lesson)
  end
end
"""
    + _BOOK
)


@dataclass(frozen=True, slots=True)
class Family:
    """The names of one scope's keys."""

    prefix: bytes
    tail: bytes
    """What its namespaces end with."""

    @classmethod
    def of(cls, namespace: bytes) -> Family:
        return cls.named(namespace[-FAMILY_BYTES:])

    @classmethod
    def named(cls, family: bytes) -> Family:
        return cls(b"%s{%s}:" % (PREFIX, family.hex().encode()), family)

    @classmethod
    def of_key(cls, name: bytes) -> Family | None:
        """The family whose index or list of namespaces has this name; None for another's key."""
        with suppress(ValueError):
            family = cls.named(bytes.fromhex(name[len(PREFIX) + 1 : -3].decode("ascii", "replace")))
            if name in {family.index, family.spaces}:
                return family
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

    @property
    def spaces(self) -> bytes:
        return self.prefix + b"n"

    def summary(self, space: bytes) -> bytes:
        return self.prefix + b"k:" + space

    def lessons(self, space: bytes) -> bytes:
        return self.prefix + b"l:" + space


def space_of(namespace: bytes) -> bytes:
    return namespace[:-FAMILY_BYTES]


def member_of(namespace: bytes, key: int) -> bytes:
    return space_of(namespace) + struct.pack(">Q", key)


def age_of(member: bytes) -> bytes:
    """What members sort by, oldest first."""
    return member[-8:]


# --------------------------------------------------------------------------- what is written

_packer = msgspec.msgpack.Encoder()
_kept_reader = msgspec.msgpack.Decoder(Kept)
_lesson_reader = msgspec.msgpack.Decoder(Lesson)
_summary_reader = msgspec.msgpack.Decoder(Summary)
_row_reader = msgspec.msgpack.Decoder(tuple[int, str, str, str, tuple[str, ...], str, str])


def _pack_row(size: int, kept: Kept) -> bytes:
    labels = (kept.group, kept.scope, kept.model, kept.answered_by, kept.tags)
    return struct.pack(">I", size) + _packer.encode((*labels, kept.owner, kept.answer))


def read_row(family: Family, member: bytes, raw: bytes) -> Labels | None:
    """None for what is no row ("bytes", or rubbish)."""
    try:
        group, scope, model, answered_by, tags, owner, answer = _row_reader.decode(raw[4:])
    except msgspec.DecodeError:
        return None
    namespace = member[:-8] + family.tail
    return Labels(namespace, group, scope, model, answered_by, tags, owner, answer)


def read_kept(family: Family, member: bytes, raw: object) -> Kept | None:
    """None for what was not written under this very name: rubbish, or another question's bytes."""
    name = member + family.tail
    if not isinstance(raw, bytes) or not raw.startswith(name):
        return None
    with suppress(msgspec.DecodeError):
        kept = _kept_reader.decode(raw[len(name) :])
        if member_of(kept.namespace, kept.key) + kept.namespace[-FAMILY_BYTES:] == name:
            return kept
    return None


def read_lesson(raw: bytes) -> Lesson | None:
    with suppress(msgspec.DecodeError):
        return _lesson_reader.decode(raw[1 + raw[0] + 8 :])
    return None


def read_summary(raw: object) -> Summary | None:
    with suppress(msgspec.DecodeError):
        return _summary_reader.decode(raw) if isinstance(raw, bytes) else None
    return None


# --------------------------------------------------------------------------- commands


def keep(kept: Kept, ttl_s: float, room: int) -> Command:
    family, member = Family.of(kept.namespace), member_of(kept.namespace, kept.key)
    entry = member + family.tail + _packer.encode(kept)
    row = _pack_row(len(entry) + ROW_BYTES, kept)
    ttl_ms = max(1, int(ttl_s * 1e3))
    names = (family.index, family.order, family.entries, member)
    return ("EVAL", _KEEP, 2, *names, entry, ttl_ms, row, kept.key >> _KEY_BITS, room)


def forget(family: Family, members: Sequence[bytes]) -> Command:
    """Replies with the number of questions that the index named."""
    return ("EVAL", FORGET, 2, family.index, family.order, family.entries, *members)


def teach(lesson: Lesson, max_spaces: int) -> Command:
    family, space = Family.of(lesson.namespace), space_of(lesson.namespace)
    teller = lesson.teller.encode()
    told = bytes([len(teller)]) + teller + struct.pack(">Q", lesson.number) + _packer.encode(lesson)
    keys = (family.lessons(space), family.spaces)
    when = (int(lesson.at * 1e3), _LIFE_MS)
    return ("EVAL", _TEACH, 2, *keys, family.prefix, space, *when, max_spaces, told, KEPT_TAIL)


def sum_up(summary: Summary, max_spaces: int) -> Command:
    family, space = Family.of(summary.namespace), space_of(summary.namespace)
    keys = (family.lessons(space), family.spaces, family.summary(space))
    when = (int(summary.at * 1e3), _LIFE_MS)
    heard = [part for told in summary.heard.items() for part in told]
    told = _packer.encode(summary)
    return ("EVAL", _SUM_UP, 3, *keys, family.prefix, space, *when, max_spaces, told, *heard)
