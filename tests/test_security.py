"""What files from others can and cannot do; `docs/security.md` names these tests."""

from __future__ import annotations

import ast
import csv
import json
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.checkpoint import load_weights, read_beside, read_checkpoint
from common.commands.verify import weights
from common.data import load_datalist, write_datalist
from common.datasets.files import read_table
from common.features import FeatureStore
from common.files import write_csv
from common.images import read_volume
from tests.bundles.conftest import load_script
from tests.features.helpers import KEY, counted, tiles
from tests.running import REPOSITORY, run_module

RAN = "ran.txt"


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / RAN

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def explodes(folder: Path) -> bool:
    """Whether a bomb has gone off; that one does is tried, too."""
    gone_off = (folder / RAN).exists()
    pickle.loads(pickle.dumps(Bomb(folder)))
    assert (folder / RAN).exists()
    return gone_off


class TestWeights:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_checkpoint_that_holds_code_is_refused_and_not_run(self, tmp_path, zipped):
        path = tmp_path / "model.pt"
        content = {"0.weight": torch.ones(2), "0.bias": Bomb(tmp_path)}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        for read in (read_checkpoint, lambda file: load_weights(nn.Linear(1, 1), file)):
            with pytest.raises(
                ValueError, match=r"model.pt holds .+ and is refused, since reading that would run code"
            ):
                read(path)
        assert not explodes(tmp_path)

    def test_a_whole_module_is_refused_with_what_to_save_instead(self, tmp_path):
        torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
        with pytest.raises(
            ValueError, match=r"holds torch\.nn\.modules\.linear\.Linear .* torch\.save\(network\.state"
        ):
            read_checkpoint(tmp_path / "model.pt")

    def test_verify_reports_a_checkpoint_that_holds_code(self, tmp_path):
        (tmp_path / "models").mkdir()
        torch.save({"a": Bomb(tmp_path)}, tmp_path / "models" / "model.pt")
        assert any("model.pt" in line for line in weights(tmp_path))
        assert not explodes(tmp_path)


class TestArrays:
    def test_an_array_of_objects_is_not_read_as_a_scan(self, tmp_path):
        save_bomb(tmp_path / "scan.npy")
        with pytest.raises(ValueError, match=r"scan\.npy"):
            read_volume(tmp_path / "scan.npy")
        assert not explodes(tmp_path)

    def test_an_array_of_objects_in_the_store_of_features_is_damage(self, tmp_path):
        entry = FeatureStore(tmp_path).compute(KEY, tiles(), counted()[0], coordinates=np.zeros((10, 2)))
        for file in entry.folder.glob("*.npy"):
            save_bomb(file, tmp_path)
        with pytest.raises(ValueError, match=r"0000000\.npy is damaged"):
            entry[:]
        with pytest.raises(ValueError, match="allow_pickle=False"):
            _ = entry.coordinates
        assert not explodes(tmp_path)


def save_bomb(file: Path, folder: Path | None = None) -> None:
    np.save(file, np.array([Bomb(folder or file.parent)], dtype=object), allow_pickle=True)


def calls(path: Path) -> list[tuple[str, dict[str, object]]]:
    """Name and constant keywords of every call in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            options = {k.arg: getattr(k.value, "value", None) for k in node.keywords if k.arg}
            found.append((ast.unparse(node.func), options))
    return found


SOURCES = [file for room in ("common", "bundles", "benchmarks") for file in sorted((REPOSITORY / room).rglob("*.py"))]


UNPICKLING = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")


def test_no_source_unpickles_evaluates_texts_unpacks_archives_or_calls_a_shell():
    wrong = []
    for path in SOURCES:
        for name, options in calls(path):
            bad = name in ("eval", "exec", "os.system", "yaml.load") or name.split(".")[0] in UNPICKLING
            bad |= name.endswith(("extractall", "unpack_archive"))
            bad |= any(options.get(option) for option in ("allow_pickle", "shell", "trust_remote_code"))
            bad |= name == "torch.jit.load" and path.name != "verify_build.py"
            bad |= name == "torch.load" and options.get("weights_only") is not True
            wrong += [f"{path.relative_to(REPOSITORY)}: {name}"] * bool(bad)
    assert len(SOURCES) > 50
    assert wrong == []


MONAI = """
import json, sys, zipfile
from pathlib import Path
from monai.apps.utils import extractall
from monai.bundle import ConfigParser
from common.data import cases

