"""Which device to compute on, and what fits on it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch

from engine.models.config import DecoderConfig

LEAST_CAPABILITY = (8, 0)
"""Ampere: bf16 in hardware, and what the kernels' asynchronous copies need."""
SLACK_BYTES = 1 << 30
"""For the context's own memory, compiled kernels and graphs."""
KV_SHARE = 0.95
"""Of what is left after weights and activations: a later allocation must not be the last one."""


class NoDevice(Exception):
    """The device that the settings ask for cannot be used. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Room:
    """What one model needs besides keys and values, in bytes."""

    weights: int
    activations: int


def choose_device(setting: str) -> torch.device:
    """`setting`: cpu, cuda, cuda:N, or auto: the GPU where there is one that can be used, else the
    CPU. Raises NoDevice where a GPU is asked for by name and cannot be used."""
    if setting == "cpu":
        return torch.device("cpu")
    why = why_not(0 if setting in ("auto", "cuda") else int(setting.removeprefix("cuda:")))
    if why is None:
        return torch.device("cuda", 0) if setting == "auto" else _indexed(setting)
    if setting == "auto":
        return torch.device("cpu")
    raise NoDevice(f"{setting} cannot be used: {why}; or set engine.device to cpu or auto")


def _indexed(setting: str) -> torch.device:
    device = torch.device(setting)
    return device if device.index is not None else torch.device("cuda", 0)


def why_not(index: int) -> str | None:
    """What keeps us from computing on CUDA device `index`; None: nothing."""
    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        return (
            "PyTorch finds no GPU; see that `nvidia-smi` lists one here"
            if built
            else "this PyTorch was built for the CPU only; install one built for CUDA"
        )
    count = torch.cuda.device_count()
    if index >= count:
        return f"there are {count} GPUs, numbered from 0"
    capability = torch.cuda.get_device_capability(index)
    if capability < LEAST_CAPABILITY:
        name = torch.cuda.get_device_name(index)
        return (
            f"{name} has compute capability {capability[0]}.{capability[1]}, and 8.0 is the least"
        )
    if find_spec("triton") is None:
        return "Triton is not installed; `pip install triton`"
    return None


def dtype_on_gpu(stored: torch.dtype) -> torch.dtype:
    """What a checkpoint stored as `stored` is computed in: half types as they are, fp32 as bf16."""
    return torch.float16 if stored == torch.float16 else torch.bfloat16


def room_for(config: DecoderConfig, dtype: torch.dtype, max_tokens: int, max_running: int) -> Room:
    """An upper bound: the widest layer's inputs and outputs for a step's rows, twice over (in a
    graph and without), logits of a large step and of a small one, and what a draw keeps."""
    weights = config.parameters * dtype.itemsize
    row = 2 * config.hidden + 3 * config.ffn + 2 * config.q_size + 2 * config.kv_size
    rows = max_tokens + max_running
    logits = config.vocab * (2 * (max_running + 544) * dtype.itemsize + 128 * 8)
    rope = config.context * config.head_dim * 4
    return Room(weights, 2 * rows * row * dtype.itemsize + logits + rope)


def kv_room(device: torch.device, rooms: dict[str, Room]) -> int:
    """Bytes that are left for keys and values of all models. Raises NoDevice where nothing is."""
    free, total = torch.cuda.mem_get_info(device)
    needed = sum(room.weights + room.activations for room in rooms.values()) + SLACK_BYTES
    if needed >= free:
        raise NoDevice(
            f"{', '.join(rooms)} need {_gib(needed)} on {device} before any keys and values, and "
            f"{_gib(free)} of its {_gib(total)} are free: use fewer or smaller models, lower "
            "engine.max_batched_tokens, free the card, or set engine.device to cpu"
        )
    return int((free - needed) * KV_SHARE)


def check_budget(device: torch.device, rooms: dict[str, Room], kv_bytes: int) -> None:
    """Raise NoDevice where a budget from the settings does not fit beside the models."""
    free, _ = torch.cuda.mem_get_info(device)
    needed = sum(room.weights + room.activations for room in rooms.values()) + SLACK_BYTES
    if needed + kv_bytes > free:
        raise NoDevice(
            f"{', '.join(rooms)} need {_gib(needed)} on {device}, and engine.kv_memory_mib asks "
            f"for {_gib(kv_bytes)} more, but {_gib(free)} are free: lower it to "
            f"{max(0, free - needed) >> 20}, or use smaller models"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
