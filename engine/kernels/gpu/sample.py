"""Logits → one drawn token a row, by the rule of engine/sampler.py, without sorting.

    scores   (block, row)  penalties ─ bias ─ 1/temperature → score and race key of each token;
                           of each block: largest score, Σexp, winner of the race, likeliest token
    draw     (row)         blocks together; where there are cuts, rounds of races; log-probability

The race: token i arrives at E_i / p_i, the first wins; with Gumbel's form the largest of score −
log E is the same token in one pass, before any normalisation. The E_i come from Philox4x64 keyed by
(seed, position), word i for token i, the bits that numpy's gives: they depend on nothing that
shares the batch. (engine/sampler.py makes its E_i of those bits by numpy's ziggurat, so one seed
draws other tokens there, from the same distribution.)

Cuts without sorting. What top-k, top-p and min-p keep is always the set of all tokens above some
score, so a race among all whose winner is kept is the race among the kept. If the winner w is not
kept, no token up to w's score is, and the next round runs among those above it. Each round is two
passes over a row that lies in L2, and the bound climbs through the mass at random: two or three
rounds are usual. Whether w is kept is a sum (top-p: what stands above it), a count (top-k) and a
comparison (min-p). Only top-p's share of what top-k left needs the k-th score itself: found by
bisecting the ordered bits of a float, 32 passes at most.

Bound: memory, five passes over 4 bytes a token; a row of 128,256 is one program for the cuts, 128
rows run side by side. Rejected: sorting (a millisecond for 128 rows); a histogram of scores (needs
sums by bin, which are atomics).

Sources: FlashInfer's rejection sampling has the same shape for another rule; Philox (Salmon et al.
2011).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu.greedy import first_of_largest

BLOCK = 2048
PASS = 4096
SEEN = 1 << 30
"""The bit of a count that says the token is in the prompt or the answer."""


@dataclass(frozen=True, slots=True, eq=False)
class SampleInputs:
    """One number a row: engine/sequence.py's SamplingParams."""

    temperature: Tensor
    """fp32"""
    top_k: Tensor
    """int32, 0: off"""
    top_p: Tensor
    """fp32"""
    min_p: Tensor
    """fp32"""
    repetition: Tensor
    """fp32"""
    frequency: Tensor
    """fp32"""
    presence: Tensor
    """fp32"""
    seeds: Tensor
    """int64, the low 64 bits of the seed"""
    positions: Tensor
    """int32: where the drawn token will stand"""
    count_slot: Tensor
    """int32, −1: no penalties"""
    bias_slot: Tensor
    """int32, −1: no bias"""


@dataclass(frozen=True, slots=True, eq=False)
class SampleScratch:
    scores: Tensor
    """fp32 [rows, vocab]"""
    races: Tensor
    """fp32 [rows, vocab]"""
    numbers: Tensor
    """fp32 [rows, 6, blocks]: score's largest and Σexp, logit's largest and Σexp, best race and
    best adjusted logit"""
    tokens: Tensor
    """int32 [rows, 2, blocks]: the last two's tokens"""

    @classmethod
    def make(cls, max_rows: int, vocab: int, device: torch.device | str) -> SampleScratch:
        blocks = triton.cdiv(vocab, BLOCK)
        return cls(
            torch.empty(max_rows, vocab, dtype=torch.float32, device=device),
            torch.empty(max_rows, vocab, dtype=torch.float32, device=device),
            torch.empty(max_rows, 6, blocks, dtype=torch.float32, device=device),
            torch.empty(max_rows, 2, blocks, dtype=torch.int32, device=device),
        )


@triton.jit
def philox_words(seed, position, block, SIZE: tl.constexpr):
    """Four words of each block: numpy's Philox with key (seed, position), counter block + 1."""
    c0 = (block + 1).to(tl.uint64)
    c1 = tl.zeros((SIZE,), tl.uint64)
    c2 = tl.zeros((SIZE,), tl.uint64)
    c3 = tl.zeros((SIZE,), tl.uint64)
    k0 = c1 + seed.to(tl.uint64)
    k1 = c1 + position.to(tl.uint64)
    m0 = tl.full((SIZE,), 0xD2E7470EE14C6C93, tl.uint64)
    m1 = tl.full((SIZE,), 0xCA5A826395121157, tl.uint64)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(m0, c0)
        low0 = m0 * c0
        high1 = tl.umulhi(m1, c2)
        low1 = m1 * c2
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 += tl.full((SIZE,), 0x9E3779B97F4A7C15, tl.uint64)
        k1 += tl.full((SIZE,), 0xBB67AE8584CAA73B, tl.uint64)
    return c0, c1, c2, c3


