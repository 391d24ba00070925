"""What the two models can do: graded tasks, held-out chats and text, and how well small drafts.

Tasks are exact match by family and level with 95 % Wilson intervals; answers are greedy. A chat
answer repeats a sentence when one of four words or more comes twice; it loops when six words in a
row come three times. Agreement is the share of tokens of the large model's answers that are the
small model's first choice too, given the same text before: an upper bound on what a greedy draft
gets accepted.

usage: python -m demo.eval --large demo/large --small demo/small --data EVAL_DIR --out results.json
EVAL_DIR holds tasks, chat and text .jsonl.zst; demo/evalset has the tasks.
"""

import argparse
import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.data import Row, read_rows
from demo.tasks import check

TASK_TOKENS, CHAT_TOKENS = 256, 256
SENTENCE_WORDS, PHRASE_WORDS, PHRASE_TIMES = 4, 6, 3


class Share(NamedTuple):
    """k right of n, with a 95 % Wilson interval."""

    k: int
    n: int

    def result(self) -> dict[str, float]:
        if not self.n:
            return {"n": 0}
        z, p = 1.96, self.k / self.n
        middle = (p + z * z / (2 * self.n)) / (1 + z * z / self.n)
        half = z * math.sqrt(p * (1 - p) / self.n + z * z / (4 * self.n**2)) / (1 + z * z / self.n)
        return {"share": p, "low": middle - half, "high": middle + half, "k": self.k, "n": self.n}


