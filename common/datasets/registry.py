"""Data sets as their owners publish them, read into cases for a datalist: the table of adapters, and plain folders.

Each function returns cases as `common.data.find_cases` does (absolute paths), with `patient` and with `cls`:
one int per axial slice, inferior→superior, or one int for the volume. `ADAPTERS` names them for
`python -m common prepare`. Masks, where there are any, derive `cls` and score; no training reads them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..data import Case
from ..files import PathLike
from .figshare import CHENG_CLASSES, cheng
from .folders import folder
from .mri import BRATS_MODALITIES, brats2020, decathlon, kaggle_3m
from .parts import half_lungs, substacks
from .slides import BRACS_CLASSES, bracs, camelyon16
from .table import labeled_table
from .volumes import MOSMED_CATEGORIES, autopet, duke, mosmed

_PLACES = ("root", "out_dir", "path", "dataset_dir")


@dataclass(frozen=True)
class Adapter:
    """One row of the table.

    Attributes:
        read: function from `root` (and `out_dir`, where it converts files) and options to cases.
        classes: names, the negative one first; none where the data say them themselves.
        modalities: names of the images of a case, by default.
    """

    read: Callable[..., Any]
    classes: tuple[str, ...]
    modalities: tuple[str, ...]

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """Keyword arguments of `read` beyond those that say where files are."""
        fixed = self.read.keywords if isinstance(self.read, partial) else {}
        parameters = inspect.signature(self.read).parameters
        return {name: p for name, p in parameters.items() if name not in (*_PLACES, *fixed)}

    @property
    def converts(self) -> bool:
        """Whether it writes files of its own."""
        return "out_dir" in inspect.signature(self.read).parameters


ADAPTERS: dict[str, Adapter] = {
    "table": Adapter(labeled_table, (), ()),
    "folder": Adapter(folder, ("none", "tumor"), ("flair",)),
    "brats2020": Adapter(brats2020, ("healthy", "LGG", "HGG"), BRATS_MODALITIES),
    "kaggle_3m": Adapter(kaggle_3m, ("none", "tumor"), ("flair",)),
    "decathlon_brain": Adapter(decathlon, ("none", "tumor"), ("FLAIR",)),
    "decathlon_prostate": Adapter(decathlon, ("none", "prostate"), ("ADC",)),
    "mosmed": Adapter(mosmed, ("none", "covid"), ("ct",)),
    "mosmed_severity": Adapter(partial(mosmed, severity=True), MOSMED_CATEGORIES, ("ct",)),
    "autopet": Adapter(autopet, ("none", "tumor"), ("SUV",)),
    "duke": Adapter(duke, ("none", "tumor"), ("post1",)),
    "substacks": Adapter(substacks, ("none", "tumor"), ("flair",)),
    "half_lungs": Adapter(half_lungs, ("none", "infection"), ("ct",)),
    "cheng": Adapter(cheng, CHENG_CLASSES, ("t1ce",)),
    "camelyon16": Adapter(camelyon16, ("none", "tumor"), ("HE",)),
    "bracs": Adapter(bracs, BRACS_CLASSES, ("HE",)),
}


def read_cases(
    adapter: str, root: PathLike, out_dir: PathLike | None = None, **options: Any
) -> tuple[list[Case], tuple[str, ...], tuple[str, ...]]:
    """Read a data set through an adapter of the table.

    Args:
        adapter: a key of `ADAPTERS`.
        root: the data set, or the table.
        out_dir: where adapters that convert files write them; of a table, the folder that its paths are relative to.
        options: of the adapter's function.

    Returns:
        Cases, class names, and names of the modalities.

    Raises:
        ValueError: unknown adapter or option, or no `out_dir` for one that converts.
    """
    if adapter not in ADAPTERS:
        raise ValueError(f"unknown adapter {adapter!r}; use one of {', '.join(ADAPTERS)}.")
    row = ADAPTERS[adapter]
    unknown = sorted(set(options) - set(row.options))
    if unknown:
        raise ValueError(f"{adapter} has no option {', '.join(unknown)}; it has {', '.join(row.options) or 'none'}.")
    if adapter == "table":
        return row.read(root, out_dir, **options)
    if "modalities" in row.options:
        options.setdefault("modalities", row.modalities)
    classes = ("none", "tumor") if options.get("binary") else row.classes
    if not row.converts:
        return row.read(root, **options), classes, tuple(options.get("modalities", row.modalities))
    if out_dir is None:
        raise ValueError(f"{adapter} writes files of its own: say where with --dataset_dir")
    return row.read(root, out_dir, **options), classes, tuple(options.get("modalities", row.modalities))
