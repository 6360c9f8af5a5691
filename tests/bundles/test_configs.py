from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from common.data import make_datalist, write_datalist
from common.datasets import MODALITIES, folder, write_phantom
from tests.bundles.conftest import REPOSITORY, monai_bundle, read_json
from tests.pipeline import save

# Config combinations whose properties are checked, what is overridden then (in all of them, or where a config takes
# part), and the modalities that `paper.json` asks for.
BUNDLES = {
    "gp_unet_brats": {
        "train": [
            "train",
            "train+lgg",
            "train+paper",
            "train+phantom",
            "train+lgg+train_refine",
            "train+multi_gpu_train",
        ],
        "inference": [
            *("inference", "evaluate", "inference+paper", "evaluate+paper", "evaluate+calibrate"),
            *("inference+phantom", "evaluate+phantom", "train+evaluate"),
        ],
        "paper": MODALITIES,
        "paper_classes": ["healthy", "LGG", "HGG"],
    },
    "ensemble_gradcam_brats": {
        "train": ["train+lgg", "train+paper", "train+prostate", "train+phantom", "train+multi_gpu_train"],
        "inference": ["inference", "inference+paper", "evaluate+paper+search", "evaluate+calibrate", "evaluate+panel"],
        "paper": ("t1ce", "t2", "flair"),
        "paper_classes": ["none", "tumor"],
    },
    "tonno_mosmed": {
        "train": [
            *("train", "train+lgg", "train+mosmed+paper", "train+phantom", "train+fast", "train+covid"),
            "train+multi_gpu_train",
        ],
        "inference": [
            *("inference", "inference+fast", "inference+mosmed+paper", "inference+phantom", "evaluate+lgg"),
            *("evaluate+mosmed+paper", "evaluate+calibrate", "evaluate+compare", "evaluate+ablation"),
            "evaluate+covid+compare+covid_scans",
        ],
        "paper": ("flair",),
        "paper_classes": ["none", "tumor"],
        "overrides": {"covid": {"organ": "brain", "stratify_by": []}},
    },
    "insight_ct": {
        "train": [
            *("train", "train+covid", "train+phantom", "train+mosmed", "train+mosmed+paper"),
            *("train+covid+train_refine", "train+covid+train_supervised", "train+multi_gpu_train"),
        ],
        "inference": [
            *("inference", "evaluate", "inference+covid", "evaluate+covid", "inference+mosmed+paper"),
            *("inference+phantom", "evaluate+phantom", "evaluate+calibrate", "wsi_inference"),
        ],
        "paper": ("flair",),
        "paper_classes": ["none", "tumor"],
        # Features are computed: of small images, by weights that are nowhere to be fetched.
        "overrides": {
            "": {"organ": "brain", "zoom": 1.0, "encoder_weights": None},
            "covid": {"stratify_by": []},
            "train_refine": {"teacher": "$@teacher_def"},  # shipped weights belong to another encoder
            "paper": {"encoder_name": "dinov2_vits14_reg", "size": 28, "shape": [28, 28, -1]},
        },
    },
}
NAMES = sorted(BUNDLES)
# What reaches the network: equal in training, evaluation and inference.
NETWORK_INPUT = ["network_def", "preprocessing", "channels", "spacing", "organ", "normalize"]
# What makes the mask: equal in evaluation and inference.
MASK_KEYS = ["inferer", "gate", "gate_smooth_mm", "threshold", "refine", "min_volume_ml", "flip"]


def config(bundle: str, name: str) -> dict:
    return read_json(REPOSITORY / "bundles" / bundle / "configs" / f"{name}.json")


CHECK = """
import json, os, sys
import torch
from monai.bundle import ConfigWorkflow

for kind, names, overrides in json.loads(sys.argv[1]):
    if "multi_gpu_train" in names:
        os.environ["LOCAL_RANK"] = "0"
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    workflow = ConfigWorkflow(
        config_file=[f"configs/{name}.json" for name in names.split("+")],
        meta_file="configs/metadata.json",
        workflow_type=kind,
        logging_file="configs/logging.conf",
        **overrides,
    )
    workflow.initialize()
    print("PROPERTIES", kind, names, json.dumps(workflow.check_properties()))
"""


def write_data(folder_: Path, modalities: Sequence[str], classes: list[str]) -> None:
    """A phantom of the given modalities with its datalist."""
    write_phantom(folder_, cases=6, modalities=1 if len(modalities) == 1 else 4, healthy_fraction=0.0)
    datalist = make_datalist(
        folder(folder_, modalities=modalities),
        name="phantom",
        classes=classes,
        modalities=modalities,
        dataset_dir=folder_,
        fractions=(0.5, 0.25, 0.25),
    )
    write_datalist(folder_ / "datalist.json", datalist)


