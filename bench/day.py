"""A realistic day, replayed with every saving on and again with every saving off.

    python -m bench.day FOLDER                          # about half an hour on two cores
    python -m bench.day FOLDER --requests 400           # a short one
    python -m bench.day FOLDER --days 3                 # the third day, after two of its kind
    python -m bench.day FOLDER --picture docs/day.png

FOLDER holds the data sets that bench/day_traffic.py names. Both days are the same visits at the
same times, served by `sluice serve` with the bundled models. Off means: the large model answers
all, no cache, no join, no cascade (the prefix tree stays: it cannot be turned off, and it saves no
answer tokens). A first day starts from nothing: no cached answer, no label of the semantic cache.
What came before a later day is served, too, and not counted.

"Large tokens" are what the engine says it drew from the large model, audits, shadow runs and
abandoned answers included, whoever they were for. What each technique avoided comes with 95 %
bootstrap intervals and beside the ledger's own sums (bench/day_account.py). Losses are paired,
request by request, and come with 95 % bootstrap intervals over visits. An oracle is what its
technique could have avoided on this traffic: every repeat, every question whose meaning was asked
before, every task that the small model would have got right.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from bench.day_account import NAMES, bundled_prices, print_oracles, print_techniques, saved
from bench.day_report import TECHNIQUES, Losses, Said, losses, oracles
from bench.day_traffic import MAX_TOKENS, SYSTEM, TENANTS, Visit, days_of
from engine.contract import Usage
from tests.support.program import Program, running

CALLERS = 48
"""At one time; who comes when they are all busy waits, as in a browser's queue."""
ON = """
[server]
port = 0

[logs]
level = "warning"

[cascade]
policy = "quality"

[cache.semantic]
embedder_dir = "{embedders}"
"""
OFF = """
[server]
port = 0

[logs]
level = "warning"

[cascade]
policy = "fixed"

[cache.exact]
enabled = false

[cache.semantic]
enabled = false
"""
TENANT = """
[[tenants]]
name = "{name}"
keys = ["{digest}"]
"""


@dataclass(frozen=True, slots=True)
class Day:
    """What one replay said, and what the program's own account says of it."""

    said: list[Said]
    large_tokens: float
    small_tokens: float
    tokens_avoided: Mapping[str, float]
    """By technique, prompt and answer tokens together, as the ledger books them."""
    usd: float
    usd_avoided: Mapping[str, float]
    usd_wasted: float
    seconds: float


# --------------------------------------------------------------------------- the replay


def key_of(tenant: str) -> str:
    return f"sk-day-{tenant}"


def settings(base: str) -> str:
    embedders = Path(".cache/embedders").absolute()  # made once, not in every day's first minute
    tenants = [
        TENANT.format(name=name, digest=hashlib.sha256(key_of(name).encode()).hexdigest())
        for name in TENANTS
    ]
    return base.replace("{embedders}", str(embedders)) + "".join(tenants)


async def _ask(client: httpx.AsyncClient, visit: Visit, messages: list[Any], model: str) -> Any:
    body = {
        "model": model,
        "messages": messages,
        "temperature": 0,
        "max_tokens": MAX_TOKENS[visit.tenant],
    }
    headers = {"authorization": f"Bearer {key_of(visit.tenant)}"}
    reply = await client.post("/v1/chat/completions", json=body, headers=headers)
    reply.raise_for_status()
    return reply


async def _converse(
    client: httpx.AsyncClient, number: int, visit: Visit, copy: int, model: str
) -> list[Said]:
    """All turns of a visit, each with what was said before it."""
    system = SYSTEM[visit.tenant]
    messages = [{"role": "system", "content": system}] if system else []
    said = []
    for turn, text in enumerate(visit.turns):
        messages.append({"role": "user", "content": text})
        started = time.perf_counter()
        reply = await _ask(client, visit, messages, model)
        seconds = time.perf_counter() - started
        answer = reply.json()["choices"][0]["message"]["content"]
        origin, asked = reply.headers["sluice-origin"], reply.headers["sluice-model"]
        usage = usage_of(reply.json()["usage"])
        said.append(Said(number, turn, copy, answer, origin, asked, usage, seconds))
        messages.append({"role": "assistant", "content": answer})
    return said


def usage_of(told: Mapping[str, Any]) -> Usage:
    """What a reply says of its tokens."""
    return Usage(
        told["prompt_tokens"],
        told["completion_tokens"],
        told["prompt_tokens_details"]["cached_tokens"],
        told["sluice"]["computed_tokens"],
    )


async def _replay(base_url: str, visits: Sequence[Visit], model: str) -> list[Said]:
    free = asyncio.Semaphore(CALLERS)
    started = time.perf_counter()
    limits = httpx.Limits(max_connections=CALLERS)

    async with httpx.AsyncClient(base_url=base_url, timeout=600, limits=limits) as client:

        async def come(number: int, visit: Visit, copy: int) -> list[Said]:
            await asyncio.sleep(max(0.0, visit.at - (time.perf_counter() - started)))
            async with free:
                return await _converse(client, number, visit, copy, model)

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(come(number, visit, copy))
                for number, visit in enumerate(visits)
                for copy in range(visit.copies)
            ]
    return [said for task in tasks for said in task.result()]


def live(base: str, visits: Sequence[Visit], model: str, earlier: Sequence[Visit] = ()) -> Day:
    """One day in a program of its own, from an empty state but for the days before it."""
    with tempfile.TemporaryDirectory() as home, running(Path(home), settings(base)) as program:
        asyncio.run(_replay(program.base_url, earlier, model))
        program.wait_idle()
        before = _scrape(program)
        started = time.perf_counter()
        said = asyncio.run(_replay(program.base_url, visits, model))
        seconds = time.perf_counter() - started
        program.wait_idle()
        after = _scrape(program)

        def total(name: str, **labels: str) -> float:
            return after(name, **labels) - before(name, **labels)

        return _account(said, seconds, total)


