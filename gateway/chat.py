"""`sluice chat`: a small terminal client, to try a server out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

TIMEOUT_S = 600.0


class Refused(Exception):
    """The server cannot be reached, or said no."""


def converse(url: str, model: str, key: str, console: Console) -> None:
    """Read questions until the input ends; each answer is streamed, and says where it came from."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    messages: list[dict[str, str]] = []
    with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S) as client:
        console.print(f"Talking to {escape(model)} at {escape(url)}. End with Ctrl-D.")
        while (question := _ask(console)) is not None:
            messages.append({"role": "user", "content": question})
            said = []
            for piece in _answer(client, model, messages, console):
                said.append(piece)
                console.print(escape(piece), end="", soft_wrap=True)
            console.print()
            messages.append({"role": "assistant", "content": "".join(said)})


def _ask(console: Console) -> str | None:
    try:
        return console.input("[bold]> [/]")
    except EOFError:
        return None


def _answer(
    client: httpx.Client, model: str, messages: list[dict[str, str]], console: Console
) -> Iterator[str]:
    request = {"model": model, "messages": messages, "stream": True}
    try:
        with client.stream("POST", "/v1/chat/completions", json=request) as response:
            if response.status_code != 200:
                response.read()
                raise Refused(_reason(response))
            yield from _pieces(response)
            origin = response.headers.get("sluice-origin", "?")
            console.print(f"\n[dim]{escape(origin)}[/]", end="")
    except httpx.HTTPError as error:
        raise Refused(f"{client.base_url}: {error}. Is a server running there?") from None


def _pieces(response: httpx.Response) -> Iterator[str]:
    for line in response.iter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        chunk: dict[str, Any] = json.loads(line.removeprefix("data: "))
        if "error" in chunk:
            raise Refused(chunk["error"]["message"])
        for choice in chunk["choices"]:
            yield choice["delta"].get("content") or ""


def _reason(response: httpx.Response) -> str:
    try:
        return f"{response.status_code}: {response.json()['error']['message']}"
    except (ValueError, KeyError):
        return f"the server said {response.status_code}"
