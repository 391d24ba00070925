"""`sluice calibrate`: a tenant's labelled requests → a policy with a promise, a table, a picture.

    sluice calibrate --tenant acme --data labelled.jsonl [--target 0.01] [--delta 0.1]
    sluice calibrate --tenant acme --collected     from what feedback and shadow runs have gathered

Writes FOLDER/TENANT.json, where the gateway looks for it, and FOLDER/TENANT.png beside it. Where
the labels cannot carry the promise it says how many it takes, and writes nothing: `auto` then goes
on as it was. Nothing is served and no model is loaded here; the models' weights are read for their
fingerprint, because a policy belongs to them.
"""

from __future__ import annotations

import argparse
import gzip
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cascade.calibrate import Aim, Calibration, TooFewLabels, calibrate
from cascade.labels import Labelled, LabelsError, read_labels
from cascade.looks import EmbedMany
from cascade.policy import report_of, write_policy
from cascade.promise import Promise
from gateway.parts.policies import collected_path, policy_path
from gateway.parts.weights import Unreadable, team_weights_of
from gateway.settings import Settings


class CannotCalibrate(Exception):
    """The operator can mend it; the text says how."""


def run(asked: argparse.Namespace, settings: Settings, console: Console) -> None:
    """Raises CannotCalibrate. What was found goes to stdout, progress to stderr."""
    if asked.out is None and asked.tenant not in {one.name for one in settings.tenants}:
        known = ", ".join(one.name for one in settings.tenants)
        raise CannotCalibrate(f"There is no tenant {asked.tenant!r}; the settings name {known}.")
    rows = [row for path in _files(asked, settings) for row in _rows(path)]
    try:
        weights = team_weights_of(settings)
    except Unreadable as error:
        raise CannotCalibrate(str(error)) from None
    aim = _aim(asked, settings)
    embedder, embed = _embedding(settings) if asked.embed else ("", None)
    found = _calibrated(rows, replace(aim, embedder=embedder), embed, console)
    _show(found, Console(highlight=False))
    if not found.route.cut.promised:
        raise CannotCalibrate("No policy was written, and `auto` goes on as it was.")
    path = asked.out or policy_path(settings.cascade.folder, asked.tenant)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside it and moved: a gateway that reads meanwhile finds the old file or the new one.
    draft = path.with_suffix(".json.new")
    draft.write_text(write_policy(asked.tenant, weights, found.route, report_of(found)) + "\n")
    draft.replace(path)
    console.print(f"Policy written to {escape(str(path))}.", soft_wrap=True)
    _draw(found, path.with_suffix(".png"), asked.tenant, console)
    if asked.out is None:
        console.print("A running gateway takes it on at SIGHUP.")


def _files(asked: argparse.Namespace, settings: Settings) -> list[Path]:
    files = [asked.data] if asked.data else []
    if asked.collected:
        files.append(collected_path(settings.cascade.folder, asked.tenant))
    if not files:
        raise CannotCalibrate(
            "Name labelled requests with --data FILE, or use what was --collected (where "
            "cascade.shadow_share is set)."
        )
    return files


def _rows(path: Path) -> list[Labelled]:
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open("rt") as lines:
            return read_labels(lines)
    except LabelsError as error:
        raise CannotCalibrate(f"{path}, {error}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CannotCalibrate(f"{path} cannot be read ({error}).") from None


def _aim(asked: argparse.Namespace, settings: Settings) -> Aim:
    cascade = settings.cascade
    target = cascade.target if asked.target is None else asked.target
    delta = cascade.delta if asked.delta is None else asked.delta
    held = cascade.hold_tokens if asked.hold_tokens is None else asked.hold_tokens
    try:
        promise = Promise(target, delta)
    except ValueError as error:
        raise CannotCalibrate(f"--target, --delta: {error}.") from None
    small, large = (settings.models[name] for name in (cascade.small, cascade.large))
    ratio = small.price_out / large.price_out if small.price_out and large.price_out else 0.1
    return Aim(promise, held or None, cascade.whole_tokens, min(1.0, ratio), seed=asked.seed)


def _embedding(settings: Settings) -> tuple[str, EmbedMany]:
    """The first time the embedder is made, which takes some 15 s."""
    try:
        from cache.embed import ModelUnusable  # noqa: PLC0415  optional packages
        from gateway.parts.embedding import many_vectors  # noqa: PLC0415
    except ImportError as error:
        raise CannotCalibrate(
            f"--embed needs `pip install 'sluice-gateway[semantic]'` ({error})."
        ) from None
    try:
        return many_vectors(settings.semantic)
    except ModelUnusable as error:
        raise CannotCalibrate(f"cache.semantic.embedder: {error}") from None


def _calibrated(
    rows: Sequence[Labelled], aim: Aim, embed: EmbedMany | None, console: Console
) -> Calibration:
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console
    )
    with bar:
        task = bar.add_task(f"{len(rows)} labels", total=1.0)

        def heard(step: str, share: float) -> None:
            bar.update(task, description=f"{len(rows)} labels: {step}", completed=share)

        try:
            return calibrate(rows, aim, embed=embed, progress=heard)
        except TooFewLabels as error:
            raise CannotCalibrate(f"{error}. No policy was written.") from None


def _show(found: Calibration, console: Console) -> None:
    promise = found.route.promise
    lost = f"{100 * promise.epsilon:.3g}"
    console.print(f"small is right on {found.small:.1%}, large on {found.large:.1%}")
    table = Table("asked by", f"large calls for ≤ {lost} points lost, measured", "APGR", box=None)
    for line in found.table:
        table.add_row(line.name, f"{line.large_share:.1%}", f"{line.apgr:.3f}")
    console.print(table)
    for note in (found.summary(), *found.notes()):
        console.print(note, soft_wrap=True)


def _draw(found: Calibration, path: Path, tenant: str, console: Console) -> None:
    try:
        from cascade.plot import plot  # noqa: PLC0415  an optional package
    except ImportError:
        console.print("No picture: `pip install 'sluice-gateway[calibrate]'` draws one.")
        return
    plot(found, path, f"auto for {tenant}")
    console.print(f"Picture written to {escape(os.fspath(path))}.", soft_wrap=True)
