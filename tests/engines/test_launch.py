from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from monai.bundle import ConfigWorkflow, run, run_workflow

from common.commands.run import run_arguments
from common.engines import cause, check_settings, running_config
from common.engines.launch import end_with_the_cause
from tests.running import REPOSITORY, run_module

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")
seen: list = []  # what the last step of a run was given
CONFIG = {
    "imports": ["$import os", "$import common.engines as engines", "$import tests.engines.test_launch as here"],
    "threshold": 0.5,
    "refine": {"dilate_mm": 3.0, "largest": True},
    "sizes": [1, 2],
    "folder": "$os.path.join('a', 'b')",
    "run": ["$engines.check_settings()", "$here.seen.append([@threshold, @refine, @sizes, @folder])"],
}


@pytest.fixture
def file(tmp_path) -> str:
    seen.clear()
    (tmp_path / "other.json").write_text(json.dumps({"epochs": 3, "threshold": "otsu"}))
    (tmp_path / "free.json").write_text(json.dumps({"threshold": None, "sizes": None}))
    (tmp_path / "metadata.json").write_text(json.dumps({"version": "0.1"}))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return str(path)


def workflow(file: str, **settings: object) -> None:
    made = ConfigWorkflow(config_file=file, workflow_type="inference", **settings)
    made.initialize()
    made.run()


STARTS = [lambda file, **settings: run(config_file=file, **settings), workflow]


def refusal(start, file, **settings: object) -> str:
    with pytest.raises(RuntimeError) as refused:
        start(file, **settings)
    assert seen == []
    assert isinstance(cause(refused.value), ValueError)
    return str(cause(refused.value))


@pytest.mark.parametrize("start", [*STARTS, lambda file, **settings: run_workflow(config_file=file, **settings)])
def test_a_run_with_a_wrong_setting_ends_before_its_next_step(start, file):
    assert refusal(start, file, treshold=1) == (
        "--treshold: the configs of this run have no such key; did you mean threshold?"
    )
    assert "write ./2024" in refusal(start, file, folder=2024)
    assert "2 settings are wrong" in refusal(start, file, folder=2024, sizes=3)


def test_a_setting_that_nothing_in_the_run_uses_is_told(tmp_path, caplog):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG | {"cut_off": 1, "cut_off_too": "@cut_off", "used": 1, "folder": "$str(@used)"}))
    STARTS[0](str(path), cut_off=2, used=3, threshold=0.1)
    assert [record.message for record in caplog.records if "uses it" in record.message] == [
        "--cut_off: nothing in this run uses it"
    ]


def test_processes_that_do_not_share_the_work_are_refused(file, tmp_path, monkeypatch):
    (tmp_path / "shared.json").write_text(json.dumps({"run": [*CONFIG["run"], "$print or 'init_process_group'"]}))
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        STARTS[0](file)
        monkeypatch.setenv(name, value)
        seen.clear()
    assert refusal(STARTS[0], file).startswith("2 processes were started, and each would do everything: put multi_gpu")
    STARTS[0]([file, str(tmp_path / "shared.json")])
    assert len(seen) == 1


def test_a_key_of_a_config_that_is_no_part_of_the_run_is_refused(file):
    assert refusal(STARTS[0], file, epochs=3).endswith("no such key; it is one of other.json")


@pytest.mark.parametrize("start", STARTS)
def test_null_reaches_a_run_for_keys_and_what_lies_in_them(start, file):
    start(file, **{"threshold": None, "refine#largest": None, "sizes": "null"})
    assert seen == [[None, {"dilate_mm": 3.0, "largest": None}, None, "a/b"]]


@pytest.mark.parametrize("start", STARTS)
def test_good_settings_reach_a_run(start, file):
    start(file, **{"threshold": "otsu", "refine#largest": "false", "sizes#1": "$1 + 2", "folder": Path("c")})
    assert seen == [["otsu", {"dilate_mm": 3.0, "largest": False}, [1, 3], Path("c")]]


def test_settings_of_an_args_file_are_checked_and_give_way(file, tmp_path):
    (tmp_path / "args.json").write_text(json.dumps({"config_file": file, "threshold": 0.1, "sizes": None}))
    run(args_file=str(tmp_path / "args.json"), threshold=0.2)
    assert seen[0][0] == 0.2
    assert seen[0][2] is None
    seen.clear()
    assert "did you mean sizes" in refusal(
        lambda _, **given: run(args_file=str(tmp_path / "args.json"), **given), "", size=1
    )