def _scrape(program: Program) -> Callable[..., float]:
    families = list(text_string_to_metric_families(program.get("/metrics").body.decode()))
    samples = [sample for family in families for sample in family.samples]

    def total(name: str, **labels: str) -> float:
        return sum(
            sample.value
            for sample in samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    return total


def _account(said: list[Said], seconds: float, total: Callable[..., float]) -> Day:
    return Day(
        said=said,
        large_tokens=total("sluice_engine_tokens_total", model="large", kind="completion"),
        small_tokens=total("sluice_engine_tokens_total", model="small", kind="completion"),
        tokens_avoided={by: total("sluice_tokens_avoided_total", by=by) for by in NAMES},
        usd=total("sluice_cost_usd_total"),
        usd_avoided={by: total("sluice_cost_avoided_usd_total", by=by) for by in NAMES},
        usd_wasted=total("sluice_cost_wasted_usd_total"),
        seconds=seconds,
    )


def answers_of_small(visits: Sequence[Visit]) -> dict[str, str]:
    """What the small model alone says to every task: question → answer. For the oracle."""
    tasks = {visit.turns[0]: visit for visit in visits if visit.answer is not None}
    alone = [Visit(0.0, one.tenant, one.turns, answer=one.answer) for one in tasks.values()]
    said = live(OFF, alone, "small").said
    return {alone[one.visit].turns[0]: one.text for one in said}


# --------------------------------------------------------------------------- the tables


def show(
    visits: Sequence[Visit],
    earlier: Sequence[Visit],
    on: Day,
    off: Day,
    small: Mapping[str, str],
) -> dict[str, Any]:
    """Print the tables; the same as values for JSON."""
    rows = saved(on.said, off.said, bundled_prices())
    could, lost = oracles(visits, off.said, small, earlier), losses(visits, on.said, off.said)
    _show_whole(on, off)
    print_techniques(rows, on.tokens_avoided, on.usd_avoided, on.usd_wasted)
    print_oracles(rows, could)
    _show_losses(lost)
    days = {
        name: {key: value for key, value in asdict(one).items() if key != "said"}
        for name, one in (("on", on), ("off", off))
    }
    avoided = [asdict(one) for one in rows]
    return {"days": days, "avoided": avoided, "oracles": could, "losses": asdict(lost)}


def _show_whole(on: Day, off: Day) -> None:
    ratio = off.large_tokens / on.large_tokens if on.large_tokens else float("inf")
    saved = 1 - (on.usd + on.usd_wasted) / off.usd
    print(
        f"\n{len(on.said):,} answers; every saving off {off.seconds:.0f} s, on {on.seconds:.0f} s\n"
    )
    print("| | off | on | |")
    print("| --- | --- | --- | --- |")
    print(f"| large-model answer tokens | {off.large_tokens:,.0f} | {on.large_tokens:,.0f} "
          f"| {ratio:.1f} × fewer |")  # fmt: skip
    print(f"| small-model answer tokens | {off.small_tokens:,.0f} | {on.small_tokens:,.0f} | |")
    print(f"| USD, waste included | {off.usd + off.usd_wasted:.4f} "
          f"| {on.usd + on.usd_wasted:.4f} | {saved:.0%} less |")  # fmt: skip


def _show_losses(lost: Losses) -> None:
    print("\n| what can be checked | |")
    print("| --- | --- |")
    print(f"| graded tasks right, savings off | {lost.tasks_off} |")
    print(f"| graded tasks right, savings on | {lost.tasks_on} |")
    print(f"| points lost on tasks | {lost.tasks_lost} |")
    print(f"| semantic hits that were wrong, of hits | {lost.wrong_of_hits} |")
    print(f"| the same, of all questions | {lost.wrong_of_questions} |")
    print(f"| points lost over all that can be checked | {lost.lost} |")


def draw(result: Mapping[str, Any], path: Path) -> None:
    """One bar: where the answer tokens of the day without savings went."""
    from matplotlib.figure import Figure  # an extra, for this picture only

    shown = set(TECHNIQUES.values())
    parts = {
        one["technique"]: one["large_tokens"]["value"]
        for one in result["avoided"]
        if one["technique"] in shown
    }
    whole = result["days"]["off"]["large_tokens"]
    parts["large model"] = max(0.0, whole - sum(parts.values()))
    figure = Figure(figsize=(9, 1.9), dpi=110, layout="constrained")
    axes = figure.subplots()
    colours = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#bbbbbb")
    left = 0.0
    for (name, tokens), colour in zip(parts.items(), colours, strict=True):
        width = 100 * tokens / whole
        axes.barh(0, width, left=left, color=colour, label=f"{name} {width:.0f} %")
        left += width
    axes.set_xlim(0, 100)
    axes.set_yticks([])
    axes.set_xlabel("answer tokens of the day, % of what the large model generated without savings")
    axes.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder of the data sets")
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--minutes", type=float, default=4.0, help="length of the replayed day")
    parser.add_argument("--days", type=int, default=1, help="the last of how many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path, help="where to draw it (PNG)")
    options = parser.parse_args()
    days = days_of(options.data, options.days, options.requests, options.minutes * 60, options.seed)
    visits, earlier = days[-1], [visit for day in days[:-1] for visit in day]
    on = live(ON, visits, "auto", earlier)
    off = live(OFF, visits, "large")
    result = show(visits, earlier, on, off, answers_of_small(visits))
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "day.json").write_text(json.dumps(result, indent=1))
    if options.picture:
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        draw(result, options.picture)


if __name__ == "__main__":
    main()
