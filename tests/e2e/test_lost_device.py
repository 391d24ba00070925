"""A GPU that stops computing takes its process along, and another takes that one's place."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.checkpoints import make_checkpoint
from tests.support.program import PATIENCE_S
from tests.support.redis_server import free_port

CHILD = """
import sys
from pathlib import Path
from engine.runner import CpuRunner
from engine.sequence import RunnerLost
from gateway.cli import main

if __name__ == "__main__":
    broken, launch = Path(sys.argv[1]), CpuRunner.launch

    def breaking(self, chunks):
        if broken.exists():
            broken.unlink()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return launch(self, chunks)

    def recover(self):
        raise RunnerLost("the card does not compute any more")

    CpuRunner.launch, CpuRunner.recover = breaking, recover
    sys.exit(main(["serve", "--config", sys.argv[2]]))
"""


def ask(port: int, text: str) -> dict[str, Any]:
    """The reply, once there is a server."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            body = {"model": "small", "messages": [{"role": "user", "content": text}]}
            reply = httpx.post(
                f"http://127.0.0.1:{port}/v1/chat/completions",
                json=body | {"max_tokens": 4},
                timeout=PATIENCE_S,
            )
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            time.sleep(0.2)
            continue
        if reply.status_code != 503:  # it drains
            return {"status": reply.status_code, **reply.json()}
        time.sleep(0.2)
    raise AssertionError("nobody answers")


@contextmanager
def server(home: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A gateway, and its port, whose engine loses its device in the step after a file `broken` was
    made. Killed if it does not end by itself."""
    port, checkpoint = free_port(), make_checkpoint(home / "model")
    config, child = home / "sluice.toml", home / "child.py"
    config.write_text(
        f"[server]\nport = {port}\nshutdown_grace_s = 2\n"
        f'[models.small]\npath = "{checkpoint}"\n[models.large]\npath = "{checkpoint}"\n'
        '[engine]\ndevice = "cpu"\nkv_memory_mib = 16\n[cache.semantic]\nenabled = false\n'
    )
    child.write_text(CHILD)
    with (home / "log").open("wb") as logged:
        process = subprocess.Popen(
            [sys.executable, str(child), str(home / "broken"), str(config)],
            cwd=home,
            stdout=logged,
            stderr=logged,
            env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
        )
    try:
        yield process, port
        process.terminate()
        process.wait(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()


def test_requests_of_the_broken_step_get_500_and_a_new_process_answers_the_next(
    tmp_path: Path,
) -> None:
    with server(tmp_path) as (process, port):
        assert ask(port, "Hello")["status"] == 200
        (tmp_path / "broken").touch()
        failed = ask(port, "Break")
        assert failed["status"] == 500
        assert "CUDA" not in str(failed)
        assert "try again" in failed["error"]["message"]
        assert ask(port, "Again")["status"] == 200
        assert process.poll() is None
    assert "the card does not compute any more" in (tmp_path / "log").read_text()


def test_who_is_told_to_stop_while_it_begins_anew_stops(tmp_path: Path) -> None:
    with server(tmp_path) as (process, port):
        assert ask(port, "Hello")["status"] == 200
        (tmp_path / "broken").touch()
        assert ask(port, "Break")["status"] == 500
        process.terminate()
        assert process.wait(timeout=PATIENCE_S) == 0
    assert "restarting" not in (tmp_path / "log").read_text()
