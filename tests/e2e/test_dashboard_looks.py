"""How the page shows what a busy gateway tells: at every width, on every span, and when it fails.

The page is the server's own; its numbers are those of tests/support/dashboard_data.py, because a
test gateway has neither long reasons nor days behind it. tests/e2e/test_dashboard.py has real ones.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from tests.support import dashboard_data
from tests.support.browser import NoBrowser, browser
from tests.support.program import ROOT, quiet_environment

PATIENCE_MS = 120_000
WIDTHS = [375, 768, 1280, 1920, 2560, 3840]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    try:
        with browser() as one:
            yield one
    except NoBrowser as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.support.serving", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, env=quiet_environment(), stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        yield f"http://127.0.0.1:{port}/dashboard"
        server.terminate()


@contextmanager
def shown(
    chromium: Browser, url: str, replies: dict[str, Any] | None = None, **context: Any
) -> Iterator[tuple[Page, list[str]]]:
    """The page with invented numbers; `replies` (by a part of the path) come before them: a status,
    or what is told. And what went wrong in it."""
    own = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
    page = own.new_page()
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    wrong: list[str] = []
    page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def reply(route: Route) -> None:
        path = route.request.url.removeprefix(url.removesuffix("/dashboard"))
        said = next((it for part, it in (replies or {}).items() if part in path), None)
        if said is None:
            said = dashboard_data.answer(path)
        if said is None:
            route.continue_()
        elif said == "abort":
            route.abort()
        elif isinstance(said, int):
            body = {"error": {"message": "Send a header.", "code": "admin_key_needed"}}
            route.fulfill(status=said, json=body)
        else:
            route.fulfill(body=json.dumps(said), content_type="application/json")

    page.route(re.compile(r"/(admin|dashboard)/"), reply)
    page.goto(url)
    try:
        yield page, wrong
    finally:
        own.close()


def live(page: Page) -> None:
    expect(page.locator("#state")).to_have_text("live")
    expect(page.locator("#tenants tbody tr").first).to_be_visible()


@pytest.mark.parametrize("width", WIDTHS)
def test_no_table_is_cut_off_at_any_width(chromium: Browser, url: str, width: int) -> None:
    with shown(chromium, url, viewport={"width": width, "height": 900}) as (page, wrong):
        live(page)
        page.locator("#lookup button").wait_for()
        page.fill("#request-id", "my-req-1")
        page.click("#lookup button")
        expect(page.locator(".verdict")).to_have_count(2)
        cut = page.locator(".scroll").evaluate_all(
            "(all) => all.filter((one) => one.scrollWidth > one.clientWidth)"
            ".map((one) => one.ariaLabel)"
        )
        assert cut == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        reason = page.locator("#decisions td.why").first
        box = reason.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        expect(reason).to_contain_text("µ$ large")
        assert wrong == []


def test_a_table_becomes_cards_and_a_table_again_as_the_window_changes(
    chromium: Browser, url: str
) -> None:
    with shown(chromium, url, viewport={"width": 1920, "height": 900}) as (page, _):
        live(page)
        decisions = page.locator("#decisions")
        expect(decisions).not_to_have_class(re.compile("cards"))
        page.set_viewport_size({"width": 375, "height": 800})
        expect(decisions).to_have_class(re.compile("cards"))
        assert page.get_by_role("table").count() == 5, "to who cannot see it, it is a table still"
        page.set_viewport_size({"width": 1920, "height": 900})
        expect(decisions).not_to_have_class(re.compile("cards"))


@pytest.mark.parametrize(("width", "scheme"), [(375, "light"), (375, "dark"), (1280, "dark")])
def test_nobody_is_shut_out_of_a_full_page(
    chromium: Browser, url: str, width: int, scheme: str
) -> None:
    size = {"width": width, "height": 900}
    with shown(chromium, url, viewport=size, color_scheme=scheme) as (page, _):
        live(page)
        page.fill("#request-id", "my-req-1")
        page.click("#lookup button")
        expect(page.locator(".verdict")).to_have_count(2)
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


def painted(page: Page, chart: str) -> list[str]:
    """The names of the series of which something is on the canvas, by their colours."""
    found: list[str] = page.locator(f"#{chart}").evaluate(
        """(box) => {
            const canvas = box.querySelector("canvas");
            const { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            const seen = new Set();
            for (let i = 0; i < data.length; i += 4)
                if (data[i + 3] > 200) seen.add(`rgb(${data[i]}, ${data[i + 1]}, ${data[i + 2]})`);
            const colour = (one) => getComputedStyle(one.firstElementChild).backgroundColor;
            return [...box.querySelectorAll(".legend button")]
                .filter((one) => seen.has(colour(one))).map((one) => one.children[1].textContent);
        }"""
    )
    return found


def test_on_a_first_day_every_span_shows_what_its_legend_tells(chromium: Browser, url: str) -> None:
    """The same chart is drawn with many points, then with one."""
    for span, name in (("7d", "7 days"), ("90d", "90 days")):
        _, count = dashboard_data.STEPS[span]
        young = {f"span={span}": dashboard_data.history(span, first=count - 1)}
        for line in young[f"span={span}"]["latency_ms"].values():
            line["p50"] = line["p95"] = [None] * (count - 1) + [9.0]
        with shown(chromium, url, young) as (page, _):
            live(page)
            with page.expect_response(re.compile(f"span={span}")):
                page.get_by_role("button", name=name).click()
            page.wait_for_timeout(500)
            assert painted(page, "layers") == ["exact", "semantic", "join"]


def longest_line(page: Page, chart: str) -> int:
    """Pixels of the widest unbroken run of columns in which the first series is drawn."""
    found: int = page.locator(f"#{chart}").evaluate(
        """(box) => {
            const canvas = box.querySelector("canvas");
            const swatch = box.querySelector(".legend button").firstElementChild;
            const wanted = getComputedStyle(swatch).backgroundColor.match(/\\d+/g).map(Number);
            const { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            const near = (i) => wanted.every((v, c) => Math.abs(data[i + c] - v) < 40);
            let longest = 0, run = 0;
            for (let x = 0; x < width; x += 1) {
                let hit = false;
                for (let y = 0; y < height && !hit; y += 1) hit = near(4 * (y * width + x));
                run = hit ? run + 1 : 0;
                longest = Math.max(longest, run);
            }
            return Math.round((1000 * longest) / width);
        }"""
    )
    return found


@pytest.mark.parametrize(("every_s", "least", "most"), [(30, 700, 1000), (180, 0, 60)])
def test_a_line_bridges_half_a_minute_without_data_and_not_three(
    chromium: Browser, url: str, every_s: int, least: int, most: int
) -> None:
    step, count = dashboard_data.STEPS["15m"]
    told = dashboard_data.history("15m")
    values = [20.0 if i * step % every_s == 0 else None for i in range(count)]
    told["latency_ms"] = {"exact": {"p50": values, "p95": values}}
    with shown(chromium, url, {"span=15m": told}) as (page, _):
        live(page)
        page.wait_for_timeout(300)
        assert least <= longest_line(page, "latency") <= most
        assert painted(page, "latency") == ["exact"]


def test_the_engines_panel_says_that_it_shows_an_hour_of_a_longer_span(
    chromium: Browser, url: str
) -> None:
    with shown(chromium, url) as (page, _):
        live(page)
        page.get_by_role("button", name="15 min").click()
        expect(page.locator("#engine-note")).to_be_empty()
        page.get_by_role("button", name="24 h").click()
        expect(page.locator("#engine-note")).to_contain_text("Drawn is the last 60 min")


def test_what_tenants_of_before_spent_has_a_row(chromium: Browser, url: str) -> None:
    with shown(chromium, url) as (page, _):
        live(page)
        row = page.locator("#tenants tbody tr", has_text="taken-out-last-week")
        expect(row).to_contain_text("no tenant now")
        expect(row).to_contain_text("12.30")
        expect(page.locator("#tenants")).to_contain_text("refused before it was known who asks")


def test_what_waits_for_a_restart_is_named_beside_the_tenants(chromium: Browser, url: str) -> None:
    waiting = ["server.port", "models.large.price_in"]
    known = {"tenants": ["default"], "problem": None, "waiting": waiting}
    with shown(chromium, url, {"/admin/tenants/": None, "/admin/tenants": known}) as (page, _):
        live(page)
        said = "Changed, and waits for a restart: server.port, models.large.price_in."
        expect(page.locator("#tenants-note")).to_have_text(said)
    with shown(chromium, url) as (page, _):
        live(page)
        expect(page.locator("#tenants-note")).to_be_empty()


def test_what_fails_while_a_reader_asks_is_told_and_thrown_at_nobody(
    chromium: Browser, url: str
) -> None:
    replies: dict[str, Any] = {}
    with shown(chromium, url, replies) as (page, wrong):
        live(page)
        replies["/admin/"] = "abort"
        page.get_by_label("name holds").fill("x")
        expect(page.locator("#state")).to_contain_text("not connected")
        page.locator("#decision-layer").select_option("join")
        page.locator("#cascade-tenant").select_option("support")
        page.fill("#request-id", "x")
        page.click("#lookup button")
        expect(page.locator("#story")).to_contain_text("It cannot be told")
        page.wait_for_timeout(300)
        assert [text for text in wrong if "ERR_FAILED" not in text] == []
        replies.clear()
        expect(page.locator("#state")).to_have_text("live")


def test_whose_part_it_is_stands_above_the_numbers_where_others_have_theirs(
    chromium: Browser, url: str
) -> None:
    with shown(chromium, url) as (page, _):
        live(page)
        expect(page.locator("#part")).to_be_hidden()
    alone = {"/dashboard/data": dashboard_data.now(dashboard_data.PART)}
    with shown(chromium, url, alone) as (page, _):
        live(page)
        expect(page.locator("#part")).to_contain_text("This gateway's part")


def test_a_person_is_told_of_keys_and_not_of_headers_and_nothing_jumps_after_login(
    chromium: Browser, url: str
) -> None:
    replies: dict[str, Any] = {"/dashboard/data": 401}
    with shown(chromium, url, replies) as (page, _):
        why = page.locator("#login-why")
        expect(why).to_contain_text("[admin] keys")
        page.get_by_label("Key", exact=True).fill("wrong")
        page.keyboard.press("Enter")
        expect(why).to_contain_text("not accepted")
        assert "header" not in why.inner_text()
        replies.clear()
        page.get_by_label("Key", exact=True).fill("right")
        page.keyboard.press("Enter")
        live(page)
        expect(page.locator("#main")).to_be_focused()
        assert page.evaluate("scrollY") == 0
        assert page.locator("#main").evaluate("(main) => getComputedStyle(main).outlineStyle") == (
            "none"
        )


@pytest.mark.parametrize("odd", ["✓", "🔑"])
def test_a_key_that_no_header_can_carry_is_refused_in_words_and_kept_nowhere(
    chromium: Browser, url: str, odd: str
) -> None:
    replies: dict[str, Any] = {"/dashboard/data": 401}
    with shown(chromium, url, replies) as (page, wrong):
        page.get_by_label("Key", exact=True).fill(f"wr{odd}ng")
        page.keyboard.press("Enter")
        expect(page.locator("#login-why")).to_contain_text(f"No key can hold “{odd}”.")
        expect(page.locator("#login-why")).to_contain_text("was not accepted")
        expect(page.locator("#state")).to_have_text("a key is needed")
        assert page.evaluate("sessionStorage.length") == 0
        assert [text for text in wrong if "status of 401" not in text] == []
        replies.clear()
        page.get_by_label("Key", exact=True).fill("right")
        page.keyboard.press("Enter")
        live(page)


def test_no_two_lines_of_the_cascades_curve_share_a_colour(chromium: Browser, url: str) -> None:
    with shown(chromium, url) as (page, _):
        live(page)
        colours = page.locator("#curve .swatch").evaluate_all(
            "(all) => all.map((one) => getComputedStyle(one).backgroundColor)"
        )
        assert len(colours) == 7
        assert len(set(colours)) == 7
        large = page.locator("#latency .legend li", has_text="large").locator(".swatch")
        used = large.evaluate("(one) => getComputedStyle(one).backgroundColor")
        assert used not in colours


def test_an_empty_list_of_decisions_says_since_when_and_a_layer_of_how_many(
    chromium: Browser, url: str
) -> None:
    with shown(chromium, url, {"/admin/decisions": {"decisions": []}}) as (page, _):
        live(page)
        expect(page.locator("#decisions")).to_contain_text("since this gateway's start")
        for layer in ("exact", "semantic", "join", "cascade", "fallback"):
            page.locator("#decision-layer").select_option(layer)
            said = f"None of the last 1,000 requests was decided by “{layer}”"
            expect(page.locator("#decisions")).to_contain_text(said)


def test_all_requests_of_one_callers_id_are_told(chromium: Browser, url: str) -> None:
    with shown(chromium, url) as (page, _):
        live(page)
        page.fill("#request-id", "my-req-1")
        page.click("#lookup button")
        expect(page.locator("#story")).to_contain_text("2 requests have this id")
        expect(page.locator(".facts").first).to_contain_text("my-req-1")
