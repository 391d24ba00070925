"""A GPU that stops computing takes its process along, and another takes that one's place."""

from __future__ import annotations

import subprocess
import sys
import time
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


def test_requests_of_the_broken_step_get_500_and_a_new_process_answers_the_next(
    tmp_path: Path,
) -> None:
    port, broken = free_port(), tmp_path / "broken"
    checkpoint = make_checkpoint(tmp_path / "model")
    config = tmp_path / "sluice.toml"
    config.write_text(
        f"[server]\nport = {port}\nshutdown_grace_s = 2\n"
        f'[models.small]\npath = "{checkpoint}"\n[models.large]\npath = "{checkpoint}"\n'
        '[engine]\ndevice = "cpu"\nkv_memory_mib = 16\n[cache.semantic]\nenabled = false\n'
    )
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    log = tmp_path / "log"
    with log.open("wb") as logged:
        process = subprocess.Popen(
            [sys.executable, str(child), str(broken), str(config)],
            cwd=tmp_path,
            stdout=logged,
            stderr=logged,
            env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
        )
        try:
            assert ask(port, "Hello")["status"] == 200, log.read_text()
            broken.touch()
            failed = ask(port, "Break")
            assert failed["status"] == 500
            assert "CUDA" not in str(failed)
            assert "try again" in failed["error"]["message"]
            assert ask(port, "Again")["status"] == 200, log.read_text()
            assert process.poll() is None
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE_S)
    assert "the card does not compute any more" in log.read_text()
