"""Pretrain a model and tune it on chats, in one run against the clock.

    packs (demo.data) -> stage 1: text, chat, tasks, all tokens
                      -> stage 2: chat, tasks, some text; of a chat only what the assistant says
                      -> a Hugging Face directory (demo.export)

GPU time comes in pieces, so the schedule runs on the share of the budget that is used up, the state
is saved every few minutes, and --resume goes on from there. Packs may still be arriving while
training runs. The small model may learn from a teacher's distribution in its last third: drafts of
a student are accepted more often. What it cost and reached is in the model cards.

usage: python -m demo.train large PACKS RUN --tokenizer tokenizer.json --minutes 18
       python -m demo.train small PACKS RUN --tokenizer tokenizer.json --minutes 5 --teacher DIR
       python -m demo.train --smoke    a scrap of data on the CPU; fails if loss does not fall
"""

import argparse
import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from demo import data
from demo.data import LOSS, PROMPT, START
from demo.export import export, load
from demo.model import SHAPES, Llama, Mask, document_mask
from demo.optim import Optimizer
from demo.packs import Mix, Packs


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """How one model is trained; moments are shares of the budget, mixes are shares of the rows."""

    first: Mix
    second: Mix
    muon_lr: float
    adam_lr: float
    rows: int = 64  # of data.ROW tokens: 131k tokens a step
    decay: float = 0.01
    warm_steps: int = 100
    cool_from: float = 0.5  # from here the learning rates fall linearly to 0
    second_from: float = 0.75
    teach_from: float = 0.67
    soft_share: float = 0.7  # of the loss, while a teacher is there


SCRAP = Path("tests/data/demo-scrap")  # its README says where the rows come from

