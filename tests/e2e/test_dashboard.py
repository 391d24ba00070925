"""The dashboard as a person has it: in a real browser, with numbers that real traffic made."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import NoBrowser, browser
from tests.support.program import ROOT, Program, quiet_environment, running, wait_until
from tests.support.served import ALICE, Models, chat

KEY = "adm-dashboard"
ADMIN = f'\n[admin]\nkeys = ["{hashlib.sha256(KEY.encode()).hexdigest()}"]\n'
PATIENCE_MS = 120_000
EXPECTED = re.compile(r"status of 40[14]")
"""What Chromium itself writes to the console when a key is asked for, or an id is unknown."""

pytestmark = pytest.mark.slow
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    try:
        with browser() as one:
            yield one
    except NoBrowser as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def gateway(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A gateway that had a bit of everything, and wants an admin key."""
    home = tmp_path_factory.mktemp("shown")
    with running(home, models.settings + ADMIN) as program:
        for number in range(4):
            for model in ("small", "large", "auto"):
                for _ in range(2):
                    program.post(chat(f"What is {number} + 1?", model=model, max_tokens=12))
        program.post(chat("Hello"), authorization=f"Bearer {ALICE}")
        program.post(chat("Hello"), authorization="Bearer wrong")
        yield program


@contextmanager
def opened(chromium: Browser, url: str, **context: Any) -> Iterator[tuple[Page, list[str]]]:
    """The page, and what went wrong in it."""
    own = chromium.new_context(**{"viewport": {"width": 1440, "height": 900}, **context})
    page = own.new_page()
    page.set_default_timeout(PATIENCE_MS)
    wrong: list[str] = []
    page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{url}/dashboard")
    try:
        yield page, wrong
    finally:
        own.close()


def log_in(page: Page) -> None:
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#state")).to_have_text("live")
    expect(page.locator("#tenants tbody tr").first).to_be_visible(timeout=PATIENCE_MS)


@pytest.fixture
def page(chromium: Browser, gateway: Program) -> Iterator[Page]:
    """Logged in; nothing may have gone wrong in it when the test is over."""
    with opened(chromium, gateway.base_url) as (page, wrong):
        log_in(page)
        yield page
        assert [text for text in wrong if not EXPECTED.search(text)] == []


def drawn(page: Page, chart: str) -> int:
    """How many different colours a chart's canvas holds: one, if nothing is on it."""
    counted: int = page.locator(f"#{chart} canvas").first.evaluate(
        """(canvas) => {
            const { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            const seen = new Set();
            for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200)
                seen.add((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);
            return seen.size;
        }"""
    )
    return counted


def tile(page: Page, name: str) -> float:
    return float(page.locator(f"#tile-{name}").inner_text().split()[0])


def test_without_a_key_there_are_no_numbers_and_a_wrong_one_is_refused(
    chromium: Browser, gateway: Program
) -> None:
    with opened(chromium, gateway.base_url) as (page, wrong):
        expect(page.locator("#login")).to_be_visible(timeout=PATIENCE_MS)
        expect(page.locator("#numbers")).to_be_hidden()
        page.get_by_label("Key", exact=True).fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#login-why")).to_contain_text("not accepted")
        log_in(page)
        page.get_by_role("button", name="Log out").click()
        expect(page.locator("#login")).to_be_visible(timeout=PATIENCE_MS)
        assert [text for text in wrong if not EXPECTED.search(text)] == []


def test_every_chart_shows_what_the_traffic_made(page: Page) -> None:
    for chart in ("layers", "avoided", "latency", "sequences", "speed", "curve"):
        empty = page.locator(f"#{chart} .empty")
        wait_until(lambda: empty.is_visible() or drawn(page, chart) > 2, chart)  # noqa: B023
    for chart in ("layers", "avoided", "latency", "sequences", "speed"):
        expect(page.locator(f"#{chart} .empty")).to_be_hidden()
    plot = page.locator("#layers .plot")
    expect(plot).to_have_attribute("aria-label", re.compile(r"exact [\d.]+ %"))
    wait_until(lambda: page.locator("#latency-table tbody tr").count() >= 3, "layers have times")
    expect(page.locator("#engine-table tbody tr")).to_have_count(2)
    wait_until(lambda: tile(page, "hits") > 0, "hits are counted")
    wait_until(lambda: tile(page, "requests") >= 25, "requests are counted")


def test_it_is_live(page: Page, gateway: Program) -> None:
    before = int(page.locator("#tile-requests").inner_text())
    gateway.post(chat("Is this live?", max_tokens=4))
    expect(page.locator("#tile-requests")).to_have_text(str(before + 1))
    top = page.locator("#decisions tbody tr").first
    expect(top).to_contain_text("default")


