"""Asks both bundled models every graded task, and stores what bench/cascade.py --tasks reads.

    python -m demo.tasks tasks.jsonl 222 2024 eval          # about 20,000 held-out tasks
    sluice serve &                                          # or any OpenAI-compatible server
    python -m bench.cascade_answers tasks.jsonl answers.jsonl --url http://127.0.0.1:8080/v1

Greedy, with log-probabilities, over HTTP like any client. A row of the answers is a row of labels
as `sluice calibrate` reads them (cascade/labels.py), with the family, the level and the token
counts. Can be stopped and started again: what is stored is not asked again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any, TextIO

import httpx

from demo.tasks import check

MAX_TOKENS = 200


def request_of(task: dict[str, Any], model: str) -> dict[str, Any]:
    return {
        "model": model,
        "messages": task["messages"][:1],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "logprobs": True,
    }


def side_of(reply: dict[str, Any], answer: str) -> dict[str, Any]:
    choice = reply["choices"][0]
    text = choice["message"]["content"] or ""
    return {
        "score": float(check(text, answer)),
        "text": text,
        "finish": choice["finish_reason"],
        "logprobs": [round(t["logprob"], 4) for t in choice["logprobs"]["content"]],
        "prompt_tokens": reply["usage"]["prompt_tokens"],
        "tokens": reply["usage"]["completion_tokens"],
    }


class Asker:
    """Asks at most `width` tasks at a time and appends each answer to the file as it comes."""

    def __init__(self, client: httpx.AsyncClient, models: tuple[str, str], out: TextIO) -> None:
        self._client = client
        self._models = models
        self._out = out
        self.done = 0

    async def ask(self, task: dict[str, Any], room: asyncio.Semaphore) -> None:
        async with room:
            row = {key: task[key] for key in ("family", "level", "answer")}
            row["messages"] = task["messages"][:1]
            for side, model in zip(("small", "large"), self._models, strict=True):
                response = await self._client.post(
                    "/chat/completions",
                    json=request_of(task, model),
                    headers={"cache-control": "no-store"},
                )
                response.raise_for_status()
                row[side] = side_of(response.json(), task["answer"])
            del row["large"]["logprobs"]
            self._out.write(json.dumps(row, ensure_ascii=False) + "\n")
            self.done += 1


def unanswered(tasks: Path, out: Path) -> list[dict[str, Any]]:
    known = set()
    if out.exists():
        stored = out.read_text(encoding="utf-8").splitlines()
        known = {json.loads(line)["messages"][0]["content"] for line in stored}
    rows = [json.loads(line) for line in tasks.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["messages"][0]["content"] not in known]


async def answer_all(arguments: argparse.Namespace) -> None:
    left = unanswered(arguments.tasks, arguments.out)
    started, room = time.monotonic(), asyncio.Semaphore(arguments.width)
    limits = httpx.Limits(max_connections=arguments.width)
    async with httpx.AsyncClient(base_url=arguments.url, timeout=600, limits=limits) as client:
        with arguments.out.open("a", encoding="utf-8") as out:
            asker = Asker(client, (arguments.small, arguments.large), out)
            for at in range(0, len(left), 500):
                await asyncio.gather(*(asker.ask(task, room) for task in left[at : at + 500]))
                out.flush()
                rate = asker.done / (time.monotonic() - started)
                print(f"{asker.done} of {len(left)}, {rate:.1f} a second", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Both models' answers to graded tasks.")
    parser.add_argument("tasks", type=Path, help="from `python -m demo.tasks OUT ROWS SEED eval`")
    parser.add_argument("out", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--small", default="small")
    parser.add_argument("--large", default="large")
    parser.add_argument("--width", type=int, default=32)
    asyncio.run(answer_all(parser.parse_args()))


if __name__ == "__main__":
    main()
