"""Conversations, tools and abilities under `auto`: the whole program in front of two scripted
servers, so that it is known who would have said what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.program import Program, Reply, running
from tests.support.upstream import USAGE, Server, piece, stream, upstream

SETTINGS = """
[server]
port = 0

[models.mini]
kind = "openai"
base_url = "http://127.0.0.1:{mini}/v1"
allow_private = true
price_in = 0.1
price_out = 0.1
max_context = 300
{mini_more}

[models.maxi]
kind = "openai"
base_url = "http://127.0.0.1:{maxi}/v1"
allow_private = true
price_in = 1.0
price_out = 1.0

[cascade]
small = "mini"
large = "maxi"

[logs]
format = "json"

[[tenants]]
name = "default"
aliases = {{ "gpt-4o" = "auto" }}
"""
SURE = {"content": [{"token": "Yes", "logprob": -0.001, "bytes": None, "top_logprobs": []}]}
TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}]
CALLED = {
    "index": 0,
    "id": "c1",
    "type": "function",
    "function": {"name": "clock", "arguments": "{}"},
}


def sure(text: str) -> dict[str, Any]:
    said = piece(text)
    said["choices"][0]["logprobs"] = SURE
    return said


@dataclass
class Scene:
    program: Program
    mini: Server
    maxi: Server

    async def ask(self, *messages: dict[str, Any], **more: Any) -> Reply:
        body = {"model": "gpt-4o", "messages": list(messages), **more}
        return await asyncio.to_thread(self.program.post, body)

    async def why(self, reply: Reply) -> list[str]:
        path = f"/admin/decisions/{reply.json['id']}"
        told = await asyncio.to_thread(self.program.get, path)
        return [step["reason"] for step in told.json["decisions"][0]["steps"]]


@asynccontextmanager
async def scene(home: Path, *maxi: Any, mini_more: str = "") -> AsyncIterator[Scene]:
    small = stream(sure("Yes"), piece(finish="stop"), USAGE)
    large = maxi or (stream(piece("No"), piece(finish="stop"), USAGE),)
    async with upstream(small) as a, upstream(*large) as b:
        settings = SETTINGS.format(mini=a.port, maxi=b.port, mini_more=mini_more)
        opened = running(home, settings)
        program = await asyncio.to_thread(opened.__enter__)
        try:
            yield Scene(program, a, b)
        finally:
            await asyncio.to_thread(opened.__exit__, None, None, None)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


async def test_who_cannot_do_what_is_asked_is_not_asked(tmp_path: Path) -> None:
    async with scene(tmp_path, mini_more="tools = false\njson = false") as one:
        plain = await one.ask(user("Is it?"))
        assert plain.headers["sluice-origin"] == "mini", "an alias is auto, and small is sure"
        for more, lack in (
            ({"tools": TOOLS}, "tools"),
            ({"response_format": {"type": "json_object"}}, "response_format"),
        ):
            reply = await one.ask(user("Is it?"), **more)
            assert reply.headers["sluice-origin"] == "maxi"
            (reason,) = await one.why(reply)
            assert reason.startswith("mini cannot take")
            assert lack in reason
        long = await one.ask(user("word " * 600))
        assert long.headers["sluice-origin"] == "maxi"
        assert "mini cannot take" in (await one.why(long))[0]
        assert len(one.mini.asked) == 1


async def test_a_turn_with_tool_results_goes_back_to_who_called_the_tools(tmp_path: Path) -> None:
    calls = stream(piece(tool_calls=[CALLED]), piece(finish="tool_calls"), USAGE)
    says = stream(piece("Noon"), piece(finish="stop"), USAGE)
    async with scene(tmp_path, calls, says) as one:
        first = await one.ask(user("What time is it?"), tools=TOOLS)
        assert first.headers["sluice-origin"] == "maxi"
        said = first.json["choices"][0]["message"]
        assert said["tool_calls"][0]["function"]["name"] == "clock"
        result = {"role": "tool", "tool_call_id": "c1", "content": "12:00"}
        second = await one.ask(user("What time is it?"), said, result, tools=TOOLS)
        assert second.text == "Noon"
        (reason,) = await one.why(second)
        assert reason == "a turn with tool results stays with the model that began it"
        assert one.maxi.asked[1].body["messages"][-1]["content"] == "12:00"
        assert not one.mini.asked


async def test_a_conversation_stays_with_the_large_model_that_has_it(tmp_path: Path) -> None:
    async with scene(tmp_path, mini_more="json = false") as one:
        first = await one.ask(user("As JSON"), response_format={"type": "json_object"})
        assert first.headers["sluice-origin"] == "maxi"
        said = {"role": "assistant", "content": first.text}
        second = await one.ask(user("As JSON"), said, user("Is it?"))
        fresh = await one.ask(user("Is it?"))
        assert second.headers["sluice-origin"] == "maxi"
        assert "the conversation stays with large" in (await one.why(second))[0]
        assert fresh.headers["sluice-origin"] == "mini"


async def test_the_stream_is_decided_before_it_begins_and_names_who_answers(tmp_path: Path) -> None:
    async with scene(tmp_path) as one:
        reply = await one.ask(user("Is it?"), stream=True)
        assert reply.headers["sluice-origin"] == "mini"
        assert reply.headers["sluice-policy"] == "quality; uncalibrated"
        assert "route" in reply.headers["server-timing"]
        assert reply.streamed_text == "Yes"
        assert reply.events[-1] == "[DONE]"
