"""Shards of text and chat -> tokenizer -> packs of fixed-length rows that the trainer reads.

Problem: documents are 5 to 2,000 tokens long and a GPU wants rectangles. Choice: rows of `ROW`
tokens, each filled with whole documents, every token carrying flags that say where a document
starts and where loss counts; attention never crosses a document (see model.py), so a row is worth
as much as its documents alone. Rejected: one endless stream cut anywhere; it teaches answers whose
question was cut off, and look-ups in a neighbour's notes. Price: padding; 3 % of the rows of tasks,
about 4 % of chats, but 14-29 % of long texts.

Shards are `chat-*.jsonl.zst` and `text-*.jsonl.zst` (see README.md); packs are .npz files, written
under another name first, so that a trainer may read a folder that is still being filled.

usage: python -m demo.data SHARDS PACKS --tokenizer tokenizer.json [--task-rows N] [--workers N]
       python -m demo.data SHARDS --train-tokenizer tokenizer.json
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from demo import smalltalk, tasks

Row = dict[str, Any]

VOCABULARY = 12_288
SPECIALS = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>"]
END, SYSTEM, USER, ASSISTANT, PAD = range(5)
ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}

ROW = 2048  # tokens in a row, and the longest document
LOSS, PROMPT, START = 1, 2, 4  # flags: counts always; counts in stage 1 only; opens a document

# How often each level comes up in the tasks. The small model gets few hard ones on purpose: the
# cascade needs something to route.
DIETS = {"tasks-large": (2, 2, 3, 3.5, 3.5), "tasks-small": (6, 4, 1.5, 0.12, 0.06)}
# Free prose is cut after whole sentences: a small model that talks long starts to repeat itself.
PROSE = {
    "african-storybook",
    "dolly",
    "openstax-explain",
    "story-continue",
    "topical-chat",
    "wikipedia-about",
}
PROSE_CHARS = 320
PLACEHOLDER = re.compile(r"[\[(](user|location|name)|\buser ?[12]\b", re.IGNORECASE)


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a .jsonl or .jsonl.zst file."""
    raw = pa.input_stream(str(path), compression="zstd" if path.suffix == ".zst" else None)
    with io.TextIOWrapper(raw, encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def train_tokenizer(
    shards: Iterable[Path], chars_each: int = 6_000_000, vocabulary: int = VOCABULARY
) -> Tokenizer:
    """Byte-level BPE with single digits: sums are learnt by place, not by memorised chunks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tokenizer_texts(shards, chars_each), trainer)
    return tokenizer


def tokenizer_texts(shards: Iterable[Path], chars_each: int) -> Iterator[str]:
    """The first `chars_each` characters of every shard, and some tasks."""
    for path in shards:
        left = chars_each
        for row in read_rows(path):
            text = row.get("text") or "\n".join(m["content"] for m in row["messages"])
            left -= len(text)
            yield text
            if left < 0:
                break
    for row in tasks.training_rows(7, 12_000, (1, 1, 1, 1, 1)):
        yield "\n".join(m["content"] for m in row["messages"])


def prepared(row: Row) -> Row | None:
    """The row as it is trained on, or None when it is left out."""
    if "text" in row:
        return row
    source, messages = row["source"], row["messages"]
    if source in ("smalltalk", "tasks"):  # both are made here, under our assistant's name
        return None
    if source == "persona-chat" and any(PLACEHOLDER.search(m["content"]) for m in messages):
        return None
    if source in PROSE:
        messages = [
            {**m, "content": concise(m["content"])} if m["role"] == "assistant" else m
            for m in messages
        ]
    return {**row, "messages": messages}


def concise(text: str) -> str:
    """The first sentences of `text`, at least one, up to PROSE_CHARS characters."""
    if len(text) <= PROSE_CHARS:
        return text
    ends = [m.end() for m in re.finditer(r"[.!?][\"')]*(?=\s)", text)]
    fitting = [e for e in ends if e <= PROSE_CHARS] or ends[:1]
    return text[: fitting[-1]].rstrip() if fitting else text


class Encoded(NamedTuple):
    """A document's token ids and flags, equally long."""

    ids: list[int]
    flags: list[int]


def encode(tokenizer: Tokenizer, rows: list[Row]) -> Iterator[Encoded]:
    """Tokens and flags of chat and text rows, in order."""
    texts = [t for r in rows for t in ([r["text"]] if "text" in r else contents(r))]
    encoded = iter(e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False))
    for row in rows:
        if "text" in row:
            ids = [*next(encoded), END]
            yield Encoded(ids, [LOSS | START] + [LOSS] * (len(ids) - 1))
            continue
        yield encode_chat(row, [next(encoded) for _ in row["messages"]])


