"""Does the promise hold with the labels that a gateway has, and not only with true ones?

    python -m bench.semantic_labels --data FOLDER [--half held] [--streams twins] [--seeds 100]

A gateway learns which hits were right by comparing a fresh answer with the cached one. Here that
comparison, cache/agree.py, labels streams whose answers are real texts in many wordings and whose
truth is known (bench/semantic_said.py), alone and with a judge who knows the truth or errs by a
known share. Three tables:

    kinds      pairs of answers that say the same, and that differ in one thing: how many of the
               first are called right (found), how many of the second are (fooled), with 95 %
               intervals (Wilson)
    streams    the same of each question and the nearest one before it, as the cache meets them
    promise    the table of bench/semantic.py, with true labels and with the labeller's; wrong is
               always against the truth

`--half tuned` has the other half of all wordings: the one to look at while cache/agree.py changes.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.semantic_answers import KINDS, Half, Kind, word
from bench.semantic_lines import HEADER, Runs, show, summarise, tally
from bench.semantic_replay import Pool, Right, embedded, play_by_labels
from bench.semantic_said import SAID, STYLES, Said
from bench.semantic_streams import Ints, Questions
from cache.agree import Label, agree
from cache.embed import TextTooLong, Vector
from cache.verify_budget import Budgeted, Terms

ERRORS = (0.005, 0.01, 0.02, 0.05)
PAIRS = 600
"""Of each sort, for each kind."""
FEWER = 10
"""Seeds of all labels but those of the labeller alone, at most."""
ORDERS = 3
"""Orders of a stream from which its pairs are taken."""


@dataclass(frozen=True, slots=True)
class Errs:
    """A judge who calls `finds` of what says the same the same, and `fooled` of what does not."""

    finds: float
    fooled: float

    def says(self, fresh: str, cached: str, *, same: bool) -> bool:
        """Of the same pair always the same."""
        drawn = random.Random(f"{fresh}\0{cached}").random()
        return drawn < (self.finds if same else self.fooled)


ALONE = "ours, labeller"
JUDGES: dict[str, Errs | None] = {
    ALONE: None,
    "ours, + judge": Errs(1.0, 0.0),
    "ours, + judge 90/1": Errs(0.9, 0.01),
    "ours, + judge 90/5": Errs(0.9, 0.05),
}


class Labeller:
    """cache/agree.py over texts that were embedded before. Remembers what it said: a label, and
    whether a judge is to be asked."""

    def __init__(self, texts: Sequence[str], folder: Path) -> None:
        self._number = {text: at for at, text in enumerate(dict.fromkeys(texts))}
        self._vectors = embedded(Questions([*self._number], [0] * len(self._number)), folder)
        self._said: dict[tuple[int, int], Label] = {}

    def __call__(self, fresh: str, cached: str) -> Label:
        pair = self._number[fresh], self._number[cached]
        label = self._said.get(pair)
        if label is None:
            label = self._said[pair] = _at_once(agree("", fresh, cached, embed=self._embed))
        return label

    def judged(self, fresh: str, cached: str, judge: Errs | None, *, same: bool) -> Label:
        """As cache/agree.py: a judge decides what is unclear."""
        label = self(fresh, cached)
        if judge is None or label.source != "unclear":
            return label
        return Label(judge.says(fresh, cached, same=same), "judge")

    async def _embed(self, text: str) -> Vector:
        vector: Vector = self._vectors[self._number[text]]
        if not vector.any():
            raise TextTooLong("over the window")
        return vector


def _at_once(answer: Coroutine[Any, Any, Label]) -> Label:
    """The result of a coroutine that waits for nothing."""
    try:
        answer.send(None)
    except StopIteration as done:
        label: Label = done.value
        return label
    raise RuntimeError("it waits for something")


# --------------------------------------------------------------------------- pairs


def wilson(part: int, whole: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share."""
    if not whole:
        return 0.0, 1.0
    share, shrink = part / whole, 1 + z * z / whole
    middle = (share + z * z / (2 * whole)) / shrink
    reach = z / shrink * (share * (1 - share) / whole + z * z / (4 * whole * whole)) ** 0.5
    return max(0.0, middle - reach), min(1.0, middle + reach)


@dataclass(slots=True)
class Tally:
    """Pairs by the truth, and what the labels said of them and rested on."""

    same: int = 0
    found: int = 0
    other: int = 0
    fooled: int = 0
    why: Counter[str] = field(default_factory=Counter)

    def add(self, label: Label, *, right: bool) -> None:
        self.same += right
        self.found += right and label.right
        self.other += not right
        self.fooled += label.right and not right
        self.why[f"{label.source} {'=' if label.right else '≠'}"] += 1

    def show(self, name: str) -> str:
        shares = []
        for part, whole in ((self.found, self.same), (self.fooled, self.other)):
            low, high = (100 * bound for bound in wilson(part, whole))
            share = 100 * part / max(1, whole)
            shares.append(f"{whole:6d} {share:6.2f} [{low:5.2f}, {high:5.2f}]")
        total = sum(self.why.values())
        why = ", ".join(f"{name} {100 * n / total:.0f}" for name, n in self.why.most_common(4))
        return f"{name:11s}{'  '.join(shares)}  {why}"


