"""One page about a run that opens from disk: numbers with intervals, cases to look at, curves, where it came from."""

from .build import build_report, find_files, write_report
from .handler import Report
from .training_handler import TrainingReport
from .viewer import get_viewer

__all__ = ["Report", "TrainingReport", "build_report", "find_files", "get_viewer", "write_report"]
