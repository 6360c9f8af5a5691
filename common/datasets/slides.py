"""Public data sets of whole slides, as INSIGHT uses them: CAMELYON16 and BRACS."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from ..data import Case, split_patients
from ..data.matches import some
from ..files import PathLike
from .files import told_by

logger = logging.getLogger(__name__)

BRACS_CLASSES = ("none", "ADH", "FEA", "DCIS", "Invasive")
_BRACS_TYPES = {"N": None, "PB": None, "UDH": None, "ADH": "ADH", "FEA": "FEA", "DCIS": "DCIS", "IC": "Invasive"}
_BRACS_SECTIONS = {"train": "training", "val": "validation", "test": "test"}


def camelyon16(
    root: PathLike, *, validation: float = 0.1, split_seed: int = 0, exclude: str | Sequence[str] = ("test_049",)
) -> list[Case]:
    """Read CAMELYON16 (Ehteshami Bejnordi et al. 2017): 399 slides of lymph nodes, metastases outlined.

    Layout: `training/normal/normal_<NNN>.tif`, `training/tumor/tumor_<NNN>.tif`, `testing/images/test_<NNN>.tif`,
    polygons of each slide with tumor as `training/lesion_annotations/<slide>.xml` and
    `testing/lesion_annotations/<slide>.xml` (unpack the two zip files), and `testing/reference.csv`, whose rows
    begin with `test_<NNN>,Tumor` or `test_<NNN>,Normal`. There are no patient ids: each slide counts as a patient.

    Args:
        root: the folder that holds `training` and `testing`; without `testing` there is no test section.
        validation: share of the training slides, of normal and tumor alike, that validates (INSIGHT: 0.1).
        split_seed: of this share.
        exclude: slides to leave out; `test_049` is the duplicate that the owners withdrew.

    Returns:
        Cases with `cls` 0 or 1, `section`, and `label` (the polygons) of slides with tumor; those without are named.

    Raises:
        FileNotFoundError: no slide, no reference table, or a test slide without a row in it.
        ValueError: a row of the table is neither Tumor nor Normal.
    """
    root = Path(root).absolute()
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    cases: list[Case] = []
    for kind in ("normal", "tumor"):
        slides = [path for path in sorted(root.glob(f"training/{kind}/[!.]*.tif")) if path.stem not in exclude]
        if not slides:
            raise FileNotFoundError(f"no file training/{kind}/{kind}_*.tif in {root}; give the folder CAMELYON16.")
        share = (1 - validation, validation)
        held_out = split_patients([path.stem for path in slides], fractions=share, seed=split_seed)[1]
        for path in slides:
            section = "validation" if path.stem in held_out else "training"
            cases.append(_slide(path, int(kind == "tumor"), section, root / "training" / "lesion_annotations"))
    tests = [path for path in sorted(root.glob("testing/images/[!.]*.tif")) if path.stem not in exclude]
    if tests:
        table = root / "testing" / "reference.csv"
        reference = _reference(table)
        for path in tests:
            if path.stem not in reference:
                raise FileNotFoundError(f"{table} has no row for {path.name}; expected the owners' table.")
            cases.append(_slide(path, reference[path.stem], "test", root / "testing" / "lesion_annotations"))
    if without := [case["case"] for case in cases if case["cls"] and "label" not in case]:
        told = "%s: %d slide(s) with tumor have no polygons lesion_annotations/<slide>.xml, and so no Dice: %s"
        logger.warning(told, root, len(without), some(without))
    return cases


def _slide(path: Path, cls: int, section: str, annotations: Path) -> Case:
    case: Case = {"case": path.stem, "patient": path.stem, "image": str(path), "cls": cls, "section": section}
    polygons = annotations / f"{path.stem}.xml"
    return case | {"label": str(polygons)} if cls and polygons.is_file() else case


def _reference(path: Path) -> dict[str, int]:
    """The test slides' labels; the table has no header, at times one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; the labels of the test slides are in it.")
    labels = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.reader(file):
            name, kind = (*(cell.strip() for cell in row), "", "")[:2]
            if name.startswith("test_"):
                if kind not in ("Tumor", "Normal"):
                    raise ValueError(f"{path}: {name} is {kind!r}; expected Tumor or Normal.")
                labels[Path(name).stem] = int(kind == "Tumor")
    return labels