PAIRS_HEADER = (
    "pairs      same   found %                other  fooled %                labels rest on, %"
)


def pairs_of(kind: Kind, half: Half) -> list[tuple[str, str, bool]]:
    """(fresh, cached, whether they say the same); half of them in the same style, as a model's
    answers to two like questions are."""
    rng = random.Random(f"{kind.name} {half}")
    out = []
    for at in range(2 * PAIRS):
        fields = kind.make(rng)
        right = at % 2 == 0
        other = fields if right else kind.twin(fields, rng)
        style = rng.randrange(STYLES)
        second = style if rng.random() < 0.5 and not right else rng.randrange(STYLES)
        out.append((word(kind, fields, half, style), word(kind, other, half, second), right))
    return out


def kinds_table(half: Half, folder: Path) -> Iterable[tuple[str, Tally]]:
    pairs = {kind.name: pairs_of(kind, half) for kind in KINDS}
    texts = [text for rows in pairs.values() for one, other, _ in rows for text in (one, other)]
    labeller = Labeller(texts, folder)
    for name, rows in pairs.items():
        tally_of = Tally()
        for fresh, cached, right in rows:
            tally_of.add(labeller(fresh, cached), right=right)
        yield name, tally_of


def stream_pairs(pool: Pool, said: Said, labeller: Labeller) -> Tally:
    """Each question with the nearest that came before it."""
    tally_of, stream = Tally(), said.stream()
    for seed in range(ORDERS):
        for asked, kept in _nearest_before(pool, stream.draw(seed)):
            label = labeller(said.texts[asked], said.texts[kept])
            tally_of.add(label, right=bool(pool.answers[asked] == pool.answers[kept]))
    return tally_of


def _nearest_before(pool: Pool, order: Ints) -> Iterable[tuple[int, int]]:
    came = np.zeros(len(pool.answers), bool)
    for asked in order.tolist():
        before = np.flatnonzero(came[pool.near[asked]])
        if len(before):
            yield asked, int(pool.near[asked, before[0]])
        came[asked] = True


# --------------------------------------------------------------------------- the promise


def promise(
    said: Said,
    pool: Pool,
    labellings: dict[str, Right],
    seeds: int,
    runs: Runs,
) -> None:
    """Prints a line for each labelling and error; what `runs` holds is not played again."""
    stream = said.stream()
    for name, right in labellings.items():
        played_seeds = seeds if name == ALONE else min(FEWER, seeds)
        for error in ERRORS:
            for seed in range(played_seeds):
                if runs.has(said.name, name, error, seed):
                    continue
                policy = Budgeted(Terms(error), random.Random(seed))
                played = play_by_labels(pool, stream.draw(seed), policy, right)
                runs.add(tally(played, said.name, name, error, seed))
            print(show(summarise(runs.of(said.name, name, error, played_seeds))), flush=True)


def labellings_of(said: Said, pool: Pool, labeller: Labeller) -> dict[str, Right]:
    truth = pool.answers.tolist()

    def true(asked: int, kept: int) -> bool:
        return bool(truth[asked] == truth[kept])

    def judged_by(judge: Errs | None) -> Right:
        def right(asked: int, kept: int, first: bool) -> bool:
            texts = said.texts[asked], said.texts[kept]
            asks = judge if first else None
            return labeller.judged(*texts, asks, same=true(asked, kept)).right

        return right

    judged = {name: judged_by(judge) for name, judge in JUDGES.items()}
    return {"ours, true labels": lambda asked, kept, _: true(asked, kept)} | judged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--streams", default=",".join(SAID), help="of " + ", ".join(SAID))
    parser.add_argument("--half", choices=("tuned", "held"), default="held")
    parser.add_argument("--seeds", type=int, default=100, help="0: the pairs alone")
    parser.add_argument("--runs", type=Path, help="where each run is kept; those are not played")
    scratch = Path(tempfile.gettempdir()) / "sluice-embeddings"
    parser.add_argument("--embeddings", type=Path, default=scratch)
    given = parser.parse_args()
    given.embeddings.mkdir(parents=True, exist_ok=True)
    print(PAIRS_HEADER)
    for name, pairs in kinds_table(given.half, given.embeddings):
        print(pairs.show(name), flush=True)
    runs = Runs(given.runs)
    for name in given.streams.split(","):
        said = SAID[name](given.data, given.half)
        pool = Pool(said.questions, given.embeddings)
        labeller = Labeller(said.texts, given.embeddings)
        print(PAIRS_HEADER)
        print(stream_pairs(pool, said, labeller).show(name), flush=True)
        if given.seeds:
            print(HEADER)
            promise(said, pool, labellings_of(said, pool, labeller), given.seeds, runs)


if __name__ == "__main__":
    main()
