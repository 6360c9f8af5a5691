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

from common.data import labels_of, patient_of
from common.files import write_csv, write_json
from common.images import spacing_of
from common.masks import clean, least_voxels, refine_by_intensity, volume_ml
from common.metrics import balanced_accuracy, component_scores, dice, summarize

from .geometry import Body
from .inferers import CAMS, ToNNOInferer
from .sampling import stacks

QUANTILES = 1 - np.geomspace(0.5, 2e-4, 80)
SCORES = {"dice": dice, "f1": lambda mask, truth: component_scores(mask, truth)["f1"]}


class MethodsInferer(ToNNOInferer):
    """All methods at once: one pass over the planes, and one over the slices of three axes.

    Args:
        layers: of the CAMs.
        cam: the kind of all of them: `layercam`, `gradcam`, `gradcampp` or `scorecam`.
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
    """The preprocessed image `[C, D, H, W]` of a case and its mask on the same grid, bool `[D, H, W]`.

    Raises:
        ValueError: it has no mask.
    """
    image, truth = _read(case, preprocessing)
    if truth is None:
        raise ValueError(f"case {case['case']!r} has no mask")
    return image, truth


def _read(case: Mapping[str, Any], preprocessing: Callable) -> tuple[MetaTensor, Tensor | None]:
    read: Any = apply_transform(preprocessing, {k: v for k, v in case.items() if k != "cls"})
    if "label" not in read:
        return read["image"], None
    return read["image"], ResampleToMatch(mode="nearest")(read["label"], read["image"])[0].as_tensor() > 0


def compare(
    inferer: MethodsInferer,
    network: nn.Module,
    preprocessing: Callable,
    *,
    validation: Sequence[dict],
    test: Sequence[dict],
    output_dir: str | Path,
    method: str = "tonno",
    cam_layer: int = 1,
    views: str = "axial",
    score: str = "dice",
    refine: Mapping[str, Any] | None = None,
    min_component_ml: float = 0.0,
    max_slices: int | None = 8,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Score each method on test cases with the threshold that has the best mean score on validation cases.

    `intensity` is the image itself, the baseline that needs no network. Scores are taken in the model's grid, and
    thresholds chosen and scored behind the same filter of components. Balanced accuracy is that of volumes (a case, or
    its stacks of slices of one label) and that of patients, who are positive where any of their volumes is; it is
    missing where all are alike. Dice is of cases with a lesion, `with_lesion` of them; of those without one,
    `negatives_empty` is the share in which nothing is marked, and `ml_in_negatives` how much is.

    Writes `table.csv`, one row a method, `table.json` with intervals, `cases.csv`, and `calibrated.json`, a config with
    the threshold of the method that inference uses, where that is among them, and the kind of its map.

    Args:
        inferer: gives the maps.
        network: with its weights.
        preprocessing: of the bundle.
        validation: cases; those with a mask choose the thresholds.
        test: cases; those without a mask count for balanced accuracy alone.
        output_dir: where the files go.
        method, cam_layer, views: of inference, see `ToNNOInferer`.
        score: by which thresholds are chosen, `dice` or `f1` of components.
        refine: options of `common.masks.refine_by_intensity` for the second Dice; None leaves it out.
        min_component_ml: smaller components are dropped from the thresholded map.
        max_slices: longest stack of slices of one label that counts as a volume of the balanced accuracy.
        device: where the network runs.
        progress: show a bar.

    Returns:
        The rows of `table.csv`.

    Raises:
        ValueError: no such score, or no validation case with a mask.
    """
    if score not in SCORES:
        raise ValueError(f"score must be one of {tuple(SCORES)}, got {score!r}")
    if method != "tonno":
        method = f"{'three_views' if views == 'three' and method in CAMS else method}@{cam_layer}"
    network = network.to(device).eval()
    known = [case for case in validation if "label" in case]
    if not known:
        raise ValueError("no validation case has a mask to choose thresholds with")
    cases = tqdm([*known, *test], desc="comparing", unit="case", disable=not progress)
    items = [_with_maps(case, preprocessing, inferer, network, device) for case in cases]
    choosing, tested = [item for item in items[: len(known)] if item["truth"].any()], items[len(known) :]
    if not choosing:
        raise ValueError(
            "no validation case has a mask of a lesion: the threshold that marks nothing would be the best"
        )
    rows, details, intervals = [], [], {}
    for name in inferer.names:
        threshold, validated = _best_threshold(choosing, name, score, min_component_ml)
        masks = [_mask(item, name, threshold, min_component_ml) for item in tested]
        scored = [_scores(item, mask, refine) for item, mask in zip(tested, masks, strict=True)]
        means = _means(scored, [patient_of(item["case"]) for item in tested])
        row = {"method": name, "threshold": threshold, f"validation_{score}": validated}
        row |= {"with_lesion": means["dice"]["count"] if "dice" in means else 0}
        row |= {key: value["mean"] for key, value in means.items()} | _accuracies(tested, masks, max_slices)
        rows.append(_rounded(row))
        intervals[name] = {key: _rounded(value) for key, value in means.items()}
        details += [{"case": i["case"]["case"], "method": name, **s} for i, s in zip(tested, scored, strict=True)]
        if name == method:
            settings = {"binarize": "fixed", "threshold": threshold, "raw_threshold": threshold, "refine": refine}
            settings |= {} if name == "tonno" else {"cam": inferer.axial}
            write_json(Path(output_dir) / "calibrated.json", settings | {"min_component_ml": min_component_ml})
    write_csv(Path(output_dir) / "table.csv", rows)
    write_csv(Path(output_dir) / "cases.csv", details)
    write_json(Path(output_dir) / "table.json", intervals)
    return rows


