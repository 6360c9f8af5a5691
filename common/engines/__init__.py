"""Running a network over cases: what a run is told, case by case, slice by slice, in one process or several."""

from .cases import CaseDataset, CaseEvaluator
from .inferers import SliceMapInferer
from .launch import cause, check_settings, running_config
from .processes import gathered, gathered_rows, raise_together, weighted_sampler

__all__ = [
    "CaseDataset",
    "CaseEvaluator",
    "SliceMapInferer",
    "cause",
    "check_settings",
    "gathered",
    "gathered_rows",
    "raise_together",
    "running_config",
    "weighted_sampler",
]
