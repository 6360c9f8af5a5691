from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import NibabelReader
from monai.transforms import (
    Compose,
    ConcatItemsd,
    CropForegroundd,
    EnsureChannelFirstd,
    Lambdad,
    NormalizeIntensityd,
    Orientationd,
    RandFlipd,
    Resized,
    ResizeWithPadOrCropd,
    ScaleIntensityRanged,
    Spacingd,
    apply_transform,
)
from monai.utils import InterpolateMode

from common.features.fingerprint import describe
from common.images import write_nifti
from common.preprocessing import LoadCased, NormalizeByOrgand, OrganMaskd
from tests.running import run_code


def preprocessing(pixdim=(1.5, 1.5, -1.0), a_max=400.0, organ="lung", mode="bilinear", upper=4.0, dtype=torch.float32):
    return Compose(
        [
            Compose([LoadCased(channels=1)]),
            Orientationd(keys="image", axcodes="LPS", labels=None),
            Spacingd(keys="image", pixdim=pixdim, mode=mode, dtype=dtype),
            OrganMaskd(keys="image", organ=organ, options={}),
            NormalizeByOrgand(keys="image", upper=upper),
            ScaleIntensityRanged(keys="image", a_min=-1000.0, a_max=a_max, b_min=0.0, b_max=1.0, clip=True),
            ConcatItemsd(keys=["image", "organ"], name="image"),
        ]
    )


@pytest.mark.parametrize(
    "options",
    [
        {"pixdim": (1.5, 1.5, 1.0)},
        {"a_max": 401.0},
        {"organ": "none"},
        {"mode": "nearest"},
        {"upper": 5.0},
        {"dtype": torch.float64},
    ],
)
def test_each_option_changes_the_text_and_nothing_else_does(options):
    assert describe(preprocessing()) == describe(preprocessing())
    assert describe(preprocessing(**options)) != describe(preprocessing())


def test_the_order_and_number_of_transforms_count():
    first, second = LoadCased(channels=1), NormalizeByOrgand(keys="image")
    texts = [describe(Compose(list(parts))) for parts in ((first, second), (second, first), (first,), (second,), ())]
    assert len(set(texts)) == 5


def test_it_is_the_same_in_another_process():
    code = "from tests.features.test_fingerprint import describe, preprocessing; print(describe(preprocessing()))"
    assert run_code(code).strip() == describe(preprocessing())


def test_use_does_not_change_it(tmp_path):
    values = np.random.default_rng(0).random((20, 18, 6))
    write_nifti(tmp_path / "image.nii.gz", values, np.diag([2.0, 2.0, 3.0, 1.0]))
    more = [
        CropForegroundd(keys="image", source_key="image", allow_smaller=True),
        Resized(keys="image", spatial_size=(16, 16, 8)),
        ResizeWithPadOrCropd(keys="image", spatial_size=(20, 12, 8)),
        NormalizeIntensityd(keys="image", channel_wise=True),
    ]
    transform = Compose([preprocessing(organ="none"), *more])
    before = describe(transform)
    apply_transform(transform, {"image": str(tmp_path / "image.nii.gz")})
    assert describe(transform) == before


def test_versions_and_own_sources_count(monkeypatch, tmp_path):
    before = describe(preprocessing())
    monkeypatch.setattr("monai.__version__", "0.0.1")
    assert describe(preprocessing()) != before
    monkeypatch.undo()
    package = tmp_path / "homemade"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "numbers.py").write_text("def twice(x):\n    return 2 * x\n")
    (package / "apart.py").write_text("pass\n")
    (package / "steps.py").write_text(
        "from .numbers import twice\n\n\nclass Step:\n    def __call__(self, x):\n        return twice(x)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from homemade.steps import Step  # type: ignore[import-not-found]

    before = describe(Step())
    (package / "apart.py").write_text("pass  # nobody imports this\n")
    assert describe(Step()) == before
    (package / "numbers.py").write_text("def twice(x):\n    return 2 * x + 1\n")
    assert describe(Step()) != before


def test_what_functions_import_counts_wherever_it_is_passed_on_and_whether_it_is_loaded_or_not(monkeypatch, tmp_path):
    package = tmp_path / "homespun"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "inner" / "__init__.py").write_text("from .apart import *\nfrom .numbers import twice as double\n")
    (package / "inner" / "numbers.py").write_text(
        "from ..limits import LIMIT\n\n\ndef twice(x):\n    return LIMIT * x\n"
    )
    (package / "inner" / "apart.py").write_text("pass\n")
    (package / "limits.py").write_text("LIMIT = 2\n")
    (package / "whole.py").write_text("pass\n")
    (package / "steps.py").write_text(
        "class Step:\n"
        "    def __call__(self, x):\n"
        "        import homespun.whole\n"
        "        from .inner import double\n"
        "        return double(x)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from homespun.steps import Step  # type: ignore[import-not-found]

    before = describe(Step())
    assert Step()(2) == 4
    assert describe(Step()) == before
    (package / "inner" / "apart.py").write_text("pass  # passed on by the same package, and not imported\n")
    assert describe(Step()) == before
    texts = {before}
    for name in ("inner/numbers.py", "limits.py", "whole.py"):
        (package / name).write_text((package / name).read_text() + "# changed\n")
        texts.add(describe(Step()))
    assert len(texts) == 4


@pytest.mark.parametrize(
    ("name", "counts"),
    [("dicom.py", True), ("dicom_frames.py", True), ("dicom_seg.py", True), ("dicom_output.py", False)],
)
def test_code_that_reads_dicom_counts_and_code_that_writes_it_does_not(monkeypatch, name, counts):
    before, read = describe(LoadCased(channels=1)), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"# mended" * (path.name == name))
    assert (describe(LoadCased(channels=1)) != before) == counts


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (1, 1.0),
        ("1", 1),
        (None, "None"),
        (True, 1),
        ((1, 2), (1, (2,))),
        ([], [[]]),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        (np.float32, np.float64),
        (np.zeros(2), np.zeros(3)),
        (np.array([1.0, np.nan]), np.array([2.0, np.nan])),
        (torch.ones(2), torch.ones(2, dtype=torch.int32)),
        (Path("a"), Path("b")),
        (json.dumps, json.loads),
        (functools.partial(int, base=2), functools.partial(int, base=3)),
        (NibabelReader(), NibabelReader(as_closest_canonical=True)),
    ],
)
def test_different_values_have_different_texts(value, other):
    assert describe(value) != describe(other)
    assert describe(value) == describe(value)


def test_an_enum_is_told_by_its_name_though_it_is_a_text():
    assert describe(InterpolateMode.AREA) == "InterpolateMode.AREA"


def test_sets_have_one_text_whatever_their_order():
    first, second = set([0, 8]), set([8, 0])  # noqa: C405 (in that order)
    assert list(first) != list(second)
    assert describe(first) == describe(second) != describe({0})


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (Lambdad(keys="image", func=lambda x: x), r"preprocessing\..* is .*<lambda>, which has no name"),
        (Compose([RandFlipd(keys="image")]), r"preprocessing\.transforms\.0\..* is random"),
        (Compose([EnsureChannelFirstd(keys="image"), iter([])]), r"transforms\.1 is a list_iterator, whose settings"),
    ],
)
def test_what_cannot_be_told_is_refused_with_its_place(transform, message):
    with pytest.raises(ValueError, match=message):
        describe(transform)
