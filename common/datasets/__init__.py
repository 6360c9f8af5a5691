"""Data sets as their owners publish them, plain folders and a phantom, read into cases for a datalist."""

from .files import load_volume, one_file, other_folder, read_table, save_volume
from .folders import folder
from .mri import BRATS_MODALITIES, KAGGLE_CHANNELS, brats2020, decathlon, kaggle_3m
from .parts import half_lungs, lung_gap, substacks
from .phantom import MODALITIES, phantom_case, write_phantom
from .registry import ADAPTERS, Adapter, read_cases
from .slides import BRACS_CLASSES, bracs, camelyon16
from .volumes import MOSMED_CATEGORIES, autopet, duke, mosmed

__all__ = [
    "ADAPTERS",
    "BRACS_CLASSES",
    "BRATS_MODALITIES",
    "KAGGLE_CHANNELS",
    "MODALITIES",
    "MOSMED_CATEGORIES",
    "Adapter",
    "autopet",
    "bracs",
    "brats2020",
    "camelyon16",
    "decathlon",
    "duke",
    "folder",
    "half_lungs",
    "kaggle_3m",
    "load_volume",
    "lung_gap",
    "mosmed",
    "one_file",
    "other_folder",
    "phantom_case",
    "read_cases",
    "read_table",
    "save_volume",
    "substacks",
    "write_phantom",
]
