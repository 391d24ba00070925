"""A real, headless Chromium for the tests of the dashboard and for its pictures.

Looked for in this order: the one that `playwright install chromium` put there, the one that
tests/support/get_chromium.sh unpacked, one that this machine has.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Playwright, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
UNPACKED = ROOT / ".chromium" / "usr" / "lib" / "chromium" / "chromium"
NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    "no Chromium: `make setup` could get none; install one, or run `playwright install chromium`"
)
_FLAGS = ["--disable-gpu", "--disable-dev-shm-usage"]


class NoBrowser(Exception):
    """No Chromium that starts is on this machine."""


def find(playwright: Playwright) -> Path | None:
    places = [Path(playwright.chromium.executable_path), UNPACKED]
    places += [Path(found) for name in NAMES if (found := shutil.which(name))]
    return next((place for place in places if place.exists()), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """Raises NoBrowser."""
    with sync_playwright() as playwright:
        program = find(playwright)
        if program is None:
            raise NoBrowser(MISSING)
        # Chromium's own sandbox refuses to run as root, as tests in a container do.
        flags = [*_FLAGS, "--no-sandbox"] if os.geteuid() == 0 else _FLAGS
        environment = dict(os.environ)
        if program == UNPACKED:
            environment["LD_LIBRARY_PATH"] = ":".join(map(str, _libraries()))
        started = playwright.chromium.launch(
            executable_path=program, args=flags, env=dict(environment)
        )
        try:
            yield started
        finally:
            started.close()


def _libraries() -> list[Path]:
    inner = ROOT / ".chromium" / "usr" / "lib"
    return [inner, *inner.glob("*-linux-gnu")]
