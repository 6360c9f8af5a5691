from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from common.handlers import CaseScores, CaseWriter, LabelScores
from common.report import Report, write_report
from tests.pipeline import evaluator, save
from tests.report.conftest import embedded


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[dict]:
    """Two scans with a bright box each, and one that is cut off."""
    folder = tmp_path_factory.mktemp("scans")
    found = []
    for number in range(2):
        image = np.ones((16, 16, 6), np.float32)
        image[4 : 8 + number, 5:9, 2:4] = 4.0
        truth = (image > 2).astype(np.uint8)
        case = {
            "case": f"p{number}",
            "patient": f"p{number}",
            "image": save(folder / f"p{number}" / "flair.nii.gz", image),
        }
        found.append(case | {"label": save(folder / f"p{number}" / "mask.nii.gz", truth)})
    return found


def run(cases: list[dict], out: Path, *, scored: bool = True, overwrite: bool = True, **options) -> None:
    """As in the bundles' configs: the report stands before the scores."""
    handlers = [CaseWriter(out, classes=["none", "tumor"], overwrite=overwrite), Report(out, **options)]
    handlers += [CaseScores(out, resamples=20), LabelScores(out, resamples=20)] if scored else []
    evaluator(cases, handlers).run()


def test_the_page_has_the_scores_of_handlers_that_come_after_it(cases, tmp_path):
    run(cases, tmp_path, enabled=True)
    report = embedded(tmp_path)
    scores = json.loads((tmp_path / "summary.json").read_text())
    assert report["headline"]["value"] == scores["dice"]["mean"] > 0.5
    assert all(row["dice"] > 0.5 for row in report["cases"])
    assert all(row["volumes"].keys() >= {"image", "heat", "mask", "truth"} for row in report["cases"])
    assert str(Path(cases[0]["image"]).parents[1]) not in (tmp_path / "report.html").read_text()


def test_a_run_that_is_not_asked_for_a_page_leaves_its_record_alone(cases, tmp_path):
    run(cases, tmp_path)
    assert not (tmp_path / "report.html").exists()
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["files"]["p1"] == {"image": cases[1]["image"], "label": cases[1]["label"]}


def test_cases_that_an_earlier_run_finished_are_skipped_and_in_the_page(cases, tmp_path, caplog):
    run(cases[:1], tmp_path, scored=False, overwrite=False)
    written = (tmp_path / "p0_seg.nii.gz").stat().st_mtime_ns
    with caplog.at_level(logging.WARNING):
        run(cases, tmp_path, scored=False, overwrite=False, enabled=True)
    assert (tmp_path / "p0_seg.nii.gz").stat().st_mtime_ns == written
    assert "made anew" not in caplog.text
    report = embedded(tmp_path)
    assert sorted(row["case"] for row in report["cases"]) == ["p0", "p1"]
    assert not any("truth" in row["volumes"] for row in report["cases"])  # what is not scored is not opened


def test_scores_of_an_earlier_run_in_the_folder_are_out_of_the_page(cases, tmp_path, caplog):
    for _ in range(2):
        run(cases, tmp_path)
    assert "earlier run" not in caplog.text
    run(cases, tmp_path, scored=False, enabled=True)
    told = "slices.csv, summary.json, labels.json are of an earlier run, not of these masks"
    assert told in caplog.text
    for _ in range(2):  # of the run itself, and made afterwards
        report = embedded(tmp_path)
        assert report["run"]["kind"] == "inference"
        assert [row["dice"] for row in report["cases"]] == [None, None]
        assert report["headline"]["measure"] != "mean Dice"
        write_report(tmp_path)


def test_a_run_that_makes_every_case_anew_warns_of_nothing(cases, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run(cases[:1], tmp_path)
    assert "made anew" not in caplog.text


def test_cases_that_failed_are_named_with_the_reason(cases, tmp_path):
    broken = {"case": "p9", "patient": "p9", "image": str(tmp_path / "gone" / "flair.nii.gz")}
    with pytest.raises(RuntimeError, match="1 of 2 cases failed"):
        run([cases[0], broken], tmp_path, enabled=True)
    report = embedded(tmp_path)
    assert len(report["cases"]) == 1
    assert "flair.nii.gz does not exist" in report["run"]["failed"]["p9"]
    assert str(tmp_path) not in json.dumps(report)


def test_a_second_run_of_one_evaluator_writes_once(cases, tmp_path):
    engine = evaluator(cases[:1], [CaseWriter(tmp_path, classes=["none", "tumor"]), report := Report(tmp_path)])
    calls = []
    report._write = lambda engine, failed: calls.append(engine)  # type: ignore[method-assign]
    engine.run()
    engine.run()
    assert len(calls) == 2