def test_a_decision_is_explained_at_a_click_and_by_its_id(page: Page, gateway: Program) -> None:
    asked = chat("Why was this a hit?", max_tokens=4)
    miss = gateway.post(asked).json["id"]
    hit = gateway.post(asked).json["id"]
    for identity, verdict in ((miss, "Miss: "), (hit, "Hit: the same request")):
        page.get_by_label("Request id").fill(identity)
        page.get_by_role("button", name="Explain", exact=True).click()
        expect(page.locator(".verdict")).to_contain_text(verdict)
    page.get_by_label("Request id").fill("nobody")
    page.keyboard.press("Enter")
    expect(page.locator("#story")).to_contain_text("Nothing is known of request")
    page.locator("#decisions tbody button").first.click()
    expect(page.locator(".verdict")).to_be_visible()


def test_the_list_says_that_it_is_held_while_a_reader_is_in_it(
    page: Page, gateway: Program
) -> None:
    note, rows = page.locator("#decisions-note"), page.locator("#decisions tbody button")
    expect(note).to_be_empty()
    rows.first.focus()
    expect(note).to_contain_text("Held while you are in the list")
    page.keyboard.press("Tab")
    expect(rows.nth(1)).to_be_focused()
    expect(note).to_contain_text("Held while you are in the list")
    held = rows.first.inner_text()
    new = gateway.post(chat("Does the list move?", max_tokens=4)).json["id"]
    page.wait_for_timeout(3000)
    expect(rows.nth(1)).to_be_focused()
    assert rows.first.inner_text() == held
    page.locator("#pause").focus()
    expect(note).to_be_empty()
    expect(rows.first).to_have_text(new.removeprefix("chatcmpl-"))


def test_controls_work_from_the_keyboard(page: Page) -> None:
    expect(page.locator("#main")).to_be_focused()
    page.reload()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the numbers")).to_be_focused()
    hour = page.get_by_role("button", name="1 h", exact=True)
    hour.focus()
    page.keyboard.press("Enter")
    expect(hour).to_have_attribute("aria-pressed", "true")
    dollars = page.get_by_role("button", name="US$", exact=True)
    dollars.focus()
    page.keyboard.press("Space")
    expect(page.locator("#avoided .plot")).to_have_attribute(
        "aria-label", re.compile(r"exact 0\.0")
    )
    exact = page.locator("#layers .legend button").first
    exact.focus()
    page.keyboard.press("Enter")
    expect(exact).to_have_attribute("aria-pressed", "false")
    theme = page.get_by_role("button", name="Theme")
    theme.focus()
    page.keyboard.press("Enter")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")


def test_tenants_are_told_with_limits_and_found_by_name(page: Page) -> None:
    page.get_by_label("name holds").fill("limit")
    row = page.locator("#tenants tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("limited")
    expect(row).to_contain_text("no budget")
    page.get_by_label("name holds").fill("nobody at all")
    expect(row).to_contain_text("No tenant has such a name")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_shut_out(chromium: Browser, gateway: Program, scheme: str) -> None:
    """axe-core finds nothing, in either colours."""
    with opened(chromium, gateway.base_url, color_scheme=scheme) as (page, _):
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        log_in(page)
        page.locator("#decisions tbody button").first.click()
        expect(page.locator(".verdict")).to_be_visible()
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("width", [375, 2560])
def test_it_fits_a_phone_and_a_wall(chromium: Browser, gateway: Program, width: int) -> None:
    size = {"width": width, "height": 900}
    with opened(chromium, gateway.base_url, viewport=size) as (page, _):
        log_in(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        wait_until(lambda: drawn(page, "layers") > 2, "it is drawn")
        plot = page.locator("#layers .plot").bounding_box()
        assert plot is not None
        assert plot["width"] > 0.2 * width


def test_a_gateway_without_traffic_says_what_is_missing(chromium: Browser) -> None:
    """One with models of another kind, no calibrated policy and no request."""
    command = [sys.executable, "-m", "tests.support.serving", "0"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=quiet_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        try:
            with opened(chromium, f"http://127.0.0.1:{port}") as (page, wrong):
                expect(page.locator("#state")).to_have_text("live")
                for chart, said in (
                    ("layers", "No request was answered"),
                    ("avoided", "No request was answered"),
                    ("latency", "No request was answered"),
                    ("sequences", "No model runs in this process"),
                    ("curve", "sluice calibrate"),
                    ("semantic", "max_error"),
                ):
                    expect(page.locator(f"#{chart} .empty, #{chart}.empty").first).to_contain_text(
                        said
                    )
                expect(page.locator("#decisions")).to_contain_text("No request yet")
                assert wrong == []
        finally:
            server.terminate()


def test_the_api_is_documented_without_a_server_elsewhere(
    chromium: Browser, gateway: Program
) -> None:
    with opened(chromium, gateway.base_url) as (page, wrong):
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        headers = page.goto(f"{gateway.base_url}/docs").headers  # type: ignore[union-attr]
        expect(page.get_by_text("/admin/usage").first).to_be_visible(timeout=PATIENCE_MS)
        page.get_by_text("/v1/chat/completions").first.click()
        assert "script-src 'self'" in headers["content-security-policy"]
        assert [url for url in asked if not url.startswith((gateway.base_url, "data:"))] == []
        assert [text for text in wrong if not EXPECTED.search(text)] == []