def contents(row: Row) -> list[str]:
    return [m["content"] for m in row["messages"]]


def encode_chat(row: Row, pieces: list[list[int]]) -> Encoded:
    """<|role|> content <|end|> for every message. A task's question never counts: it is random."""
    ids: list[int] = []
    flags: list[int] = []
    prompt = 0 if row["source"] == "tasks" else PROMPT
    for message, piece in zip(row["messages"], pieces, strict=True):
        role = ROLES[message["role"]]
        ids += [role, *piece, END]
        counts = LOSS if role == ASSISTANT else prompt
        flags += [prompt] + [counts] * (len(piece) + 1)
    flags[0] |= START
    return Encoded(ids, flags)


def pack(documents: Iterable[Encoded], width: int = ROW) -> tuple[np.ndarray, np.ndarray]:
    """Fill rows with whole documents, next fit; longer ones are split. Returns ids and flags,
    both [rows, width]."""
    ids: list[int] = []
    flags: list[int] = []
    for document in documents:
        for at in range(0, len(document.ids), width):
            part, marks = document.ids[at : at + width], document.flags[at : at + width]
            room = width - len(ids) % width
            if len(part) > room:
                ids += [PAD] * room
                flags += [START] + [0] * (room - 1)
            ids += part
            flags += [marks[0] | START, *marks[1:]]
    short = -len(ids) % width
    if short:
        ids += [PAD] * short
        flags += [START] + [0] * (short - 1)
    shape = (-1, width)
    return np.array(ids, np.int16).reshape(shape), np.array(flags, np.uint8).reshape(shape)


class Job(NamedTuple):
    """One pack to be made: slice `part` of `parts` of a shard, or fresh rows (`shard` None)."""

    name: str
    shard: Path | None
    part: int
    parts: int
    rows: int = 0


def job_rows(job: Job) -> Iterator[Row]:
    """The rows of one pack."""
    if job.shard is not None:
        for i, row in enumerate(read_rows(job.shard)):
            kept = prepared(row) if i % job.parts == job.part else None
            if kept is not None:
                yield kept
    elif job.name.startswith("chat"):
        yield from smalltalk.rows() * 8
    else:
        diet = DIETS[job.name.rsplit("-", 1)[0]]
        yield from conversations(tasks.training_rows(1000 + job.part, job.rows, diet))


def conversations(rows: Iterable[Row], share: float = 0.1) -> Iterator[Row]:
    """One task in ten goes on after the one before, so that later turns are practised too."""
    r = random.Random(0)
    before: Row | None = None
    for row in rows:
        if before is not None and r.random() < share:
            before = {**before, "messages": before["messages"] + row["messages"]}
            continue
        if before is not None:
            yield before
        before = row
    if before is not None:
        yield before


