from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.commands.prepare import prepare
from common.data import SECTIONS, load_datalist
from tests.pipeline import save


def mosmed_like(root: Path, count: int = 24) -> Path:
    """Half of the studies positive, every third of these with a mask."""
    for number in range(count):
        category = f"CT-{number % 2}"
        save(root / "studies" / category / f"study_{number:04d}.nii.gz", np.ones((2, 2, 2), np.uint8))
        if number % 6 == 1:
            save(root / "masks" / f"study_{number:04d}_mask.nii.gz", np.ones((2, 2, 2), np.uint8))
    return root


def contents(path: Path) -> dict:
    return json.loads((path / "datalist.json").read_text())


class TestPrepare:
    def test_writes_a_datalist_that_loads(self, tmp_path):
        prepare("mosmed", str(mosmed_like(tmp_path)))
        datalist = contents(tmp_path)
        assert (datalist["classes"], datalist["modalities"]) == (["none", "covid"], ["ct"])
        found = [load_datalist(tmp_path / "datalist.json", section, dataset_dir=tmp_path) for section in SECTIONS]
        assert [len(cases) for cases in found] == [14, 4, 6]

    def test_puts_cases_of_a_fixed_section_there_and_moves_no_other(self, tmp_path):
        mosmed_like(tmp_path)
        prepare("mosmed", str(tmp_path))
        drawn = contents(tmp_path)
        prepare("mosmed", str(tmp_path), masked_section="validation")
        fixed = contents(tmp_path)
        for section in SECTIONS:
            unmasked = {c["case"] for c in drawn[section] if "label" not in c}
            assert {c["case"] for c in fixed[section] if "label" not in c} == unmasked
        assert [sum("label" in c for c in fixed[section]) for section in SECTIONS] == [0, 4, 0]
        assert not any("section" in c for section in SECTIONS for c in fixed[section])

    def test_passes_options_and_names_through(self, tmp_path, capsys):
        for number in range(6):
            for name in ("t1", "flair"):
                save(tmp_path / "in" / f"P{number}" / f"{name}.nii.gz", np.ones((3, 3, 12), np.uint8))
            mask = np.zeros((3, 3, 12), np.uint8)
            mask[1, 1, :4] = 1
            save(tmp_path / "in" / f"P{number}" / "lesion.nii.gz", mask)
        prepare(
            "substacks",
            str(tmp_path / "in"),
            dataset_dir=str(tmp_path / "out"),
            classes="none,lesion",
            modalities="t1,flair",
            label="lesion",
            max_slices=4,
        )
        datalist = contents(tmp_path / "out")
        assert (datalist["classes"], datalist["modalities"]) == (["none", "lesion"], ["t1", "flair"])
        cases = [c for section in SECTIONS for c in datalist[section]]
        assert sorted(c["cls"] for c in cases) == [0] * 12 + [1] * 6
        assert all(not Path(p).is_absolute() for c in cases for p in (*c["image"], c["label"]))
        sections = [{c["patient"] for c in datalist[section]} for section in SECTIONS]
        assert sum(map(len, sections)) == len(set.union(*sections)) == 6
        assert "training" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("adapter", "options", "message"),
        [
            ("mosmd", {}, "unknown adapter 'mosmd'; use one of folder"),
            ("mosmed", {"label": "x"}, "mosmed has no option label; it has severity, registry, masked_section"),
            ("mosmed", {}, r"no file studies/CT-"),
            ("kaggle_3m", {}, "say where with --dataset_dir"),
        ],
    )
    def test_ends_with_one_line_that_says_what_to_do(self, tmp_path, adapter, options, message):
        with pytest.raises(SystemExit, match=message):
            prepare(adapter, str(tmp_path), **options)
        assert list(tmp_path.iterdir()) == []
