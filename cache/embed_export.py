"""Turns a sentence-transformers model into one ONNX file, once: `python -m cache.embed_export`.

    python -m cache.embed_export MODEL FOLDER     MODEL: a path or a hub id

Problem. sentence-transformers takes 6 to 17 seconds and 490 MB to import, and 10 ms a query; the
request path can have neither. Choice: this module runs in a process of its own, the first time that
a model is used, and leaves behind what cache/embed.py reads with onnxruntime and tokenizers alone:

    model.onnx       token ids and mask -> the sentence's unit vector, pooling inside
    tokenizer.json
    model.json       what it is: window, dimensions, precision, fingerprint

Weights are int8 where that leaves the vectors alone (every sample within CLOSE of fp32), else fp32:
at one thread MiniLM takes 1.3 instead of 4 ms for ten tokens, with the same ranking.

Rejected: optimum (one more large dependency for what thirty lines do); the dynamo exporter (needs
onnxscript and gave no faster graph).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import torch
from onnxruntime.quantization import (  # type: ignore[import-untyped]
    QuantType,
    quantize_dynamic,
)
from sentence_transformers import SentenceTransformer

CLOSE = 0.95

SAMPLES = (
    "How do I reset my password?",
    "Is EECS 280 offered in the fall of 2024?",
    "Please summarise the plot of a long novel about whales in three sentences.",
    "card declined",
    "What is the boiling point of water at an altitude of 3,000 metres?",
)


class Pooled(torch.nn.Module):
    """The model as a function of tensors, which is all that can be traced."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        out: dict[str, Any] = self.model({"input_ids": input_ids, "attention_mask": attention_mask})
        return torch.nn.functional.normalize(out["sentence_embedding"], dim=-1)


def export(name: str, folder: Path) -> None:
    """Write the three files into `folder`, all or none."""
    model = SentenceTransformer(name, device="cpu").eval()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        work = Path(scratch) / "model"
        work.mkdir()
        full = Path(scratch) / "full.onnx"
        _trace(model, full)
        small = work / "model.onnx"
        quantize_dynamic(full, small, weight_type=QuantType.QInt8)
        precision = "int8"
        if _agreement(model, full, small) < CLOSE:
            shutil.copy(full, small)
            precision = "fp32"
        model.tokenizer.backend_tokenizer.save(str(work / "tokenizer.json"))
        described = {
            "name": name,
            "window": int(model.max_seq_length or 512),
            "dimensions": int(model.get_embedding_dimension() or 0),
            "precision": precision,
            "fingerprint": hashlib.sha256(small.read_bytes()).hexdigest()[:16],
        }
        (work / "model.json").write_text(json.dumps(described, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        work.rename(folder)


def _inputs(model: SentenceTransformer, text: str) -> dict[str, torch.Tensor]:
    encoded = model.tokenizer(text, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def _trace(model: SentenceTransformer, path: Path) -> None:
    example = _inputs(model, SAMPLES[0])
    axes = {0: "batch", 1: "tokens"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about every shape it reads
        torch.onnx.export(
            Pooled(model),
            tuple(example.values()),
            str(path),
            input_names=list(example),
            output_names=["vector"],
            dynamic_axes=dict.fromkeys(example, axes) | {"vector": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )


def _agreement(model: SentenceTransformer, full: Path, small: Path) -> float:
    """The lowest cosine between the two files' vectors of the samples."""
    sessions = [onnxruntime.InferenceSession(str(path)) for path in (full, small)]
    cosines = []
    for text in SAMPLES:
        feed = {name: tensor.numpy() for name, tensor in _inputs(model, text).items()}
        exact, near = (session.run(None, feed)[0][0] for session in sessions)
        cosines.append(float(np.dot(exact, near)))
    return min(cosines)


if __name__ == "__main__":
    os.nice(10)  # a gateway may be answering meanwhile
    export(sys.argv[1], Path(sys.argv[2]))