def jobs(shards: Path, task_rows: int) -> Iterator[Job]:
    """What to make, most wanted first: some tasks, all chats, texts, more tasks."""
    per_pack = min(20_000, max(1, task_rows // 16))
    counts = {"tasks-large": task_rows // per_pack, "tasks-small": task_rows // per_pack // 2}
    for i in range(min(16, counts["tasks-large"])):
        yield Job(f"tasks-large-{i:03d}", None, i, 0, per_pack)
    yield Job("chat-smalltalk", None, 0, 0)
    for path in sorted(shards.glob("*.jsonl.zst")):
        name = path.name.split(".")[0]
        if name.startswith(("chat", "text")) and not name.startswith("chat-tasks"):
            parts = max(1, path.stat().st_size // 2_500_000)
            for i in range(parts):
                yield Job(f"{name}-{i:02d}", path, i, parts)
    for i in range(16, counts["tasks-large"]):
        yield Job(f"tasks-large-{i:03d}", None, i, 0, per_pack)
    for i in range(counts["tasks-small"]):
        yield Job(f"tasks-small-{i:03d}", None, 100_000 + i, 0, per_pack)


def make(job: Job, packs: Path, tokenizer_path: Path, width: int = ROW) -> str:
    """Write one pack; skip it when it is there."""
    target = packs / f"{job.name}.npz"
    if target.exists():
        return f"{job.name}: there"
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    rows = list(job_rows(job))
    random.Random(zlib.crc32(job.name.encode())).shuffle(rows)
    batches = (rows[i : i + 1000] for i in range(0, len(rows), 1000))
    ids, flags = pack((e for batch in batches for e in encode(tokenizer, batch)), width)
    hidden = packs / f".{job.name}.npz"
    np.savez(hidden, ids=ids, flags=flags)
    hidden.rename(target)
    return f"{job.name}: {len(rows)} documents, {ids.size / 1e6:.2f}M tokens"


def held_out_packs(evaluation: Path, packs: Path, tokenizer_path: Path, width: int = ROW) -> None:
    """val-text and val-chat, for the validation curve."""
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    for name in ("text", "chat"):
        kept = (prepared(r) for r in read_rows(evaluation / f"{name}.jsonl.zst"))
        ids, flags = pack(encode(tokenizer, [r for r in kept if r is not None]), width)
        np.savez(packs / f"val-{name}.npz", ids=ids, flags=flags)


def build(args: argparse.Namespace) -> None:
    """Make all packs with a pool of workers."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    args.packs.mkdir(parents=True, exist_ok=True)
    if args.evaluation:
        held_out_packs(args.evaluation, args.packs, args.tokenizer)
    wanted = [(j, args.packs, args.tokenizer) for j in jobs(args.shards, args.task_rows)]
    with multiprocessing.Pool(args.workers) as pool:
        for i, done in enumerate(pool.imap_unordered(make_star, wanted), 1):
            print(f"[{i}/{len(wanted)}] {done}", flush=True)


def make_star(arguments: tuple[Job, Path, Path]) -> str:
    return make(*arguments)


def smoke_packs(shards: Path, packs: Path, tokenizer: Path, vocabulary: int, width: int) -> None:
    """Everything small, in this process: a tokenizer and packs of a scrap of data."""
    packs.mkdir(parents=True)
    paths = sorted(shards.glob("*.jsonl.zst"))
    train_tokenizer(paths, 20_000, vocabulary).save(str(tokenizer))
    for job in jobs(shards, 3200):
        make(job, packs, tokenizer, width)
    for name in ("text", "chat"):
        (packs / f"val-{name}.npz").symlink_to(next(packs.glob(f"{name}-scrap*.npz")).resolve())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("shards", type=Path)
    parser.add_argument("packs", type=Path, nargs="?")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--train-tokenizer", type=Path)
    parser.add_argument("--evaluation", type=Path, help="folder with text and chat .jsonl.zst")
    parser.add_argument("--task-rows", type=int, default=3_200_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if args.train_tokenizer:
        train_tokenizer(sorted(args.shards.glob("*.zst"))).save(str(args.train_tokenizer))
    else:
        build(args)


if __name__ == "__main__":
    main()