@triton.jit
def log_arrival(word):
    """log of an exponential number made from 64 random bits, exact also where it is tiny."""
    part = tl.minimum(word.to(tl.float32) * 5.421010862427522e-20, 1.0 - 5.9604645e-08)
    tiny = part * (1.0 + part * (0.5 + part * (0.33333334 + part * 0.25)))
    arrival = tl.where(part < 0.015625, tiny, -tl.log(tl.maximum(1.0 - part, 5.9604645e-08)))
    return tl.log(tl.maximum(arrival, 1e-30))


@triton.jit
def log_arrivals(seed, position, first, SIZE: tl.constexpr):
    """log E of tokens first … first + SIZE − 1 (a multiple of four each)."""
    block = first // 4 + tl.arange(0, SIZE // 4)
    w0, w1, w2, w3 = philox_words(seed, position, block, SIZE // 4)
    even = tl.join(log_arrival(w0), log_arrival(w2))
    odd = tl.join(log_arrival(w1), log_arrival(w3))
    return tl.reshape(tl.join(even, odd), (SIZE,))


@triton.jit
def _scores(
    logits, counts, biases, scores, races, numbers, tokens,
    temperature, top_k, repetition, frequency, presence, seeds, positions, count_slot, bias_slot,
    vocab, stride, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    row = tl.program_id(1)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    mask = ids < vocab
    minus = float("-inf")
    at = logits + row.to(tl.int64) * stride + ids
    score = tl.load(at, mask=mask, other=minus).to(tl.float32)
    number_at = numbers + row * 6 * BLOCKS + block
    token_at = tokens + row * 2 * BLOCKS + block
    high = tl.max(score, axis=0)
    base = tl.where(high == minus, 0.0, high)
    tl.store(number_at + 2 * BLOCKS, high)
    tl.store(number_at + 3 * BLOCKS, tl.sum(tl.exp(score - base), axis=0))

    slot = tl.load(count_slot + row).to(tl.int64)
    if slot >= 0:
        count = tl.load(counts + slot * vocab + ids, mask=mask, other=0)
        factor = tl.load(repetition + row)
        penalised = tl.where(score > 0, score / factor, score * factor)
        score = tl.where(count >= 1073741824, penalised, score)
        said = count & 1073741823
        cost = tl.load(frequency + row) * said.to(tl.float32) + tl.load(presence + row)
        score = tl.where(said > 0, score - cost, score)
    slot = tl.load(bias_slot + row).to(tl.int64)
    if slot >= 0:
        score += tl.load(biases + slot * vocab + ids, mask=mask, other=0.0)
    best, token = first_of_largest(score, ids)
    tl.store(number_at + 5 * BLOCKS, best)
    tl.store(token_at + BLOCKS, token)

    warmth = tl.load(temperature + row)
    if (warmth > 0) & (tl.load(top_k + row) != 1):
        score = score / tl.maximum(warmth, 1e-5)
        seed = tl.load(seeds + row)
        race = score - log_arrivals(seed, tl.load(positions + row), block * BLOCK, BLOCK)
        race = tl.where(mask, race, minus)
        tl.store(scores + row.to(tl.int64) * vocab + ids, score, mask=mask)
        tl.store(races + row.to(tl.int64) * vocab + ids, race, mask=mask)
        high = tl.max(score, axis=0)
        base = tl.where(high == minus, 0.0, high)
        tl.store(number_at, high)
        tl.store(number_at + BLOCKS, tl.sum(tl.exp(score - base), axis=0))
        best, token = first_of_largest(race, ids)
        tl.store(number_at + 4 * BLOCKS, best)
        tl.store(token_at, token)


@triton.jit
def ordered_bits(values):
    """int32 that compare as the floats do."""
    bits = values.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def above(scores, bound, top, vocab, PASS: tl.constexpr):
    """How many scores are above `bound`, and Σ exp(score − top) of them."""
    count = tl.zeros((PASS,), tl.int32)
    mass = tl.zeros((PASS,), tl.float32)
    for start in tl.range(0, vocab, PASS):
        ids = start + tl.arange(0, PASS)
        score = tl.load(scores + ids, mask=ids < vocab, other=float("-inf"))
        over = score > bound
        count += over.to(tl.int32)
        mass += tl.where(over, tl.exp(score - top), 0.0)
    return tl.sum(count, axis=0), tl.sum(mass, axis=0)


@triton.jit
def kth_score(scores, k, top, vocab, PASS: tl.constexpr):
    """The k-th largest score, by bisecting the ordered bits."""
    low = tl.full((), -2139095041, tl.int32)  # −inf, ordered: at least k are there
    high = ordered_bits(top) + 1  # none is there
    while high - 1 > low:
        middle = (low & high) + ((low ^ high) >> 1)
        count = tl.zeros((PASS,), tl.int32)
        for start in tl.range(0, vocab, PASS):
            ids = start + tl.arange(0, PASS)
            score = tl.load(scores + ids, mask=ids < vocab, other=float("-inf"))
            count += ((ordered_bits(score) >= middle) & (ids < vocab)).to(tl.int32)
        if tl.sum(count, axis=0) >= k:
            low = middle
        else:
            high = middle
    bits = low ^ ((low >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def race_above(scores, races, bound, vocab, PASS: tl.constexpr):
    """Winner of the race among the tokens whose score is above `bound`."""
    best = tl.full((PASS,), float("-inf"), tl.float32)
    who = tl.full((PASS,), 2147483647, tl.int32)
    for start in tl.range(0, vocab, PASS):
        ids = start + tl.arange(0, PASS)
        score = tl.load(scores + ids, mask=ids < vocab, other=float("-inf"))
        race = tl.load(races + ids, mask=ids < vocab, other=float("-inf"))
        better = (score > bound) & (race > best)
        best = tl.where(better, race, best)
        who = tl.where(better, ids, who)
    _, token = first_of_largest(best, who)
    return tl.minimum(token, vocab - 1)


@triton.jit
def _draw(
    logits, scores, races, numbers, block_tokens, tokens, logprobs,
    temperature, top_k, top_p, min_p, vocab, stride,
    BLOCKS: tl.constexpr, WIDTH: tl.constexpr, PASS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    minus = float("-inf")
    each = tl.arange(0, WIDTH)
    inside = each < BLOCKS
    number_at = numbers + row * 6 * BLOCKS + each
    token_at = block_tokens + row * 2 * BLOCKS + each
    k = tl.load(top_k + row)
    if (tl.load(temperature + row) > 0) & (k != 1):
        high = tl.load(number_at, mask=inside, other=minus)
        sums = tl.load(number_at + BLOCKS, mask=inside, other=0.0)
        top = tl.max(high, axis=0)
        whole = tl.sum(tl.where(high == minus, 0.0, sums * tl.exp(high - top)), axis=0)
        best = tl.load(number_at + 4 * BLOCKS, mask=inside, other=minus)
        who = tl.load(token_at, mask=inside, other=2147483647)
        _, token = first_of_largest(best, who)
        token = tl.minimum(token, vocab - 1)
        share = tl.load(top_p + row)
        least = tl.load(min_p + row)
        scores += row.to(tl.int64) * vocab
        races += row.to(tl.int64) * vocab
        if (k > 0) & (k < vocab) & (share < 1.0):
            kth = kth_score(scores, k, top, vocab, PASS)
            count, mass = above(scores, kth, top, vocab, PASS)
            whole = mass + (k - count) * tl.exp(kth - top)
        if ((k > 0) & (k < vocab)) | (share < 1.0) | (least > 0.0):
            bound = tl.load(scores + token)
            count, mass = above(scores, bound, top, vocab, PASS)
            lost = ((k > 0) & (count >= k)) | ((share < 1.0) & (mass >= share * whole))
            lost = (lost | (tl.exp(bound - top) < least)) & (bound < top)
            while lost:
                token = race_above(scores, races, bound, vocab, PASS)
                bound = tl.load(scores + token)
                count, mass = above(scores, bound, top, vocab, PASS)
                lost = ((k > 0) & (count >= k)) | ((share < 1.0) & (mass >= share * whole))
                lost = (lost | (tl.exp(bound - top) < least)) & (bound < top)
    else:
        best = tl.load(number_at + 5 * BLOCKS, mask=inside, other=minus)
        who = tl.load(token_at + BLOCKS, mask=inside, other=2147483647)
        _, token = first_of_largest(best, who)
        token = tl.minimum(token, vocab - 1)
    high = tl.load(number_at + 2 * BLOCKS, mask=inside, other=minus)
    sums = tl.load(number_at + 3 * BLOCKS, mask=inside, other=0.0)
    top = tl.max(high, axis=0)
    whole = tl.sum(tl.where(high == minus, 0.0, sums * tl.exp(high - top)), axis=0)
    logit = tl.load(logits + row.to(tl.int64) * stride + token).to(tl.float32)
    tl.store(logprobs + row, logit - top - tl.log(whole))
    tl.store(tokens + row, token)


def sample(
    logits: Tensor,
    inputs: SampleInputs,
    counts: Tensor,
    biases: Tensor,
    tokens: Tensor,
    logprobs: Tensor,
    scratch: SampleScratch,
) -> None:
    """Draw `tokens` int32 [rows] and say in `logprobs` fp32 [rows] how likely the model itself held
    them. logits [rows, vocab]; counts int32 [slots, vocab] (SEEN and the number of times the answer
    has the token); biases fp32 [slots, vocab]. Rows of temperature 0 or top-k 1 are argmax."""
    rows, vocab = logits.shape
    blocks = triton.cdiv(vocab, BLOCK)
    i = inputs
    _scores[(blocks, rows)](
        logits, counts, biases, scratch.scores, scratch.races, scratch.numbers, scratch.tokens,
        i.temperature, i.top_k, i.repetition, i.frequency, i.presence, i.seeds, i.positions,
        i.count_slot, i.bias_slot, vocab, logits.stride(0), BLOCKS=blocks, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    _draw[(rows,)](
        logits, scratch.scores, scratch.races, scratch.numbers, scratch.tokens, tokens, logprobs,
        i.temperature, i.top_k, i.top_p, i.min_p, vocab, logits.stride(0),
        BLOCKS=blocks, WIDTH=triton.next_power_of_2(blocks), PASS=PASS, num_warps=16,
    )  # fmt: skip


def arrivals_twin(seed: int, position: int, vocab: int) -> Tensor:
    """fp64 [vocab]: when each token arrives, if all were equally likely."""
    key = np.array([seed % 2**64, position], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw(vocab).astype(np.float64)
    part = np.minimum(words * 2.0**-64, 1.0 - 2.0**-24)
    return torch.from_numpy(np.maximum(-np.log1p(-part), 1e-30))


def sample_twin(
    logits: Tensor, inputs: SampleInputs, counts: Tensor, biases: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens and log-probabilities, row by row, in fp64 on the CPU and with a sort."""
    tokens, logprobs = [], []
    for row, own in enumerate(logits.double().cpu()):
        score = _adjusted_twin(own.clone(), inputs, row, counts.cpu(), biases.cpu())
        temperature, k = float(inputs.temperature[row]), int(inputs.top_k[row])
        token = int(score.argmax())
        if temperature > 0 and k != 1:
            score /= max(temperature, 1e-5)
            arrived = arrivals_twin(int(inputs.seeds[row]), int(inputs.positions[row]), len(score))
            kept = _kept_twin(score, k, float(inputs.top_p[row]), float(inputs.min_p[row]))
            token = int((score - arrived.log()).masked_fill(~kept, float("-inf")).argmax())
        tokens.append(token)
        logprobs.append(float(own.log_softmax(dim=-1)[token]))
    return torch.tensor(tokens, dtype=torch.int32), torch.tensor(logprobs)


def _adjusted_twin(
    score: Tensor, inputs: SampleInputs, row: int, counts: Tensor, biases: Tensor
) -> Tensor:
    slot, bias_slot = int(inputs.count_slot[row]), int(inputs.bias_slot[row])
    if slot >= 0:
        seen, said = counts[slot] >= SEEN, counts[slot] % SEEN
        factor = float(inputs.repetition[row])
        score = torch.where(seen, torch.where(score > 0, score / factor, score * factor), score)
        cost = float(inputs.frequency[row]) * said + float(inputs.presence[row])
        score = torch.where(said > 0, score - cost, score)
    return score + biases[bias_slot].double() if bias_slot >= 0 else score


def _kept_twin(score: Tensor, k: int, top_p: float, min_p: float) -> Tensor:
    """Which tokens top-k, then top-p of what that left, and min-p keep: all above one score."""
    ordered = score.sort(descending=True).values
    chances = ordered.softmax(dim=-1)
    if 0 < k < len(score):
        chances[k:] = 0.0
    before = chances.cumsum(dim=-1) - chances
    inside = (chances > 0) & ((ordered - ordered[0]).exp() >= min_p)
    if top_p < 1.0:
        inside &= before < top_p * chances.sum()
    least = ordered[inside][-1]
    return score >= least
