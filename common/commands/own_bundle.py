"""A bundle of one's own: that of a method, with the settings of a data set in its configs, ready for its weights."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver

from ..data import labels_slices
from ..data.splits import tells_classes_apart
from ..engines.settings import tops
from ..files import read_json, write
from ..preprocessing.channels import channel_names
from .fit_patterns import in_command, pattern_of
from .format import format_json
from .run import bundle_root, config_files

# Configs of a method; those of public data sets and of papers' settings stay behind.
CONFIGS = (
    *("train", "train_refine", "train_draw", "inference", "evaluate", "calibrate", "calibrate_labels"),
    *("multi_gpu_train", "multi_gpu_evaluate", "metadata", "paper_scores"),
)
OVERLAID = ("train", "inference", "evaluate", "multi_gpu_train", "multi_gpu_evaluate")
# Configs of whole slides; the first lies over `train`, the second over that and `train_refine`.
SLIDE_CONFIGS = ("wsi", "wsi_refine", "wsi_inference", "wsi_evaluate", "wsi_calibrate")
# Training where no label is negative: each class is drawn as often, and there are no positives and negatives to rank.
CLASSES_ALONE = {"imbalance": "balanced", "key_metric": {"median_loss": {"_target_": "common.handlers.MedianLoss"}}}
TERMS = "{source}: whoever trained these weights states here where the data come from and their terms."
README = """# {name}

## Overview
{name}, learned from {told} of {kind}. Weights of this bundle were trained by `python -m common fit {bundle}`
on {source}.

Research only. Not for diagnosis or treatment.

## Data
{source}: {counts}. Where the data come from and under what terms: `docs/data_license.txt`.

## Training
From {told} alone; no outline was used. Settings: `configs/{train}.json`.

## Input and output
{inputs}. Output: mask, heatmap and picture of each case, `predictions.csv`. `models/{weights}.json` says what the
weights saw in training, and gate, threshold and refinement with what they were chosen from.{beside}

## Performance
What `fit` measured lies beside this bundle, in `evaluation/`: {measured}.

## Commands
```
python -m monai.bundle run --config_file configs/{inference}.json --dataset_dir DIR --image_pattern "{pattern}" \\
    --output_dir OUT
```

## References
{references}

