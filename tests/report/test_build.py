from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import common.report.build
import common.report.page
from common.metrics import dice
from common.report import build_report, find_files, write_report
from common.report.build import PICTURES, provenance, without_paths
from common.report.pictures import size
from common.report.tables import read_run
from tests.pipeline import save
from tests.report.conftest import CASES, volumes, write_run


@pytest.fixture(scope="module")
def report(run_dir) -> dict:
    return build_report(run_dir, max_embedded=2)


def rows(report: dict) -> dict[str, dict]:
    return {row["case"]: row for row in report["cases"]}


def test_a_report_is_json(report):
    assert json.loads(json.dumps(report))["kind"] == "run"


def test_the_first_cases_carry_volumes_and_the_others_their_picture(report):
    assert report["cases"][0]["case"] == "p4"  # marked, though nothing is there: Dice 0
    assert ["volumes" in row for row in report["cases"]] == [True, True, False, False]
    assert all(row["picture"] and row["thumbnail"] for row in report["cases"])


def test_figures_of_a_case_are_those_of_its_files(report):
    for number, case in enumerate(CASES):
        found, row = volumes(number), rows(report)[case]
        assert row["components"] == 1
        assert row["truth_ml"] == pytest.approx(found["truth"].sum() * 0.006, abs=1e-3)
        assert row["dice"] == pytest.approx(dice(found["mask"], found["truth"]), abs=5e-5)


def test_at_the_runs_threshold_the_slider_shows_the_raw_dice_of_the_scores(report):
    for row in report["cases"][:2]:
        assert report["stops"][report["stop"]] == row["threshold"] == 0.4
        assert row["table"]["dice"][report["stop"]] == pytest.approx(row["rivals"]["dice_raw"], abs=1e-4)


def test_where_nothing_stands_out_the_slider_begins_at_its_end():
    assert [common.report.build._nearest(np.arange(3.0), threshold) for threshold in (0.9, np.inf, None)] == [1, 2, 1]


def test_dice_over_thresholds_is_of_all_cases_with_a_mask(report):
    assert report["curves"]["thresholds"]["cases"] == 4
    assert len(report["curves"]["volumes"]["x"]) == 4


def test_no_folder_is_named(run_dir, report, tmp_path):
    text = json.dumps(report)
    assert str(run_dir.parent) not in text
    assert "/data/scans" not in text
    assert rows(report)["p2"]["warnings"] == "image.nii.gz is odd"


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("p1 failed: /my scans/p1/scan.nii.gz", "p1 failed: scan.nii.gz"),
        ("/data/a/b.nii.gz: no file (in /data/c.nii)", "b.nii.gz: no file (in c.nii)"),
        (r"C:\scans\p1\flair.nii.gz is cut off", "flair.nii.gz is cut off"),
        ("yes/no labels, 3/4 cases, probability 0.1/0.9, m/s", "yes/no labels, 3/4 cases, probability 0.1/0.9, m/s"),
    ],
)
def test_paths_lose_their_folders_and_other_texts_stay(text, without):
    assert without_paths({"a": [text]}, ["/my scans/p1"]) == {"a": [without]}


def test_a_mask_that_the_run_did_not_score_is_not_opened(tmp_path):
    folder = write_run(tmp_path / "eval", tmp_path / "data", scored=False)
    for case in CASES:
        (tmp_path / "data" / case / "truth.nii.gz").write_bytes(b"not to be read")
    report = build_report(folder)
    assert all("truth_ml" not in row and "truth" not in row["volumes"] for row in report["cases"])
    assert report["headline"]["measure"] == "cases with a mask"
    assert [row["case"] for row in report["cases"]] == list(CASES)  # the most suspicious first


def test_what_figures_stand_on_is_told_and_what_is_not_recorded_says_so(run_dir):
    run = read_run(run_dir)
    record = {"bundle": "b", "version": "1", "began": "noon", "seconds": 3.0, "device": "cpu", "config_sha256": "c0"}
    record |= {"weights": {"file": "m.pt", "sha256": "e0", "chosen_from": {"labels": "slices"}}}
    record |= {"data": {"datalist": "d.json", "datalist_sha256": "d0", "names_and_sizes_sha256": "f0"}}
    record |= {"chosen": {"gate": 0.123456, "refine": None}, "settings": {"k": [1.5, 2]}, "versions": {"torch": "2"}}
    assert [text for _, text in provenance(replace(run, record=record))[:-1]] == [
        *("b 1", "noon, 3.0 s on cpu", "c0", "m.pt e0", "d.json d0", "f0", "gate 0.1235", "labels of slices"),
        *("k [1.5, 2]", "torch 2"),
    ]
    told = dict(provenance(replace(run, record={"seconds": 3.0})))
    assert [name for name, text in told.items() if text == "not recorded"] == [
        *("bundle", "config (SHA-256)", "weights (SHA-256)", "data: names and sizes (SHA-256)", "gate, threshold, …"),
        *("chosen from", "versions"),
    ]
    assert (told["datalist (SHA-256)"], told["settings of the command"]) == ("none", "none")
    assert [name for name, _ in provenance(replace(run, record={}))] == ["record", "report made"]


