from __future__ import annotations

import shutil

import pytest

import common.report
from common.commands.arguments import checked
from common.commands.export import bundle_files
from common.commands.report import report
from common.commands.run import BUNDLES
from tests.report.conftest import CASES, write_run


def test_a_page_is_made_from_what_a_run_has_left(tmp_path, capsys):
    folder = write_run(tmp_path / "eval", tmp_path / "data", record=False)
    patterns = {"image_pattern": "*/image.nii.gz", "label_pattern": "*/truth.nii.gz"}
    checked(report)(str(folder), dataset_dir=str(tmp_path / "data"), max_embedded=1, **patterns)
    said = capsys.readouterr().out
    assert said.startswith(f"{folder / 'report.html'} (")
    text = (folder / "report.html").read_text()
    assert all(f'"case":"{case}"' in text for case in CASES)
    assert text.count('"volumes":{"image"') == 1
    shutil.rmtree(tmp_path / "data")  # the page needs nothing beside it
    assert "H4sI" in text  # gzip, in base64


def test_without_a_folder_the_command_says_what_it_needs():
    with pytest.raises(ValueError, match="common report RUN_DIR"):
        report()


def test_the_viewer_can_be_had_alone(monkeypatch, capsys):
    monkeypatch.setattr(common.report, "get_viewer", lambda: "here")
    checked(report)(get_viewer="true")
    assert capsys.readouterr().out == "here\n"


def test_the_parts_of_a_page_travel_with_an_exported_bundle():
    inside = bundle_files(BUNDLES / "gp_unet_brats")
    assert {f"scripts/common/report/page/{name}" for name in ("page.html", "style.css", "main.js")} <= inside.keys()
    assert not [file for file in inside if file.startswith("scripts/common/commands")]
