"""What `python -m common` lists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import common.commands
from common.__main__ import COMMANDS, function, main

# Modules of `common.commands` that serve the others.
HELPERS = {"arguments", "console", "own_bundle", "run", "suite_page", "usage", "verify_build"}
HELPERS |= {
    "fit_checks",
    "fit_minutes",
    "fit_patterns",
    "fit_request",
    "fit_runs",
    "fit_slides",
    "fit_start",
    "fit_summary",
    "fit_windows",
}


def test_every_command_has_its_file_and_every_file_its_command():
    files = {path.stem for path in Path(common.commands.__path__[0]).glob("[!_]*.py")}
    assert set(COMMANDS) == files - HELPERS


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_describes_every_argument(name):
    documented = function(name).__doc__ or ""
    listed = documented.partition("Args:\n")[2].partition("\n\n")[0]
    described = re.findall(r"^ {8}(\w+(?:, \w+)*): ", listed, re.MULTILINE)
    assert {one for names in described for one in names.split(", ")} == set(
        inspect.signature(function(name)).parameters
    )


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("verify gp_unet_brat --quick", "ValueError: there is no bundle gp_unet_brat; did you mean gp_unet_brats?"),
        ("export insight --output_dir OUT", "ValueError: there is no bundle insight; did you mean insight_ct?"),
        ("demo OUT --bundle tonno_mosme", "ValueError: there is no bundle tonno_mosme; did you mean tonno_mosmed?"),
        ("demo OUT --epochs few", "ValueError: --epochs: expected a whole number, got a text: 'few'"),
        ("phantom 2024", "ValueError: --output_dir: expected a text, got a whole number: 2024; write \"'2024'\""),
        ("prepare foldr OUT", "unknown adapter 'foldr'; use one of "),
        ("prepare folder OUT/in", "OUT/in"),
        ("folds OUT/datalist.json", "FileNotFoundError: [Errno 2] No such file or directory: 'OUT/datalist.json'"),
        ("folds OUT/broken.json", "ValueError: OUT/broken.json is not a JSON file: "),
        ("features insight_ct OUT/in", "FileNotFoundError: [Errno 2] No such file or directory: 'OUT/in'"),
        ("crossvalidate gp_unet_brats OUT OUT", "No such file or directory: 'OUT/datalist.json'"),
        ("crossvalidate gp_unet_brats OUT OUT --folds 2.5", "--folds: expected a whole number, got a number: 2.5"),
        ("ablate gp_unet_brats OUT OUT --variants OUT/broken.json", "ValueError: OUT/broken.json is not a JSON file: "),
        ("ablate gp_unet_brats OUT OUT", "ValueError: --variants must be given, too"),
        ("phantom OUT/new --case 2", "ValueError: there is no option --case; did you mean --cases?"),
        ("phantom OUT/new --count=2", "no option --count; there are --output_dir, --cases, --seed, --healthy_fraction"),
        ("phantom OUT/new 2 0 .5 plain 7", "ValueError: 7 is more than what is expected: output_dir, cases, seed, "),
        ("format OUT --nochek", "ValueError: there is no option --chek; did you mean --check?"),
        ("format OUT", "FileNotFoundError: no bundle in OUT has configs"),
    ],
)
def test_wrong_input_is_said_in_a_line_that_names_it(typed, said, tmp_path):
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(SystemExit) as stopped:
        main(typed.replace("OUT", str(tmp_path)).split())
    assert said.replace("OUT", str(tmp_path)) in str(stopped.value.code)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.json"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("fit gp_unet_brats --rounds 1", "ValueError: DATASET_DIR, OUTPUT_DIR must be given, too"),
        ("fit gp_unet_brats --output_dir OUT", "ValueError: DATASET_DIR must be given, too"),
        ("phantom --cases 2", "ValueError: OUTPUT_DIR must be given, too"),
        ("ablate", "\n\nablate needs BUNDLE, DATASET_DIR, OUTPUT_DIR, --variants VARIANTS"),
    ],
)
def test_what_is_lacking_is_named(typed, said):
    with pytest.raises(SystemExit) as stopped:
        main(typed.split())
    assert str(stopped.value.code).endswith(said)


def test_an_unknown_command_is_refused_with_the_nearest():
    with pytest.raises(SystemExit, match=r"there is no command crossvalidat; did you mean crossvalidate\?"):
        main(["crossvalidat"])
