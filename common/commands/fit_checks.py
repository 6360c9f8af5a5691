"""What `fit` refuses before hours of training, and what each bundle can learn from, by its own configs and metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data import SECTIONS, Case, label_of, labels_slices, load_datalist
from ..data.splits import signs_of_patients, tells_classes_apart
from ..engines.launch import check_one_logit
from ..features import case_files
from ..files import PathLike, file_digest, glance, read_json
from ..preprocessing import LoadCased
from .fit_minutes import cases_of, read_case_grid
from .fit_runs import SLIDES, VOLUMES, Recipe, merged
from .fit_slides import are_slides, refuse_broken
from .run import BUNDLES

DATALIST, IMAGES, MASKS = "datalist_sha256", "images_sha256", "masks_sha256"


def takes_slides(root: Path) -> bool:
    """Whether a bundle has configs for whole slides."""
    return (root / "configs" / SLIDES.inference).is_file()


def takes_several_labels(root: Path) -> bool:
    """Whether a case may have several labels at once: `multi_label` of the bundle's `metadata.json`."""
    return bool(read_json(root / "configs" / "metadata.json").get("multi_label"))


def takes_classes_alone(root: Path) -> bool:
    """Whether a bundle tells classes from one another where no label is negative: its calibration says how then."""
    calibrate = root / "configs" / VOLUMES.calibrate
    return calibrate.is_file() and "without_negatives" in read_json(calibrate)


def bundles_that(can: Callable[[Path], bool]) -> list[str]:
    """Names of the bundles under `bundles/` that can."""
    roots = sorted(path.parents[1] for path in BUNDLES.glob("*/configs/metadata.json"))
    return [root.name for root in roots if can(root)]


def recipe_of(root: Path, content: Mapping[str, Any], dataset_dir: str, *, flat: bool = False) -> Recipe:
    """Which configs a data set takes, by its files.

    Args:
        root: of the bundle.
        content: of the datalist.
        dataset_dir: what its paths are relative to.
        flat: TIFF without levels are slides as well; of no effect with a bundle that takes no slides.

    Raises:
        ValueError: whole slides, and a bundle without configs for them; or some cases are slides and some are not.
    """
    able = takes_slides(root)
    if not are_slides(content, Path(dataset_dir), flat=flat and able):
        return VOLUMES
    if not able:
        others = ", ".join(bundles_that(takes_slides))
        raise ValueError(f"{root.name} takes no whole slides, which the datalist names; these do: {others}")
    return SLIDES


def check_data(listed: Path, content: Mapping[str, Any], dataset_dir: str, root: Path | None = None) -> None:
    """Refuse, before hours of training, what cannot be trained on.

    `root` is the bundle's folder; without it classes need negatives.

    Raises:
        FileNotFoundError: an image that a section names.
        ValueError: no training or validation section, or one without positives or negatives; or nothing but classes
            that are told from one another, where the bundle takes none, or of volumes with several slices.
    """
    for section in SECTIONS:
        if content.get(section):
            load_datalist(listed, section, dataset_dir=dataset_dir)
    cases = cases_of(content)
    if root is not None:
        _check_several_labels(listed, cases, root)
    if apart := root is not None and tells_classes_apart(content):
        check_classes(listed, cases, dataset_dir, root)
    for section in SECTIONS[:2]:
        labels = labels_of_cases(content.get(section) or [])
        if not any(labels) or (all(labels) and not apart):
            raise ValueError(
                f"{listed}: the {section} section has {sum(labels)} positive and {len(labels) - sum(labels)} negative "
                "labels; it needs both: `python -m common prepare` splits by label"
            )


def _check_several_labels(listed: Path, cases: Sequence[Case], root: Path) -> None:
    several = [case["case"] for case in cases if isinstance(case.get("cls"), list) and not labels_slices(case)]
    if several and not takes_several_labels(root):
        others = ", ".join(bundles_that(takes_several_labels))
        raise ValueError(
            f"{listed}: cases may have several labels at once (as {several[0]!r}), and {root.name} gives each slice "
            f"one class; these take them: {others}. Or make a table of each label, yes or no"
        )


