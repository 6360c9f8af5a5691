"""`python -m common features BUNDLE DATASET_DIR`: features first, so that training need not wait for an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data import SECTIONS
from ..files import read_json
from .run import names, run_bundle


def features(
    bundle: str,
    dataset_dir: str,
    *,
    store: str | None = None,
    datalist: str | None = None,
    section: str | None = None,
    configs: str | Sequence[str] = "inference.json",
    cases: str | Sequence[str] | None = None,
    **overrides: Any,
) -> None:
    """Compute the features that a bundle's training, evaluation and inference will look for.

    What is there is skipped; it may be interrupted, and started twice to share the work.

    Args:
        bundle: name under `bundles/`, or a path; it has a `configs/features.json`.
        dataset_dir: folder of the data.
        store: folder of the features; by default `features` in `dataset_dir`.
        datalist: by default `datalist.json` in `dataset_dir`; where there is none, `image_pattern` finds the cases.
        section: of the datalist; `training+validation` joins two. By default all.
        configs: config files that say how to preprocess, later ones override earlier ones.
        cases: names of the cases to take, comma-separated; by default all.
        overrides: top-level keys, e.g. `--encoder_name dinov2_vitl14 --size 518`.

    Example:
        `python -m common features insight_ct DIR --section training+validation`
    """
    home = Path(dataset_dir).resolve(strict=True)
    listed = Path(datalist) if datalist else home / "datalist.json"
    if datalist or listed.is_file():
        content = read_json(listed)
        overrides |= {"datalist": str(listed.resolve())}
        overrides |= {"section": section or "+".join(name for name in SECTIONS if content.get(name))}
    overrides |= {"store_dir": str(Path(store).resolve())} if store else {}
    overrides |= {"subset": names(cases)} if cases else {}
    run_bundle(bundle, [*names(configs), "features.json"], dataset_dir=str(home), **overrides)