@pytest.mark.parametrize("start", STARTS)
def test_a_value_that_no_run_could_use_is_refused_with_what_it_may_be(start, file, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps({"gate": 2, "refine": {"dilate_mm": -1}}))
    own = [file, str(tmp_path / "own.json")]
    said = refusal(lambda _, **given: start(own, **given), "")
    assert "--gate: expected a number from 0 to 1, got 2" in said
    assert "--refine#dilate_mm: expected 0 or more, got -1" in said
    start(own, **{"gate": 1, "refine#dilate_mm": 1.5})
    assert seen[0][1]["dilate_mm"] == 1.5


def test_files_of_the_users_own_may_bring_keys_and_merge(file, tmp_path):
    own = tmp_path / "elsewhere" / "own.json"
    own.parent.mkdir()
    own.write_text(json.dumps({"more": 4, "+refine": {"smooth_mm": "@more"}, "sizes": "%spare", "spare": [7]}))
    run(config_file=[file, str(own)], more=5)
    workflow([file, str(own)], more=6)
    assert [given[1]["smooth_mm"] for given in seen] == [5, 6]
    assert [given[2] for given in seen] == [[7], [7]]


def test_a_file_beside_the_configs_that_is_none_does_no_harm(file, tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    assert "did you mean sizes" in refusal(STARTS[0], file, size=1)


@pytest.mark.parametrize("start", STARTS)
def test_more_classes_than_a_network_of_one_logit_tells_apart_are_refused(start, file, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps({"classes": ["none", "a"], "network_def": {"num_classes": 1}}))
    own = [file, str(tmp_path / "own.json")]
    said = refusal(lambda _, **given: start(own, **given), "", classes=["none", "a", "b"])
    assert "--classes: none, a, b, but the network of this bundle has one logit" in said
    assert "gp_unet_brats tells several classes apart" in said
    start(own, classes=["none", "b"])
    start(own, **{"classes": ["none", "a", "b"], "network_def#num_classes": 3})
    assert len(seen) == 2


def test_a_run_inside_another_is_checked_by_its_own_settings(file, tmp_path):
    outer = tmp_path / "outer.json"
    step = "$here.workflow(@inner, threshold=0.1)"
    outer.write_text(json.dumps(CONFIG | {"inner": file, "run": ["$engines.check_settings()", step]}))
    run(config_file=str(outer), sizes=None)
    assert seen == [[0.1, CONFIG["refine"], [1, 2], "a/b"]]


@pytest.fixture
def bundles(tmp_path) -> Path:
    """Two bundles, `one` and `other`; what one of them writes says whose code it ran."""
    root = "$os.path.dirname(os.path.dirname(os.path.abspath(__import__('scripts').__file__)))"
    step = "$here.Path('found.txt').write_text(@bundle_root + ' ' + here.sys.modules['scripts'].NAME)"
    config = {"imports": CONFIG["imports"], "bundle_root": root, "run": ["$engines.check_settings()", step]}
    for name in ("one", "other"):
        for folder in ("configs", "scripts"):
            (tmp_path / name / folder).mkdir(parents=True)
        (tmp_path / name / "scripts" / "__init__.py").write_text(f"NAME = {name!r}\n")
        (tmp_path / name / "configs" / "inference.json").write_text(json.dumps(config))
    (tmp_path / "over.json").write_text('{"more": 1}')
    return tmp_path


TYPED = [
    lambda place: ["run", "--config_file", f"{place}/one/configs/inference.json"],
    lambda _: ["run", "--config_file", "['../over.json','../one/configs/inference.json']"],
    lambda place: run_arguments(place / "one", ["inference.json"]),  # as `fit`, `crossvalidate` and the like do
]


@pytest.mark.parametrize("typed", TYPED)
def test_in_the_folder_of_another_bundle_a_config_runs_with_its_own(bundles, typed):
    cwd, repository = bundles / "other", {"PYTHONPATH": str(REPOSITORY)}
    done = run_module("monai.bundle", *typed(bundles), cwd=cwd, environment=repository)
    assert done.returncode == 0, done.stderr
    assert (cwd / "found.txt").read_text() == f"{bundles / 'one'} one"


def test_a_bundle_is_refused_in_a_process_that_has_loaded_the_code_of_another(bundles):
    files = [str(bundles / name / "configs" / "inference.json") for name in ("one", "other")]
    code = "import sys; from monai.bundle import run; [run(config_file=file) for file in sys.argv[-2:]]"
    done = run_module("-c", code, *files, cwd=bundles, environment={"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode != 0
    assert f"is of the bundle {bundles / 'other'}, but the code of {bundles / 'one'} is loaded" in done.stderr
    assert (bundles / "found.txt").read_text() == f"{bundles / 'one'} one"


@pytest.mark.parametrize("listed", [None, "", "a.json"])
def test_a_pattern_that_a_datalist_makes_useless_is_told(tmp_path, caplog, listed):
    here = {**CONFIG, "image_pattern": "*/flair.nii.gz", "label_pattern": None, "datalist": listed}
    (tmp_path / "inference.json").write_text(json.dumps(here))
    run(config_file=str(tmp_path / "inference.json"))
    assert "not used" not in caplog.text
    run(config_file=str(tmp_path / "inference.json"), image_pattern="*/t2.nii.gz", label_pattern="*/mask.nii.gz")
    said = "--image_pattern, --label_pattern: not used, since a.json names the cases"
    assert (said in caplog.text) == bool(listed)


@pytest.mark.parametrize("listed", [None, "", "a.json"])
def test_a_section_of_no_datalist_is_told(tmp_path, caplog, listed):
    here = {**CONFIG, "section": "test", "datalist": listed}
    (tmp_path / "inference.json").write_text(json.dumps(here))
    run(config_file=str(tmp_path / "inference.json"))
    assert "not used" not in caplog.text
    run(config_file=str(tmp_path / "inference.json"), section="validation")
    assert ("--section: not used, since no datalist is read" in caplog.text) == (not listed)


@pytest.mark.parametrize(("start", "told"), zip(STARTS, ({"threshold": 0.1}, {}), strict=True))
def test_a_step_of_a_run_can_ask_for_its_config_and_for_what_the_command_said(start, told, file):
    step = "$here.seen.append(engines.running_config())"
    Path(file).write_text(json.dumps(CONFIG | {"run": ["$engines.check_settings()", step]}), encoding="utf-8")
    start(file, threshold=0.1)
    config, settings = seen[0]
    assert (config["threshold"], config["folder"]) == (0.1, CONFIG["folder"])
    assert settings == told


def test_outside_of_a_run_there_is_no_config():
    assert running_config() == ({}, {})


def test_outside_of_a_run_there_is_nothing_to_check():
    with pytest.raises(RuntimeError, match="`run` of a bundle's config"):
        check_settings()


def wrapped() -> RuntimeError:
    """An error as it leaves a config: ours, which has a cause of its own, in two wrappings of MONAI."""
    ours = ValueError("the image has 5 axes")
    ours.__cause__ = KeyError("ndim")
    inner, outer = (
        RuntimeError("Failed to instantiate component 'a'"),
        RuntimeError("Failed to evaluate ConfigExpression"),
    )
    inner.__cause__, outer.__cause__ = ours, inner
    return outer


def test_the_cause_is_what_is_inside_of_monais_wrappings():
    assert str(cause(wrapped())) == "the image has 5 axes"
    for plain in (RuntimeError("Failed to evaluate, without a cause"), RuntimeError("2 of 3 cases failed")):
        assert cause(plain) is plain
    plain.__cause__ = KeyError("what else went wrong")
    assert cause(plain) is plain


def started_as(monkeypatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name=module)))


def test_only_the_command_gets_another_last_line(monkeypatch, capsys):
    hook = sys.excepthook
    monkeypatch.setattr(sys, "excepthook", hook)  # and put back
    started_as(monkeypatch, "server.__main__")
    end_with_the_cause()
    assert sys.excepthook is hook
    started_as(monkeypatch, "monai.bundle.__main__")
    end_with_the_cause()
    for error, last in ((wrapped(), "ValueError: the image has 5 axes"), (KeyboardInterrupt(), "KeyboardInterrupt")):
        sys.excepthook(type(error), error, None)
        assert capsys.readouterr().err.splitlines()[-1] == last


def test_torchrun_is_told_the_cause(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "excepthook", lambda *_: None)
    started_as(monkeypatch, "monai.bundle.__main__")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    end_with_the_cause()
    sys.excepthook(RuntimeError, wrapped(), None)
    told = json.loads((tmp_path / "error.json").read_text())["message"]
    assert told["message"] == "ValueError: the image has 5 axes"
    assert told["extraInfo"]["py_callstack"].endswith("ValueError: the image has 5 axes\n")


def test_a_command_takes_words_of_json_and_ends_with_the_cause(file, tmp_path):
    step = "$here.Path(@folder).write_text(repr([@threshold, @refine, @sizes]))"
    Path(file).write_text(json.dumps(CONFIG | {"run": ["$engines.check_settings()", step]}), encoding="utf-8")
    told = ("--threshold", "None", "--refine#largest", "false", "--sizes", "[null, 2]", "--folder", str(tmp_path / "a"))
    assert run_module("monai.bundle", "run", "--config_file", file, *told).returncode == 0
    assert (tmp_path / "a").read_text() == "[None, {'dilate_mm': 3.0, 'largest': False}, [None, 2]]"
    done = run_module("monai.bundle", "run", "--config_file", file, "--folder", str(tmp_path / "no" / "where"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("FileNotFoundError: ")
