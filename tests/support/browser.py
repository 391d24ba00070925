"""A real, headless Chromium for the tests of the dashboard and for its pictures.

The first that starts of: what `playwright install chromium` put there, what
tests/support/get_chromium.sh unpacked (`make test` asks it to), what this machine has.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Error, Playwright, sync_playwright

UNPACKED = Path(__file__).resolve().parents[2] / ".chromium"
SHELL = UNPACKED / "usr/lib/chromium/chromium-headless-shell"
NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    "no Chromium that starts: tests/support/get_chromium.sh unpacks Debian's, "
    "`playwright install chromium` gets its own"
)
START_MS = 120_000.0
_FLAGS = ["--disable-gpu", "--disable-dev-shm-usage"]


class NoBrowser(Exception):
    """No Chromium that starts is on this machine."""


@contextmanager
def browser() -> Iterator[Browser]:
    """Raises NoBrowser."""
    with sync_playwright() as playwright:
        places = [None, SHELL, *filter(None, map(shutil.which, NAMES))]
        started = next(filter(None, (_start(playwright, place) for place in places)), None)
        if started is None:
            raise NoBrowser(MISSING)
        try:
            yield started
        finally:
            started.close()


def _start(playwright: Playwright, place: Path | str | None) -> Browser | None:
    """`place` None: Playwright's own."""
    environment: dict[str, str | float | bool] = dict(os.environ)
    if place == SHELL:
        folders = [UNPACKED / "usr/lib", *UNPACKED.glob("**/*-linux-gnu")]
        environment["LD_LIBRARY_PATH"] = ":".join(map(str, folders))
    # Chromium's own sandbox refuses to run as root, as tests in a container do.
    flags = [*_FLAGS, "--no-sandbox"] if os.geteuid() == 0 else _FLAGS
    try:
        return playwright.chromium.launch(
            executable_path=place, args=flags, env=environment, timeout=START_MS
        )
    except Error:
        return None
