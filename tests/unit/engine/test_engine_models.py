"""The engine over tiny real models: what shares a batch, a pool or a prefix changes no answer."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.build import ModelSpec, NoRoom, build_lanes, memory_free, split_bytes
from engine.contract import Call, Sampling
from engine.lane import Lane
from engine.loading import BrokenFile
from engine.pool import PoolTooSmall
from engine.scheduler import Limits
from tests.support.checkpoints import make_checkpoint
from tests.support.engines import Answered, ask, chat, real_lane
from tests.unit.engine.test_engine import serving

PROMPTS = [f"{'Tell me more about the gateway. ' * at}What is {at} + {at}?" for at in range(6)]
ANSWER = 24


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def sampled() -> dict[str, object]:
    return {"sampling": Sampling(temperature=1.0, top_p=0.9, seed=11), "max_tokens": ANSWER}


greedy = functools.partial(chat, max_tokens=ANSWER, sampling=Sampling(temperature=0.0))


async def answers(lane: Lane, calls: list[Call], *, at_once: bool) -> list[Answered]:
    async with serving(lane) as engine:
        answerer = engine.answerer("small")
        if at_once:
            return await asyncio.gather(*(ask(answerer, call) for call in calls))
        return [await ask(answerer, call) for call in calls]


async def one_by_one(checkpoint: Path, calls: list[Call]) -> list[list[int]]:
    """Each call's tokens from an engine of its own."""
    return [(await answers(real_lane(checkpoint), [c], at_once=False))[0].tokens() for c in calls]


async def test_greedy_answers_do_not_depend_on_company(checkpoint: Path) -> None:
    calls = [greedy(prompt) for prompt in PROMPTS]
    alone = await one_by_one(checkpoint, calls)
    together = await answers(real_lane(checkpoint), calls, at_once=True)
    assert [said.tokens() for said in together] == alone
    assert len({tuple(tokens) for tokens in alone}) == len(PROMPTS)


async def test_greedy_answers_do_not_depend_on_chunks_prefixes_or_choices(
    checkpoint: Path,
) -> None:
    call = greedy(PROMPTS[5])
    (alone,) = await one_by_one(checkpoint, [call])
    chopped = real_lane(checkpoint, limits=Limits(max_batched_tokens=9, max_running=8))
    first, again = await answers(chopped, [call, call], at_once=False)
    assert first.tokens() == again.tokens() == alone
    assert again.usage.cached_tokens > 100
    (both,) = await answers(real_lane(checkpoint), [greedy(PROMPTS[5], n=2)], at_once=False)
    assert both.tokens(0) == both.tokens(1) == alone


async def test_a_pool_that_is_too_small_for_all_changes_no_answer(checkpoint: Path) -> None:
    calls = [greedy(prompt, max_tokens=60) for prompt in PROMPTS[:4]]
    alone = await one_by_one(checkpoint, calls)
    lane = real_lane(checkpoint, num_pages=40, page_size=4)
    together = await answers(lane, calls, at_once=True)
    assert lane.scheduler.num_preemptions > 0, "the pool must be too small, or the test is idle"
    assert [said.tokens() for said in together] == alone


async def test_a_seeded_sample_is_the_same_alone_in_company_and_after_preemption(
    checkpoint: Path, sampled: dict[str, object]
) -> None:
    calls = [chat(prompt, **{**sampled, "max_tokens": 60}) for prompt in PROMPTS[:4]]
    alone = await one_by_one(checkpoint, calls)
    lane = real_lane(checkpoint, num_pages=40, page_size=4)
    together = await answers(lane, calls, at_once=True)
    assert lane.scheduler.num_preemptions > 0
    assert [said.tokens() for said in together] == alone


async def test_choices_of_a_seeded_call_differ_and_are_reproducible(
    checkpoint: Path, sampled: dict[str, object]
) -> None:
    call = chat(PROMPTS[1], n=3, **sampled)
    one, two = await answers(real_lane(checkpoint), [call, call], at_once=False)
    assert [one.tokens(i) for i in range(3)] == [two.tokens(i) for i in range(3)]
    assert len({tuple(one.tokens(i)) for i in range(3)}) == 3
    (single,) = await one_by_one(checkpoint, [chat(PROMPTS[1], **sampled)])
    assert one.tokens(0) == single


async def test_without_a_seed_samples_differ(checkpoint: Path) -> None:
    call = chat(PROMPTS[1], max_tokens=ANSWER, sampling=Sampling(temperature=1.0))
    one, two = await answers(real_lane(checkpoint), [call, call], at_once=False)
    assert one.tokens() != two.tokens()