def tally(pairs: Iterable[tuple[Any, bool]]) -> dict[str, dict[str, float]]:
    """Share of True by key."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for key, good in pairs:
        total[str(key)] += 1
        right[str(key)] += good
    return {k: Share(right[k], total[k]).result() for k in total}


def says_twice(reply: str) -> bool:
    """Does a sentence of four words or more come twice?"""
    sentences = [" ".join(re.findall(r"\w+", s.lower())) for s in re.split(r"[.!?\n]+", reply)]
    long = [s for s in sentences if s.count(" ") >= SENTENCE_WORDS - 1]
    return len(set(long)) < len(long)


def loops(reply: str) -> bool:
    """Do six words in a row come three times?"""
    words = re.findall(r"\w+", reply.lower())
    phrases = Counter(zip(*(words[i:] for i in range(PHRASE_WORDS)), strict=False))
    return max(phrases.values(), default=0) >= PHRASE_TIMES


class Reply(NamedTuple):
    """A greedy answer: prompt and reply as token ids, its text, whether it ended by itself."""

    prompt: list[int]
    ids: list[int]
    text: str
    ended: bool


class Model:
    """A model directory as transformers loads it."""

    def __init__(self, folder: Path, device: str, batch: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self.model = loaded.to(device).eval()
        self.device, self.batch = device, batch
        self.end, self.pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def padded(self, sequences: list[list[int]], left: bool) -> tuple[Tensor, Tensor]:
        width = max(map(len, sequences))
        ids = torch.full((len(sequences), width), self.pad)
        mask = torch.zeros_like(ids)
        for row, s in enumerate(sequences):
            span = slice(width - len(s), width) if left else slice(0, len(s))
            ids[row, span], mask[row, span] = torch.tensor(s), 1
        return ids.to(self.device), mask.to(self.device)

    def answer(self, prompts: list[list[int]], limit: int) -> list[Reply]:
        """Greedy answers, in the order of the prompts; batches of similar length."""
        made: dict[int, list[int]] = {}
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for at in range(0, len(order), self.batch):
            chosen = order[at : at + self.batch]
            made |= zip(chosen, self.greedy([prompts[i] for i in chosen], limit), strict=True)
            progress("answers", len(made), len(order))
        return [self.reply(p, made[i]) for i, p in enumerate(prompts)]

    def reply(self, prompt: list[int], ids: list[int]) -> Reply:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Reply(prompt, ids, text, ids[-1:] == [self.end])

    @torch.inference_mode()
    def greedy(self, prompts: list[list[int]], limit: int) -> list[list[int]]:
        """One batch. Rows that have ended are dropped every few steps; `generate` would carry
        them along until the longest answer ends."""
        out: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))  # which prompt each row of the batch answers
        ids, mask = self.padded(prompts, left=True)
        cache = None
        for step in range(limit):
            at = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            found = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=at,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            ids, cache = found.logits[:, -1:].argmax(-1), found.past_key_values
            for row, token in zip(rows, ids[:, 0].tolist(), strict=True):
                if out[row][-1:] != [self.end]:
                    out[row].append(token)
            mask = torch.cat((mask, torch.ones_like(ids)), 1)
            if step % 4 == 3:
                going = [i for i, row in enumerate(rows) if out[row][-1] != self.end]
                if not going:
                    break
                kept = torch.tensor(going, device=ids.device)
                ids, mask, rows = ids[kept], mask[kept], [rows[i] for i in going]
                cache.batch_select_indices(kept)
        return out

    def logits(self, sequences: list[list[int]]) -> Iterator[tuple[list[int], Tensor]]:
        """Every sequence with its logits [len, vocabulary], shortest first."""
        ordered = sorted(sequences, key=len)
        step = max(1, self.batch // 16)
        for at in range(0, len(ordered), step):
            part = ordered[at : at + step]
            ids, mask = self.padded(part, left=False)
            with torch.inference_mode():
                found = self.model(input_ids=ids, attention_mask=mask).logits
            for s, x in zip(part, found, strict=True):
                yield s, x[: len(s)]


def progress(what: str, done: int, total: int) -> None:
    print(f"\r  {what} {done}/{total}", end="\n" if done >= total else "", flush=True)


def grade_tasks(rows: list[Row], replies: list[Reply]) -> dict[str, Any]:
    """Accuracy over all, by level, by family, by family and level."""
    good = [check(a.text, r["answer"]) for r, a in zip(rows, replies, strict=True)]
    marked = list(zip(rows, good, strict=True))
    return {
        "all": Share(sum(good), len(good)).result(),
        "level": tally((r["level"], g) for r, g in marked),
        "levels 4-5": tally((r["level"] > 3, g) for r, g in marked).get("True", {}),
        "family": tally((r["family"], g) for r, g in marked),
        "cell": tally((f"{r['family']} {r['level']}", g) for r, g in marked),
        "ended": Share(sum(a.ended for a in replies), len(replies)).result(),
        "mean tokens": sum(len(a.ids) for a in replies) / len(replies),
    }


def grade_chats(rows: list[Row], replies: list[Reply]) -> dict[str, Any]:
    """Endings and repetition of free answers, over all and by source."""
    twice = [says_twice(a.text) for a in replies]
    either = [t or loops(a.text) for t, a in zip(twice, replies, strict=True)]
    return {
        "repeats a sentence": Share(sum(twice), len(twice)).result(),
        "repeats a sentence or loops": Share(sum(either), len(either)).result(),
        "repeats or loops, by source": tally(
            (r["source"], x) for r, x in zip(rows, either, strict=True)
        ),
        "ended": Share(sum(a.ended for a in replies), len(replies)).result(),
        "mean tokens": sum(len(a.ids) for a in replies) / len(replies),
    }


def text_loss(model: Model, rows: list[Row]) -> dict[str, float]:
    """Bits per byte of held-out passages, cut at the context length."""
    nats, size = 0.0, 0
    limit = model.model.config.max_position_embeddings
    sequences = []
    for r in rows:
        ids = model.tokenizer(r["text"], add_special_tokens=False)["input_ids"][:limit]
        sequences.append(ids)
        size += len(model.tokenizer.decode(ids[1:]).encode())
    for ids, logits in model.logits(sequences):
        goal = torch.tensor(ids[1:], device=logits.device)
        nats += float(torch.nn.functional.cross_entropy(logits[:-1].float(), goal, reduction="sum"))
    tokens = sum(len(s) - 1 for s in sequences)
    return {"bits per byte": nats / size / math.log(2), "loss": nats / tokens, "tokens": tokens}


def chat_loss(model: Model, rows: list[Row]) -> dict[str, float]:
    """Nats per token of the last assistant message."""
    nats, tokens = 0.0, 0
    starts: dict[tuple[int, ...], int] = {}
    for r in rows:
        prompt = model.prompt(r["messages"][:-1])
        reply = model.tokenizer(r["messages"][-1]["content"], add_special_tokens=False)["input_ids"]
        starts[(*prompt, *reply, model.end)] = len(prompt)
    for ids, logits in model.logits([list(s) for s in starts]):
        at = starts[tuple(ids)]
        goal = torch.tensor(ids[at:], device=logits.device)
        nats += float(
            torch.nn.functional.cross_entropy(logits[at - 1 : -1].float(), goal, reduction="sum")
        )
        tokens += len(goal)
    return {"loss": nats / tokens, "tokens": tokens}


def agreement(small: Model, replies: list[Reply]) -> dict[str, float]:
    """Share of the large model's answer tokens that are the small one's first choice."""
    starts = {(*a.prompt, *a.ids): len(a.prompt) for a in replies if a.ids}
    same = total = 0
    for ids, logits in small.logits([list(s) for s in starts]):
        at = starts[tuple(ids)]
        first = logits[at - 1 : -1].argmax(-1).tolist()
        same += sum(a == b for a, b in zip(first, ids[at:], strict=True))
        total += len(ids) - at
    return Share(same, total).result()


KINDS = {"tasks": TASK_TOKENS, "chat": CHAT_TOKENS}


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """All measures for the models given; answers are kept in --answers and taken from there."""
    rows = {n: sample(args.data / f"{n}.jsonl.zst", getattr(args, n)) for n in (*KINDS, "text")}
    results: dict[str, Any] = {"rows": {n: len(r) for n, r in rows.items()}, "device": args.device}
    answers: dict[str, list[Reply]] = {}
    for name, folder in (("large", args.large), ("small", args.small)):
        if folder is None:
            continue
        model = Model(folder, args.device, args.batch)
        for kind, limit in KINDS.items():
            saved = args.answers / f"{name}-{kind}.jsonl"
            answers[f"{name} {kind}"] = answers_of(model, rows[kind], limit, saved)
        if name == "small" and "large" in results:
            results["agreement"] = {k: agreement(model, answers[f"large {k}"]) for k in KINDS}
        results[name] = {
            "tasks": grade_tasks(rows["tasks"], answers[f"{name} tasks"]),
            "chat": grade_chats(rows["chat"], answers[f"{name} chat"])
            | {"loss": chat_loss(model, rows["chat"])},
            "text": text_loss(model, rows["text"]),
        }
    return results


def answers_of(model: Model, rows: list[Row], limit: int, saved: Path) -> list[Reply]:
    """The model's answers; made once, then read from `saved`."""
    prompts = [model.prompt(r["messages"][:-1]) for r in rows]
    if saved.exists():
        lines = list(read_rows(saved))
        if [x["messages"] for x in lines] == [r["messages"] for r in rows]:
            return [model.reply(p, x["ids"]) for p, x in zip(prompts, lines, strict=True)]
    replies = model.answer(prompts, limit)
    saved.parent.mkdir(parents=True, exist_ok=True)
    with saved.open("w", encoding="utf8") as f:
        for r, a in zip(rows, replies, strict=True):
            entry = {**r, "reply": a.text, "ended": a.ended, "ids": a.ids}
            f.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return replies