## License
Apache-2.0 (`LICENSE`). Data: `docs/data_license.txt`.
"""


def make_bundle(
    bundle: str,
    target: Path,
    *,
    over: Sequence[str],
    settings: Mapping[str, Any],
    datalist: Path,
    counts: str,
    dataset_dir: str | Path | None = None,
) -> Path:
    """Write a bundle's code and configs to a folder of their own, and settings into these configs.

    Args:
        bundle: name under `bundles/`, or a path.
        target: the new bundle.
        over: config files laid over those of training and inference, in turn.
        settings: top-level keys, each for all configs that have it.
        datalist: of the data set, as `prepare` writes it.
        counts: the data set in words.
        dataset_dir: what paths of the datalist are relative to; it tells how images like these are found.

    Returns:
        `target`.
    """
    root = bundle_root(bundle)
    _copy_code(root, target)
    content = read_json(datalist)
    pattern = pattern_of(content, dataset_dir)
    laid = (CLASSES_ALONE if tells_classes_apart(content) else {}) | _laid(root, over)
    laid.pop("ckpt", None)  # of the weights that a config of a data set is for; here there will be others
    for name in CONFIGS:
        if (root / "configs" / f"{name}.json").is_file():
            config = read_json(root / "configs" / f"{name}.json")
            # A second round has a schedule of its own, and how thresholds are chosen is no matter of the data.
            below = laid if name in OVERLAID else {}
            changed = with_settings(config, {**below, "image_pattern": pattern, **settings})
            write(target / "configs" / f"{name}.json", format_json(changed))
    channels = read_json(root / "configs" / "inference.json")["channels"]
    pattern = settings.get("image_pattern", pattern)
    _describe(target, bundle=root.name, channels=channels, content=content, counts=counts, pattern=in_command(pattern))
    return target


def make_slide_bundle(
    bundle: str,
    target: Path,
    *,
    over: Sequence[str],
    settings: Mapping[str, Any],
    datalist: Path,
    counts: str,
    dataset_dir: str | Path | None = None,
) -> Path:
    """The same for whole slides: settings go into `wsi*.json`; what is for volumes, weights too, stays as shipped.

    Args:
        bundle, target, over, settings, datalist, counts, dataset_dir: see `make_bundle`.

    Returns:
        `target`.
    """
    root = bundle_root(bundle)
    _copy_code(root, target)
    for name in (*(f"configs/{name}.json" for name in CONFIGS), "models/model.pt", "models/model.json"):
        if (root / name).is_file():
            shutil.copy2(root / name, target / name)
    content = read_json(datalist)
    asked = {**_laid(root, over), "image_pattern": pattern_of(content, dataset_dir), **settings}
    training, wsi = (read_json(root / "configs" / f"{name}.json") for name in ("train", "wsi"))
    for name in SLIDE_CONFIGS:
        config = read_json(root / "configs" / f"{name}.json")
        # `wsi` lies over `train`, so it takes that one's keys as well; where both stages have a key, it is the first's.
        config |= {key: training[key] for key in tops(asked) & training.keys() - config.keys() if name == "wsi"}
        keys = tops(config) - (training.keys() | wsi.keys() if name == "wsi_refine" else set())
        changed = with_settings(config, {key: value for key, value in asked.items() if tops({key: value}) <= keys})
        write(target / "configs" / f"{name}.json", format_json(changed))
    pattern = in_command(asked["image_pattern"])
    _describe_slides(target, bundle=root.name, content=content, counts=counts, pattern=pattern)
    return target


def slide_settings(root: Path) -> set[str]:
    """Keys of a bundle's configs for slides: without those that only volumes have, as spacing and organ."""
    train, inference = (read_json(root / "configs" / f"{name}.json").keys() for name in ("train", "inference"))
    slides = (read_json(root / "configs" / f"{name}.json") for name in (*SLIDE_CONFIGS, "train_refine"))
    return (train - inference).union(*map(tops, slides))


