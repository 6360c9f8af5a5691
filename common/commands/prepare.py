"""A datalist from a data set: `python -m common prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data import SECTIONS, Case, labels_in_words, make_datalist, write_datalist
from ..datasets import read_cases
from ..datasets.adjust import at_most as fewer
from ..datasets.adjust import of_one_patient, with_masks_of, with_sections_of
from ..datasets.copies import with_copies_together
from ..datasets.kinds import with_kinds
from ..datasets.parts import single_slices
from ..datasets.registry import ADAPTERS
from ..datasets.sides import halves as halves_of
from ..datasets.sides import whole_in_test
from ..datasets.template import write_template
from ..files import read_json
from .arguments import as_annotated
from .run import names


def prepare(
    adapter: str,
    root: str = "",
    *,
    dataset_dir: str | None = None,
    datalist: str | None = None,
    classes: str | tuple[str, ...] | None = None,
    fractions: tuple[float, float, float] = (0.6, 0.15, 0.25),
    seed: int = 0,
    for_scoring: bool = False,
    stratify: bool | None = None,
    split: str = "patients",
    same_patient: str | tuple[str, ...] = (),
    kinds: str | None = None,
    kind: str = "kind",
    at_most: dict[str, int] | None = None,
    masks_of: str | None = None,
    halves: str | None = None,
    template: str | bool = False,
    **options: Any,
) -> None:
    """Read a data set, derive yes/no labels, split by patient and write the datalist.

    Args:
        adapter: `table` (images and labels of a `.csv`, `.tsv` or `.xlsx` file), `folder`
            (`<case>/<modality>.nii.gz`, `<case>/mask.nii.gz`), `brats2020`, `kaggle_3m`, `decathlon_brain`,
            `decathlon_prostate`, `mosmed`, `mosmed_severity`, `autopet`, `duke`, `cheng`, `substacks`,
            `half_lungs`, `camelyon16` or `bracs`: functions of `common.datasets`, which document layouts and options.
        root: the data set as published, or the table.
        dataset_dir: of paths, and of files that adapters write (these need it); by default the folder of the data.
        datalist: the file to write; by default `<dataset_dir>/datalist.json`.
        classes: names, class 0 first; by default the adapter's or the table's.
        fractions: of patients in training, validation, test.
        seed: of the split.
        for_scoring: no training on these cases: they need no negatives.
        stratify: split patients of each class apart, and refuse a section without positives or negatives; by default
            only with tables and kinds.
        split: a datalist whose sections patients keep; or `paper`: slices (cut into `slices`) are drawn, not patients;
            scores are of memory, too.
        same_patient: patients who are one, e.g. `P7,P9`; the first name stays.
        kinds: table (columns `case`, `kind`) of what a finding is.
        kind: the column of that table.
        at_most: cases of a class in training, e.g. `"{'pituitary': 60}"`.
        masks_of: `output_dir` of a run: its masks for training and validation.
        halves: `brain` or `lung`: its left and right halves learn, by a column `side` or by masks.
        template: write an empty table (`prepare table --template labels.csv`), no more.
        options: of the adapter, e.g. `--modalities flair,t1ce`, `--label lesion`, `--min_slices 8`,
            `--positive_from 3`.

    Example:
        `python -m common prepare table labels.csv --stratify true`
    """
    if template:
        _template(adapter, root if template is True else str(template))
        return
    if not root:
        raise SystemExit(f"say where the data are: python -m common prepare {adapter} PATH")
    if "modalities" in options:
        options["modalities"] = names(options["modalities"])
    named = names(classes) if classes else None
    of_table = adapter == "table"
    if named and of_table and not kinds:
        options["classes"] = named
    try:
        _check(at_most=at_most, split=split, halves=halves, seed=seed)
        home = Path(dataset_dir or (root if Path(root).is_dir() else Path(root).parent)).absolute()
        path = Path(datalist) if datalist else home / "datalist.json"
        _refuse_other(path)
        options = _as_adapter_asks(adapter, options)
        whole, found_classes, modalities = read_cases(adapter, root, dataset_dir, **options)
        if kinds:  # first, as its table may say whose cases are
            whole, found_classes = with_kinds(whole, kinds, column=kind, classes=named, root=root)
        if kinds or not of_table:  # which has looked
            whole = with_copies_together(whole)
        if same_patient:
            whole = of_one_patient(whole, names(same_patient))
        if masks_of:
            whole = with_masks_of(whole, masks_of)
        if halves:
            told = _without("label", whole) if of_table else whole  # a table's masks score, and say nothing else
            cases = halves_of(told, _home_of_halves(path, home), organ=halves)
        else:
            cases = _whole(whole, root, for_scoring=for_scoring)
        if split == "paper":
            cases = single_slices(cases, home / "slices", modalities=modalities)
        elif split != "patients":
            _refuse_drawn(split)
            cases = with_sections_of(cases, split)
        content = make_datalist(
            _whatever_patient(cases) if split == "paper" else cases,
            name=home.name,
            classes=named if named and not (kinds or of_table) else found_classes,
            modalities=modalities,
            dataset_dir=home,
            fractions=fractions,
            seed=seed,
            for_scoring=for_scoring,
            stratify=bool(of_table or kinds) if stratify is None else stratify,
        )
        if halves:
            content = whole_in_test(content, whole, home)
        if masks_of:  # what a network marked is no truth to score another one by
            content |= {"test": _without("label", content["test"]), "masks_of": Path(masks_of).name}
        if at_most:
            content["training"] = fewer(content["training"], at_most, content["classes"], seed=seed)
        if split == "paper":
            print("split 'paper': slices of one patient lie in several sections, so scores are of memory, too")
            content = _of_true_patients(content, cases)
        content |= {key: options[key] for key in ("masked_section",) if options.get(key)}  # `crossvalidate` keeps it
        write_datalist(path, content)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error
    for section in SECTIONS:
        print(f"{section}: {labels_in_words(content[section], content['classes'])}")
    print(f"{path}: " + ", ".join(f"{len(content[s])} {s}" for s in SECTIONS))


def _check(*, at_most: Any, split: str, halves: str | None, seed: int) -> None:
    """Refuse options that contradict each other or make no sense, before any file is read."""
    if at_most and not isinstance(at_most, dict):
        raise ValueError(f"--at_most is a number a class, e.g. \"{{'tumor': 60}}\"; got {at_most!r}")
    if split not in ("patients", "paper") and not Path(split).is_file():
        raise ValueError(f"--split is 'patients', 'paper' or a datalist whose sections are kept; no file {split!r}")
    if halves and split == "paper":
        raise ValueError("--split paper cuts scans into slices, --halves into halves: choose one of them")
    if seed < 0:
        raise ValueError(f"--seed: expected 0 or more, got {seed}")


def _as_adapter_asks(adapter: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options of the types that the adapter has; unknown ones, which it refuses, as they are."""
    asked = ADAPTERS[adapter].options if adapter in ADAPTERS else {}
    return {name: as_annotated(value, asked[name]) if name in asked else value for name, value in options.items()}


