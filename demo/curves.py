"""The loss curves of a run as a picture, for its card.

usage: python -m demo.curves demo/large/log.jsonl demo/large/loss.png
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LABELS = {
    "tasks-large": "tasks",
    "tasks-small": "tasks",
    "chat": "chats",
    "text": "text",
    "val-chat": "held-out chats",
    "val-text": "held-out text",
}
COLORS = {"tasks": "#2a9d8f", "chats": "#e76f51", "text": "#264653"}


def main(log: str, out: str) -> None:
    entries = [json.loads(line) for line in Path(log).read_text("utf8").splitlines()]
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name, label in LABELS.items():
        points = [(e["tokens"] / 1e6, e[name]) for e in entries if name in e]
        if points:
            held_out = name.startswith("val")
            color = COLORS[label.removeprefix("held-out ")]
            axes.plot(*zip(*points, strict=True), "o--" if held_out else "-", color=color, ms=3,
                      lw=1, label=label)  # fmt: skip
    axes.set(xlabel="million tokens", ylabel="loss (nats a token, log scale)", yscale="log")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(ncols=2, fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:3])