DATA = "$data.cases(r'%s', '*', datalist=r'%s/list.json')"
folder, result = Path(sys.argv[1]), {}
try:
    extractall(folder / "bundle.zip", folder / "unpacked", has_base=False)
except ValueError as error:
    result["zip"] = str(error)
extractall(folder / "links.zip", folder / "linked", has_base=False)
result["link"] = [(folder / "linked" / "link").is_symlink(), (folder / "linked" / "link").read_text()]
config = {"a": f"$__import__('pathlib').Path(r'{folder / 'config.txt'}').touch()"}
(folder / "config.json").write_text(json.dumps(config))
parser = ConfigParser()
parser.read_config(folder / "config.json")
result["read"] = (folder / "config.txt").exists()
parser.get_parsed_content("a")
result["resolved"] = (folder / "config.txt").exists()
parser["b"] = "$6 * 7"
result["override"] = parser.get_parsed_content("b")
(folder / "config.yaml").write_text("a: !!python/object/apply:pathlib.Path.touch [x]")
try:
    ConfigParser.load_config_file(folder / "config.yaml")
except Exception as error:
    result["yaml"] = type(error).__name__
config = {"imports": ["$import common.data as data"], "data": DATA % (folder, folder)}
(folder / "data.json").write_text(json.dumps(config))
parser = ConfigParser()
parser.read_config(folder / "data.json")
parser.parse()
result["case"] = parser.get_parsed_content("data")[0]
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def monai(tmp_path_factory) -> dict:
    """What MONAI does with a zip, configs and a datalist that are hostile, in a process of its own."""
    folder = tmp_path_factory.mktemp("hostile")
    with zipfile.ZipFile(folder / "bundle.zip", "w") as archive:
        archive.writestr("../escaped.txt", "x")
    with zipfile.ZipFile(folder / "links.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, 0o120777 << 16  # a symbolic link of Unix
        archive.writestr(link, "/etc/passwd")
    (folder / "scan.nii.gz").touch()
    case = {"case": "$1 + 1", "patient": "@data", "image": "scan.nii.gz", "note": "%list.json"}
    (folder / "list.json").write_text(json.dumps({"classes": ["none", "tumor"], "test": [case]}))
    (folder / "program.py").write_text(MONAI)
    done = run_module("program", str(folder), cwd=folder, environment={"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"escaped": (folder / "escaped.txt").exists()}


class TestBundles:
    def test_a_zip_cannot_write_outside_its_folder(self, monai):
        assert "nsafe path" in monai["zip"]
        assert not monai["escaped"]

    def test_a_link_in_a_zip_becomes_a_text(self, monai):
        assert monai["link"] == [False, "/etc/passwd"]

    def test_expressions_of_a_config_are_run_when_they_are_resolved(self, monai):
        assert (monai["read"], monai["resolved"]) == (False, True)

    def test_an_overridden_key_is_evaluated_too(self, monai):
        assert monai["override"] == 42

    def test_tags_of_yaml_run_nothing(self, monai):
        assert monai["yaml"] == "ConstructorError"

    def test_texts_of_a_datalist_are_no_expressions(self, monai):
        assert [monai["case"][key] for key in ("case", "patient", "note")] == ["$1 + 1", "@data", "%list.json"]


@pytest.mark.parametrize("key", ["classes", "modalities"])
@pytest.mark.parametrize("name", ["$print('run')", "@data", "%list.json"])
def test_a_name_that_a_config_would_evaluate_is_no_class(tmp_path, key, name):
    case = {"case": "a", "patient": "p", "image": "scan.nii.gz", "cls": 1}
    listed = {"name": "data", "classes": ["none", "tumor"], "modalities": ["flair"], "training": [case]}
    listed[key][-1] = name
    with pytest.raises(ValueError, match=rf"{key}: a name cannot begin with '\$', '@' or '%'; rename"):
        write_datalist(tmp_path / "list.json", listed)
    (tmp_path / "list.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=rf"list\.json: {key}: a name cannot begin with"):
        load_datalist(tmp_path / "list.json", "training", dataset_dir=tmp_path)


@pytest.mark.parametrize(
    "value", ["$print('run')", ["none", "@data"], {"a": "%list.json"}, [{"_target_": "os.system", "command": "true"}]]
)
def test_settings_beside_weights_that_a_config_would_evaluate_are_refused(tmp_path, value):
    (tmp_path / "model.json").write_text(json.dumps({"trained": {"spacing": [1, 1, -1], "classes": value}}))
    with pytest.raises(ValueError, match=r"model\.json: classes of 'trained' is code, and no value; whose weights"):
        read_beside(tmp_path / "model.pt")


def test_a_datalist_may_name_scans_outside_the_folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "scan.nii.gz").touch()
    case = {"case": "a", "patient": "p", "image": "../scan.nii.gz"}
    (tmp_path / "list.json").write_text(json.dumps({"classes": ["none", "tumor"], "test": [case]}))
    (found,) = load_datalist(tmp_path / "list.json", "test", dataset_dir=tmp_path / "data")
    assert Path(found["image"]).samefile(tmp_path / "scan.nii.gz")


class TestNames:
    @pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "a\\b", "..", "", "a\0b"])
    def test_a_case_cannot_be_named_like_a_path(self, tmp_path, name):
        (tmp_path / "scan.nii.gz").touch()
        case = {"case": name, "patient": "p", "image": "scan.nii.gz"}
        (tmp_path / "list.json").write_text(json.dumps({"classes": ["none", "tumor"], "test": [case]}))
        with pytest.raises(ValueError, match=r"list\.json: the case name .* names a file's path"):
            load_datalist(tmp_path / "list.json", "test", dataset_dir=tmp_path)

    def test_a_name_that_a_spreadsheet_would_run_is_written_as_text(self, tmp_path):
        names = ["=1+1", "@SUM(A1)", "-2+3|x", "+x", "case 1", "-0.25", -0.5]
        write_csv(tmp_path / "a.csv", [{"case": name} for name in names])
        with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
            written = [row["case"] for row in csv.DictReader(file)]
        assert written == ["'=1+1", "'@SUM(A1)", "'-2+3|x", "'+x", "case 1", "-0.25", "-0.5"]


class TestTables:
    def test_a_formula_of_a_sheet_is_not_computed(self, tmp_path):
        openpyxl = pytest.importorskip("openpyxl", reason="the extra [xlsx] is not installed")
        book = openpyxl.Workbook()
        for row in (["case", "label"], ["a", "=1+1"], ["b", 1]):
            book.active.append(row)
        book.save(tmp_path / "labels.xlsx")
        with pytest.raises(ValueError, match=r"labels\.xlsx: row 2: a formula that was never computed"):
            read_table(tmp_path / "labels.xlsx", ["case", "label"])


class TestPolygons:
    def test_an_annotation_that_unfolds_to_gigabytes_is_refused(self, tmp_path):
        entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10))
        text = (
            f'<!DOCTYPE a [<!ENTITY e0 "{"x" * 100}">{entities}]><a><Annotation PartOfGroup="g">&e9;</Annotation></a>'
        )
        (tmp_path / "a.xml").write_text(text)
        with pytest.raises(ValueError, match=r"a.xml: no annotation .*amplification"):
            load_script("insight_ct", "slides.truth").read_polygons(tmp_path / "a.xml")

    def test_an_annotation_cannot_take_in_another_file(self, tmp_path):
        (tmp_path / "secret.txt").write_text("secret")
        text = f'<!DOCTYPE a [<!ENTITY e SYSTEM "{(tmp_path / "secret.txt").as_uri()}">]><a>&e;</a>'
        (tmp_path / "a.xml").write_text(text)
        with pytest.raises(ValueError, match=r"a.xml: no annotation .*undefined entity"):
            load_script("insight_ct", "slides.truth").read_polygons(tmp_path / "a.xml")


def test_the_documentation_names_tests_that_exist():
    text = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(?:(\w+)::)?(\w+)`", text))
    own = set(re.findall(r"`(?:(Test\w+)::)?(test_\w+)`", text))
    for file, group, test in {*named, *(("tests/test_security.py", *one) for one in own)}:
        source = (REPOSITORY / file).read_text(encoding="utf-8")
        assert f"def {test}(" in source, f"{file} has no {test}"
        assert not group or f"class {group}:" in source, f"{file} has no {group}"
    assert len(named) + len(own) > 15