async def test_the_text_is_the_decoded_tokens(checkpoint: Path) -> None:
    lane = real_lane(checkpoint)
    (said,) = await answers(lane, [greedy(PROMPTS[2], max_tokens=80)], at_once=False)
    tokenizer = lane.text._tokenizer
    assert said.text() == tokenizer.decode(said.tokens())


async def test_logprobs_are_of_the_tokens_and_best_first(checkpoint: Path) -> None:
    call = greedy(PROMPTS[2], logprobs=True, top_logprobs=4)
    (said,) = await answers(real_lane(checkpoint), [call], at_once=False)
    entries = said.logprobs()
    assert len(entries) == len(said.tokens())
    for entry in entries:
        tops = [top.logprob for top in entry.top]  # type: ignore[attr-defined]
        assert len(tops) == 4
        assert tops == sorted(tops, reverse=True)
        assert entry.top[0].token_bytes == entry.token_bytes  # type: ignore[attr-defined]


async def test_two_models_of_one_budget_answer_as_they_do_alone(tmp_path: Path) -> None:
    small = make_checkpoint(tmp_path / "small", "llama", seed=1)
    large = make_checkpoint(tmp_path / "large", "qwen3", seed=2, layers=3)
    lanes = build_lanes(
        {"small": ModelSpec(small), "large": ModelSpec(large)}, kv_bytes=4 << 20, page_size=8
    )
    tokens = {name: lane.tree.pages.num_pages for name, lane in lanes.items()}
    assert abs(tokens["small"] - tokens["large"]) <= 1, "equal weights are equal tokens"
    call = greedy(PROMPTS[3])
    async with serving(*lanes.values()) as engine:
        one, two = await asyncio.gather(
            ask(engine.answerer("small"), call), ask(engine.answerer("large"), call)
        )
    assert [one.tokens()] == await one_by_one(small, [call])
    assert [two.tokens()] == await one_by_one(large, [call])
    assert one.tokens() != two.tokens()


def test_a_budget_is_split_by_tokens_not_by_bytes() -> None:
    shares = split_bytes(7000, {"a": (1.0, 100), "b": (2.0, 300)})
    assert shares == {"a": 1000, "b": 6000}


def test_a_broken_tokenizer_is_found_before_weights_are_read(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(BrokenFile, match=r"tokenizer\.json"):
        build_lanes({"small": ModelSpec(tmp_path)}, kv_bytes=4 << 20)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", b"{% for x in %}"),
        ("chat_template.jinja", b"\xff\xfe"),
        ("chat_template.jinja", b"{{ " + b"(" * 5000 + b")" * 5000 + b" }}"),
        ("tokenizer_config.json", b'{"chat_template": "{% if %}"}'),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default"}]}'),
        ("tokenizer_config.json", b'{"chat_template": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ],
)
def test_a_broken_chat_template_is_named_with_its_file_and_a_remedy(
    tmp_path: Path, file: str, content: bytes
) -> None:
    make_checkpoint(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(BrokenFile, match=rf"{re.escape(str(tmp_path / file))}.*download") as caught:
        build_lanes({"small": ModelSpec(tmp_path)}, kv_bytes=4 << 20)
    assert "\n" not in str(caught.value)


def test_more_memory_than_there_is_is_refused_with_all_figures_before_weights_are_read(
    tmp_path: Path,
) -> None:
    make_checkpoint(tmp_path)
    said: list[str] = []
    free = memory_free()
    assert free is not None
    with pytest.raises(NoRoom, match=r"asks for .* MiB more, but .* are free: lower") as caught:
        build_lanes({"m": ModelSpec(tmp_path)}, kv_bytes=2 * free, progress=said.append)
    assert f"{2 * free >> 20:,} MiB" in str(caught.value)
    assert said == []


def test_a_system_that_does_not_tell_its_memory_is_not_asked(tmp_path: Path) -> None:
    assert memory_free(tmp_path / "meminfo") is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 7 kB\n")
    assert memory_free(tmp_path / "meminfo") == 7 << 10


def test_too_little_memory_names_the_model_before_weights_are_read(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    said: list[str] = []
    specs = {"little": ModelSpec(tmp_path)}
    with pytest.raises(PoolTooSmall, match=r"^little: "):
        build_lanes(specs, kv_bytes=1 << 10, progress=said.append)
    assert said == []