def _without(key: str, cases: list[Case]) -> list[Case]:
    return [{name: value for name, value in case.items() if name != key} for case in cases]


def _home_of_halves(datalist: Path, home: Path) -> Path:
    """A folder for each datalist, so that its halves stay as they are when another one is written."""
    return home / ("halves" if datalist.stem == "datalist" else f"halves_{datalist.stem}")


def _whole(cases: list[Case], root: str, *, for_scoring: bool) -> list[Case]:
    """Cases that stay whole, of which a side says nothing."""
    if for_scoring:
        return _without("finding_side", cases)
    if any("finding_side" in case for case in cases):
        raise ValueError(
            f"{root}: the column 'side' says which half of an organ is ill: --halves brain, or --halves lung "
            "(--for_scoring true lists the whole scans); if it says something else, rename it"
        )
    return cases


def _whatever_patient(cases: list[Case]) -> list[Case]:
    """Cases to draw as GP's authors do: each a patient of its own, so that a patient's come to lie in all sections."""
    return [case | {"patient": case["case"]} for case in cases]


def _of_true_patients(content: dict[str, Any], cases: list[Case]) -> dict[str, Any]:
    """A datalist so drawn, whose cases are of their patients again: intervals, counts and folds go by these.

    The mark `split` allows a patient in several sections; that of each case reaches the scores, which say so.
    """
    patients = {case["case"]: case["patient"] for case in cases}
    parts = {s: [c | {"patient": patients[c["case"]], "split": "paper"} for c in content[s]] for s in SECTIONS}
    return content | parts | {"split": "paper"}


def _refuse_drawn(datalist: str) -> None:
    """Refuse the sections of a datalist in which a patient is in several."""
    content = read_json(datalist)
    if isinstance(content, dict) and content.get("split") == "paper":
        raise ValueError(
            f"{datalist}: drawn by --split paper, so its patients are in several sections and cannot be kept in one; "
            "name a datalist that is split by patient, or draw slices again by --split paper and the same --seed"
        )


def _refuse_other(path: Path) -> None:
    """A file of another kind, the table of labels say, is not written over."""
    if path.is_file() and path.suffix.lower() != ".json":
        raise ValueError(f"--datalist {path}: there is such a file, and it is no datalist; name one that ends in .json")


def _template(adapter: str, path: str) -> None:
    if adapter != "table" or not path:
        raise SystemExit("a template is of a table: python -m common prepare table --template labels.csv")
    try:
        write_template(path)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error
    print(f"{path}: fill in a row a case, then: python -m common prepare table {path}")
