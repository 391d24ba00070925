"""A tenant's calibrated policy as a file: versioned JSON, never a pickle.

Everything that decides is inside: both gain models, the margin, the held-back tokens, the promise,
the cut and on how many labels it stands, and the fingerprint of the two models whose answers were
labelled. The file's digest is its version: it belongs into `Call.policy`, so that an answer that
was kept under one calibration is never served under another.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cascade.features import BEFORE
from cascade.gain import Floats, GainModel, ModelFileError, read_model
from cascade.judge import AFTER
from cascade.promise import Cut, Promise
from cascade.routes.learned import Quality, Scorer, Whole

if TYPE_CHECKING:  # serving reads policies and fits nothing
    from cascade.calibrate import Calibration

FORMAT = "sluice-policy/2"
POINTS = 60
"""Of a curve in a report."""
KNOWN = {"before": BEFORE, "after": AFTER}


@dataclass(frozen=True, slots=True)
class Policy:
    """`fingerprint` names the weights of both models; the gateway refuses a policy of others."""

    tenant: str
    fingerprint: str
    route: Quality
    version: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)
    """What the calibration looked like, for people (`report_of`). Nothing decides by it."""

    @property
    def key(self) -> str:
        """For `Call.policy`."""
        return f"quality/{self.tenant}/{self.version}"


def report_of(calibration: Calibration) -> dict[str, Any]:
    """The curves, thinned to what a picture can show, and the chosen point."""
    cut, promise, whole = calibration.route.cut, calibration.route.promise, calibration.route.whole
    return {
        "small": calibration.small,
        "large": calibration.large,
        "target": promise.epsilon,
        "chosen": _point(cut, calibration.large),
        "chosen_whole": _point(whole.cut, calibration.large) if whole else None,
        "curves": [
            {
                "name": curve.name,
                "large_share": _thinned(curve.large_share),
                "quality": _thinned(curve.quality),
            }
            for curve in calibration.curves
        ],
    }


def _point(cut: Cut, large: float) -> dict[str, float] | None:
    if not cut.promised:
        return None
    return {"large_share": cut.large_share, "quality": large - cut.loss}


def _thinned(values: Floats) -> list[float]:
    at = np.unique(np.linspace(0, len(values) - 1, min(len(values), POINTS)).round().astype(int))
    return [round(float(value), 4) for value in values[at]]


def write_policy(
    tenant: str, fingerprint: str, route: Quality, report: Mapping[str, Any] | None = None
) -> str:
    scorer = route.scorer
    whole = route.whole
    return json.dumps(
        {
            "format": FORMAT,
            "tenant": tenant,
            "fingerprint": fingerprint,
            "promise": asdict(route.promise),
            "cut": _stored(route.cut),
            "margin": scorer.margin,
            "hold_tokens": scorer.hold_tokens,
            "whole": {**asdict(whole), "cut": _stored(whole.cut)} if whole else None,
            "route": json.loads(scorer.route.to_json()),
            "judge": json.loads(scorer.judge.to_json()) if scorer.judge else None,
            "report": report or {},
        }
    )


def _stored(cut: Cut) -> dict[str, Any]:
    return {**asdict(cut), "threshold": None if math.isinf(cut.threshold) else cut.threshold}


def read_policy(text: str) -> Policy:
    """Raises ModelFileError, with the remedy."""
    try:
        data = json.loads(text)
        if data.get("format") != FORMAT:
            raise ModelFileError(
                f"a policy of format {data.get('format')!r}; run `sluice calibrate`"
            )
        scorer = Scorer(
            _model(data["route"]),
            _model(data["judge"]) if data["judge"] else None,
            data["hold_tokens"],
            float(data["margin"]),
        )
        route = Quality(
            scorer, Promise(**data["promise"]), _cut(data["cut"]), _whole(data["whole"])
        )
        tenant, fingerprint = str(data["tenant"]), str(data["fingerprint"])
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ModelFileError(f"this is not a policy: {error!r}; run `sluice calibrate`") from error
    version = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Policy(tenant, fingerprint, route, version, data.get("report", {}))


def _cut(data: Mapping[str, Any]) -> Cut:
    threshold = data["threshold"]
    return Cut(**{**data, "threshold": -math.inf if threshold is None else float(threshold)})


def _whole(data: Mapping[str, Any] | None) -> Whole | None:
    return Whole(**{**data, "cut": _cut(data["cut"])}) if data else None


def _model(data: Any) -> GainModel:
    return read_model(json.dumps(data), KNOWN)
