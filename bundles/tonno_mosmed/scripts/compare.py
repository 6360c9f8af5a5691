"""Every method at every layer side by side (Table 2 of the paper): thresholds from validation, scores from test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch, apply_transform
from torch import Tensor, nn
from tqdm import tqdm

from common.files import write_csv, write_json
from common.images import spacing_of
from common.masks import best_threshold, clean, least_voxels, refine_by_intensity
from common.metrics import balanced_accuracy, component_scores, dice, summarize

from .geometry import Body
from .inferers import ToNNOInferer
from .sampling import stacks

QUANTILES = 1 - np.geomspace(0.5, 2e-4, 80)
SCORES = {"dice": dice, "f1": lambda mask, truth: component_scores(mask, truth)["f1"]}


class MethodsInferer(ToNNOInferer):
    """All methods at once: one pass over the planes, and one over the slices of three axes.

    Args:
        layers: of the CAMs.
        cam: the kind of all of them, `layercam`, `gradcam` or `gradcampp`.
        options: of `ToNNOInferer`.
    """

    def __init__(self, *, layers: Sequence[int] = (1, 2, 3), cam: str = "layercam", **options: Any) -> None:
        super().__init__(method="tonno", cam=cam, **options)
        self.layers = tuple(layers)
        self.axial = cam
        named = (cam, "three_views", "averaged_cam", "tomographic_cam")
        self.keys = ("intensity", "tonno", *(f"{name}@{layer}" for name in named for layer in self.layers))

    @property
    def names(self) -> tuple[str, ...]:
        return self.keys

    def heatmaps(self, body: Body, network: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
        volumes, profiles, hits_organ = self.map_volumes(body, network, self.layers, kinds=("averaged", "tomographic"))
        heats = {"intensity": body.volume[0], "tonno": self.reconstructed(body, profiles)}
        for name, axes in ((self.axial, (2,)), ("three_views", (0, 1, 2))):
            views, _ = self.single_views(body, network, self.layers, axes=axes)
            heats |= {f"{name}@{layer}": heat for layer, heat in zip(self.layers, views, strict=True)}
        for layer, volume in zip(self.layers, volumes, strict=True):
            heats |= {f"{kind}_cam@{layer}": heat for kind, heat in volume.items()}
        return heats, profiles[hits_organ]


def read_with_truth(case: Mapping[str, Any], preprocessing: Callable) -> tuple[MetaTensor, Tensor]:
    """The preprocessed image `[C, D, H, W]` of a case and its mask on the same grid, bool `[D, H, W]`."""
    read: Any = apply_transform(preprocessing, {k: v for k, v in case.items() if k != "cls"})
    return read["image"], ResampleToMatch(mode="nearest")(read["label"], read["image"])[0].as_tensor() > 0


def compare(
    inferer: MethodsInferer,
    network: nn.Module,
    preprocessing: Callable,
    *,
    validation: Sequence[dict],
    test: Sequence[dict],
    output_dir: str | Path,
    score: str = "dice",
    refine: Mapping[str, Any] | None = None,
    min_component_ml: float = 0.0,
    max_slices: int | None = 8,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Score each method on test cases with the threshold that has the best mean score on validation cases.

    `intensity` is the image itself, the baseline that needs no network. Scores are taken in the model's grid. Writes
    `table.csv`, one row a method, `table.json` with intervals, and `cases.csv`.

    Args:
        inferer: gives the maps.
        network: with its weights.
        preprocessing: of the bundle.
        validation, test: cases with masks.
        output_dir: where the files go.
        score: by which thresholds are chosen, `dice` or `f1` of components; the latter takes minutes a method.
        refine: options of `common.masks.refine_by_intensity` for the second Dice; None leaves it out.
        min_component_ml: smaller components are dropped from the thresholded map.
        max_slices: longest stack of slices of one label that counts as a volume of the balanced accuracy.
        device: where the network runs.
        progress: show a bar.

    Returns:
        The rows of `table.csv`.

    Raises:
        ValueError: no such score.
    """
    if score not in SCORES:
        raise ValueError(f"score must be one of {tuple(SCORES)}, got {score!r}")
    network = network.to(device).eval()
    parts: list[list[dict[str, Any]]] = [[], []]
    chosen = [(part, case) for part, cases in zip(parts, (validation, test), strict=True) for case in cases]
    for part, case in tqdm(chosen, desc="comparing", unit="case", disable=not progress):
        image, truth = read_with_truth(case, preprocessing)
        maps, _ = inferer.volumes(image.as_tensor().to(device), spacing_of(image), network)
        part.append(
            {
                "case": case,
                "image": image[0].numpy(),
                "organ": image[-1].numpy() > 0.5,
                "truth": truth.numpy(),
                "spacing": spacing_of(image),
                "maps": {name: heat.cpu().numpy() for name, heat in maps.items()},
            }
        )
    rows, details, intervals = [], [], {}
    for name in inferer.names:
        inside = [item["maps"][name][item["organ"]] for item in parts[0]]
        grid = np.unique(np.quantile(np.concatenate(inside), QUANTILES))
        heats, truths = [item["maps"][name] for item in parts[0]], [item["truth"] for item in parts[0]]
        threshold, validated = best_threshold(heats, truths, grid, score=SCORES[score])
        scored = [_scores(item, name, threshold, refine, min_component_ml, max_slices) for item in parts[1]]
        volumes = [pair for scores in scored for pair in scores.pop("volumes")]
        means = {key: summarize([scores[key] for scores in scored]) for key in scored[0]}
        row = {"method": name, "threshold": threshold, f"validation_{score}": validated}
        row |= {key: value["mean"] for key, value in means.items()}
        row["balanced_accuracy"] = balanced_accuracy(*zip(*volumes, strict=True))
        rows.append({k: v if isinstance(v, str) else float(f"{v:.4g}") for k, v in row.items()})
        intervals[name] = {k: {n: float(f"{x:.4g}") for n, x in v.items()} for k, v in means.items()}
        details += [{"case": i["case"]["case"], "method": name, **s} for i, s in zip(parts[1], scored, strict=True)]
    write_csv(Path(output_dir) / "table.csv", rows)
    write_csv(Path(output_dir) / "cases.csv", details)
    write_json(Path(output_dir) / "table.json", intervals)
    return rows


def _scores(
    item: Mapping[str, Any],
    name: str,
    threshold: float,
    refine: Mapping[str, Any] | None,
    min_component_ml: float,
    max_slices: int | None,
) -> dict[str, Any]:
    """Scores of one case, and `volumes`: whether each of its stacks of equal label is positive, and predicted so."""
    mask = item["maps"][name] > threshold
    mask = clean(mask, min_size=least_voxels(min_component_ml, item["spacing"])) & item["organ"]
    truth = item["truth"]
    found = component_scores(mask, truth)
    scores: dict[str, Any] = {"dice": dice(mask, truth), **{k: found[k] for k in ("precision", "recall", "f1")}}
    if refine is not None:
        refined = refine_by_intensity(mask, item["image"], item["organ"], spacing=item["spacing"], **refine)
        scores["dice_refined"] = dice(refined, truth)
    parts = stacks(item["case"], truth.shape[-1], 1, max_slices)
    scores["volumes"] = [(int(label > 0), int(mask[..., start:stop].any())) for start, stop, label in parts]
    return scores
