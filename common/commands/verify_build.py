"""The rules of `verify` that build a bundle: `python -m common.commands.verify_build RULE …` in the bundle's root.

They share a process of their own, because two bundles in one would share one `scripts`. Its last line is what the rules
found.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow, ckpt_export, verify_net_in_out

from ..files import read_json
from .phantom import phantom_dataset

# What is run with each config, over which others.
WORKFLOWS = {
    "train": ("train", ["train"]),
    "evaluate": ("inference", ["inference", "evaluate"]),
    "inference": ("inference", ["inference"]),
}


def properties(root: Path) -> Iterator[str]:
    """MONAI's `check_properties` finds all that it asks for, in training, evaluation and inference."""
    channels = read_json(root / "configs" / "inference.json").get("channels", 1)
    with tempfile.TemporaryDirectory() as folder:
        data = phantom_dataset(Path(folder) / "data", cases=10, modalities=channels)
        overrides: dict[str, Any] = {"dataset_dir": str(data), "datalist": str(data / "datalist.json")}
        patterns = [f"*/{name}.nii.gz" for name in read_json(data / "datalist.json")["modalities"]]
        overrides |= {"image_pattern": patterns if channels > 1 else patterns[0], "output_dir": folder}
        overrides |= {"device": "cpu", "progress": False}
        for name, (kind, configs) in WORKFLOWS.items():
            try:
                if lacking := missing_properties(root, kind, configs, **overrides):
                    yield f"{name}.json lacks the properties {lacking}"
            except Exception as error:
                yield f"{name}.json cannot be checked: {_shown(error)}"


def missing_properties(root: Path, kind: str, configs: list[str], **overrides: Any) -> list[str]:
    """What MONAI's `check_properties` misses in a workflow of the `kind` "train" or "inference"."""
    workflow = ConfigWorkflow(
        config_file=[str(root / "configs" / f"{name}.json") for name in configs],
        meta_file=str(root / "configs" / "metadata.json"),
        logging_file=str(root / "configs" / "logging.conf"),
        workflow_type=kind,
        **overrides,
    )
    workflow.initialize()
    return workflow.check_properties() or []


def network(root: Path) -> Iterator[str]:
    """MONAI's `verify_net_in_out`: the network takes and gives what the metadata say."""
    try:
        verify_net_in_out("network_def", device="cpu", **_files(root))
    except Exception as error:
        yield f"verify_net_in_out: {_shown(error)}"


def torchscript(root: Path) -> Iterator[str]:
    """The weights export to TorchScript, or `docs/README.md` says "No TorchScript" and why; channels stay the same."""
    formats = read_json(root / "configs" / "metadata.json")["network_data_format"]
    given, expected = formats["inputs"]["image"]["num_channels"], formats["outputs"]["pred"]["num_channels"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/model.ts"
            ckpt_export("network_def", file, ckpt_file=str(root / "models" / "model.pt"), **_files(root))
            shape = list(torch.jit.load(file).eval()(torch.rand(1, given, 32, 32)).shape)
    except Exception as error:
        if not re.search(r"no torchscript", (root / "docs" / "README.md").read_text(encoding="utf-8"), re.IGNORECASE):
            yield f'ckpt_export: {_shown(error)}; repair it, or explain "No TorchScript" in docs/README.md'
        return
    if shape[:2] != [1, expected]:
        yield f"ckpt_export: the exported network gives {shape}, but the metadata say {expected} channels"


def _files(root: Path) -> dict[str, Any]:
    configs = root / "configs"
    return {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json")}


def _shown(error: Exception) -> str:
    """The last line of a traceback, which names the error."""
    return traceback.format_exception_only(error)[-1].strip().splitlines()[-1][:300]


RULES = {rule.__name__: rule for rule in (properties, network, torchscript)}


def found(name: str, root: Path) -> list[str]:
    """What the rule of that name finds; one that cannot be checked says why."""
    try:
        return list(RULES[name](root))
    except Exception as error:  # what another rule reports, or a broken file
        return [f"cannot be checked ({_shown(error)})"]


if __name__ == "__main__":
    print(json.dumps({name: found(name, Path.cwd()) for name in sys.argv[1:]}))
