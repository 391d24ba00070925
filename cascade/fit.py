"""Fitting a gain model from requests that both models answered: closed form, seconds, numpy only.

The design of the model is in gain.py. Here: pick landmarks, map every row to the similarities with
them (whitened, so that a plain ridge on the map is a ridge in the kernel's space), solve for all
targets at once, and pick the ridge by the leave-one-out error of the gain, which needs one
eigendecomposition and no refit. Landmarks are stored in half precision, so they are rounded before
the fit and not after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.gain import Block, Floats, GainModel, Singles, make_block

RIDGES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
EIGEN_FLOOR = 1e-5
"""Directions of the landmarks' kernel below this share of the largest are noise in float32."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a block enters: inputs' names, kernel width, weight in the sum, most landmarks."""

    inputs: tuple[str, ...]
    gamma: float
    weight: float
    landmarks: int
    standardise: bool


def embedding_plan(width: int) -> Plan:
    """Unit vectors as they are: ‖a − b‖² = 2 − 2 cos."""
    return Plan(tuple(f"e{i}" for i in range(width)), 1.5, 1.0, 768, False)


def feature_plan(inputs: tuple[str, ...]) -> Plan:
    """Standardised features: γ falls with their number, as squared distances grow with it."""
    return Plan(inputs, 1.5 / len(inputs), 0.3, 256, True)


def answer_plan(inputs: tuple[str, ...]) -> Plan:
    """What an answer gives away weighs most, and takes more landmarks: it has more corners."""
    return Plan(inputs, 1.5 / len(inputs), 2.0, 512, True)


@dataclass(slots=True)
class _Mapped:
    """A block before its coefficients are known. features [n, r]; whiten [m, r]."""

    block: Block
    whiten: Floats
    features: Floats


def fit_gain(
    inputs: Mapping[str, NDArray[Any]],
    plans: Mapping[str, Plan],
    small: Floats,
    large: Floats,
    *,
    rng: np.random.Generator,
    tokens: Floats | None = None,
    embedder: str = "",
) -> GainModel:
    """inputs: block name → [n, d]. `small`, `large` [n] in [0, 1]: how right each model was.
    `tokens` [n]: of the large model's answers; without them all count as equally long."""
    mapped = [_map_block(name, plan, inputs[name], rng) for name, plan in plans.items()]
    features = np.concatenate([part.features for part in mapped], axis=1)
    logs = np.zeros(len(small)) if tokens is None else np.log1p(tokens)
    targets = np.stack([small, large, logs - logs.mean()], axis=1)
    offset, coefficients = _ridge(features, targets)
    blocks, at = [], 0
    for part in mapped:
        width = part.features.shape[1]
        own = part.whiten @ coefficients[at : at + width]
        blocks.append(replace(part.block, coefficients=own.astype(np.float32)))
        at += width
    return GainModel(tuple(blocks), offset, len(small), embedder)


def out_of_fold(
    inputs: Mapping[str, NDArray[Any]],
    plans: Mapping[str, Plan],
    small: Floats,
    large: Floats,
    *,
    rng: np.random.Generator,
    tokens: Floats | None = None,
    groups: NDArray[np.int64] | None = None,
    folds: int = 5,
) -> Floats:
    """[n, 3]: each row estimated by a model that saw neither it nor its group (conversation)."""
    of_row = np.arange(len(small)) if groups is None else groups
    fold_of = rng.permutation(int(of_row.max()) + 1) % folds
    estimates = np.zeros((len(small), 3))
    for fold in range(folds):
        held = fold_of[of_row] == fold
        if not held.any():
            continue
        seen = {name: values[~held] for name, values in inputs.items()}
        rest = None if tokens is None else tokens[~held]
        model = fit_gain(seen, plans, small[~held], large[~held], rng=rng, tokens=rest)
        estimates[held] = model.estimate_many({name: v[held] for name, v in inputs.items()})
    return estimates


def _map_block(name: str, plan: Plan, values: NDArray[Any], rng: np.random.Generator) -> _Mapped:
    standard = _standard(values, plan.standardise)
    empty = np.zeros((0, 0), dtype=np.float32)
    same: dict[str, Any] = {"gamma": plan.gamma, "coefficients": empty}
    draft = make_block(name, plan.inputs, standard, landmarks=empty, **same)
    z = draft.standardise(values)
    rows = rng.permutation(len(z))[: plan.landmarks]
    landmarks = np.unique(z[rows].astype(np.float16), axis=0).astype(np.float32)
    block = make_block(name, plan.inputs, standard, landmarks=landmarks, **same)
    squared = block.squares[:, None] + block.squares[None, :] - 2.0 * landmarks @ landmarks.T
    kernel = np.exp(-plan.gamma * np.maximum(squared, 0.0)).astype(np.float64)
    values_, vectors = np.linalg.eigh(kernel)
    keep = values_ > EIGEN_FLOOR * values_[-1]
    whiten = vectors[:, keep] * np.sqrt(plan.weight / values_[keep])
    return _Mapped(block, whiten, block.similarities(values) @ whiten)


def _standard(values: NDArray[Any], standardise: bool) -> tuple[Singles, Singles]:
    width = values.shape[1]
    if not standardise:
        return np.zeros(width, dtype=np.float32), np.ones(width, dtype=np.float32)
    spread = values.std(axis=0)
    scale = np.where(spread > 1e-9, 1.0 / np.maximum(spread, 1e-9), 0.0)
    return values.mean(axis=0).astype(np.float32), scale.astype(np.float32)


def _ridge(
    features: Floats, targets: Floats, ridges: Sequence[float] = RIDGES
) -> tuple[Floats, Floats]:
    """features [n, r], targets [n, t] → offset [t], coefficients [r, t].

    In the eigenbasis of the Gram matrix a ridge is a division, and row i's leave-one-out residual
    is its residual over 1 − h_i, with h_i its leverage."""
    mean, middle = features.mean(axis=0), targets.mean(axis=0)
    centred = features - mean
    values, vectors = np.linalg.eigh(centred.T @ centred)
    values = np.maximum(values, 0.0)
    rotated = centred @ vectors
    moments, squares = rotated.T @ (targets - middle), rotated**2
    best, least = np.zeros_like(moments), np.inf
    for ridge in ridges:
        solved = moments / (values + ridge)[:, None]
        leverage = squares @ (1.0 / (values + ridge)) + 1.0 / len(targets)
        residual = (targets - middle - rotated @ solved) / (1.0 - leverage)[:, None]
        error = float(np.mean((residual[:, 1] - residual[:, 0]) ** 2))
        if error < least:
            best, least = solved, error
    coefficients = vectors @ best
    return middle - mean @ coefficients, coefficients
