"""Logits → the next token of each sequence.

    logits ─ penalties ─ bias ─ 1/temperature ─ top-k ─ top-p ─ min-p ─ draw

A draw is an exponential race: token i arrives at time E_i / p_i, the first wins, which happens with
probability p_i (the Gumbel-max trick without logarithms). The E_i come from Philox, keyed by (seed,
position), and depend on nothing else: not on what shares the batch, how the prompt was cut, or
whether the sequence was preempted. Cuts keep *every* token whose probability reaches the threshold
that top-k, top-p and min-p give together, so that equal probabilities cannot be told apart by an
unstable sort.

Rejected: the inverse of the cumulative sum at one hashed number, which costs 43 µs a row instead of
about 150. It is as reproducible in exact arithmetic, but in bf16 a prefix hit moves the logits by
about 0.02, and that moves every cumulative sum behind: 15 of 40 seeded answers changed, against one
or two draws in a hundred in the race. Rejected too: a generator a sequence, whose state would have
to survive preemption.

Greedy rows without wishes take one argmax together; everything else is done for the rows that asked
for it. Log-probabilities are of the model's own distribution, before any of the above.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.sequence import Sampled, SamplingParams, Sequence

CANDIDATES = (64, 1024)
"""How many of the likeliest tokens a cut is looked for among, before all are sorted: 32 rows of
12,288 take 0.7 and 3.8 ms this way and 19 ms sorted."""


class Sampler:
    """Has no state: an object so that a GPU's sampler can take its place."""

    def draw(self, logits: Tensor, sequences: list[Sequence]) -> list[Sampled]:
        """`logits` [len(sequences), vocab], left as they are. One Sampled a sequence, in order."""
        if not sequences:
            return []
        tokens = _choose(logits, sequences)
        report = _report(logits, tokens, sequences)
        return [
            Sampled(sequence, token, *report.get(row, ()))
            for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True))
        ]


def arrivals(seed: int, position: int, vocab: int) -> npt.NDArray[np.float32]:
    """Independent exponential numbers, one a token, for the token that will stand at `position`."""
    stream = np.random.Philox(key=np.array([seed % 2**64, position], dtype=np.uint64))
    drawn = np.random.Generator(stream).standard_exponential(vocab, dtype=np.float32)
    return np.maximum(drawn, np.finfo(np.float32).tiny, out=drawn)


# --------------------------------------------------------------------------- which token


def _choose(logits: Tensor, sequences: list[Sequence]) -> list[int]:
    scores = logits.float()
    changed = [row for row, s in enumerate(sequences) if _changes_logits(s.params)]
    if changed:
        scores = scores.clone() if scores is logits else scores
        for row in changed:
            _apply_penalties(scores[row], sequences[row])
            _apply_bias(scores[row], sequences[row].params)
    tokens: list[int] = scores.numpy().argmax(axis=-1).tolist()  # a tenth of torch's time
    random = [row for row, s in enumerate(sequences) if not _greedy(s.params)]
    if random:
        drawn = _draw_rows(scores[random], [sequences[row] for row in random])
        for row, token in zip(random, drawn, strict=True):
            tokens[row] = token
    return tokens


def _greedy(params: SamplingParams) -> bool:
    return params.temperature == 0.0 or params.top_k == 1


def _changes_logits(params: SamplingParams) -> bool:
    return bool(
        params.repetition_penalty != 1.0
        or params.frequency_penalty
        or params.presence_penalty
        or params.logit_bias is not None
    )


def _apply_penalties(row: Tensor, sequence: Sequence) -> None:
    """Repetition counts prompt and answer (a factor), the other two the answer alone (a sum)."""
    params = sequence.params
    if params.repetition_penalty != 1.0:
        # A token that stands there twice is read twice before it is written: no need to sort.
        scores, seen = row.numpy(), sequence.tokens[: sequence.known]
        values, factor = scores[seen], np.float32(params.repetition_penalty)
        scores[seen] = np.where(values > 0, values / factor, values * factor)
    if params.frequency_penalty or params.presence_penalty:
        generated = sequence.tokens[sequence.num_prompt : sequence.known]
        said, counts = np.unique(generated, return_counts=True)
        cost = params.frequency_penalty * counts + params.presence_penalty
        row[torch.from_numpy(said.astype(np.int64))] -= torch.from_numpy(cost.astype(np.float32))


def _apply_bias(row: Tensor, params: SamplingParams) -> None:
    bias = params.logit_bias
    if bias is not None:
        row.index_add_(0, torch.from_numpy(bias.ids), torch.from_numpy(bias.values))


