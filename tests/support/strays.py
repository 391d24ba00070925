"""Greedy answers against transformers where both compute in bf16.

Its rounding moves a logit by some hundredths; where the two likeliest tokens are closer than that,
either may come out, and what follows differs. So answers are not compared with answers. The
reference walks along the engine's own answer in fp32, and at each token asks how far its logit lies
below the best one: 0 where they agree. Where they do not, it must be a tie: no more than twice what
transformers' own bf16 run errs by, and over all answers not more often nor by more than the tokens
that that run likes best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FP32_ERRS = 1e-3
"""In a logit, over some hundred layers' worth of sums in another order."""


@dataclass(frozen=True)
class Reference:
    """A checkpoint and transformers' view of it, in fp32 and in bf16."""

    path: Path
    exact: Any
    rounded: Any
    device: str

    @classmethod
    def load(cls, path: Path, device: str) -> Reference:
        from transformers import AutoModelForCausalLM

        exact, rounded = (
            AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval()
            for dtype in (torch.float32, torch.bfloat16)
        )
        return cls(path, exact, rounded, device)


class Judge:
    """Compares answers with the reference's, and at the end how often and how far they strayed."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._ours: list[torch.Tensor] = []
        self._theirs: list[torch.Tensor] = []
        self._errs = 0.0

    @torch.inference_mode()
    def hear(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        ids = torch.tensor([[*prompt, *answer[:-1]]], device=self._reference.device)
        rows = slice(len(prompt) - 1, None)
        exact = self._reference.exact(ids).logits[0, rows].float()
        rounded = self._reference.rounded(ids).logits[0, rows].float()
        self._ours.append(_below(exact, torch.tensor([*answer], device=self._reference.device)))
        self._theirs.append(_below(exact, rounded.argmax(dim=1)))
        self._errs = max(self._errs, float((exact - rounded).abs().max()))

    def assert_likeliest(self) -> None:
        """Each token was the likeliest one, but for what fp32 rounds away."""
        assert float(torch.cat(self._ours).max()) <= FP32_ERRS

    def assert_tied(self) -> None:
        """Each token was the likeliest one or tied with it. For answers that go round in circles,
        where one tie comes up again and again and how often says nothing."""
        assert float(torch.cat(self._ours).max()) <= 2 * self._errs

    def assert_greedy(self) -> None:
        """Each token was the likeliest one or tied with it, and not more often, nor by more, than
        transformers' own bf16 run strays."""
        self.assert_tied()
        ours, theirs = torch.cat(self._ours), torch.cat(self._theirs)
        told = f"ours {float(ours.mean()):.5f}, theirs {float(theirs.mean()):.5f}"
        assert float(ours.mean()) <= 1.5 * float(theirs.mean()) + 0.002, told
        strays = [float((one > 0).float().mean()) for one in (ours, theirs)]
        assert strays[0] <= 1.5 * strays[1] + 0.02, strays


def _below(exact: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """How far each token's logit lies below the best one."""
    return exact.max(dim=1).values - exact.gather(1, tokens.unsqueeze(1))[:, 0]
