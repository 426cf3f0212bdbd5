"""The numbers of a study as JSON, for tables elsewhere."""

import dataclasses
import json
import math
from typing import Any

import numpy as np

from .study import Study
from .words import conclude


def numbers(study: Study) -> str:
    """Returns summary, conclusion, setting and versions; what is not finite becomes null."""
    content = {
        "study": study.name,
        "setting": study.setting,
        "environment": study.environment,
        "conclusion": dataclasses.asdict(conclude(study.summary)),
        "summary": _without_pairs(dataclasses.asdict(study.summary)),
    }
    return json.dumps(_finite(content), indent=2) + "\n"


def _without_pairs(summary: dict[str, Any]) -> dict[str, Any]:
    """Leaves out what stands behind the comparisons: arrays over all pairs of arms."""
    tasks = {name: _without_pairs(of_task) for name, of_task in summary["tasks"].items()}
    return {key: it for key, it in summary.items() if key != "pairs"} | {"tasks": tasks}


def _finite(value: Any) -> Any:
    # JSON has no infinity, no NaN and no arrays.
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
