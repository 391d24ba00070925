"""Hit rate against error for all policies, one panel a stream, as an SVG.

    python -m bench.semantic_picture RUNS docs/semantic.svg [--streams banking77,advising,…]

RUNS is what `bench.semantic --runs` kept. Upward is more hits, to the right more of all requests
answered wrongly. Of who promises, each point is one max_error, and the upright lines are the four
of them; fixed thresholds have a point for each. Ink of middle brightness on nothing, so that it can
be read on light and on dark pages.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.semantic_lines import Line, Runs

INK = "#7d8590"
LEAST = 0.03
"""Percent of wrong hits that stand at the left edge, fewer too: the axis is logarithmic."""
MOST = 70.0
COLUMNS = 3

CURVES = (
    ("error-bounded (ours)", "ours", "#2f81f7", "o-"),
    ("pooled threshold", "pooled", "#d29922", "s-"),
    ("vCache", "vcache", "#3fb950", "D-"),
    ("fixed threshold .95, .90, .80", "static", INK, "^:"),
    ("the same with guards .90, .80", "guards", "#db61a2", "v:"),
)
"""(what it is called, its family, colour, marker and line)."""


def family_of(policy: str) -> str:
    return "guards" if policy.endswith("guards") else policy.split(" ", maxsplit=1)[0]


def draw(lines: Sequence[Line], path: Path) -> None:
    """Needs matplotlib."""
    import matplotlib as mpl  # an extra, for this picture only
    from matplotlib.figure import Figure

    streams = list(dict.fromkeys(line.stream for line in lines))
    rows = -(-len(streams) // COLUMNS)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sluice", "font.size": 9}):
        figure = Figure(figsize=(9.6, 0.7 + 2.7 * rows), layout="constrained")
        axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        for axis, stream in zip(axes, streams, strict=False):
            panel(axis, stream, [line for line in lines if line.stream == stream])
        for axis in axes[len(streams) :]:
            axis.set_visible(False)
        handles = {handle.get_label(): handle for axis in axes for handle in axis.get_lines()}
        named = [handles[name] for name, *_ in CURVES if name in handles]
        figure.legend(
            handles=named, loc="outside upper center", ncols=3, frameon=False, labelcolor=INK
        )
        figure.supxlabel("wrong hits, % of all requests", color=INK, fontsize=9)
        figure.supylabel("hits, % of all requests", color=INK, fontsize=9)
        figure.savefig(path, transparent=True, metadata={"Date": None})


def panel(axis: Any, stream: str, lines: Sequence[Line]) -> None:
    """One stream. Axes of matplotlib, which has no types."""
    for error in sorted({line.max_error for line in lines} - {0.0}):
        axis.axvline(100 * error, color=INK, linewidth=0.6, alpha=0.5, label="_promise")
    for name, family, colour, style in CURVES:
        points = sorted(
            (min(MOST, max(LEAST, line.wrong)), line.hit)
            for line in lines
            if family_of(line.policy) == family
        )
        if points:
            axis.plot(
                *zip(*points, strict=True), style, color=colour, label=name, markersize=4.5, lw=1.2
            )
    axis.set_title(stream, color=INK, fontsize=10)
    axis.set_xscale("log")
    axis.set_xlim(0.8 * LEAST, 1.3 * MOST)
    axis.set_ylim(bottom=0)
    axis.minorticks_off()
    axis.set_xticks([LEAST, 0.1, 0.5, 1, 2, 5, 20, 60], "≤.03 .1 .5 1 2 5 20 60".split())
    axis.tick_params(colors=INK, length=2)
    for spine in axis.spines.values():
        spine.set_color(INK)
        spine.set_alpha(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="what bench.semantic --runs kept")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--streams", help="in this order; unset: all that were run")
    given = parser.parse_args()
    lines = Runs(given.runs).lines()
    if given.streams:
        wanted = given.streams.split(",")
        kept = [line for line in lines if line.stream in wanted]
        lines = sorted(kept, key=lambda line: wanted.index(line.stream))
    if not lines:
        raise SystemExit(f"no runs of these streams in {given.runs}: run bench.semantic --runs")
    draw(lines, given.picture)


if __name__ == "__main__":
    main()
