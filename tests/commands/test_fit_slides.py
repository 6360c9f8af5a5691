from __future__ import annotations

import pytest

from common.commands.fit import fit
from common.commands.prepare import prepare
from tests.bundles.insight_ct.slides.helpers import slide_case


def test_a_test_slide_that_cannot_be_scored_is_named_before_anything_is_trained(tmp_path):
    rows = ["image,label,patient,split"]
    for number, section in enumerate(["training"] * 2 + ["validation"] * 2 + ["test"] * 9):
        tissue = [] if number == 10 else [(350, 400 + 40 * number, 2100, 1950)]  # not among those looked at first
        slide_case(tmp_path, f"s{number}", cls=number % 2, side=500, levels=2, tissue=tissue, lesions=())
        rows.append(f"s{number}.tif,{number % 2},p{number},{section}")
    (tmp_path / "slides.csv").write_text("\n".join(rows))
    prepare("table", str(tmp_path / "slides.csv"), classes="none,lesion")
    with pytest.raises(ValueError, match=r"1 of 9 slides of the test section cannot be .*: s10: .*s10.tif: no tissue"):
        fit("insight_ct", str(tmp_path), str(tmp_path / "out"), mpp=2.5)
    assert not (tmp_path / "out" / "training").exists()
