"""Running a network over cases: case by case, slice by slice, in one process or several."""

from .cases import CaseDataset, CaseEvaluator
from .inferers import SliceMapInferer
from .processes import gathered, gathered_rows, weighted_sampler

__all__ = [
    "CaseDataset",
    "CaseEvaluator",
    "SliceMapInferer",
    "gathered",
    "gathered_rows",
    "weighted_sampler",
]
