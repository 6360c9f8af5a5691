from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from common.adapters import folder
from common.data import make_datalist, write_datalist
from common.phantom import MODALITIES, write_phantom

from .conftest import REPOSITORY, monai_bundle, read_json

ROOT = REPOSITORY / "bundles" / "gp_unet_brats"
CONFIGS = ROOT / "configs"
NETWORK_INPUT = {"network_def", "preprocessing", "channels", "spacing", "organ", "normalize"}

TRAINING = [["train"], ["train", "lgg"], ["train", "paper"], ["train", "phantom"], ["train", "lgg", "train_refine"]]
TRAINING += [["train", "multi_gpu_train"]]
INFERENCE = [["inference"], ["evaluate"], ["inference", "paper"], ["evaluate", "paper"], ["evaluate", "calibrate"]]
INFERENCE += [["inference", "phantom"], ["evaluate", "phantom"], ["train", "evaluate"]]


def files(names: list[str]) -> list[str]:
    return [str(CONFIGS / f"{name}.json") for name in names]


CHECK = """
import json, os, sys
import torch
from monai.bundle import ConfigWorkflow

names, kind, overrides = json.loads(sys.argv[1])
if "multi_gpu_train" in names:
    os.environ["LOCAL_RANK"] = "0"
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
workflow = ConfigWorkflow(
    config_file=[f"configs/{name}.json" for name in names],
    meta_file="configs/metadata.json",
    workflow_type=kind,
    logging_file="configs/logging.conf",
    **overrides,
)
workflow.initialize()
print("PROPERTIES", json.dumps(workflow.check_properties()))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[int, Path]:
    """Phantoms of one and of four modalities with their datalists, by number of modalities."""
    folders = {}
    for channels, modalities in ((1, ("flair",)), (4, MODALITIES)):
        folders[channels] = tmp_path_factory.mktemp(f"phantom{channels}")
        write_phantom(folders[channels], cases=6, modalities=channels, healthy_fraction=0.0)
        classes = ["none", "tumour"] if channels == 1 else ["healthy", "LGG", "HGG"]
        datalist = make_datalist(
            folder(folders[channels], modalities=modalities),
            name="phantom",
            classes=classes,
            modalities=modalities,
            dataset_dir=folders[channels],
            fractions=(0.5, 0.25, 0.25),
        )
        write_datalist(folders[channels] / "datalist.json", datalist)
    return folders


@pytest.mark.parametrize(
    ("names", "kind"),
    [(names, "train") for names in TRAINING] + [(names, "inference") for names in INFERENCE],
    ids=lambda value: "+".join(value) if isinstance(value, list) else value,
)
def test_configs_have_every_property_that_monai_asks_for(names, kind, data, tmp_path):
    dataset_dir = data[4 if "paper" in names else 1]
    overrides = {"dataset_dir": str(dataset_dir), "output_dir": str(tmp_path), "device": "cpu", "progress": False}
    overrides["datalist"] = str(dataset_dir / "datalist.json")
    if "train_refine" in names:
        overrides["teacher_ckpt"] = "models/model.pt"
    done = subprocess.run(
        [sys.executable, "-c", CHECK, json.dumps([names, kind, overrides])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "PROPERTIES []" in done.stdout, done.stdout[-1500:] + done.stderr[-3000:]


@pytest.mark.parametrize("key", sorted(NETWORK_INPUT))
def test_what_the_network_sees_is_the_same_in_training_evaluation_and_inference(key):
    train, evaluate, inference = (read_json(CONFIGS / f"{n}.json")[key] for n in ("train", "evaluate", "inference"))
    assert train == evaluate == inference


def test_validation_is_preprocessed_as_training_is():
    train = read_json(CONFIGS / "train.json")
    assert train["train"]["preprocessing"] == "@preprocessing"
    assert train["validate"]["dataset"]["preprocessing"] == "@train#preprocessing"


def test_evaluation_postprocesses_as_inference_does():
    def mask_step(name: str) -> dict:
        return read_json(CONFIGS / f"{name}.json")["postprocessing"]["transforms"][0]

    assert mask_step("inference") == mask_step("evaluate")
    for key in (
        "gate",
        "gate_smooth_mm",
        "threshold",
        "refine",
        "binarize",
        "offset",
        "clean",
        "min_volume_ml",
        "flip",
    ):
        assert read_json(CONFIGS / "inference.json")[key] == read_json(CONFIGS / "evaluate.json")[key], key


def test_inference_needs_no_other_file():
    assert "%" not in (CONFIGS / "inference.json").read_text()
    assert "_meta_" not in (CONFIGS / "inference.json").read_text()


def test_paper_config_builds_the_papers_network():
    parser = ConfigParser()
    parser.read_config(files(["inference", "paper"]))
    network = parser.get("network_def")
    assert (network["features"], network["upsample"], network["pool_at"]) == ([64, 128, 256], "sinc", "features")
    assert (parser.get("channels"), len(parser.get("classes"))) == (4, 3)


def test_metadata_has_what_the_schema_requires():
    metadata = read_json(CONFIGS / "metadata.json")
    required = "schema version monai_version pytorch_version numpy_version required_packages_version task description"
    assert set((required + " authors copyright network_data_format").split()) <= set(metadata)
    assert metadata["version"] in metadata["changelog"]
    for tensor in (
        *metadata["network_data_format"]["inputs"].values(),
        metadata["network_data_format"]["outputs"]["pred"],
    ):
        needed = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"}
        assert needed <= set(tensor)
    assert read_json(CONFIGS / "inference.json")["classes"] == ["none", "tumour"]
    assert list(metadata["network_data_format"]["outputs"]["pred"]["channel_def"]) == ["0", "1"]


@pytest.fixture
def bundle_path(monkeypatch) -> Path:
    """`verify_net_in_out` and `ckpt_export` do not find `scripts` by themselves: run from the bundle's root."""
    monkeypatch.chdir(ROOT)
    return ROOT


def test_network_takes_and_gives_what_the_metadata_says(bundle_path):
    monai_bundle(
        *("verify_net_in_out", "--net_id", "network_def", "--device", "cpu"),
        *("--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"),
        cwd=bundle_path,
    )


def test_shipped_weights_export_to_torchscript(bundle_path, tmp_path):
    target = tmp_path / "model.ts"
    monai_bundle(
        *("ckpt_export", "--net_id", "network_def", "--filepath", str(target), "--ckpt_file", "models/model.pt"),
        *("--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"),
        cwd=bundle_path,
    )
    exported = torch.jit.load(target).eval()
    assert exported(torch.rand(1, 2, 32, 32)).shape == (1, 2)


def test_shipped_weights_are_a_small_plain_state_dict():
    path = ROOT / "models" / "model.pt"
    assert path.stat().st_size < 25 * 2**20
    state = torch.load(path, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