def test_a_run_without_a_record_is_told_where_its_scans_are(tmp_path):
    folder = write_run(tmp_path / "eval", tmp_path / "data", record=False)
    assert all("volumes" not in row for row in build_report(folder)["cases"])
    files = find_files(tmp_path / "data", image_pattern="*/image.nii.gz", label_pattern="*/truth.nii.gz")
    assert all(
        row["volumes"].keys() >= {"image", "heat", "mask", "truth"}
        for row in build_report(folder, files=files)["cases"]
    )
    with pytest.raises(ValueError, match="--image_pattern, or --datalist"):
        find_files(tmp_path / "data")


def test_volumes_that_take_too_much_room_are_left_to_the_pictures(run_dir):
    assert all("volumes" not in row for row in build_report(run_dir, max_mb=0.001)["cases"])


def test_another_scan_than_the_runs_is_refused(run_dir, tmp_path):
    other = {case: {"image": save(tmp_path / "image.nii.gz", np.ones((9, 9, 9), np.uint8))} for case in CASES}
    with pytest.raises(ValueError, match=r"case p4: the scan .* is not that of the run"):
        build_report(run_dir, files=other)


def test_tables_alone_are_enough(run_dir, tmp_path):
    for path in run_dir.glob("*.csv"):
        shutil.copy(path, tmp_path)
    report = build_report(tmp_path)
    assert report["stops"] is None
    assert [row["picture"] for row in report["cases"]] == [None] * 4
    assert write_report(tmp_path).is_file()


def test_the_page_without_the_viewer_says_how_to_get_it(run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("WEAKSEG_CACHE", str(tmp_path))
    text = common.report.page.page(build_report(run_dir, max_embedded=1))
    assert '"viewer":null' in text
    assert "python -m common report --get_viewer true" in text
    assert len(text) < 10**6


def test_a_hostile_name_ends_no_script(report):
    hostile = "</script><script>alert(1)</script><!--"
    text = common.report.page.page(report | {"supervision": [hostile], "cases": []})
    assert hostile not in text
    assert text.count("</script>") == text.count("<script")


def test_what_is_in_the_page_of_a_thousand_cases_beside_volumes_stays_below_five_megabytes(report):
    """Pictures as large as they may be, eight tables of thresholds, and a viewer of 2.3 MB."""
    bare = {"volumes": None, "table": None, "picture": "", "thumbnail": ""}
    rows = [{**report["cases"][number % 4], **bare, "case": f"case_{number:05d}"} for number in range(1000)]
    for row in rows[:8]:
        row["table"] = report["cases"][0]["table"]
    rows[0]["picture"] = "A" * (PICTURES * 4 // 3)
    assert len(common.report.page.page(report | {"cases": rows})) + 2_300_000 < 5_000_000


def test_the_first_cases_of_a_long_list_have_pictures_that_need_no_more_room_than_there_is(run_dir, monkeypatch):
    shown = build_report(run_dir, max_embedded=0)["cases"]
    one, small = (size(shown[0][key]) for key in ("picture", "thumbnail"))
    for name, value in (("THUMBNAILS", 3 * small), ("PICTURES", 3 * small + 2 * one), ("LEAST", one)):
        monkeypatch.setattr(common.report.build, name, value)
    rows = build_report(run_dir, max_embedded=0)["cases"]
    assert [bool(row["picture"]) for row in rows] == [True, True, False, False]
    assert [bool(row["thumbnail"]) for row in rows] == [True, True, True, False]
    assert rows[3]["picture"] == ""  # a run that left none: None


def test_levels_of_heat_are_the_same_in_all_cases(report):
    assert len(report["stops"]) == 255
    assert np.diff(report["stops"]).min() > 0
