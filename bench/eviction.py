"""What eviction by value is worth: the memory store against LRU, in one run.

    python -m bench.eviction [--requests 200000] [--seed 1]

Three kinds of traffic over 30,000 different questions whose answers differ as real ones do: prompts
and completions are lognormal (medians 400 and 150 tokens, a long tail each), one answer in twenty
carries logprobs and is fifteen times as large.

    zipf    popularity by Zipf's law, exponent 0.9, for ever
    drift   the same, and every 2,000 requests a twentieth of the popular places changes hands
    scan    the same, and a third of the requests come in runs of 500 questions never asked again

Printed per capacity (a share of the bytes of all answers): hit rate, byte hit rate, and tokens
saved, a prompt token counting a quarter. The last is what the store is for.
"""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from cache.replay import Recording
from cache.store.memory import MemoryStore
from engine.contract import Usage

QUESTIONS = 30_000
CAPACITIES = (0.01, 0.05, 0.20)


@dataclass(frozen=True, slots=True)
class Answers:
    """Sizes of the answer to each question, by number."""

    prompt_tokens: np.ndarray
    completion_tokens: np.ndarray
    body_bytes: np.ndarray

    def recording(self, number: int) -> Recording:
        kind = number % QUESTIONS
        prompt, completion = int(self.prompt_tokens[kind]), int(self.completion_tokens[kind])
        return Recording(
            model="m",
            created=0,
            origin="small",
            usage=Usage(prompt, completion),
            body=bytes(int(self.body_bytes[kind])),
            stored_at=0.0,
            ttl_s=1e12,
            scope="t",
        )


def make_answers(rng: np.random.Generator) -> Answers:
    prompt = np.clip(rng.lognormal(np.log(400), 1.5, QUESTIONS), 5, 100_000).astype(int)
    completion = np.clip(rng.lognormal(np.log(150), 1.2, QUESTIONS), 1, 8_000).astype(int)
    per_token = np.where(rng.random(QUESTIONS) < 0.05, 300, 20)
    return Answers(prompt, completion, completion * per_token)


# --------------------------------------------------------------------------- traffic


def zipf(rng: np.random.Generator, requests: int) -> Iterator[int]:
    weights = 1 / np.arange(1, QUESTIONS + 1) ** 0.9
    places = rng.choice(QUESTIONS, size=requests, p=weights / weights.sum())
    return iter(rng.permutation(QUESTIONS)[places].tolist())


def drift(rng: np.random.Generator, requests: int) -> Iterator[int]:
    weights = 1 / np.arange(1, QUESTIONS + 1) ** 0.9
    weights /= weights.sum()
    holders = rng.permutation(QUESTIONS)
    for _ in range(0, requests, 2_000):
        places = rng.integers(0, QUESTIONS // 10, QUESTIONS // 200)
        others = rng.integers(0, QUESTIONS, places.size)
        holders[places], holders[others] = holders[others], holders[places]
        yield from holders[rng.choice(QUESTIONS, size=2_000, p=weights)].tolist()


def scan(rng: np.random.Generator, requests: int) -> Iterator[int]:
    usual = zipf(rng, requests)
    never_asked_again = QUESTIONS
    for _ in range(0, requests, 1_500):
        for _ in range(1_000):
            yield next(usual)
        for _ in range(500):
            never_asked_again += 1
            yield never_asked_again


# --------------------------------------------------------------------------- policies


class Policy(Protocol):
    def get(self, number: int) -> bool: ...

    def put(self, number: int, recording: Recording) -> None: ...


class Lru:
    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._sizes: OrderedDict[int, int] = OrderedDict()
        self._held_bytes = 0

    def get(self, number: int) -> bool:
        if number not in self._sizes:
            return False
        self._sizes.move_to_end(number)
        return True

    def put(self, number: int, recording: Recording) -> None:
        if recording.held_bytes > self._max_bytes:
            return
        self._sizes[number] = recording.held_bytes
        self._held_bytes += recording.held_bytes
        while self._held_bytes > self._max_bytes:
            _, freed = self._sizes.popitem(last=False)
            self._held_bytes -= freed


class ByValue:
    """The store itself, as it runs in the gateway."""

    def __init__(self, max_bytes: int, max_uses: int) -> None:
        self._store = MemoryStore(max_bytes, clock=lambda: 0.0, max_uses=max_uses)

    def get(self, number: int) -> bool:
        return self._store.look_up(number.to_bytes(32, "big")) is not None

    def put(self, number: int, recording: Recording) -> None:
        try:
            self._store.put(number.to_bytes(32, "big"), recording).send(None)  # never waits
        except StopIteration:
            return


POLICIES: dict[str, Callable[[int], Policy]] = {
    "LRU": Lru,
    "value, uses <= 1": lambda room: ByValue(room, 1),
    "value, uses <= 8": lambda room: ByValue(room, 8),
    "value, uses <= 64": lambda room: ByValue(room, 64),
    "value, uses unbounded": lambda room: ByValue(room, 1 << 60),
}


# --------------------------------------------------------------------------- measuring


@dataclass(slots=True)
class Result:
    traffic: str
    capacity: float
    policy: str
    hit_rate: float
    byte_hit_rate: float
    tokens_saved: float


def measure(policy: Policy, answers: Answers, requests: list[int]) -> tuple[float, float, float]:
    hits, hit_bytes, saved, all_bytes, all_cost = 0, 0, 0.0, 0, 0.0
    for number in requests:
        kind = number % QUESTIONS
        size = int(answers.body_bytes[kind])
        cost = float(answers.completion_tokens[kind] + 0.25 * answers.prompt_tokens[kind])
        all_bytes += size
        all_cost += cost
        if policy.get(number):
            hits += 1
            hit_bytes += size
            saved += cost
        else:
            policy.put(number, answers.recording(number))
    return hits / len(requests), hit_bytes / all_bytes, saved / all_cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    answers = make_answers(rng)
    total_bytes = int(answers.body_bytes.sum())
    print(f"{options.requests} requests, all answers together {total_bytes / 1e6:.0f} MB")
    print("traffic  room   policy                  hits    bytes   tokens saved")
    results: list[Result] = []
    for name, traffic in {"zipf": zipf, "drift": drift, "scan": scan}.items():
        requests = list(traffic(rng, options.requests))
        for capacity in CAPACITIES:
            for label, make in POLICIES.items():
                policy = make(int(total_bytes * capacity))
                result = Result(name, capacity, label, *measure(policy, answers, requests))
                results.append(result)
                print(
                    f"{name:8} {capacity:4.0%}   {label:22} {result.hit_rate:6.1%}  "
                    f"{result.byte_hit_rate:6.1%}  {result.tokens_saved:6.1%}"
                )
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    saved = [asdict(result) for result in results]
    (folder / "eviction.json").write_text(json.dumps(saved, indent=1))


if __name__ == "__main__":
    main()