@pytest.fixture(scope="module")
def properties(tmp_path_factory) -> Callable[[str], str]:
    """What MONAI misses in a bundle's combinations, found in one process: starting one takes longer than a check."""
    found: dict[str, str] = {}

    def check(bundle: str) -> str:
        if bundle not in found:
            plain, paper = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("paper")
            write_data(plain, ("flair",), ["none", "tumor"])
            write_data(paper, BUNDLES[bundle]["paper"], BUNDLES[bundle]["paper_classes"])
            runs = []
            for kind in ("train", "inference"):
                for names in BUNDLES[bundle][kind]:
                    data = paper if "paper" in names else plain
                    overrides = {"dataset_dir": str(data), "datalist": str(data / "datalist.json"), "device": "cpu"}
                    overrides |= {"output_dir": str(data / "out"), "progress": False}
                    if "train_refine" in names:
                        overrides["teacher_ckpt"] = "models/model.pt"
                    for config, values in BUNDLES[bundle].get("overrides", {}).items():
                        overrides |= values if config in ("", *names.split("+")) else {}
                    runs.append((kind, names, overrides))
            runs.sort(key=lambda run: "multi_gpu_train" in run[1])  # what it starts stays for what follows
            command = [sys.executable, "-c", CHECK, json.dumps(runs)]
            root = REPOSITORY / "bundles" / bundle
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)
            found[bundle] = done.stdout + done.stderr[-3000:]
        return found[bundle]

    return check


@pytest.mark.parametrize(
    ("bundle", "kind", "names"),
    [(b, kind, names) for b in NAMES for kind in ("train", "inference") for names in BUNDLES[b][kind]],
)
def test_configs_have_every_property_that_monai_asks_for(bundle, kind, names, properties):
    assert f"PROPERTIES {kind} {names} []" in properties(bundle), properties(bundle)[-4000:]


@pytest.mark.parametrize("bundle", NAMES)
@pytest.mark.parametrize("key", NETWORK_INPUT)
def test_what_the_network_sees_is_the_same_in_training_evaluation_and_inference(bundle, key):
    train, evaluate, inference = (config(bundle, n)[key] for n in ("train", "evaluate", "inference"))
    assert train == evaluate == inference


def referred(content: dict, key: str) -> set[str]:
    """Top-level keys that an item refers to, directly or through others."""
    found: set[str] = set()
    ahead = [key]
    while ahead:
        names = set(re.findall(r"@(\w+)", json.dumps(content[ahead.pop()]))) - found
        found |= names
        ahead += names
    return found


@pytest.mark.parametrize("bundle", NAMES)
def test_every_key_that_the_network_refers_to_is_the_same_too(bundle):
    """Weights aside, which a checkpoint brings."""
    for key in referred(config(bundle, "inference"), "network_def") - {"encoder_weights", "pretrained"}:
        train, evaluate, inference = (config(bundle, n)[key] for n in ("train", "evaluate", "inference"))
        assert train == evaluate == inference, key


@pytest.mark.parametrize("bundle", NAMES)
def test_validation_is_preprocessed_as_training_is(bundle):
    train = config(bundle, "train")
    assert train["train"]["preprocessing"] == "@preprocessing"
    validate = train["validate"]
    preprocessing = validate.get("bags", validate["dataset"])["preprocessing"]
    assert preprocessing.replace("train#", "") == "@preprocessing"


@pytest.mark.parametrize("bundle", NAMES)
def test_evaluation_makes_masks_as_inference_does(bundle):
    inference, evaluate = config(bundle, "inference"), config(bundle, "evaluate")
    for step in inference["postprocessing"]["transforms"]:
        if step["_target_"] == "Invertd":  # evaluation brings the baselines' masks back too
            continue
        same = next(s for s in evaluate["postprocessing"]["transforms"] if s["_target_"] == step["_target_"])
        assert {key: same.get(key) for key in step} == step
        for value in step.values():
            if str(value).startswith("@"):
                assert inference[value[1:]] == evaluate[value[1:]], value
    for key in MASK_KEYS:
        assert inference.get(key) == evaluate.get(key), key
    for value in inference["inferer"].values():
        if str(value).startswith("@"):
            assert inference[value[1:]] == evaluate[value[1:]], value


@pytest.mark.parametrize("bundle", NAMES)
def test_inference_needs_no_other_file(bundle):
    text = (REPOSITORY / "bundles" / bundle / "configs" / "inference.json").read_text()
    assert "%" not in text
    assert "_meta_" not in text


def parsed(bundle: str, *names: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(REPOSITORY / "bundles" / bundle / "configs" / f"{name}.json") for name in names])
    return parser


def test_paper_config_of_gp_unet_builds_the_papers_network():
    parser = parsed("gp_unet_brats", "inference", "paper")
    network = parser.get("network_def")
    assert (network["features"], network["upsample"], network["pool_at"]) == ([64, 128, 256], "sinc", "features")
    assert (parser.get("channels"), len(parser.get("classes"))) == (4, 3)


