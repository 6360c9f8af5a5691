from __future__ import annotations

from inspect import signature

import numpy as np
import pytest

import common.datasets
from common.datasets import ADAPTERS, read_cases
from tests.pipeline import save


def test_names_every_public_function():
    read = {getattr(row.read, "func", row.read) for row in ADAPTERS.values()}
    public = [getattr(common.datasets, name) for name in common.datasets.__all__]
    functions = {f for f in public if callable(f) and next(iter(signature(f).parameters), "") in ("root", "path")}
    assert read == functions


def test_defaults_are_the_adapters_own(tmp_path):
    save(tmp_path / "a" / "flair.nii.gz", np.ones((5, 6, 4), np.uint8))
    cases, classes, modalities = read_cases("folder", tmp_path)
    assert (len(cases), classes, modalities) == (1, ("none", "tumor"), ("flair",))


def test_fixed_options_cannot_be_given_twice():
    assert "severity" in ADAPTERS["mosmed"].options
    assert "severity" not in ADAPTERS["mosmed_severity"].options


@pytest.mark.parametrize(
    ("adapter", "options", "message"),
    [
        ("brats", {}, "unknown adapter 'brats'; use one of table, folder, brats2020, kag"),
        ("brats2020", {"whole": True}, "brats2020 has no option whole; it has modalities, binary"),
        ("folder", {"mask": "a", "sort": 1}, "folder has no option mask, sort; it has modalities, label, org"),
        ("substacks", {}, "substacks writes files of its own: say where with --dataset_dir"),
    ],
)
def test_says_what_there_is_instead(tmp_path, adapter, options, message):
    with pytest.raises(ValueError, match=message):
        read_cases(adapter, tmp_path, **options)