def _copy_code(root: Path, target: Path) -> None:
    """What every bundle of one's own has of the method: code, license, logging, and empty folders for the rest."""
    shutil.copytree(root / "scripts", target / "scripts", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__*__"))
    for folder in ("configs", "models", "docs"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    for name in ("scripts/__init__.py", "LICENSE", "configs/logging.conf"):
        shutil.copy2(root / name, target / name)


def _laid(root: Path, over: Sequence[str]) -> dict[str, Any]:
    """Keys of configs that lie over those of a bundle."""
    return ConfigParser.load_config_files([str(path) for path in config_files(root, over)]) if over else {}


def with_settings(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the settings whose keys it has; what is chosen for weights stays with them.

    Example:
        `{"spacing": [1, 1, 1], "gate": "$float(@chosen['gate'])"}` takes `spacing` and leaves `gate`.
    """
    kept = {key for key, value in config.items() if "chosen[" in str(value)}  # the refinement's is a component
    parser = ConfigParser(config=deepcopy(dict(config)))
    for key, value in settings.items():
        top = ReferenceResolver.split_id(key)[0]
        if top in config and top not in kept:
            parser[key] = value
    changed: Any = parser.config
    return dict(changed)


def beyond(image: Mapping[str, Any], channels: int) -> list[str]:
    """What the network sees beside the modalities: the organ mask, where it is a channel."""
    return list(image["channel_def"].values())[channels:]


def _describe(
    target: Path, *, bundle: str, channels: int, content: Mapping[str, Any], counts: str, pattern: str
) -> None:
    """Metadata, a README and a place for the terms of the data."""
    path = target / "configs" / "metadata.json"
    metadata = read_json(path)
    source, modalities, classes = content.get("name") or "own data", content["modalities"], content["classes"]
    formats = metadata["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    trained = read_json(target / "configs" / "inference.json")["channels"]
    seen = channel_names(modalities, trained) if isinstance(trained, int) else modalities
    image["channel_def"] = {str(i): name for i, name in enumerate([*seen, *beyond(image, channels)])}
    image["num_channels"] = len(image["channel_def"])
    pred["num_channels"] += len(classes) - len(pred["channel_def"])  # a logit for each, or but for the negative one
    pred["channel_def"] = {str(i): name for i, name in enumerate(["background", *classes[1:]])}
    inputs = f"One volume a case: {', '.join(modalities)}" + (f", {trained} channels" if seen != modalities else "")
    alone = tells_classes_apart(content)
    told = "labels of the class" if alone else "yes/no labels"
    sliced = alone or any(map(labels_slices, content["training"]))
    kind, marked = "slices" if sliced else "volumes", ", ".join(classes[1:])
    method = re.sub(r".*\((.+)\)$", r"\1", metadata["name"])
    metadata |= {
        "version": "0.1.0",
        "name": f"Weakly supervised segmentation of {marked} ({method})",
        "task": f"Segmentation of {marked} in {', '.join(modalities)} from {told} of {kind}",
        "description": f"{method}, trained on {source} from {told} of {kind}: probability, heatmap and mask.",
        "changelog": {"0.1.0": f"trained on {source} from {told}"},
        "data_source": source,
        "image_classes": ", ".join(modalities),
        "label_classes": ", ".join(f"{i} {name}" for i, name in enumerate(classes)),
        "pred_classes": ", ".join(f"{i} {name}" for i, name in enumerate(["background", *classes[1:]])),
    }
    write(path, format_json(metadata))
    words = {"told": told, "train": "train", "inference": "inference", "weights": "model", "beside": ""}
    words |= {"kind": kind, "inputs": inputs}
    from_labels = "`labels.json` and `class_scores.json`" if alone else "`labels.json`"
    words |= {"measured": f"{from_labels} (from labels) and, where masks were at hand, `summary.json`"}
    _write_docs(target, metadata, content, bundle=bundle, counts=counts, pattern=pattern, **words)


def _describe_slides(target: Path, *, bundle: str, content: Mapping[str, Any], counts: str, pattern: str) -> None:
    """The same of weights for slides, which lie beside those for volumes that the method came with."""
    path = target / "configs" / "metadata.json"
    metadata = read_json(path)
    source = content.get("name") or "own data"
    metadata |= {
        "version": "0.1.0",
        "changelog": {"0.1.0": f"slides.pt trained on {source} from yes/no labels; model.pt as shipped"},
        "data_source": f"slides.pt: {source}; model.pt: {metadata['data_source']}",
        "description": f"slides.pt marks {', '.join(content['classes'][1:])} in whole slides, learned from yes/no "
        f"labels of {source}; model.pt is for volumes, as shipped.",
    }
    write(path, format_json(metadata))
    terms = target / "docs" / "data_license.txt"
    if not terms.is_file():
        shipped = (bundle_root(bundle) / "docs" / "data_license.txt").read_text(encoding="utf-8").split("\n\n")
        own = f"models/slides.pt: {TERMS.format(source=source)}"
        write(terms, "\n\n".join([own, *(part for part in shipped if "slides.pt" not in part)]) + "\n")
    words = {"train": "wsi", "inference": "wsi_inference", "weights": "slides", "kind": "slides"}
    words |= {
        "told": "yes/no labels",
        "measured": "`summary.json`, from labels and, where there are any, outlines",
        "inputs": "One whole slide a case",
        "beside": " Configs without `wsi`, and `model.pt`, are for volumes, as shipped.",
    }
    _write_docs(target, metadata, content, bundle=bundle, counts=counts, pattern=pattern, **words)


def _write_docs(target: Path, metadata: Mapping[str, Any], content: Mapping[str, Any], **words: str) -> None:
    """The README, and a place for the terms of the data."""
    references = "\n".join(f"{i}. {text}" for i, text in enumerate(metadata["references"], 1))
    source = content.get("name") or "own data"
    words |= {"name": metadata["name"], "references": references, "source": source}
    write(target / "docs" / "README.md", README.format(**words))
    terms = target / "docs" / "data_license.txt"
    if not terms.is_file():
        write(terms, TERMS.format(source=source) + "\n")


def settings_of(datalist: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a datalist says of a config's keys: `classes`, and `channels` by the number of its modalities."""
    content = read_json(datalist)
    said = {"classes": list(content["classes"]), "channels": len(content["modalities"])}
    return {key: value for key, value in said.items() if key in config}
