"""`auto` by a real server: who answers, by which policy, and what a client is told of it."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest

from tests.support.program import Program, run_to_end, running, wait_until
from tests.support.served import Models, chat

TASKS = 60
"""A small file."""


def test_auto_says_who_answered_and_by_which_policy(server: Program, question) -> None:
    reply = server.post(chat(question(), model="auto"))
    assert reply.headers["sluice-origin"] in {"small", "large"}
    assert reply.headers["sluice-policy"].startswith("quality; ")
    found = server.get(f"/admin/decisions/{reply.json['id']}").json["decisions"]
    (line,) = found
    steps = [step for step in line["steps"] if step["layer"] == "cascade"]
    assert steps[-1]["choice"] == line["origin"] == reply.headers["sluice-origin"]
    assert all(step["reason"] for step in steps)


def test_json_and_stream_get_the_same_answer_from_auto(server: Program, question) -> None:
    asked = chat(question(), model="auto")
    streamed = server.post({**asked, "stream": True}, cache_control="no-store").streamed_text
    assert server.post(asked, cache_control="no-store").text == streamed


def test_the_bundled_models_are_calibrated_out_of_the_box(server: Program, models: Models) -> None:
    if not models.bundled:
        pytest.skip("tiny random checkpoints come without a policy")
    (told, *_) = server.get("/admin/cascade").json["tenants"]
    assert told["calibrated"]
    assert told["promise"]["max_loss"] == 0.01
    assert told["with_semantic_cache"] in (None, {"max_loss": 0.02, "confidence": 0.9})
    easy = server.post(chat("What is 2 + 3?", model="auto"))
    assert easy.headers["sluice-origin"] == "small"
    assert easy.text.rstrip(".").endswith("5")
    curve = server.get("/admin/cascade/default/curve").json
    assert curve["chosen"]["large_share"] < 0.5


def labelled_sums(server: Program, path: Path) -> None:
    """Both models' answers to sums, as rows of labels. What random models answer counts as right
    when its length is even: a label like any other."""
    rng = random.Random(1)
    with path.open("w") as file:
        for _ in range(TASKS):
            a, b = rng.randrange(60), rng.randrange(60)
            messages = [{"role": "user", "content": f"What is {a} + {b}?"}]
            row: dict[str, object] = {"messages": messages}
            for model in ("small", "large"):
                asked = chat("", model=model, messages=messages, logprobs=True, temperature=0)
                choice = server.post(asked).json["choices"][0]
                text = choice["message"]["content"]
                right = text.rstrip(".").endswith(str(a + b)) or model == "large"
                row[model] = {
                    "score": float(right),
                    "text": text,
                    "finish": choice["finish_reason"],
                    "logprobs": [one["logprob"] for one in choice["logprobs"]["content"]],
                    "tokens": len(choice["logprobs"]["content"]),
                }
            file.write(json.dumps(row) + "\n")


def test_labels_of_the_served_models_become_the_policy_that_serves(
    server: Program, models: Models, tmp_path: Path
) -> None:
    if not models.bundled:
        pytest.skip("random answers have nothing to learn from")
    labelled_sums(server, tmp_path / "labels.jsonl")
    home = tmp_path / "home"
    home.mkdir()
    (home / "sluice.toml").write_text(models.settings)
    asked = ("calibrate", "--tenant", "default", "--data", str(tmp_path / "labels.jsonl"))
    refused = run_to_end(home, *asked)
    assert refused.returncode == 2
    assert "It takes at least" in refused.stdout
    with running(home, models.settings.replace("[logs]", "[cascade]\ntarget = 0.3\n[logs]")) as own:
        done = run_to_end(home, *asked, "--target", "0.3")
        assert done.returncode == 0, done.stderr
        assert "at most 30 points are lost" in done.stdout
        assert (home / ".sluice/cascade/default.png").exists()
        own.signal(signal.SIGHUP)
        wait_until(lambda: "default.json" in own.get("/admin/cascade").json["tenants"][0]["source"],
                   "the running gateway takes it on")  # fmt: skip
        reply = own.post(chat("What is 3 + 4?", model="auto"))
        assert reply.headers["sluice-policy"] == (
            f"quality; max-loss=0.3; confidence=0.9; labels={TASKS // 2}"
        )


@pytest.mark.slow
def test_idle_time_becomes_labels_and_labels_a_policy(models: Models, tmp_path: Path) -> None:
    if not models.bundled:
        pytest.skip("random answers have nothing to learn from")
    gathering = models.settings.replace("[logs]", "[cascade]\nshadow_share = 1.0\n[logs]")
    with running(tmp_path, gathering) as own:
        for number in range(TASKS):
            own.post(chat(f"What is {number} + {number % 7}?", model="auto"))
        kept = tmp_path / ".sluice/cascade/default.labels.jsonl"
        wait_until(
            lambda: kept.exists() and kept.read_text().count("\n") == TASKS, "all are labelled"
        )
        assert own.get("/admin/cascade").json["shadow"]["labels"] == TASKS
    done = run_to_end(
        tmp_path, "calibrate", "--tenant", "default", "--collected", "--target", "0.5"
    )
    assert done.returncode == 0, done.stderr
    assert f"on {TASKS // 2} labels" in done.stdout
