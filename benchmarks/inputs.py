"""How a bundle's preprocessing takes scans: which it warns of or refuses, and how well it finds the organ."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

import numpy as np
from monai.bundle import ConfigParser
from tqdm import tqdm

from common.commands.run import BUNDLES
from common.data import cases
from common.engines import cause
from common.images import as_array, axial, spacing_of
from common.metrics import dice
from common.preprocessing import LoadCased, organ_mask


def benchmark_inputs(
    bundle: str,
    dataset_dir: str,
    image_pattern: str = "*/flair.nii.gz",
    datalist: str | None = None,
    section: str = "test",
    config: str = "inference.json",
    **overrides: Any,
) -> dict[str, int]:
    """Count scans that a bundle refuses, warns of, or takes in silence, by what its weights saw in training.

    Images are read, masks are not.

    Args:
        bundle: name under `bundles/`.
        dataset_dir: folder of the scans.
        image_pattern, datalist, section: see `common.data.cases`.
        config: file names in the bundle's `configs/`, comma-separated; later ones override earlier ones.
        overrides: top-level keys of the config.
    """
    root = BUNDLES / bundle
    sys.path.insert(0, str(root))
    parser = ConfigParser()
    parser.read_config([str(root / "configs" / name) for name in config.split(",")])
    parser.update({"bundle_root": str(root), **overrides})
    preprocessing: Any = parser.get_parsed_content("preprocessing")
    counts: Counter[str] = Counter(error=0, warning=0, silent=0)
    for case in tqdm(cases(dataset_dir, image_pattern, datalist=datalist, section=section), unit="case", disable=None):
        kind, text = _taken(preprocessing, {"case": case["case"], "image": case["image"]})
        counts[kind] += 1
        if text:
            print(f"{case['case']}: {kind}: {text}")
    print(f"{sum(counts.values())} scans: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    return dict(counts)


def _taken(preprocessing: Any, case: dict[str, Any]) -> tuple[str, str]:
    try:
        warnings = preprocessing(case)["warnings"]
    except Exception as error:
        return "error", str(cause(error))
    return ("warning" if warnings else "silent"), warnings


def benchmark_organ(
    dataset_dir: str,
    organ: str = "lung",
    image_pattern: str = "*/ct.nii.gz",
    organ_pattern: str = "*/lung.nii.gz",
) -> dict[str, float]:
    """Dice of the organ that is found with the one that is given, and CPU-seconds, by case.

    Args:
        dataset_dir: folder of the scans.
        organ: key of `common.preprocessing.ORGANS`.
        image_pattern, organ_pattern: see `common.data.find_cases`.
    """
    scores = {}
    for case in cases(dataset_dir, image_pattern, organ_pattern=organ_pattern):
        read = LoadCased(channels=1)(dict[Any, Any](case))
        image, given = (axial(read[key]) for key in ("image", "organ"))
        start = time.process_time()
        found = organ_mask(as_array(image[0]), spacing=spacing_of(image), organ=organ)
        seconds = time.process_time() - start
        scores[case["case"]] = round(dice(found, as_array(given[0]) > 0.5), 3)
        print(f"{case['case']}: Dice {scores[case['case']]:.3f}, {seconds:.2f} CPU-s for {list(image.shape[1:])}")
    values = np.array(list(scores.values()))
    print(f"{len(values)} scans: mean {values.mean():.3f}, lowest {values.min():.3f}, {(values >= 0.95).sum()} of .95")
    return scores
