"""How to draw, written into a step; and what was asked to be told about what was drawn.

    all rows greedy        one kernel
    any other row          one kernel for all rows, which reads how to draw from the step's block
    penalties, a bias      that kernel with rows of counts and biases, made for this step
    log-probabilities      torch on the rows that asked

What is drawn goes into `drawn`, a half for each of two steps: the next step embeds it from there,
and one asynchronous copy brings it to the host. A row that penalises is never launched ahead (the
host must know all its tokens), so its counts can be made anew for each step and nothing has to be
kept right through preemption. The kernels' side is sampling.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.cuda.layout import Arrays
from engine.sequence import SamplingParams, Sequence

Drawing = list[tuple[int, Sequence]]
"""Sample index and sequence, in the order that results are wanted in."""


def fill_draw(arrays: Arrays, drawing: Drawing) -> bool:
    """Write how to draw into a step's arrays. True: every row is greedy and has no wishes, and
    nothing was written."""
    plain = True
    for _, sequence in drawing:
        params = sequence.params
        if not (params.temperature == 0.0 or params.top_k == 1) or wishes(params):
            plain = False
            break
    if plain:
        return True
    for name, value in (("temperature", 0.0), ("top_p", 1.0), ("min_p", 0.0), ("top_k", 0)):
        arrays[name][:] = value
    arrays["seeds"][:] = 0
    arrays["draw_at"][:] = 0
    for index, sequence in drawing:
        params = sequence.params
        arrays["temperature"][index] = params.temperature
        arrays["top_p"][index] = params.top_p
        arrays["min_p"][index] = params.min_p
        arrays["top_k"][index] = min(params.top_k, 2**31 - 1)
        arrays["seeds"][index] = params.seed
        arrays["draw_at"][index] = sequence.known + sequence.ahead
    return False


def wishes(params: SamplingParams) -> bool:
    """Whether the logits are changed before the draw."""
    return params.penalises or params.logit_bias is not None


@dataclass(frozen=True, slots=True, eq=False)
class Likelihoods:
    """What the rows that asked for log-probabilities get; on its way to the host."""

    sequences: list[Sequence]
    chosen: Tensor
    """[rows]"""
    values: Tensor
    """[rows, most]"""
    ids: Tensor

    def by_sequence(self) -> dict[Sequence, tuple[float, tuple[tuple[int, float], ...]]]:
        """Once the copy is done."""
        rows = zip(
            self.sequences,
            self.chosen.tolist(),
            self.ids.tolist(),
            self.values.tolist(),
            strict=True,
        )
        return {
            s: (chosen, tuple(zip(ids, values, strict=True))[: s.params.logprobs])
            for s, chosen, ids, values in rows
        }


def likelihoods(logits: Tensor, tokens: Tensor, drawing: Drawing) -> Likelihoods | None:
    """The model's own log-probabilities of what was drawn, and the likeliest ones."""
    asked = [(at, s) for at, s in drawing if s.params.logprobs >= 0]
    if not asked:
        return None
    rows = torch.tensor([at for at, _ in asked], device=logits.device)
    logs = torch.log_softmax(logits.index_select(0, rows).float(), dim=-1)
    chosen = logs.gather(1, tokens.index_select(0, rows).long().unsqueeze(1))[:, 0]
    most = min(max(s.params.logprobs for _, s in asked), logs.shape[1])
    values, ids = logs.topk(most) if most else (logs[:, :0], logs[:, :0].long())
    return Likelihoods([s for _, s in asked], _to_host(chosen), _to_host(values), _to_host(ids))


def _to_host(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
