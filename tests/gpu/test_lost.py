"""A CUDA error in a step, in a process of its own, which it ends the use of the card for: the
requests in it fail by their ids, and the engine says why it ended instead of going on with garbage.
What the server does then is gateway/cli.py's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.contract import AnswerError, Call, Failed, Sampling, Trail
from engine.engine import Engine
from engine.sequence import Chunk
from tests.support.checkpoints import make_checkpoint

ROOT = Path(__file__).parents[2]


def test_a_cuda_error_fails_its_requests_and_ends_the_engine_with_the_reason(
    tmp_path: Path,
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    make_checkpoint(tmp_path / "model", head_dim=64, dtype=torch.bfloat16)
    command = [
        sys.executable,
        "-c",
        f"from tests.gpu.test_lost import lose; lose({str(tmp_path)!r})",
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert "in a step of small, for request r1" in done.stdout, done.stdout + done.stderr[-2000:]
    assert "lost: cuda:0 does not compute any more" in done.stdout
    assert "The engine has stopped" in done.stdout.split("later: ")[1]


def lose(folder: str) -> None:
    """The child's part."""
    from engine.cuda.runner import GpuRunner, Launched
    from tests.support.gpu_lanes import gpu_lane

    launch = GpuRunner.launch

    def breaking(self: GpuRunner, chunks: list[Chunk]) -> Launched:
        torch.zeros(1, device="cuda")[torch.tensor([5], device="cuda")]  # asserts on the device
        return launch(self, chunks)

    lane = gpu_lane(Path(folder) / "model", graphs=False)
    engine = Engine({"small": lane}, report=lambda *_: None)
    call = Call(kind="text", model="small", scope="s", prompt=(7, 8, 9), max_tokens=8,
                sampling=Sampling(temperature=0.0))  # fmt: skip

    async def ask(name: str) -> str:
        try:
            async for _ in engine.answerer("small")(call, Trail(name)):
                pass
        except Failed as error:
            return error.message
        except AnswerError as error:
            return f"another error: {error.message}"
        return "an answer"

    async def run() -> None:
        engine.start()
        say("before:", await ask("r0"))
        GpuRunner.launch = breaking  # type: ignore[method-assign]
        say("broken:", await ask("r1"))
        while engine.lost is None:  # noqa: ASYNC110 - a thread sets it
            await asyncio.sleep(0.01)
        say("lost:", engine.lost)
        say("later:", await ask("r2"))

    asyncio.run(run())


def say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()
