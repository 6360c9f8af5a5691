"""`python -m common describe BUNDLE DATASET_DIR`: what weights saw in training, for those that were trained before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai.bundle import ConfigParser

from ..files import read_json
from .run import bundle_root, config_files, names

WRITER = "common.preprocessing.SeenWriter"


def describe(
    bundle: str,
    dataset_dir: str,
    *,
    datalist: str | None = None,
    configs: str | Sequence[str] = "train.json",
    output: str | None = None,
) -> None:
    """Describe the training section of a datalist and write it beside a bundle's weights, as training does itself.

    Images and organ masks are read, labels and masks of the finding are not. Where the file says already what the
    weights depend on, configs that say otherwise are refused.

    Args:
        bundle: name under `bundles/`, or a path.
        dataset_dir: folder of the data.
        datalist: that the weights were trained with; by default `datalist.json` in `dataset_dir`.
        configs: config files of the training, later ones override earlier ones.
        output: by default `models/model.json` of the bundle.

    Example:
        `python -m common describe gp_unet_brats DIR --output model.json`
    """
    root = bundle_root(bundle)
    listed = Path(datalist) if datalist else Path(dataset_dir) / "datalist.json"
    path = Path(output) if output else root / "models" / "model.json"
    parser = ConfigParser()
    parser.read_config([str(path) for path in config_files(root, names(configs))])
    parser["dataset_dir"], parser["datalist"] = str(Path(dataset_dir).resolve()), str(listed.resolve())
    places = [i for i, handler in enumerate(parser["train"]["handlers"]) if handler["_target_"] == WRITER]
    if not places:
        raise SystemExit(f"the training of {bundle} does not write what it saw: it has no {WRITER} among its handlers")
    handler = f"train#handlers#{places[0]}"
    parser[f"{handler}#path"] = str(path)
    writer = parser.get_parsed_content(handler)
    if changed := writer.changed():
        raise SystemExit(
            f"{path} belongs to weights of another training: {'; '.join(changed)}. Give the --configs of theirs, all "
            "that were over train.json, or another --output"
        )
    writer.write()
    seen = read_json(path)["seen"]
    print(f"{path}: {seen['cases']} cases of {seen['patients']} patients")