def doubt_about_patients(cases: Sequence[Case]) -> str:
    """Why labels of slices may teach who is ill in place of where: many patients have none that is no; empty if few.

    Where each patient has one label, a yes or a no of all of him is what is meant.

    Args:
        cases: of the training section.
    """
    signs = signs_of_patients([case for case in cases if labels_slices(case)]).values()
    ill, both = (sum(found == kind for found in signs) for kind in ({True}, {True, False}))
    if not both or ill < both / 2:
        return ""
    return (
        f"{ill} of {len(signs)} training patients have no slice that is labeled no: what tells them from the others, a "
        "scanner say, may be learned in place of the lesion. Halves of the organ may be free of it where slices are "
        "not: `python -m common prepare … --halves`, or `half_lungs`, or label parts"
    )


def check_findings(root: Path, classes: Any, recipe: Recipe, over: Sequence[str] = ()) -> None:
    """Refuse, before anything is written, several findings for a bundle whose network has one logit.

    Args:
        root: of the bundle.
        classes: names, the negative one first.
        recipe: whose training it is.
        over: configs laid over it.

    Raises:
        ValueError: see `common.engines.launch.check_one_logit`.
    """
    check_one_logit((merged(root, (*recipe.train, *over)).get("network_def") or {}).get("num_classes"), classes)


def check_classes(listed: Path, cases: Sequence[Case], dataset_dir: str, root: Path) -> None:
    """Refuse classes without negatives where the bundle cannot tell them from one another slice by slice.

    Of every case that has one label the header is read, of its first image.

    Raises:
        ValueError: naming the bundle that can, or the case that has one label for several slices.
    """
    if not takes_classes_alone(root):
        raise ValueError(
            f"{listed}: no label says that nothing is there, and {root.name} learns and chooses thresholds from "
            f"negatives. These tell classes from one another: {', '.join(bundles_that(takes_classes_alone))} "
            "(docs/labels.md)"
        )
    for case in cases:
        depth = 1 if labels_slices(case) else read_case_grid(case, Path(dataset_dir))[0][-1]
        if depth > 1:
            raise ValueError(
                f"{listed}: case {case['case']!r} has one label for {depth} slices, and no label says that "
                "nothing is there: classes without negatives are told from one another by labels of slices"
            )


def check_images(listed: Path, section: str, dataset_dir: str, *, channels: int, dicom_geometry: Any = None) -> None:
    """Refuse, before hours of training, images that only the scores at its end would find unreadable.

    Every voxel is read, and the organ's mask; masks of findings are not opened.

    Args:
        listed: the datalist.
        section: which no training reads.
        dataset_dir: what its paths are relative to.
        channels, dicom_geometry: see `common.preprocessing.LoadCased`.

    Raises:
        ValueError: naming the cases, and what is wrong with the first three.
    """
    load, broken = LoadCased(channels=channels, dicom_geometry=dicom_geometry), []
    cases = load_datalist(listed, section, dataset_dir=dataset_dir)
    for case in tqdm(cases, desc=f"reading the {section} section", unit="case", leave=False, disable=None):
        try:
            load({key: case[key] for key in ("image", "organ") if key in case})
        except (OSError, ValueError) as error:
            broken.append(f"{case['case']}: {error}")
    refuse_broken(broken, f"{listed}: {len(broken)} of {len(cases)} cases of the {section} section")


def labels_of_cases(cases: Sequence[Case]) -> list[bool]:
    """Whether each slice, or each volume with one label, is positive."""
    labels = [label_of(case) for case in cases]
    sliced = map(labels_slices, cases)
    return [bool(one) for cls, of_slices in zip(labels, sliced, strict=True) for one in (cls if of_slices else [cls])]


def data_digests(listed: PathLike, dataset_dir: PathLike) -> dict[str, str]:
    """SHA-256 of a datalist, of the images and organ masks that it names, and of its masks of findings, by key.

    Of images and masks, sizes and some bytes of each file count: a folder that was moved or copied has the same.

    Args:
        listed: the datalist.
        dataset_dir: what its paths are relative to.

    Raises:
        FileNotFoundError, ValueError: see `load_datalist`.
    """
    sections = [section for section in SECTIONS if read_json(listed).get(section)]
    cases = [case for section in sections for case in load_datalist(listed, section, dataset_dir=dataset_dir)]
    found = {DATALIST: file_digest(listed)}
    for name, keys in ((IMAGES, ("image", "organ")), (MASKS, ("label",))):
        glances = [glance(file) for case in cases for file in case_files(case, keys)]
        found[name] = hashlib.sha256(b"".join(glances)).hexdigest()
    return found