RECIPES = {
    "large": Recipe(
        {"tasks-large": 0.31, "chat": 0.15, "text": 0.54},
        {"tasks-large": 0.36, "chat": 0.42, "text": 0.22},
        muon_lr=0.015,
        adam_lr=0.002,
    ),
    "small": Recipe(
        {"tasks-small": 0.19, "chat": 0.24, "text": 0.57},
        {"tasks-small": 0.28, "chat": 0.54, "text": 0.18},
        muon_lr=0.02,
        adam_lr=0.003,
    ),
    "smoke": Recipe(
        {"tasks-small": 0.25, "chat": 0.25, "text": 0.5},
        {"tasks-small": 0.5, "chat": 0.25, "text": 0.25},
        muon_lr=0.02,
        adam_lr=0.005,
        rows=8,
        warm_steps=5,
    ),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Loss:
    """What one batch gives: the loss to minimise; nats and counted tokens of every row."""

    mean: Tensor
    nats: Tensor
    counted: Tensor


def objective(
    model: Llama,
    teacher: Llama | None,
    soft: float,
    ids: Tensor,
    flags: Tensor,
    bits: Tensor,
    mask: Mask,
) -> tuple[Tensor, Tensor, Tensor]:
    """Next-token loss where flags meet `bits`, partly against the teacher's distribution."""
    after = flags.roll(-1, 1)
    inside = torch.arange(ids.shape[1], device=ids.device) < ids.shape[1] - 1
    counted = ((after & bits) != 0) & ((after & START) == 0) & inside
    logits = model(ids, mask).flatten(0, 1).float()
    nll = functional.cross_entropy(logits, ids.roll(-1, 1).flatten(), reduction="none")
    loss = nll
    if teacher is not None:
        with torch.no_grad():
            goal = teacher(ids, mask).flatten(0, 1).float().softmax(-1)
        loss = (1 - soft) * nll + soft * functional.cross_entropy(logits, goal, reduction="none")
    w = counted.float()
    nats = (nll.detach().view_as(w) * w).sum(1)
    return (loss.view_as(w) * w).sum() / w.sum(), nats, w.sum(1)


Objective = Callable[..., tuple[Tensor, Tensor, Tensor]]


class Run:
    """One training run: model, optimizer, clock and log."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, args.device
        self.recipe, self.shape = RECIPES[args.size], SHAPES[args.size]
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        torch.manual_seed(args.seed)
        torch.set_float32_matmul_precision("high")
        self.model = Llama(self.shape, self.dtype).to(self.device)
        r = self.recipe
        self.optimizer = Optimizer(self.model, r.muon_lr, r.adam_lr, r.decay)
        self.step, self.tokens, self.used_s = 0, 0, 0.0
        self.teacher = self.load_teacher() if args.teacher else None
        self.objective: Objective = objective
        if self.device == "cuda":
            self.objective = torch.compile(objective, dynamic=False)
        args.run.mkdir(parents=True, exist_ok=True)
        self.packs = Packs(args.packs, {*r.first, *r.second, "val-text", "val-chat"}, self.device)
        self.sums: dict[str, list[Tensor]] = {}

    def load_teacher(self) -> Llama:
        """The large model in bfloat16; its weights may arrive later, see `begin`."""
        teacher = Llama(SHAPES["large"], self.dtype).to(self.device).requires_grad_(False)
        for p in teacher.parameters():  # not .to(dtype): rotary angles must stay float32
            p.data = p.data.to(self.dtype)
        return teacher

    @property
    def progress(self) -> float:
        """Share of the budget used, 0-1."""
        if self.args.steps:
            return min(1.0, self.step / self.args.steps)
        return min(1.0, self.used_s / (60 * self.args.minutes))

    @property
    def schedule(self) -> float:
        """Warm up, hold, fall to zero."""
        r = self.recipe
        fall = (1 - self.progress) / (1 - r.cool_from)
        return min(1.0, (self.step + 1) / r.warm_steps, max(fall, 0.0))

    def measure(self, mix: Mix, bits: int, rows: int, teach: bool) -> tuple[Loss, list[str]]:
        ids, flags, names = self.packs.batch(mix, rows)
        wanted = torch.tensor(bits, dtype=torch.uint8, device=self.device)
        teacher = self.teacher if teach else None
        soft = self.recipe.soft_share
        # not inside the compiled objective: there the mask came out wrong (PyTorch 2.11)
        mask = document_mask(((flags & START) != 0).cumsum(1))
        found = self.objective(self.model, teacher, soft, ids, flags, wanted, mask)
        return Loss(*found), names

    def begin(self) -> None:
        """Compile everything the run will need, then wait for the teacher, then load the state."""
        for teach in {False, self.teacher is not None}:
            loss, _ = self.measure(self.recipe.first, LOSS | PROMPT, self.recipe.rows, teach)
            loss.mean.backward()
        for p in self.model.parameters():
            p.grad = None
        if self.teacher is not None:
            while not (self.args.teacher / "config.json").exists():
                time.sleep(0.5)
            load(self.teacher, self.args.teacher)
        if self.args.resume:
            self.load()
        self.packs.refresh()

    def train_step(self) -> None:
        r = self.recipe
        second = self.progress >= r.second_from
        teach = self.teacher is not None and self.progress >= r.teach_from
        bits = LOSS if second else LOSS | PROMPT
        loss, names = self.measure(r.second if second else r.first, bits, r.rows, teach)
        loss.mean.backward()
        self.optimizer.step(self.schedule)
        self.step += 1
        self.tokens += loss.nats.numel() * self.shape.context
        self.sums.setdefault("loss", []).append(loss.mean.detach())
        for name in dict.fromkeys(names):
            rows = torch.tensor([n == name for n in names]).to(self.device, non_blocking=True)
            part = (loss.nats * rows).sum() / (loss.counted * rows).sum().clamp(min=1)
            self.sums.setdefault(name, []).append(part)

    def validate(self) -> dict[str, float]:
        """Loss on held-out rows: all of a text, the assistant's part of a chat."""
        found = {}
        for name in ("val-text", "val-chat"):
            group = self.packs.groups[name]
            group.order = torch.arange(len(group.ids))
            loss, _ = self.measure({name: 1.0}, LOSS, self.recipe.rows, teach=False)
            found[name] = float(loss.nats.sum() / loss.counted.sum())
        return found

    def log(self, validate: bool) -> None:
        """One line on the screen, one in log.jsonl."""
        entry: dict[str, float] = {n: float(torch.stack(v).mean()) for n, v in self.sums.items()}
        self.sums.clear()
        if validate:
            entry |= self.validate()
        done = round(20 * self.progress)
        shown = " ".join(f"{n} {v:.3f}" for n, v in entry.items())
        bar = "#" * done + "." * (20 - done)
        speed = self.tokens / max(self.used_s, 1e-9) / 1e6
        print(
            f"[{bar}] {self.used_s:5.0f}s step {self.step} {self.tokens / 1e6:.0f}M tokens "
            f"{speed:.2f}M/s {shown}",
            flush=True,
        )
        entry |= {"step": self.step, "tokens": self.tokens, "seconds": round(self.used_s, 1)}
        with (self.args.run / "log.jsonl").open("a") as f:
            f.write(json.dumps(entry) + "\n")

    def save(self) -> None:
        """All that --resume needs, swapped in whole."""
        hidden = self.args.run / "checkpoint.tmp"
        state = {
            "shape": dataclasses.asdict(self.shape),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state(),
            "clock": [self.step, self.tokens, self.used_s],
        }
        torch.save(state, hidden)
        hidden.rename(self.args.run / "checkpoint.pt")

    def load(self) -> None:
        saved = torch.load(
            self.args.run / "checkpoint.pt", map_location=self.device, weights_only=True
        )
        self.model.load_state_dict(saved["model"])
        self.optimizer.load(saved["optimizer"])
        self.step, self.tokens, self.used_s = saved["clock"]

    def go(self) -> None:
        """Train until the budget is used, logging, saving and taking in new packs on the way."""
        self.begin()
        print(f"start: {sum(p.numel() for p in self.model.parameters()) / 1e6:.1f}M", flush=True)
        args, saved_s, checked_s = self.args, self.used_s, -1e9
        while self.progress < 1:
            started = time.perf_counter()
            for _ in range(args.log_every):
                self.train_step()
                if self.progress >= 1:
                    break
            last = float(self.sums["loss"][-1])  # waits for the device: an honest clock
            if not math.isfinite(last):
                raise SystemExit(f"step {self.step}: the loss is {last}")
            self.used_s += time.perf_counter() - started
            self.log(validate=self.used_s - checked_s > args.validate_every or self.progress >= 1)
            checked_s = self.used_s if self.used_s - checked_s > args.validate_every else checked_s
            if self.used_s - saved_s > args.save_every:
                saved_s = self.used_s
                self.save()
            self.packs.refresh()
        self.save()
        export(self.model, args.tokenizer, args.run / "model")


def smoke(shards: Path) -> None:
    """A few steps on a scrap of data, start to finish; fails when loss does not fall."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer, packs = folder / "tokenizer.json", folder / "packs"
        shape = SHAPES["smoke"]
        data.smoke_packs(shards, packs, tokenizer, shape.vocabulary, shape.context)
        where = ["smoke", str(packs), str(folder / "run"), "--tokenizer", str(tokenizer)]
        how = ["--steps", "40", "--log-every", "10", "--device", "cpu"]
        args = parser().parse_args([*where, *how])
        Run(args).go()
        lines = (folder / "run" / "log.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in lines]
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    if not losses[-1] < 0.8 * losses[0]:
        raise SystemExit("demo-smoke: the loss did not fall by a fifth")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m demo.train")
    p.add_argument("size", choices=sorted(SHAPES), nargs="?")
    p.add_argument("packs", type=Path, nargs="?")
    p.add_argument("run", type=Path, nargs="?")
    p.add_argument("--smoke", type=Path, metavar="SHARDS", nargs="?", const=SCRAP)
    p.add_argument("--tokenizer", type=Path)
    p.add_argument("--minutes", type=float, default=10.0)
    p.add_argument("--steps", type=int, default=0, help="budget in steps instead of minutes")
    p.add_argument("--teacher", type=Path, help="directory of the large model")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--log-every", type=int, default=25)
    p.add_argument("--save-every", type=float, default=180.0, metavar="SECONDS")
    p.add_argument("--validate-every", type=float, default=45.0, metavar="SECONDS")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return p


def main() -> None:
    args = parser().parse_args()
    if args.smoke:
        smoke(args.smoke)
    else:
        Run(args).go()


if __name__ == "__main__":
    main()
