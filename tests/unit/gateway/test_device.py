"""[engine] device: what is asked for, what is there, and what happens where they differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.cuda import card
from engine.cuda.card import NoDevice, Room, check_budget, choose_device, kv_room, room_for
from engine.loading import read_checkpoint
from engine.scheduler import Limits
from gateway import engine_backend
from gateway.backend import CannotLoad
from gateway.engine_backend import limits_for, load_backend
from gateway.observe.logs import Log, build_log
from gateway.settings import Engine, Model, Settings
from tests.support.checkpoints import make_checkpoint

CUDA = torch.device("cuda", 0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    model = Model(path=make_checkpoint(tmp_path / "model"))
    return Settings(models={"small": model}, engine=Engine(kv_memory_mib=8))


def on(settings: Settings, device: str) -> Settings:
    return replace(settings, engine=replace(settings.engine, device=device))


class _Nowhere:
    def line(self, text: bytes) -> None:
        pass


def quiet() -> Log:
    return build_log(_Nowhere(), "info", as_json=True)  # type: ignore[arg-type]


def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def with_gpu(monkeypatch: pytest.MonkeyPatch, free: int, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Card")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 80 << 30))
    monkeypatch.setattr(card, "find_spec", lambda _: object())


def test_a_model_with_twice_the_share_holds_twice_the_tokens(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gpu(monkeypatch)
    model = settings.models["small"]
    both = replace(settings, models={"small": model, "large": replace(model, kv_share=2.0)})
    lanes = load_backend(both, quiet(), lambda _: None).engine.lanes
    pages = {name: lane.tree.stats().free for name, lane in lanes.items()}
    assert pages["small"] > 10
    assert abs(pages["large"] - 2 * pages["small"]) <= 2


def test_more_kv_memory_than_there_is_is_an_error_in_the_operators_words(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gpu(monkeypatch)
    vast = replace(settings, engine=replace(settings.engine, kv_memory_mib=99_999_999))
    with pytest.raises(
        CannotLoad, match=r"99,999,999 MiB more, but .* lower engine\.kv_memory_mib"
    ):
        load_backend(vast, quiet(), lambda _: None)


def test_auto_computes_on_the_cpu_where_there_is_no_gpu(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gpu(monkeypatch)
    assert choose_device("auto") == torch.device("cpu")
    assert list(load_backend(settings, quiet(), lambda _: None).answerers) == ["small"]


def test_a_gpu_that_is_asked_for_and_not_there_is_a_refusal_with_the_reason(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gpu(monkeypatch)
    with pytest.raises(CannotLoad, match=r"engine.device: cuda cannot be used: .*PyTorch.*cpu"):
        load_backend(on(settings, "cuda"), quiet(), lambda _: None)


def test_a_gpu_that_is_too_old_or_not_numbered_so_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_gpu(monkeypatch, 8 << 30, (7, 5))
    with pytest.raises(NoDevice, match=r"Card has compute capability 7.5, and 8.0 is the least"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")
    with_gpu(monkeypatch, 8 << 30, (9, 0))
    with pytest.raises(NoDevice, match="there are 1 GPUs, numbered from 0"):
        choose_device("cuda:1")
    assert choose_device("auto") == choose_device("cuda") == CUDA


def test_a_gpu_that_is_too_small_falls_back_or_refuses_by_the_setting(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch, 1 << 20, (9, 0))
    told: list[str] = []
    backend = load_backend(settings, quiet(), told.append)
    assert list(backend.answerers) == ["small"]
    assert any("falling back to the CPU: small need" in line for line in told)
    with pytest.raises(CannotLoad, match=r"small need .* GiB on cuda:0.*engine.kv_memory_mib"):
        load_backend(on(settings, "cuda"), quiet(), lambda _: None)


def test_a_gpu_that_fills_up_while_loading_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch, 70 << 30, (9, 0))

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("engine.build.load_decoder", full)
    with pytest.raises(CannotLoad, match="ran out of memory while small was loaded"):
        load_backend(on(settings, "cuda"), quiet(), lambda _: None)


def test_keys_and_values_get_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_checkpoint(make_checkpoint(tmp_path / "model")).config
    room = room_for(config, torch.bfloat16, 8192, 256)
    assert room.weights == 2 * config.parameters
    with_gpu(monkeypatch, 40 << 30, (9, 0))
    left = kv_room(CUDA, {"small": room})
    assert 0.9 * (38 << 30) < left < (39 << 30)
    check_budget(CUDA, {"small": room}, 30 << 30)
    with pytest.raises(NoDevice, match=r"needs? .* lower it to \d+"):
        check_budget(CUDA, {"small": room}, 39 << 30)
    with pytest.raises(NoDevice, match="fewer or smaller models"):
        kv_room(CUDA, {"small": Room(39 << 30, 1 << 30)})


def test_what_is_unset_follows_the_device() -> None:
    cpu = torch.device("cpu")
    assert limits_for(Engine(), cpu) == Limits(512, 64, 512)
    assert limits_for(Engine(), CUDA) == Limits(8192, 256, 512)
    assert limits_for(Engine(max_batched_tokens=100), CUDA) == Limits(100, 50, 512)
    assert limits_for(Engine(max_running=600), cpu) == Limits(1200, 600, 512)
    assert engine_backend.KV_LEAST_BYTES < engine_backend.KV_MOST_BYTES