def test_paper_config_of_the_ensemble_is_the_papers():
    parser = parsed("ensemble_gradcam_brats", "inference", "paper")
    assert parser.get("members") == ["resnet34", "resnet50"]
    assert (parser.get("cam"), parser.get("combine"), parser.get("intensity_mask")) == ("GradCAM", "and", 0.8)
    assert (parser.get("channels"), parser.get("cam_channel")) == (3, 2)


def test_covid_config_of_tonno_takes_the_organ_from_its_file(tmp_path):
    volume = np.random.default_rng(0).integers(1, 200, (12, 10, 8)).astype(np.float32)
    organ = np.zeros_like(volume)
    organ[2:9, 3:7, 1:6] = 1
    case = {"image": save(tmp_path / "ct.nii.gz", volume), "organ": save(tmp_path / "lung.nii.gz", organ)}
    for name in ("train", "inference", "evaluate"):
        image = parsed("tonno_mosmed", name, "covid").get_parsed_content("preprocessing")(dict(case))["image"]
        assert image.shape[0] == 2
        assert image[1].sum() == organ.sum()
        assert image[0].max() > 0
        assert image[0][image[1] == 0].abs().max() == 0


def test_presets_of_tonno_are_the_papers_and_the_fast_one():
    paper, fast = config("tonno_mosmed", "paper"), config("tonno_mosmed", "fast")
    assert (paper["num_slices"], paper["num_directions"], paper["size"]) == (100, 2000, 224)
    assert (paper["layout"], paper["hemisphere"], paper["geometry"]) == ("fibonacci", False, "paper")
    assert (fast["num_slices"], fast["num_directions"], fast["size"]) == (50, 500, 128)


def test_variants_of_insights_ablation_change_keys_that_the_configs_have():
    """A misspelled key would be taken without a word, and the variant be the method itself."""
    variants = read_json(REPOSITORY / "bundles" / "insight_ct" / "docs" / "ablation_variants.json")
    base = config("insight_ct", "train") | config("insight_ct", "covid")
    for name, changes in variants.items():
        assert changes.keys() <= base.keys(), name
        assert all(base[key] != value for key, value in changes.items()), name
        assert None not in changes.values(), f"{name}: MONAI's command line ignores None; '$None' is what it takes"
    assert len({json.dumps(changes, sort_keys=True) for changes in variants.values()}) == len(variants)


@pytest.mark.parametrize("bundle", NAMES)
def test_metadata_has_what_the_schema_requires(bundle):
    metadata = config(bundle, "metadata")
    required = "schema version monai_version pytorch_version numpy_version required_packages_version task description"
    assert set((required + " authors copyright network_data_format").split()) <= set(metadata)
    assert metadata["version"] in metadata["changelog"]
    formats = metadata["network_data_format"]
    for tensor in (*formats["inputs"].values(), formats["outputs"]["pred"]):
        needed = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"}
        assert needed <= set(tensor)
    channels = formats["outputs"]["pred"]["channel_def"]
    assert len(config(bundle, "inference")["classes"]) == len(channels)
    assert list(channels) == [str(i) for i in range(len(channels))]


@pytest.mark.parametrize("bundle", NAMES)
def test_network_takes_and_gives_what_the_metadata_says(bundle):
    """From the bundle's root: `verify_net_in_out` and `ckpt_export` do not find `scripts` by themselves."""
    monai_bundle(
        *("verify_net_in_out", "--net_id", "network_def", "--device", "cpu"),
        *("--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"),
        cwd=REPOSITORY / "bundles" / bundle,
    )


@pytest.mark.parametrize("bundle", NAMES)
def test_shipped_weights_export_to_torchscript(bundle, tmp_path):
    target = tmp_path / "model.ts"
    monai_bundle(
        *("ckpt_export", "--net_id", "network_def", "--filepath", str(target), "--ckpt_file", "models/model.pt"),
        *("--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"),
        cwd=REPOSITORY / "bundles" / bundle,
    )
    exported = torch.jit.load(target).eval()
    inputs = config(bundle, "metadata")["network_data_format"]["inputs"]["image"]
    outputs = config(bundle, "metadata")["network_data_format"]["outputs"]["pred"]
    output = exported(torch.rand(1, inputs["num_channels"], 32, 32))
    assert output.shape[:2] == (1, outputs["num_channels"])


@pytest.mark.parametrize("bundle", NAMES)
def test_shipped_weights_are_a_small_plain_state_dict(bundle):
    path = REPOSITORY / "bundles" / bundle / "models" / "model.pt"
    assert path.stat().st_size < 25 * 2**20
    state = torch.load(path, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