def _with_maps(
    case: dict, preprocessing: Callable, inferer: MethodsInferer, network: nn.Module, device: torch.device | str
) -> dict[str, Any]:
    """A case with all that scoring it takes: image, organ, truth and the maps of every method."""
    image, truth = _read(case, preprocessing)
    maps, _ = inferer.volumes(image.as_tensor().to(device), spacing_of(image), network)
    return {
        "case": case,
        "image": image[0].numpy(),
        "organ": image[-1].numpy() > 0.5,
        "truth": None if truth is None else truth.numpy(),
        "spacing": spacing_of(image),
        "maps": {name: heat.cpu().numpy() for name, heat in maps.items()},
    }


def _means(scored: Sequence[Mapping[str, Any]], patients: Sequence[str]) -> dict[str, dict[str, float]]:
    """Summary of each score over the cases that have it, with intervals over their patients."""
    names = dict.fromkeys(key for scores in scored for key in scores)
    own = {key: [(s[key], patient) for s, patient in zip(scored, patients, strict=True) if key in s] for key in names}
    return {
        key: summarize([v for v, _ in rows], patients=[patient for _, patient in rows]) for key, rows in own.items()
    }


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, str | None) else float(f"{v:.4g}") for k, v in values.items()}


def _mask(item: Mapping[str, Any], name: str, threshold: float, min_component_ml: float) -> np.ndarray:
    mask = item["maps"][name] > threshold
    return clean(mask, min_size=least_voxels(min_component_ml, item["spacing"])) & item["organ"]


def _best_threshold(
    items: Sequence[Mapping[str, Any]], name: str, score: str, min_component_ml: float
) -> tuple[float, float]:
    """The threshold with the best mean score over cases, the lowest of equals, and that score."""
    inside = np.concatenate([item["maps"][name][item["organ"]] for item in items])
    grid = np.unique(np.quantile(inside, QUANTILES)).tolist()
    of_cases = [[SCORES[score](_mask(item, name, t, min_component_ml), item["truth"]) for t in grid] for item in items]
    means = np.ma.masked_invalid(of_cases).mean(axis=0).filled(-np.inf)  # a case without components has no F1
    return grid[int(means.argmax())], float(means.max())


def _scores(item: Mapping[str, Any], mask: np.ndarray, refine: Mapping[str, Any] | None) -> dict[str, Any]:
    """Scores of one case: of components where it has a true mask, Dice where that holds a lesion.

    Where its label (without one, its mask) says that nothing is there, what is marked all the same.
    """
    case, truth = item["case"], item["truth"]
    scores: dict[str, Any] = {}
    if truth is not None:
        found = component_scores(mask, truth)
        scores = {k: found[k] for k in ("precision", "recall", "f1")}
    known = truth is not None or case.get("cls") is not None
    if known and not (labels_of(case, mask.shape[-1])[0] if case.get("cls") is not None else truth.any()):
        scores |= {"negatives_empty": int(not mask.any()), "ml_in_negatives": volume_ml(mask, item["spacing"])}
    if truth is None or not truth.any():
        return scores
    scores = {"dice": dice(mask, truth), **scores}
    if refine is not None:
        refined = refine_by_intensity(mask, item["image"], item["organ"], spacing=item["spacing"], **refine)
        scores["dice_refined"] = dice(refined, truth)
    return scores


def _accuracies(
    items: Sequence[Mapping[str, Any]], masks: Sequence[np.ndarray], max_slices: int | None
) -> dict[str, float | None]:
    """Balanced accuracy of volumes and of patients; None where all are positive, or none."""
    volumes: list[tuple[bool, bool]] = []
    patients: dict[str, tuple[bool, bool]] = {}
    for item, mask in zip(items, masks, strict=True):
        patient = patient_of(item["case"])
        for start, stop, label in stacks(item["case"], mask.shape[-1], 1, max_slices):
            volume = (label > 0, bool(mask[..., start:stop].any()))
            before = patients.get(patient, (False, False))
            volumes.append(volume)
            patients[patient] = (volume[0] or before[0], volume[1] or before[1])
    found = {"": volumes, "_patients": list(patients.values())}
    accuracies = {
        f"balanced_accuracy{end}": balanced_accuracy(*zip(*pairs, strict=True)) for end, pairs in found.items()
    }
    return {name: None if np.isnan(value) else value for name, value in accuracies.items()}
