"""Data sets as their owners publish them, plain folders and a phantom, read into cases for a datalist."""

from .clinic import clinic_case
from .figshare import cheng
from .folders import folder
from .mri import brats2020, decathlon, kaggle_3m
from .parts import half_lungs, substacks
from .phantom import phantom_case
from .phantom_files import write_phantom
from .registry import ADAPTERS, Adapter, read_cases
from .sides import halves
from .slides import bracs, camelyon16
from .table import labeled_table
from .volumes import autopet, duke, mosmed

__all__ = [
    "ADAPTERS",
    "Adapter",
    "autopet",
    "bracs",
    "brats2020",
    "camelyon16",
    "cheng",
    "clinic_case",
    "decathlon",
    "duke",
    "folder",
    "half_lungs",
    "halves",
    "kaggle_3m",
    "labeled_table",
    "mosmed",
    "phantom_case",
    "read_cases",
    "substacks",
    "write_phantom",
]