def sample(path: Path, limit: int) -> list[Row]:
    """All rows, or `limit` of them, the same ones every time."""
    rows = list(read_rows(path))
    return random.Random(1).sample(rows, limit) if 0 < limit < len(rows) else rows


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    names = [n for n in ("large", "small") if n in results]
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]

    def line(label: str, cells: Iterable[str]) -> None:
        lines.append(f"| {label} | " + " | ".join(cells) + " |")

    tasks = {n: results[n]["tasks"] for n in names}
    line("all tasks", (percent(tasks[n]["all"]) for n in names))
    line("levels 4-5", (percent(tasks[n]["levels 4-5"]) for n in names))
    for part, label in (("level", "level "), ("family", "")):
        groups: dict[str, list[str]] = defaultdict(list)
        for n in names:
            for key, share in sorted(tasks[n][part].items()):
                groups[key].append(percent(share))
        for key, cells in groups.items():
            line(label + key, cells)
    line("tasks: ended by itself", (percent(tasks[n]["ended"]) for n in names))
    for what in ("ended", "repeats a sentence", "repeats a sentence or loops"):
        line(f"chat: {what}", (percent(results[n]["chat"][what]) for n in names))
    line("chat: loss a token", (f"{results[n]['chat']['loss']['loss']:.3f}" for n in names))
    line("text: bits a byte", (f"{results[n]['text']['bits per byte']:.3f}" for n in names))
    for kind, share in results.get("agreement", {}).items():
        line(f"agreement on {kind}", [percent(share), ""])
    return "\n".join(lines)


def percent(share: dict[str, float]) -> str:
    if not share.get("n"):
        return "-"
    low, high = 100 * share["low"], 100 * share["high"]
    return f"{100 * share['share']:.1f} % ({low:.1f}-{high:.1f})"


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m demo.eval")
    p.add_argument("--large", type=Path)
    p.add_argument("--small", type=Path)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--out", type=Path, default=Path("results.json"))
    p.add_argument("--answers", type=Path, default=Path("answers"), help="where answers are kept")
    for kind in (*KINDS, "text"):
        p.add_argument(f"--{kind}", type=int, default=0, help="how many rows, 0 for all")
    p.add_argument("--batch", type=int, default=1024 if torch.cuda.is_available() else 128)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = p.parse_args()
    results = evaluate(args)
    args.out.write_text(json.dumps(results, indent=1) + "\n", "utf8")
    print(table(results))


if __name__ == "__main__":
    main()
