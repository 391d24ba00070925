"""redis-py as it is used here: a client without its retries, and one round trip for many commands.

The library's own pipeline goes through its retries and events for each command and takes twice the
processor time; its connections and their pool are public and do the work.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, TypeAlias

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

STRAGGLER_S: Final = 1.0
"""A call that nobody waits for any more, and a connection that is being made, may take so long."""
CLUSTER: Final = "+cluster"
"""`redis+cluster://…` names one node of a Redis Cluster."""

Command: TypeAlias = tuple[bytes | str | int | float, ...]
Client: TypeAlias = Redis | RedisCluster


def connect(url: str, connections: int) -> Client:
    """A client that has not connected yet, without the library's retries and timeouts."""
    options: dict[str, Any] = {
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": None,
        "socket_connect_timeout": STRAGGLER_S,
    }
    if CLUSTER in url:
        plain = url.replace(CLUSTER, "", 1)
        return RedisCluster.from_url(plain, max_connections=connections, **options)
    pool = BlockingConnectionPool.from_url(
        url, max_connections=connections, timeout=None, **options
    )
    return Redis.from_pool(pool)


async def close(client: Client | None) -> None:
    if client is not None:
        with suppress(Exception):  # nothing is left to be saved
            await client.aclose()


async def round_trip(client: Client, commands: tuple[Command, ...]) -> list[Any]:
    """All commands at once, then their replies; an error that Redis answers with is among them.
    Raises what the library raises where there is no answer."""
    if isinstance(client, RedisCluster):
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies
    pool = client.connection_pool
    connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    try:
        packed = connection.pack_commands(commands)
        await connection.send_packed_command(packed, check_health=False)
        return [await _reply(client, connection, command[0]) for command in commands]
    except BaseException:  # what is still to come must not answer somebody else
        await connection.disconnect(nowait=True)
        raise
    finally:
        await pool.release(connection)


async def _reply(client: Redis, connection: AbstractConnection, name: Any) -> Any:
    """As the library gives it: some commands' replies are put into another shape."""
    try:
        reply = await connection.read_response()
    except ResponseError as refused:
        return refused
    shaped = client.response_callbacks.get(name)
    return reply if shaped is None else shaped(reply)


def is_refusal(reply: object) -> bool:
    """Whether Redis answered this command with an error."""
    return isinstance(reply, ResponseError)
