"""The learned gain: how much better would the large model's answer be, for this request?

Problem. Predicting "the small model fails" is the wrong question: what a small model fails, the
large one often fails too, and routing by difficulty was measured below a coin (APGR .41 on an 8B
against a 51B). The useful score is the gain, P(large right | x) − P(small right | x).

Choice. Kernel ridge regression of both outcomes at once on a sum of kernels, one per block of
inputs (the shared embedding, the cheap features, the features of the small answer), each reduced to
a few hundred landmarks (Nyström). It is the mean of a Gaussian process with a sum kernel: near
neighbours where there are some, a trend where there are none. Its closed form makes the fit a few
seconds of numpy, with the leave-one-out error for free to pick the one hyperparameter.

    estimate = offset + Σ_blocks exp(−γ_b ‖z_b − landmarks_b‖²) @ coefficients_b

Rejected. Logistic regression (.660 APGR on MMLU with these features), nearest neighbours (.660, and
all labels must be kept), boosted trees (nothing to gain on MMLU, a point on graded tasks, for a
library at run time).
A pickle of anything: it runs code when it is read, and it does not survive a library's upgrade.

Price. One product with [768, 384] and one with [256, 19] numbers: 0.05 ms a decision. A request is
estimated by calls that write in place, on landmarks scaled beforehand: half of the time of the same
sum for a batch of one. 0.8 MB of JSON per tenant.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

FORMAT = "sluice-gain/1"
LONGEST = 3.0
"""e³ = 20 times the mean length, or a 20th."""
CAUTION = 0.2
"""What it counts that the models may differ, beside by how much the large one is better."""
CLIP = 4.0
"""Standardised inputs end here: one absurd feature must not send a request out of the kernel."""


class ModelFileError(ValueError):
    """A stored model that cannot be used here, and why."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """How probably each model is right, as the fit sees it (a ridge may leave [0, 1] a little), and
    how long the large model's answer would be: log of its tokens over the mean's."""

    small: float
    large: float
    length: float = 0.0

    @property
    def gain(self) -> float:
        return self.large - self.small

    @property
    def score(self) -> float:
        """`scores_of`, for one: 20 µs less than by arrays."""
        small, large = min(max(self.small, 0.0), 1.0), min(max(self.large, 0.0), 1.0)
        doubt = small * (1.0 - large) + large * (1.0 - small)
        worth = self.large - self.small + CAUTION * doubt
        half = min(max(self.length, -LONGEST), LONGEST) / 2
        return worth * math.exp(-half if worth > 0 else half)


def scores_of(estimates: Floats) -> Floats:
    """[n, 3] → [n]: what is cut. The gain, and a bit for doubt, over the square root of the length
    that it would cost.

    With true gains the best order is gain per token. Estimated ones are noisy, and dividing noise
    by small numbers spoils the order: half the power was best on graded tasks (2 points more of
    the large model's tokens avoided; the full power lost 3). A negative gain counts more the
    longer the answer is.

    Doubt is how probable it is that just one of the models is right. Two requests with no gain on
    average are not alike where in one of them the models take turns at being right: it tells
    nothing about the next, and its labels are the noise that a promise must allow for. A tenth to
    a third is equally good (MMLU at 500 labels: 1 point fewer large calls; graded tasks: half a
    point more of the large model's tokens avoided)."""
    small, large = np.clip(estimates[:, 0], 0.0, 1.0), np.clip(estimates[:, 1], 0.0, 1.0)
    doubt = small * (1.0 - large) + large * (1.0 - small)
    worth = estimates[:, 1] - estimates[:, 0] + CAUTION * doubt
    half = np.clip(estimates[:, 2], -LONGEST, LONGEST) / 2
    scores: Floats = worth * np.exp(np.where(worth > 0, -half, half))
    return scores


@dataclass(frozen=True, slots=True)
class Block:
    """One group of inputs. landmarks [m, d], standardised; coefficients [m, 3]."""

    name: str
    inputs: tuple[str, ...]
    centre: Singles
    scale: Singles
    gamma: float
    landmarks: Singles
    squares: Singles
    coefficients: Singles
    _slopes: Singles
    """2γ × landmarks, [m, d]."""
    _offsets: Singles
    """γ × squares, [m]."""

    def standardise(self, values: NDArray[Any]) -> Singles:
        """[..., d] → [..., d]."""
        scaled = (values.astype(np.float32) - self.centre) * self.scale
        clipped: Singles = np.clip(scaled, -CLIP, CLIP)
        return clipped

    def estimate(self, values: NDArray[Any]) -> Floats:
        """[d] → [3]: `similarities @ coefficients` of one request."""
        z = values.astype(np.float32)
        z -= self.centre
        z *= self.scale
        np.minimum(z, CLIP, out=z)
        np.maximum(z, -CLIP, out=z)
        exponents = self._slopes @ z
        exponents -= self._offsets
        exponents -= self.gamma * (z @ z)
        np.minimum(exponents, 0.0, out=exponents)
        np.exp(exponents, out=exponents)
        estimated: Floats = exponents @ self.coefficients
        return estimated

    def similarities(self, values: NDArray[Any]) -> Singles:
        """[n, d] → [n, m], each in (0, 1]."""
        z = self.standardise(values)
        distances = (
            np.einsum("nd,nd->n", z, z)[:, None] + self.squares - 2.0 * (z @ self.landmarks.T)
        )
        similar: Singles = np.exp(-self.gamma * np.maximum(distances, 0.0))
        return similar


@dataclass(frozen=True, slots=True)
class GainModel:
    """Fitted on `labels` requests. `embedder` names what made the vectors; empty: none is used."""

    blocks: tuple[Block, ...]
    offset: Floats
    labels: int
    embedder: str = ""

    @property
    def uses(self) -> frozenset[str]:
        """The blocks that it reads: "embedding", "before", "after"."""
        return frozenset(block.name for block in self.blocks)

    def estimate(self, inputs: Mapping[str, NDArray[Any]]) -> Estimate:
        """For one request: a vector for each block in `uses`."""
        total: Floats = self.offset
        for block in self.blocks:
            total = total + block.estimate(inputs[block.name])
        return Estimate(*total.tolist())

    def estimate_many(self, inputs: Mapping[str, NDArray[Any]]) -> Floats:
        """Block name → [n, d]; gives [n, 3]: small, large, length."""
        total: Floats = self.offset[None, :]
        for block in self.blocks:
            total = total + block.similarities(inputs[block.name]) @ block.coefficients
        return total

    def to_json(self) -> str:
        blocks = [
            {
                "name": block.name,
                "inputs": list(block.inputs),
                "gamma": block.gamma,
                "centre": _pack(block.centre),
                "scale": _pack(block.scale),
                "landmarks": _pack(block.landmarks, np.float16),
                "coefficients": _pack(block.coefficients),
            }
            for block in self.blocks
        ]
        head = {"format": FORMAT, "labels": self.labels, "embedder": self.embedder}
        return json.dumps({**head, "offset": self.offset.tolist(), "blocks": blocks})


def read_model(text: str, known: Mapping[str, tuple[str, ...]]) -> GainModel:
    """`known` maps a block's name to the inputs that this version makes, in order; a model that was
    fitted on others is refused. The embedding's inputs are not checked here: see `embedder`."""
    try:
        data = json.loads(text)
        if data.get("format") != FORMAT:
            raise ModelFileError(
                f"this model file is {data.get('format')!r}, not {FORMAT!r}: refit it"
            )
        blocks = tuple(_read_block(block) for block in data["blocks"])
        offset = np.asarray(data["offset"], dtype=np.float64)
        model = GainModel(blocks, offset, int(data["labels"]), str(data["embedder"]))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ModelFileError(
            f"this is not a gain model: {error}; run `sluice calibrate`"
        ) from error
    for block in blocks:
        if block.name in known and block.inputs != known[block.name]:
            raise ModelFileError(
                f"the model's {block.name!r} features are another version's; run `sluice calibrate`"
            )
    return model


def make_block(
    name: str,
    inputs: tuple[str, ...],
    standard: tuple[Singles, Singles],
    *,
    gamma: float,
    landmarks: Singles,
    coefficients: Singles,
) -> Block:
    """`standard`: (centre [d], scale [d])."""
    squares = np.einsum("md,md->m", landmarks, landmarks)
    slopes = np.float32(2 * gamma) * landmarks
    offsets = np.float32(gamma) * squares
    return Block(name, inputs, *standard, gamma, landmarks, squares, coefficients, slopes, offsets)


def _read_block(data: Mapping[str, Any]) -> Block:
    return make_block(
        str(data["name"]),
        tuple(data["inputs"]),
        (_unpack(data["centre"]), _unpack(data["scale"])),
        gamma=float(data["gamma"]),
        landmarks=_unpack(data["landmarks"]),
        coefficients=_unpack(data["coefficients"]),
    )


def _pack(values: NDArray[Any], dtype: type[np.floating[Any]] = np.float32) -> dict[str, Any]:
    raw = np.ascontiguousarray(values, dtype=dtype).astype(np.dtype(dtype).newbyteorder("<"))
    data = base64.b64encode(raw.tobytes()).decode("ascii")
    return {"dtype": np.dtype(dtype).name, "shape": list(values.shape), "data": data}


def _unpack(packed: Mapping[str, Any]) -> Singles:
    dtype = {"float16": "<f2", "float32": "<f4"}[packed["dtype"]]
    raw = np.frombuffer(base64.b64decode(packed["data"]), dtype=dtype)
    return raw.reshape(packed["shape"]).astype(np.float32)
