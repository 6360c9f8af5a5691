"""Every rule lets a good bundle pass and names what is wrong with a broken copy of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.commands import verify as rules
from common.commands.run import BUNDLES
from common.commands.verify import QUICK, SLOW, problems, verify
from tests.running import run_module

NAMES = sorted(path.parent.parent.name for path in BUNDLES.glob("*/models/model.pt"))
NETWORK = """
import torch


class Net(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layer = torch.nn.Conv2d(channels, 2, 1)

    def forward(self, image):
        logits = self.layer(image).mean(dim=(2, 3))
        return logits
"""
TENSOR = {"type": "image", "format": "magnitude", "num_channels": 1, "dtype": "float32", "value_range": [0, 1]}
METADATA = {
    "schema": "https://example.org/meta_schema_20240725.json",
    "version": "0.1.0",
    "changelog": {"0.1.0": "first"},
    **{f"{name}_version": "1.0" for name in ("monai", "pytorch", "numpy")},
    "required_packages_version": {"scipy": "1.15.0"},
    **dict.fromkeys(("task", "description", "authors", "copyright", "data_source"), "text"),
    "network_data_format": {
        "inputs": {"image": TENSOR | {"spatial_shape": ["16*n", "16*n"]}},
        "outputs": {"pred": TENSOR | {"num_channels": 2, "spatial_shape": [], "channel_def": {}}},
    },
}
METADATA["network_data_format"]["outputs"]["pred"]["channel_def"] = {"0": "background", "1": "tumor"}  # type: ignore[index]
INFERENCE = {
    "imports": ["$import scipy.ndimage as ndi"],
    "bundle_root": ".",
    "dataset_dir": "data",
    "device": "cpu",
    "classes": ["none", "tumor"],
    "network_def": {"_target_": "scripts.networks.Net", "channels": 1},
    "preprocessing": {"_target_": "Compose", "transforms": [{"_target_": "LoadImaged", "keys": ["image"]}]},
    "inferer": {"_target_": "SimpleInferer"},
    "postprocessing": {"_target_": "Compose", "transforms": [{"_target_": "CopyItemsd", "keys": "a", "names": "b"}]},
    "dataset": {"_target_": "Dataset", "data": []},
    "evaluator": "$object()",
}
TRAIN = {
    **{key: INFERENCE[key] for key in ("bundle_root", "dataset_dir", "device", "network_def")},
    "train": {
        "dataset": "@data",
        "inferer": "$object()",
        "trainer": {"_target_": "types.SimpleNamespace", "max_epochs": 1},
    },
    "data": {"_target_": "Dataset", "data": []},
}
SECTIONS = "Overview, Data, Training, Input and output, Performance, Commands, References, License"


@pytest.fixture
def forked(monkeypatch) -> None:
    """The process that builds a bundle is forked from one that has imported MONAI: it starts sooner."""

    def run(command: list[str], *, cwd: Path, env: dict[str, str], **_: bool) -> subprocess.CompletedProcess[str]:
        assert command[:2] == [sys.executable, "-m"]
        return run_module(*command[2:], cwd=cwd, environment=env)

    monkeypatch.setattr(rules.subprocess, "run", run)


@pytest.fixture
def small(tmp_path) -> Path:
    """The smallest bundle that keeps every rule."""
    root = tmp_path / "small"
    texts = {
        "LICENSE": "Apache License\nVersion 2.0",
        "configs/metadata.json": json.dumps(METADATA),
        "configs/inference.json": json.dumps(INFERENCE),
        "configs/evaluate.json": json.dumps({"datalist": "datalist.json"}),
        "configs/train.json": json.dumps(TRAIN),
        "configs/logging.conf": (BUNDLES / NAMES[0] / "configs" / "logging.conf").read_text(),
        "docs/README.md": "# Small\n" + "".join(f"## {name}\ntext\n" for name in SECTIONS.split(", ")),
        "docs/data_license.txt": "CC0",
        "scripts/__init__.py": "",
        "scripts/networks.py": NETWORK,
        "models/model.pt": "",
        "models/model.json": '{"seen": {}}',
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    torch.save({"layer.weight": torch.zeros(2, 1, 1, 1), "layer.bias": torch.zeros(2)}, root / "models" / "model.pt")
    return root


def change(name: str, path: str, value: object) -> Callable[[Path], object]:
    """A break: set (or, with None, remove) an entry of `configs/<name>.json`."""

    def apply(root: Path) -> None:
        file = root / "configs" / f"{name}.json"
        config = json.loads(file.read_text())
        *parents, last = path.split("#")
        inner = config
        for key in parents:
            inner = inner[int(key)] if isinstance(inner, list) else inner[key]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
        file.write_text(json.dumps(config))

    return apply


def replace(file: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda root: (root / file).write_text((root / file).read_text().replace(old, new))


def remove(file: str) -> Callable[[Path], object]:
    return lambda root: (root / file).unlink()


def write(file: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / file).write_text(text)


FORMAT = "network_data_format"
BREAKS = [
    ("files", remove("LICENSE"), "LICENSE is missing"),
    ("files", remove("configs/metadata.json"), "configs/metadata.json is missing"),
    ("files", remove("configs/inference.json"), "configs/inference.json is missing"),
    ("files", remove("models/model.pt"), "models/model.pt is missing"),
    ("files", remove("docs/README.md"), "docs/README.md is missing"),
    ("large_files", write("large_files.json", '{"large_files": [{"path": "models/model.pt"}]}'), "lacks ['url']"),
    ("sizes", lambda root: (root / "docs" / "film.gif").write_bytes(bytes(26 * 2**20)), "docs/film.gif has 26.0 MB"),
    ("changelog", change("metadata", "version", "0.2.0"), "0.2.0 has no entry in the changelog"),
    ("changelog", change("metadata", "changelog", None), "0.1.0 has no entry in the changelog"),
    *(
        ("schema", change("metadata", field, None), f"{field.split('#')[-1]!r} is a required property")
        for field in (
            *("schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
            *("task", "description", "authors", "copyright", FORMAT, f"{FORMAT}#inputs", f"{FORMAT}#outputs"),
            *(f"{FORMAT}#inputs#image#{field}" for field in ("type", "format", "num_channels", "spatial_shape")),
            *(f"{FORMAT}#outputs#pred#{field}" for field in ("dtype", "value_range")),
        )
    ),
    ("schema", change("metadata", "optional_packages_version", {"scipy": "1"}), "optional_packages_version"),
    ("schema", change("metadata", f"{FORMAT}#inputs#image#num_channels", "1"), "is not of type 'integer'"),
    ("schema", change("metadata", f"{FORMAT}#inputs#image#value_range", ["0"]), "is not of type 'number'"),
    ("schema", change("metadata", "references", "a paper"), "is not of type 'array'"),
    ("interface", change("metadata", f"{FORMAT}#inputs", {"scan": METADATA[FORMAT]["inputs"]["image"]}), "'image'"),  # type: ignore[index]
    ("interface", change("metadata", f"{FORMAT}#outputs#heatmap", TENSOR | {"spatial_shape": []}), "named 'pred'"),
    ("interface", change("metadata", f"{FORMAT}#inputs#image#spatial_shape", ["*", "*"]), "in place of '*'"),
    ("channels", change("inference", "classes", ["none", "tumor", "edema"]), "3 classes"),
    ("channels", change("inference", "classes", ["none", "cyst"]), "must name background and ['cyst']"),
    ("channels", change("metadata", f"{FORMAT}#outputs#pred#channel_def", {"0": "tumor", "1": "background"}), "name"),
    ("paths", change("inference", "dataset_dir", "/data/scans"), "inference.json, dataset_dir: absolute path /data/"),
    ("paths", change("train", "dataset_dir", "$os.path.join('/mnt/x', @a)"), "train.json, dataset_dir"),
    ("paths", change("train", "dataset_dir", "~/scans"), "absolute path ~/"),
    ("paths", change("train", "dataset_dir", "C:\\scans"), "absolute path C:\\"),
    ("keys", change("inference", "preprocessing#transforms#0#keys", ["image", "image_raw"]), "'image_raw' breaks"),
    ("keys", change("train", "extra", {"_target_": "CopyItemsd", "keys": "a", "names": "label_2"}), "'label_2' breaks"),
    ("stands_alone", change("inference", "inferer", None), "lacks 'inferer'"),
    ("stands_alone", change("inference", "classes", "@_meta_#classes"), "'@_meta_#classes' needs another file"),
    ("stands_alone", change("inference", "classes", "%train.json#classes"), "needs another file"),
    (
        "stands_alone",
        change("inference", "preprocessing#transforms#0#keys", ["image", "label"]),
        "asks for 'label' too",
    ),
    ("packages", change("metadata", "required_packages_version", {}), "add scipy to required_packages_version"),
    (
        "packages",
        replace("scripts/networks.py", "import torch\n", "import skimage\nimport torch\n"),
        "add scikit-image",
    ),
    ("weights", write("models/model.pt", "no weights"), "cannot be loaded with weights_only=True"),
    ("weights", lambda root: torch.save({"epoch": 3}, root / "models" / "more.pt"), "more.pt is no plain state dict"),
    ("seen", remove("models/model.json"), "models/model.json does not say what model.pt saw"),
    ("seen", write("models/model.json", '{"gate": 0.5}'), "models/model.json does not say what model.pt saw"),
    (
        "trained",
        write("models/model.json", '{"trained": {"device": "cuda", "spacing": 1}}'),
        "inference.json: device is 'cpu', but model.pt was trained with 'cuda'",
    ),
    ("chosen", write("models/model.json", '{"chosen": {"gate": 7}}'), "models/model.json, chosen, gate: expected a"),
    ("chosen", write("models/model.json", '{"chosen": [1]}'), "model.json: chosen is [1], no dict"),
    ("chosen", write("models/model.json", '{"chosen_from": {"weights_sha256": "0"}}'), "chosen for other weights"),
    *(
        ("readme", replace("docs/README.md", f"## {name}\n", "## Other\n"), f"no section {name!r}")
        for name in SECTIONS.split(", ")
    ),
    ("readme", replace("docs/README.md", "text", "![a](gone.png)"), "shows gone.png, which does not exist"),
    ("licenses", write("LICENSE", "all rights reserved"), "LICENSE is not the Apache License"),
    ("licenses", remove("docs/data_license.txt"), "docs/data_license.txt must state the terms"),
    ("licenses", write("docs/data_license.txt", " \n"), "docs/data_license.txt must state the terms"),
]
SLOW_BREAKS = [
    ("properties", change("inference", "evaluator", None), "inference.json cannot be checked: KeyError"),
    (
        "properties",
        change("evaluate", "evaluator", {"_target_": "types.SimpleNamespace", "postprocessing": "@inferer"}),
        "evaluate.json lacks the properties ['postprocessing']",
    ),
    ("network", change("inference", "network_def#channels", 3), "verify_net_in_out: "),
    ("torchscript", replace("scripts/networks.py", "logits =", "locals(); logits ="), 'explain "No TorchScript"'),
    (
        "torchscript",
        replace("scripts/networks.py", "return logits", "return logits[:, : 1 if torch.jit.is_scripting() else 2]"),
        "gives [1, 1], but the metadata say 2 channels",
    ),
    ("torchscript", change("metadata", FORMAT, None), f"cannot be checked (KeyError: '{FORMAT}')"),
    ("network", write("scripts/networks.py", "import os\nos._exit(3)\n"), "the check ended early: "),
]


def test_a_good_bundle_keeps_every_rule(small, capsys):
    """In a process such as a user starts; the other tests fork theirs."""
    verify(str(small))
    assert f"small: {len(QUICK) + len(SLOW)} rules kept" in capsys.readouterr().out


@pytest.mark.parametrize(("rule", "damage", "message"), BREAKS)
def test_each_rule_names_what_breaks_it(small, rule, damage, message):
    damage(small)
    found = problems(small, [getattr(rules, rule)], slow=())
    assert any(line.startswith(f"{rule}: ") and message in line for line in found), found


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(("rule", "damage", "message"), SLOW_BREAKS)
def test_each_rule_that_builds_the_network_names_what_breaks_it(small, rule, damage, message):
    damage(small)
    found = problems(small, [], slow=[rule])
    assert any(line.startswith(f"{rule}: ") and message in line for line in found), found


def test_every_rule_of_the_tables_has_a_break():
    assert {name for name, _, _ in BREAKS} == {rule.__name__ for rule in QUICK}
    assert {name for name, _, _ in SLOW_BREAKS} == set(SLOW)


@pytest.mark.usefixtures("forked")
def test_a_stated_reason_excuses_from_torchscript(small):
    replace("scripts/networks.py", "logits =", "locals(); logits =")(small)
    replace("docs/README.md", "text", "No TorchScript: the network looks at its local variables.")(small)
    assert problems(small, [], slow=["torchscript"]) == []


def test_configs_may_hold_addresses_divisions_and_relative_paths(small):
    for text in ("https://example.org/x", "$@a / @b", "$@a/2", "models/model.pt", "*/flair.nii.gz", "$x[1:]/y"):
        change("train", "harmless", text)(small)
        assert problems(small, [rules.paths], slow=()) == []


def test_all_failures_are_listed_at_once_and_the_command_fails(small):
    remove("LICENSE")(small)
    change("metadata", "version", "9")(small)
    change("inference", "dataset_dir", "/data/scans")(small)
    with pytest.raises(SystemExit) as stop:
        verify(str(small), quick=True)
    lines = str(stop.value).splitlines()
    assert lines[0] == f"small: {len(lines) - 1} failure(s)"
    assert {line.split(":")[0] for line in lines[1:]} >= {"files", "changelog", "paths", "licenses"}


def test_a_script_that_is_no_python_is_named(small):
    (small / "scripts" / "broken.py").write_text("import os\nx = (\n")
    told = "cannot be checked (ValueError: scripts/broken.py, line 2: '(' was never closed; mend it or take it out)"
    assert f"packages: {told}" in problems(small, QUICK, slow=())


def test_the_schema_can_be_given(small, tmp_path):
    (tmp_path / "strict.json").write_text(json.dumps({"required": ["eval_metrics"]}))
    with pytest.raises(SystemExit, match=r"schema: .*'eval_metrics' is a required property"):
        verify(str(small), schema_file=str(tmp_path / "strict.json"), quick=True)


def test_an_unknown_bundle_is_named():
    with pytest.raises(ValueError, match="there is no bundle nowhere; there are ensemble_gradcam_brats, gp_unet_brats"):
        verify("nowhere")


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("name", NAMES)
def test_our_bundles_keep_every_rule(name):
    assert problems(BUNDLES / name) == []


def test_a_rule_leaves_the_bundle_as_it_was(small, tmp_path):
    copy = shutil.copytree(small, tmp_path / "copy" / "small")
    problems(copy, QUICK, slow=())
    files = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert files == {path.relative_to(small): path.read_bytes() for path in small.rglob("*") if path.is_file()}
