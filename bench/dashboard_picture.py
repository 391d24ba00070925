"""The README's pictures of the dashboard: real traffic on the bundled models, in a real browser.

    python -m bench.dashboard_picture [--seconds 120] [--into docs]

A server of its own answers four tenants: questions that come again, a shared system prompt, bursts
of one question at a time, easy and hard ones asked of `auto`. Then Chromium opens the page: its
upper half in light, its lower half in dark.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser

from tests.support.browser import browser
from tests.support.program import ROOT, Program, running, wait_until

SETTINGS = """
[server]
port = 0

[cache.semantic]
embedder_dir = "{embedders}"

[[tenants]]
name = "default"

[[tenants]]
name = "advising"
keys = ["{advising}"]
rpm = 2000
tpm = 400000
budget_usd_day = 0.05

[[tenants]]
name = "support"
keys = ["{support}"]
budget_usd_month = 0.5
max_concurrent = 16

[[tenants]]
name = "school"
keys = ["{school}"]
share = 2.0
cascade_policy = "quality"
"""
KEYS = {name: f"sk-picture-{name}" for name in ("advising", "support", "school")}
SYSTEM = "You are a patient tutor. You answer in one short sentence, and only what was asked."
HALVES = {"dashboard": ("light", "#layers", 1440), "dashboard-dark": ("dark", "#tenants", 1080)}
"""Name of the picture → colours, what is seen at its top, height in pixels."""
WIDTH = 1440
USERS = 8


def settings() -> str:
    hashes = {name: sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
    return SETTINGS.format(embedders=ROOT / ".cache" / "embedders", **hashes)


class Caller(threading.Thread):
    """One user: asks, waits a little, asks again; often what was asked before."""

    def __init__(self, server: Program, seed: int, until: float) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._draw = random.Random(seed)
        self._until = until
        self._key = [None, *KEYS.values()][seed % 4]

    def run(self) -> None:
        while time.monotonic() < self._until:
            headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
            body, times = self._asked()
            asking = [
                threading.Thread(target=self._server.post, args=(body,), kwargs=headers)
                for _ in range(times)
            ]
            for one in asking:
                one.start()
            for one in asking:
                one.join()
            time.sleep(self._draw.expovariate(1.5))

    def _asked(self) -> tuple[dict[str, Any], int]:
        """A request, and how many of it come at one time."""
        draw = self._draw
        kind = draw.random()
        if kind < 0.45:  # few questions that everybody has
            text = f"What is {draw.randint(2, 4)} plus {draw.randint(2, 4)}?"
        elif kind < 0.9:  # new ones, hard and easy
            a, b = draw.randint(100, 999), draw.randint(10, 99)
            sort, turn = f"Sort these numbers: {a}, {b}, {a - b}", f"Reverse the word number{a}."
            text = draw.choice([f"What is {a} times {b}?", f"Is {a} larger than {b}?", sort, turn])
        else:  # what comes in bursts
            text = f"Count from {draw.randint(1, 400)} on."
        messages = [{"role": "system", "content": SYSTEM}] if kind > 0.45 else []
        messages.append({"role": "user", "content": text})
        model = draw.choices(["auto", "large", "small"], [8, 1, 1])[0] if kind > 0.45 else "auto"
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 16}
        return body, 3 if kind > 0.9 else 1


def photograph(shown: Browser, url: str, into: Path, name: str, request: str) -> Path:
    scheme, top, height = HALVES[name]
    size = {"width": WIDTH, "height": height}
    context = shown.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{url}/dashboard")
    page.wait_for_selector("#state.good")
    page.fill("#request-id", request)
    page.click("#lookup button")
    page.wait_for_selector(".verdict")
    page.locator(f".panel:has({top})").evaluate(
        "(panel) => scrollTo(0, panel.offsetTop < innerHeight ? 0 : panel.offsetTop - 16)"
    )
    page.wait_for_timeout(2500)
    path = into / f"{name}.png"
    taken = Image.open(BytesIO(page.screenshot())).convert("RGB")
    few = taken.quantize(256, kmeans=3, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    context.close()
    return path


def _by_meaning(server: Program) -> bool:
    """Whether the semantic cache is at work."""
    semantic = server.get("/admin/caches").json["semantic"]
    return semantic is not None and not semantic["problem"]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--seconds", type=float, default=120.0)
    asked.add_argument("--into", type=Path, default=Path("docs"))
    given = asked.parse_args()
    given.into.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home, running(Path(home), settings()) as server:
        wait_until(lambda: _by_meaning(server), "the embedder is there", patience_s=300)
        until = time.monotonic() + given.seconds
        callers = [Caller(server, seed, until) for seed in range(USERS)]
        for caller in callers:
            caller.start()
        time.sleep(given.seconds * 0.9)
        decisions = server.get("/admin/decisions?layer=cascade&limit=1").json["decisions"]
        with browser() as shown:
            for name in HALVES:
                print(photograph(shown, server.base_url, given.into, name, decisions[0]["id"]))
        for caller in callers:
            caller.join()


if __name__ == "__main__":
    main()
