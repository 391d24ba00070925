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
from cascade.routes.learned import Quality, Scorer

if TYPE_CHECKING:  # serving reads policies and fits nothing
    from cascade.calibrate import Calibration

FORMAT = "sluice-policy/1"
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
    cut, promise = calibration.route.cut, calibration.route.promise
    chosen = {"large_share": cut.large_share, "quality": calibration.large - cut.loss}
    return {
        "small": calibration.small,
        "large": calibration.large,
        "target": promise.epsilon,
        "chosen": chosen if cut.promised else None,
        "curves": [
            {
                "name": curve.name,
                "large_share": _thinned(curve.large_share),
                "quality": _thinned(curve.quality),
            }
            for curve in calibration.curves
        ],
    }


def _thinned(values: Floats) -> list[float]:
    at = np.unique(np.linspace(0, len(values) - 1, min(len(values), POINTS)).round().astype(int))
    return [round(float(value), 4) for value in values[at]]


def write_policy(
    tenant: str, fingerprint: str, route: Quality, report: Mapping[str, Any] | None = None
) -> str:
    scorer = route.scorer
    cut = asdict(route.cut)
    if math.isinf(route.cut.threshold):
        cut["threshold"] = None
    return json.dumps(
        {
            "format": FORMAT,
            "tenant": tenant,
            "fingerprint": fingerprint,
            "promise": asdict(route.promise),
            "cut": cut,
            "margin": scorer.margin,
            "hold_tokens": scorer.hold_tokens,
            "route": json.loads(scorer.route.to_json()),
            "judge": json.loads(scorer.judge.to_json()) if scorer.judge else None,
            "report": report or {},
        }
    )


def read_policy(text: str) -> Policy:
    """Raises ModelFileError, with the remedy."""
    try:
        data = json.loads(text)
        if data.get("format") != FORMAT:
            raise ModelFileError(
                f"a policy of format {data.get('format')!r}; run `sluice calibrate`"
            )
        cut = Cut(**{**data["cut"], "threshold": _threshold(data["cut"]["threshold"])})
        scorer = Scorer(
            _model(data["route"]),
            _model(data["judge"]) if data["judge"] else None,
            data["hold_tokens"],
            float(data["margin"]),
        )
        route = Quality(scorer, Promise(**data["promise"]), cut)
        tenant, fingerprint = str(data["tenant"]), str(data["fingerprint"])
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ModelFileError(f"this is not a policy: {error!r}; run `sluice calibrate`") from error
    version = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Policy(tenant, fingerprint, route, version, data.get("report", {}))


def _threshold(value: float | None) -> float:
    return -math.inf if value is None else float(value)


def _model(data: Any) -> GainModel:
    return read_model(json.dumps(data), KNOWN)
