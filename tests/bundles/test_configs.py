from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser

from common.data import make_datalist, write_datalist
from common.datasets import folder, write_phantom
from common.engines.ranges import CHOICES, OPTIONS, RANGES, out_of_range
from tests.bundles.conftest import read_json
from tests.pipeline import save
from tests.running import REPOSITORY, run_module

# Combinations of configs whose properties are checked, beside the three of `common verify`; what is overridden then (in
# all of them, or where a config takes part); and the modalities that `paper.json` asks for.
BUNDLES = {
    "gp_unet_brats": {
        "train": [
            *("train+lgg", "train+paper", "train+phantom+clinic", "train+lgg+train_refine", "train+t1ce"),
            *("train+train_refine+t1ce+t1ce_refine+t1ce_third", "train+lgg+train_supervised", "train+multi_gpu_train"),
            *("train+train_supervised+t1ce_gliomas", "train+train_refine+t1ce+t1ce_refine+t1ce_third+t1ce_fourth"),
            *("train+small+volumetric", "train+train_refine+small+volumetric"),
        ],
        "inference": [
            *("inference+paper", "evaluate+paper+paper_scores", "evaluate+calibrate", "inference+phantom+clinic"),
            *("evaluate+phantom", "evaluate+lgg_tested", "train+evaluate", "inference+t1ce"),
            *("inference+explanations", "inference+small+volumetric"),
        ],
        "paper": ("t1", "t2", "t1ce", "flair"),
        "paper_classes": ["healthy", "LGG", "HGG"],
        "overrides": {
            "t1ce_third": {"teacher_ckpt": "models/t1ce_classes.pt"},
            "t1ce_fourth": {"glioma_ckpt": "models/tested.pt"},
            "volumetric": {"teacher": "$@teacher_def"},  # there are no such weights
        },
    },
    "ensemble_gradcam_brats": {
        "train": [
            *("train+lgg", "train+paper", "train+prostate", "train+phantom", "train+lgg+train_refine"),
            *("train+lgg+train_supervised", "train+multi_gpu_train"),
        ],
        "inference": [
            *("inference+paper", "evaluate+paper+search", "evaluate+calibrate", "evaluate+panel+lgg_tested"),
            "inference+explanations",
        ],
        "paper": ("t1ce", "t2", "flair"),
        "paper_classes": ["none", "tumor"],
    },
    "tonno_mosmed": {
        "train": [
            *("train+lgg", "train+mosmed+paper", "train+phantom", "train+fast", "train+covid"),
            *("train+lgg+train_supervised", "train+multi_gpu_train"),
        ],
        "inference": [
            *("inference+fast", "inference+mosmed+paper", "inference+phantom", "evaluate+lgg+lgg_tested"),
            *("evaluate+mosmed+paper", "evaluate+calibrate", "evaluate+compare", "evaluate+ablation"),
            *("evaluate+covid+compare+covid_scans", "inference+explanations"),
        ],
        "paper": ("flair",),
        "paper_classes": ["none", "tumor"],
        "overrides": {
            "covid": {"organ": "brain", "stratify_by": []},
            "paper": {"backbone": "resnet10"},  # timm's needs timm
        },
    },
    "insight_ct": {
        "train": [
            *("train+covid", "train+phantom", "train+mosmed", "train+mosmed+paper", "train+covid+train_supervised"),
            *("train+covid+train_refine+train_draw", "train+covid+train_draw+draw_supervised"),
            *("train+covid+train_refine", "train+multi_gpu_train"),
        ],
        "inference": [
            *("inference+covid", "evaluate+covid", "inference+mosmed+paper", "inference+phantom", "evaluate+phantom"),
            *("evaluate+calibrate", "wsi_inference", "wsi_inference+wsi_evaluate", "wsi_inference+wsi_calibrate"),
            "inference+explanations",
        ],
        "paper": ("flair",),
        "paper_classes": ["none", "tumor"],
        "shape": (48, 48, 16),  # in smaller heads every stack of slices holds lesion
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
# What reaches the network: equal in training and inference.
NETWORK_INPUT = ["network_def", "preprocessing", "channels", "spacing", "organ", "normalize"]


def config(bundle: str, name: str) -> dict:
    return read_json(REPOSITORY / "bundles" / bundle / "configs" / f"{name}.json")


def over(names: str) -> str:
    """The configs in order: `evaluate.json` goes over `inference.json`."""
    return re.sub(r"\bevaluate\b", "inference+evaluate", names)


def runs(bundle: str) -> list[str]:
    """Combinations of configs, one for each config that says what to run."""
    found = []
    for path in sorted((REPOSITORY / "bundles" / bundle / "configs").glob("*.json")):
        content = read_json(path)
        if "run" in content:
            below = "train+" if "train" in path.stem else "inference+evaluate+"
            found.append(path.stem if "network_def" in content else f"{below}{path.stem}")
    return found


def write_data(folder_: Path, modalities: Sequence[str], classes: list[str], shape: tuple[int, int, int]) -> None:
    """A phantom of the given modalities with its datalist."""
    write_phantom(folder_, cases=5, shape=shape, modalities=4 if len(modalities) > 1 else 1, healthy_fraction=0.0)
    cases, options = folder(folder_, modalities=modalities), {"modalities": modalities, "fractions": (0.5, 0.25, 0.25)}
    datalist = make_datalist(cases, name="phantom", classes=classes, dataset_dir=folder_, **options)
    write_datalist(folder_ / "datalist.json", datalist)
    for case in datalist["training"] + datalist["validation"] + datalist["test"]:
        case["cls"] = max(case["cls"])
    write_datalist(folder_ / "slides.json", datalist)  # a slide has one label


@pytest.fixture(scope="module")
def found_in(tmp_path_factory) -> Callable[[str], dict]:
    """What MONAI misses in each of a bundle's combinations, and how wrong settings end a run; in one process."""
    found: dict[str, dict] = {}

    def check(bundle: str) -> dict:
        if bundle not in found:
            plain, paper = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("paper")
            shape = BUNDLES[bundle].get("shape", (32, 32, 16))
            write_data(plain, ("flair",), ["none", "tumor"], shape)
            write_data(paper, BUNDLES[bundle]["paper"], BUNDLES[bundle]["paper_classes"], shape)
            checks = [("run", names, {"datset_dir": "data", "datalist": 1}) for names in runs(bundle)]
            for kind in ("train", "inference"):
                for names in BUNDLES[bundle][kind]:
                    data = paper if "paper" in names else plain
                    listed = data / ("slides.json" if "wsi" in names else "datalist.json")
                    overrides = {"dataset_dir": str(data), "datalist": str(listed), "device": "cpu"}
                    overrides |= {"output_dir": str(data / "out"), "progress": False}
                    if kind == "inference":
                        overrides["check_range"] = False  # the shipped weights saw other images
                    if "train_refine" in names:
                        overrides["teacher_ckpt"] = "models/model.pt"
                    for config, values in BUNDLES[bundle].get("overrides", {}).items():
                        overrides |= values if config in ("", *names.split("+")) else {}
                    checks.append((kind, over(names), overrides))
            weights = {"encoder_weights": None} if bundle == "insight_ct" else {}
            checks += [("network", names, {"channels": 2} | weights) for names in ("inference", "inference+phantom")]
            checks.sort(key=lambda check: "multi_gpu_train" in check[1])  # what it starts stays for what follows
            done = run_module("tests.bundles.check_properties", json.dumps(checks), cwd=REPOSITORY / "bundles" / bundle)
            assert done.returncode == 0, done.stderr[-3000:]
            found[bundle] = json.loads(done.stdout.splitlines()[-1])
        return found[bundle]

    return check


@pytest.mark.parametrize(
    ("bundle", "kind", "names"),
    [(b, kind, names) for b in NAMES for kind in ("train", "inference") for names in BUNDLES[b][kind]],
)
def test_configs_have_every_property_that_monai_asks_for(bundle, kind, names, found_in):
    assert found_in(bundle)[f"{kind} {over(names)}"] == []


@pytest.mark.parametrize(("bundle", "names"), [(bundle, names) for bundle in NAMES for names in runs(bundle)])
def test_every_run_begins_with_a_check_of_its_settings(bundle, names, found_in):
    said = found_in(bundle)[f"run {names}"].splitlines()
    assert said[0] == "2 settings are wrong:"
    assert said[1] == "--datset_dir: the configs of this run have no such key; did you mean dataset_dir?"
    assert said[2] == "--datalist: expected a path, got a whole number: 1; write ./1"


def test_every_config_keeps_to_the_ranges_of_its_keys_and_every_range_is_of_a_key():
    contents = [read_json(path) for path in sorted(REPOSITORY.glob("bundles/*/configs/*.json"))]
    assert [line for content in contents for line in out_of_range(content)] == []
    known = {key for content in contents for key in content}
    known |= {f"{key}#{inner}" for content in contents for key, value in content.items() for inner in _inner(value)}
    ranged = {key for keys in RANGES.values() for key in keys.split()} | {*CHOICES, *OPTIONS}
    assert ranged <= known


def _inner(value: object) -> list[str]:
    return [*value] if isinstance(value, dict) else []


@pytest.mark.parametrize("bundle", NAMES)
@pytest.mark.parametrize("names", ["inference", "inference+phantom"])
def test_two_modalities_go_through_every_network(bundle, names, found_in):
    shape = found_in(bundle)[f"network {names}"]
    assert (shape[0], len(shape)) == (2, 4 if bundle == "insight_ct" else 2)


@pytest.mark.parametrize("bundle", NAMES)
@pytest.mark.parametrize("key", NETWORK_INPUT)
def test_what_the_network_sees_is_the_same_in_training_and_inference(bundle, key):
    assert config(bundle, "train")[key] == enabled(config(bundle, "inference"), key)


def enabled(content: dict, key: str) -> object:
    """An item; `insight_ct` infers with one network or the other, and trains them by configs of their own."""
    item = content["insight" if key == "network_def" and "insight" in content else key]
    return {name: value for name, value in item.items() if name != "_disabled_"} if isinstance(item, dict) else item


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
    """Weights aside, which a checkpoint brings; the shipped ones are of the last training that the bundle has."""
    train, inference = config(bundle, "train"), config(bundle, "inference")
    for more in ("train_refine", "train_draw"):
        train |= config(bundle, more) if (REPOSITORY / f"bundles/{bundle}/configs/{more}.json").is_file() else {}
    for key in referred(inference, "network_def") - {"encoder_weights", "pretrained", "insight", "drawn"}:
        assert train[key] == enabled(inference, key), key


@pytest.mark.parametrize("bundle", NAMES)
def test_evaluation_replaces_nothing_of_inference_but_the_cases(bundle):
    """So masks are made alike: what it adds are entries that inference does not have."""
    inference, evaluate = config(bundle, "inference"), config(bundle, "evaluate")
    parser = parsed(bundle, "inference")
    replaced = {key for key in evaluate if key[0] != "+" and key.partition("#")[0] in inference}
    assert replaced == {"datalist", "dataset#data"}
    added = [key[1:] for key in evaluate if key[0] == "+"]
    assert {"imports", "postprocessing#transforms", "handlers"} <= set(added)
    for key in added:
        assert isinstance(parser[key], list) or not parser[key].keys() & evaluate[f"+{key}"].keys()


@pytest.mark.parametrize("bundle", NAMES)
def test_validation_is_preprocessed_as_training_is(bundle):
    train = config(bundle, "train")
    assert train["train"]["preprocessing"] == "@preprocessing"
    validate = train["validate"]
    preprocessing = validate.get("bags", validate["dataset"])["preprocessing"]
    assert preprocessing.replace("train#", "") == "@preprocessing"


def parsed(bundle: str, *names: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(REPOSITORY / "bundles" / bundle / "configs" / f"{name}.json") for name in names])
    return parser


def test_paper_config_of_gp_unet_builds_the_papers_network():
    parser = parsed("gp_unet_brats", "inference", "paper")
    assert (parser.get("backbone"), parser.get("network_options"), parser.get("pool_at")) == ("gp_unet", {}, "features")
    assert (parser.get("channels"), len(parser.get("classes"))) == (4, 3)


def test_paper_config_of_the_ensemble_is_the_papers():
    parser = parsed("ensemble_gradcam_brats", "inference", "paper")
    assert parser.get("members") == ["resnet34", "resnet50"]
    assert (parser.get("cam"), parser.get("combine"), parser.get("frame_threshold")) == ("GradCAM", "and", 0.8)
    assert (parser.get("crop"), parser.get("organ_options")) == (True, {"size": [128, 128, 128]})
    assert (parser.get("channels"), parser.get("cam_channel")) == (3, 2)


def test_covid_config_of_tonno_takes_the_organ_from_its_file(tmp_path):
    volume = np.random.default_rng(0).integers(1, 200, (12, 10, 8)).astype(np.float32)
    organ = np.zeros_like(volume)
    organ[2:9, 3:7, 1:6] = 1
    case = {"image": save(tmp_path / "ct.nii.gz", volume), "organ": save(tmp_path / "lung.nii.gz", organ)}
    for name in ("train", "inference"):
        parser = parsed("tonno_mosmed", name, "covid")
        parser["seen"] = None
        image = parser.get_parsed_content("preprocessing")(dict(case))["image"]
        assert image.shape[0] == 2
        assert image[1].sum() == organ.sum()
        assert image[0].max() > 0
        assert image[0][image[1] == 0].abs().max() == 0


def test_presets_of_tonno_are_the_papers_and_the_fast_one():
    paper, fast = config("tonno_mosmed", "paper"), config("tonno_mosmed", "fast")
    assert (paper["num_slices"], paper["num_directions"], paper["size"]) == (100, 2000, 224)
    assert (paper["layout"], paper["hemisphere"], paper["geometry"]) == ("fibonacci", False, "paper")
    assert (paper["backbone"], paper["norm"], paper["pretrained"]) == ("timm/resnet10t.c3_in1k", "frozen_batch", None)
    assert (fast["num_slices"], fast["num_directions"], fast["size"]) == (50, 500, 128)


@pytest.mark.parametrize(
    ("bundle", "file", "configs"),
    [("insight_ct", "ablation_variants", ("train", "covid")), ("tonno_mosmed", "norm_variants", ("train",))],
)
def test_variants_of_an_ablation_change_keys_that_the_configs_have(bundle, file, configs):
    """A misspelled key would be taken without a word, and the variant be the method itself."""
    variants = read_json(REPOSITORY / "bundles" / bundle / "docs" / f"{file}.json")
    base = {key: value for name in configs for key, value in config(bundle, name).items()}
    for name, changes in variants.items():
        assert changes.keys() <= base.keys(), name
        assert all(base[key] != value for key, value in changes.items()), name
    assert len({json.dumps(changes, sort_keys=True) for changes in variants.values()}) == len(variants)


@pytest.mark.parametrize("bundle", NAMES)
def test_monai_label_takes_the_weights_of_the_inference(bundle):
    """Of all `models/*.pt` it runs those with the shortest name, unless told otherwise."""
    names = [path.name for path in (REPOSITORY / "bundles" / bundle / "models").glob("*.pt")]
    assert [name for name in names if len(name) <= len("model.pt")] == ["model.pt"]
