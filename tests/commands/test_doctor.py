from __future__ import annotations

from importlib import metadata

import pytest

from common.commands import doctor as module
from common.commands.doctor import (
    LEAST_GB,
    Finding,
    bundle_findings,
    disk_finding,
    doctor,
    extra_findings,
    requirement_findings,
    table,
)
from common.report.viewer import COMMAND, viewer_path

REQUIRED = [
    "torch>=2.4",
    "monai<1.7,>=1.5.2",
    'openslide-python>=1.4; extra == "wsi"',
    'imagecodecs>=2023.7; extra == "wsi"',
    'finufft>=2.2; extra == "radon"',
    'lungmask>=0.2; python_version < "3" and extra == "lung"',
    'pytest>=8; extra == "dev"',
]


def test_what_is_missing_or_too_new_or_too_old_has_a_command_and_what_fits_none():
    found = list(requirement_findings([*REQUIRED[:2], "numpy>=1.26"], {"torch": "2.13.0+cpu", "monai": "1.7.0"}))
    assert found == [
        Finding("torch", "2.13.0+cpu"),
        Finding("monai", "1.7.0, needs <1.7,>=1.5.2", f'{module.PIP} "monai<1.7,>=1.5.2"'),
        Finding("numpy", "missing", f'{module.PIP} "numpy>=1.26"'),
    ]


def test_an_extra_is_there_if_all_of_it_is_and_no_extra_counts_as_needed():
    installed = {"openslide-python": "1.4.1", "imagecodecs": None, "finufft": "2.3"}
    found = {finding.what.split()[0]: finding for finding in extra_findings(REQUIRED, installed)}
    assert found.keys() == {"[wsi]", "[radon]"}  # developers know theirs, and the other is not for this Python
    assert (found["[radon]"].state, found["[radon]"].mend) == ("there", "")
    assert found["[wsi]"].state == "without imagecodecs"
    assert found["[wsi]"].mend.endswith('--editable ".[wsi]"')
    assert [finding.what for finding in requirement_findings(REQUIRED, installed)] == ["torch", "monai"]


def test_every_extra_says_what_it_is_for_here_and_in_the_quick_start():
    extras = set(metadata.metadata(module.NAME).get_all("Provides-Extra"))
    assert extras - {"dev"} == module.EXTRAS.keys()
    page = (module.REPOSITORY / "docs" / "quickstart.md").read_text(encoding="utf-8")
    assert [extra for extra in module.EXTRAS if f"`{extra}`" not in page] == []


def test_the_viewer_is_found_where_it_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("WEAKSEG_CACHE", str(tmp_path))
    assert viewer_path().name == module.VIEWER
    viewer_path().with_name("niivue-0.1.0.umd.js").touch()  # of another version
    assert module._viewer().mend == COMMAND
    viewer_path().touch()
    assert module._viewer().mend == ""


def test_a_bundle_without_weights_is_to_be_trained():
    assert bundle_findings("own", None, "").mend == "python -m common fit own DIR OUT"
    ready = bundle_findings("own", 3.0, "LGG")
    assert "3.0 MB from LGG" in ready.state
    assert ready.mend == ""


def test_a_full_disk_is_told():
    assert disk_finding("/", LEAST_GB + 1).mend == ""
    assert disk_finding("/", LEAST_GB - 1).mend


def test_each_gap_is_marked_and_followed_by_its_command():
    shown = table({"A": [Finding("one", "1.0"), Finding("longer", "missing", "get it")], "B": [Finding("two", "2")]})
    assert shown.splitlines() == ["A", "  one     1.0", "! longer  missing", "          -> get it", "B", "  two  2"]


def test_it_ends_with_an_error_where_something_is_missing_that_every_bundle_needs(monkeypatch, capsys):
    monkeypatch.setattr(module, "_installed", lambda required: dict.fromkeys(map(str.lower, ["torch"]), "2.13.0"))
    with pytest.raises(SystemExit, match="needed by every bundle"):
        doctor()
    shown = capsys.readouterr().out
    assert "! monai" in shown
    for bundle in ("ensemble_gradcam_brats", "gp_unet_brats", "insight_ct", "tonno_mosmed"):
        assert bundle in shown