def _draw_rows(logits: Tensor, sequences: list[Sequence]) -> list[int]:
    """`logits` [rows, vocab] fp32, overwritten."""
    temperature = _column(sequences, lambda params: max(params.temperature, 1e-5))
    probabilities = torch.softmax(logits.div_(temperature), dim=-1)
    cut = [row for row, s in enumerate(sequences) if _cuts(s.params)]
    if cut:
        part = probabilities[cut]
        least = _thresholds(part, [sequences[row] for row in cut])
        probabilities[cut] = part.masked_fill_(part < least, 0.0)
    speeds = probabilities.numpy()
    return [
        int((speeds[row] / arrivals(s.params.seed, s.known, speeds.shape[1])).argmax())
        for row, s in enumerate(sequences)
    ]


def _cuts(params: SamplingParams) -> bool:
    return bool(params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0)


def _thresholds(probabilities: Tensor, sequences: list[Sequence]) -> Tensor:
    """The least probability that is kept, [rows, 1].

    Each row is looked at among more and more of its likeliest tokens until the cut is among them,
    so that what it gets does not depend on its neighbours.
    """
    vocab = probabilities.shape[1]
    least = [0.0] * len(sequences)
    rows = list(range(len(sequences)))
    for width in (*(few for few in CANDIDATES if few < vocab), vocab):
        ordered = probabilities[rows].topk(width).values
        found = _threshold(ordered, [sequences[row] for row in rows], vocab)
        for row, value in zip(rows, found, strict=True):
            least[row] = value or 0.0
        rows = [row for row, value in zip(rows, found, strict=True) if value is None]
        if not rows:
            break
    return torch.tensor(least, dtype=probabilities.dtype).unsqueeze(1)


def _threshold(ordered: Tensor, sequences: list[Sequence], vocab: int) -> list[float | None]:
    """`ordered` [rows, n] descending. None: the cut, or the set that top-p is a share of, lies
    beyond the n-th."""
    width = ordered.shape[1]
    vocab_k = _column(sequences, lambda params: params.top_k or 2**31)
    rank = torch.arange(width, dtype=torch.float32)
    kept = ordered * (rank < vocab_k)
    whole = _whole(sequences, kept)
    min_p = _column(sequences, lambda params: params.min_p)
    kept *= ordered >= min_p * ordered[:, :1]
    before = kept.cumsum(dim=-1) - kept
    kept *= before < _column(sequences, lambda params: params.top_p) * whole
    count = (kept > 0).sum(dim=-1)
    values: list[float] = ordered.gather(1, (count - 1).clamp_(min=0).unsqueeze(1))[:, 0].tolist()
    return [
        value if number < width and min(s.params.top_k, vocab) <= width else None
        for value, number, s in zip(values, count.tolist(), sequences, strict=True)
    ]


def _whole(sequences: list[Sequence], kept: Tensor) -> Tensor:
    """What top-p is a share of: all, or what top-k left of it. [rows, 1]"""
    sums = kept.sum(dim=-1, keepdim=True)
    limited = torch.tensor([[s.params.top_k > 0] for s in sequences])
    return torch.where(limited, sums, torch.ones_like(sums))


def _column(sequences: list[Sequence], value: Callable[[SamplingParams], float]) -> Tensor:
    return torch.tensor([[value(s.params)] for s in sequences], dtype=torch.float32)


# --------------------------------------------------------------------------- how likely it was


def _report(
    logits: Tensor, tokens: list[int], sequences: list[Sequence]
) -> dict[int, tuple[float, tuple[tuple[int, float], ...]]]:
    """Row → (log-probability, alternatives), for the rows that asked."""
    rows = [row for row, s in enumerate(sequences) if s.params.logprobs >= 0]
    if not rows:
        return {}
    logs = torch.log_softmax(logits[rows].float(), dim=-1)
    chosen = logs.gather(1, torch.tensor([[tokens[row]] for row in rows]))[:, 0].tolist()
    most = min(max(sequences[row].params.logprobs for row in rows), logs.shape[1])
    values, ids = logs.topk(most) if most else (logs[:, :0], logs[:, :0])
    report = {}
    for row, logprob, top_ids, top in zip(rows, chosen, ids.tolist(), values.tolist(), strict=True):
        wanted = sequences[row].params.logprobs
        report[row] = (logprob, tuple(zip(top_ids[:wanted], top[:wanted], strict=True)))
    return report
