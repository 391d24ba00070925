"""A calibration as a picture: quality against the share of large calls. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from cascade.calibrate import Calibration

_STYLES = {"random": "--", "oracle": ":"}


def plot(calibration: Calibration, path: Path, title: str) -> None:
    """Writes a PNG of 1,200 × 800 pixels. Draws without a display and without pyplot's state."""
    figure = Figure(figsize=(8, 5.33), dpi=150)
    axes = figure.subplots()
    for curve in calibration.curves:
        style = _STYLES.get(curve.name, "-")
        axes.plot(100 * curve.large_share, 100 * curve.quality, style, label=curve.name)
    promise, cut = calibration.route.promise, calibration.route.cut
    least = 100 * (calibration.large - promise.epsilon)
    axes.axhline(least, color="grey", linewidth=0.8)
    axes.annotate(f"always large − {100 * promise.epsilon:.3g} points", (1, least), va="bottom")
    whole = calibration.route.whole
    for point, mark, name in ((cut, "o", "chosen"), (whole and whole.cut, "s", "chosen, whole")):
        if point and point.promised:
            quality = 100 * (calibration.large - point.loss)
            axes.plot([100 * point.large_share], [quality], mark, color="black", label=name)
    axes.set_xlabel("share of requests on the large model, %")
    axes.set_ylabel("quality, %")
    axes.set_title(title)
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path)