def bracs(root: PathLike, *, regions: str | None = "BRACS_RoI", table: str | None = None) -> list[Case]:
    """Read BRACS (Brancati et al. 2022): 547 breast slides of seven types, with the owners' split.

    Layout: `{train,val,test}/Group_*/Type_<type>/BRACS_<number>.svs` in `root` or in `root/BRACS_WSI`. The folder
    tells the gravest finding only. Regions that pathologists cut out tell what else is there: their files
    `BRACS_<number>_<type>_<n>.png`, at any depth below `regions`, add their types. ADH, FEA, DCIS and Invasive
    (the folder `IC`) are labels; N, PB and UDH are none of them.

    Args:
        root: folder of the data set.
        regions: folder of the regions in `root`; None, or without any (then with a warning): the folder of a slide is
            its label.
        table: name of the owners' table in `root` (`BRACS.xlsx`, or saved as `.csv`), with the columns
            `WSI Filename` and `Patient Id`; without it each slide counts as a patient.

    Returns:
        Cases with `cls` as a list of names and `section`.

    Raises:
        FileNotFoundError: no slide, no such table, or a slide is not in it.
        ValueError: a folder or a region of an unknown type.
    """
    root = Path(root).absolute()
    home = root / "BRACS_WSI" if (root / "BRACS_WSI").is_dir() else root
    slides = [path for name in _BRACS_SECTIONS for path in sorted(home.glob(f"{name}/Group_*/Type_*/[!.]*.svs"))]
    if not slides:
        raise FileNotFoundError(f"no file train/Group_*/Type_*/*.svs in {home}; give the folder of BRACS.")
    found: dict[str, set[str | None]] = {path.stem: {_bracs_label(path.parent.name[5:], path)} for path in slides}
    told = _bracs_regions(root / regions, found) if regions else []
    for slide, label in told:
        found[slide].add(label)
    if regions and not told:
        alone = "%s: no region BRACS_<number>_<type>_<n>.png of these slides, whose folders alone label them"
        logger.warning(alone, root / regions)
    patients = {} if table is None else _bracs_patients(root / table, slides)
    return [
        {
            "case": path.stem,
            "patient": patients.get(path.stem, path.stem),
            "image": str(path),
            "cls": [name for name in BRACS_CLASSES if name in found[path.stem]],
            "section": _BRACS_SECTIONS[path.relative_to(home).parts[0]],
        }
        for path in slides
    ]


def _bracs_regions(home: Path, slides: Collection[str]) -> list[tuple[str, str | None]]:
    """Slide and label of each region that was cut out of one of these slides."""
    files = ((re.fullmatch(r"(BRACS_\d+)_([A-Z]+)_\d+", path.stem), path) for path in sorted(home.rglob("BRACS_*.png")))
    return [(parts[1], _bracs_label(parts[2], path)) for parts, path in files if parts and parts[1] in slides]


def _bracs_patients(table: Path, slides: Sequence[Path]) -> dict[str, str]:
    told = told_by(table, "WSI Filename", "Patient Id")
    patients = {Path(name).stem: f"patient_{patient}" for name, patient in told.items()}
    if missing := sorted({path.stem for path in slides} - set(patients)):
        raise FileNotFoundError(f"{table}: {missing[0]} is not listed; complete the table.")
    return patients


def _bracs_label(kind: str, path: Path) -> str | None:
    if kind not in _BRACS_TYPES:
        raise ValueError(f"{path}: unknown type {kind!r}; expected one of {', '.join(_BRACS_TYPES)}.")
    return _BRACS_TYPES[kind]
