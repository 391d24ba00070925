"""SIGTERM: what is being answered is answered to its end, what is new is refused."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import httpx

from tests.support.speakers import PATIENCE_S, eventually

ROOT = Path(__file__).resolve().parents[2]
ASKED = {"model": "small", "messages": [{"role": "user", "content": "x"}], "stream": True}


async def test_a_stream_in_flight_ends_well_and_the_server_exits_in_order() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.serving", "0",
        cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    port = int(await process.stdout.readline())
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as other,
    ):
        assert (await other.get("/readyz")).status_code == 200
        async with client.stream("POST", "/v1/chat/completions", json=ASKED) as response:
            lines = response.aiter_lines()
            await anext(lines)
            process.send_signal(signal.SIGHUP)
            assert (await other.get("/readyz")).status_code == 200
            process.send_signal(signal.SIGTERM)

            async def drains() -> bool:
                return (await other.get("/readyz")).status_code == 503

            await eventually(drains)
            ready = await other.get("/readyz")
            refused = await other.post("/v1/chat/completions", json=ASKED)
            process.stdin.write(b"go on\n")
            rest = [line async for line in lines if line]
    assert ready.status_code == 503
    assert ready.json()["problems"] == {"server": "shutting down"}
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "shutting_down"
    assert refused.headers["retry-after"] == "1"
    assert rest[-1] == "data: [DONE]"
    chunks = [
        json.loads(line.removeprefix("data: ")) for line in rest if line.startswith("data: {")
    ]
    said = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert said.endswith("word9 ")
    process.stdin.close()
    assert await process.wait() == 0
