"""A bundle's own map beside occlusion, guided backpropagation and Grad-CAM, on the slices that it finds suspicious."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from PIL import Image
from tqdm import tqdm

from ..cam import (
    GradCAM,
    SliceLogit,
    View,
    default_layer,
    grad_cam,
    guided_backpropagation,
    occlusion_map,
    whole_slices,
)
from ..data import patient_of
from ..data.pseudo import mask_of
from ..files import atomic_path, write_csv, write_json
from ..images import as_array
from ..masks import MapsToMaskd
from ..masks.refine import shown_classes
from ..metrics import area_under, bootstrap_by_patient, perturbation_curve, points_at, rank_correlation, top_region
from .montage import TRUTH_COLOR

logger = logging.getLogger(__name__)
FIGURES = ("rank_correlation", "top_overlap", "deletion", "insertion", "points_at")


class Explanations:
    """Compare four explanations of each suspicious slice, and write what comes of it.

    Writes `explanations.csv` (a row a slice and method), `explanations.json` (means over slices with intervals by
    patient) and `explanations.png` (the first slices). `rank_correlation` and `top_overlap` (intersection over union of
    the hottest 5 % of the organ) are those with the bundle's own map; `deletion` and `insertion` are areas under the
    curves of the probability, less and more being better; `points_at` needs a mask. Masks only score.

    All explain the logit of one class, that whose map the bundle shows in the slice (`class`), against all others; of
    any finding (`any`) where the bundle adds up the maps of all. `probability` is the network's of it.

    Args:
        dataset: a `common.engines.CaseDataset`.
        network, inferer, postprocessing: the bundle's; its steps up to `MapsToMaskd` make the own map.
        output_dir: folder.
        layer: whose Grad-CAM is computed, a name inside `common.cam.SliceLogit`: `network.…`; None: that which
            `common.cam.default_layer` finds.
        organ_channel: whether the network takes the organ as its last channel.
        views: `views(volume, z)` is what the network gets to see of a slice in inference, a list of `common.cam.View`.
        classes: names, 0 first; without them numbers are written.
        label_pattern: of the masks, for the warning where no case has one.
        slices: the most probable ones of each volume; where all are alike, those that are so by themselves.
        patch: side of what occlusion covers, in pixels of the model's grid.
        pictures: slices in the picture.
        progress: show a bar.

    Raises:
        ValueError: the network has no such layer, or decides on stacks of slices.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        network: torch.nn.Module,
        inferer: Any,
        postprocessing: Compose,
        output_dir: str,
        layer: str | None = None,
        organ_channel: bool = True,
        views: Callable[[MetaTensor, int], Sequence[View]] = whole_slices,
        classes: Sequence[str] = (),
        label_pattern: str | None = None,
        slices: int = 3,
        patch: int = 12,
        pictures: int = 8,
        progress: bool = True,
    ) -> None:
        if getattr(network, "spatial_dims", 2) == 3:
            raise ValueError(
                "explanations are of networks that decide on single slices, and this one sees stacks (spatial_dims 3): "
                "explain one that was trained without volumetric.json, and leave that config out here"
            )
        steps = [type(step) for step in postprocessing.transforms]
        self.to_heat = Compose(postprocessing.transforms[: steps.index(Invertd) if Invertd in steps else None])
        self.to_mask = postprocessing.transforms[steps.index(MapsToMaskd)]
        self.dataset = dataset
        self.network = network.eval()
        self.inferer = inferer
        self.folder = Path(output_dir)
        self.logit = SliceLogit(network, organ_channel=organ_channel)
        self.layer = layer or f"network.{default_layer(network)}"
        GradCAM(self.logit, self.layer)  # refuses a layer that does not exist
        self.views = views
        self.classes = classes
        self.label_pattern = label_pattern
        self.slices = slices
        self.patch = patch
        self.pictures = pictures
        self.progress = progress

    def run(self) -> list[dict[str, Any]]:
        """Rows of `explanations.csv`.

        Raises:
            RuntimeError: no case could be read.
        """
        if not any(case.get("label") for case in self.dataset.data):
            logger.warning(
                "no case has a mask (label_pattern %r fits no file of theirs, and no datalist names one): points_at is "
                "left empty",
                self.label_pattern,
            )
        rows: list[dict[str, Any]] = []
        panels: list[np.ndarray] = []
        for index in tqdm(range(len(self.dataset)), desc="explaining", unit="case", disable=not self.progress):
            case = self.dataset[index]
            if "error" in case:
                logger.error("%s: %s", case["case"], case["error"])
                continue
            described = {"case": case["case"], "patient": patient_of(case)}
            for z, logit, maps, inside, image, truth in self._slices(case, self.dataset.data[index].get("label")):
                score = partial(self._score, logit)
                described |= {"slice": z, "class": self._name(logit.shown), "probability": float(score(image[None])[0])}
                for method, heat in maps.items():
                    figures = self._figures(score, image, heat, maps["own"], inside, truth)
                    rows.append({**described, "method": method, **figures})
                if len(panels) < self.pictures:
                    panels.append(_panel(image[0], maps, inside, truth))
        if not rows:
            raise RuntimeError("no slice was explained: no case could be read, or none holds organ")
        self._write(rows, panels)
        return rows

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _name(self, shown: int | None) -> str | int:
        if shown is None:
            return "any"
        return self.classes[shown] if self.classes else shown

    @torch.no_grad()
    def _own(self, image: MetaTensor) -> tuple[np.ndarray, np.ndarray]:
        """Heatmap `[H, W, D]` and class probabilities `[C, D]` of a preprocessed volume."""
        output = self.inferer(image[None].to(self._device), self.network)[0].cpu()
        done = self.to_heat({"image": image, "pred": output})
        return as_array(done["heatmap"])[0], np.asarray(done["slice_probability"])

    def _logit(self, image: MetaTensor, z: int, shown: int | None) -> SliceLogit:
        """What is explained of a slice of `[C + 1, H, W, D]`."""
        organ = (image.as_tensor()[None, -1:, ..., z] > 0.5).float()
        return self.logit.at(organ, shown=shown, views=self.views(image, z))

    def _slices(self, case: dict, label: str | None) -> Any:
        """`(z, logit, maps by method, organ, image [C, H, W], truth or None)` of the most probable slices of a case."""
        image = case["image"]
        heat, probability = self._own(image)
        shown = [None] * image.shape[-1] if self.to_mask.evidence == "sum" else self._shown(probability)
        truth = mask_of(label, image).numpy() if label else None
        volume = as_array(image)
        image = image.to(self._device)
        filled = [z for z in range(volume.shape[-1]) if (volume[-1, ..., z] > 0.5).any()]
        suspicion = 1 - probability[0, filled]
        if len(filled) > self.slices and np.ptp(suspicion) == 0:  # the bundle has one probability a volume
            alone = [self._score(self._logit(image, z, shown[z]), volume[None, :-1, ..., z]) for z in filled]
            suspicion = np.concatenate(alone)
        for z in np.array(filled)[np.argsort(-suspicion, kind="stable")[: self.slices]].tolist():
            inside, seen = volume[-1, ..., z] > 0.5, volume[:-1, ..., z]
            x = torch.as_tensor(seen[None].copy(), dtype=torch.float32, device=self._device)
            logit = self._logit(image, z, shown[z])
            maps = {
                "own": heat[..., z],
                "occlusion": occlusion_map(logit, x, size=self.patch, fill=_fill(seen, inside)).cpu().numpy(),
                "guided_backpropagation": logit.mean_map(guided_backpropagation, x).cpu().numpy(),
                "grad_cam": logit.mean_map(partial(grad_cam, layer=self.layer), x).cpu().numpy(),
            }
            yield z, logit, maps, inside, seen, None if truth is None else truth[..., z]

    def _shown(self, probability: np.ndarray) -> list[int]:
        """Class whose evidence `MapsToMaskd` shows in each slice, of probabilities `[C, D]`."""
        found, leading = shown_classes(probability, self.to_mask.gate, one_class=self.to_mask.one_class)
        return np.where(found > 0, found, leading).tolist()

    @torch.no_grad()
    def _score(self, logit: SliceLogit, images: np.ndarray) -> np.ndarray:
        return logit(torch.as_tensor(images, dtype=torch.float32, device=self._device))[:, 0].sigmoid().cpu().numpy()

    def _figures(
        self, score: Any, image: np.ndarray, heat: np.ndarray, own: np.ndarray, inside: np.ndarray, truth: Any
    ) -> dict[str, float]:
        first, second = top_region(heat, inside), top_region(own, inside)
        fill = _fill(image, inside)
        deletion = perturbation_curve(score, image, heat, inside, fill=fill)
        insertion = perturbation_curve(score, image, heat, inside, fill=fill, insert=True)
        known = truth is not None and truth.any()
        return {
            "rank_correlation": rank_correlation(heat, own, inside),
            "top_overlap": float((first & second).sum() / (first | second).sum()),
            "deletion": area_under(deletion),
            "insertion": area_under(insertion),
            "points_at": float(points_at(heat, truth, inside)) if known else float("nan"),
        }

    def _write(self, rows: Sequence[dict[str, Any]], panels: Sequence[np.ndarray]) -> None:
        write_csv(self.folder / "explanations.csv", rows)
        summary: dict[str, Any] = {"slices": len({(row["case"], row["slice"]) for row in rows}), "methods": {}}
        for method in dict.fromkeys(row["method"] for row in rows):
            own = [row for row in rows if row["method"] == method]
            summary["methods"][method] = {name: _summary(own, name) for name in FIGURES}
        write_json(self.folder / "explanations.json", summary)
        with atomic_path(self.folder / "explanations.png") as path:
            Image.fromarray(np.concatenate(_same_size(panels))).save(path)


def _fill(image: np.ndarray, inside: np.ndarray) -> float:
    """What a removed position holds: the median of the organ."""
    return float(np.median(image[:, inside]))


def _summary(rows: Sequence[dict[str, Any]], name: str) -> dict[str, float | int | None]:
    values, patients = np.array([row[name] for row in rows]), np.array([row["patient"] for row in rows])
    known = np.isfinite(values)
    if not known.any():
        return {"mean": None, "low": None, "high": None, "slices": 0}
    low, high = bootstrap_by_patient(patients[known], lambda drawn: float(drawn.mean()), values[known])
    numbers = {"mean": float(values[known].mean()), "low": low, "high": high}
    return {key: round(v, 4) if np.isfinite(v) else None for key, v in numbers.items()} | {"slices": int(known.sum())}


def _panel(image: np.ndarray, maps: dict[str, np.ndarray], inside: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
    """The slice with its true outline, and each map from its median in the organ (dark) to its peak, side by side."""
    from skimage.segmentation import find_boundaries  # takes a second to import

    low, high = np.percentile(image[inside], [1, 99.5])
    plain = np.repeat(np.clip((image - low) / max(high - low, 1e-6), 0, 1)[..., None], 3, axis=-1)
    if truth is not None:
        plain[find_boundaries(truth, mode="inner")] = np.divide(TRUTH_COLOR, 255)
    tiles = [plain]
    for heat in maps.values():
        middle, peak = float(np.median(heat[inside])), float(heat[inside].max())
        shown = np.where(inside, np.clip((heat - middle) / max(peak - middle, 1e-12), 0, 1), 0)
        tiles.append(matplotlib.colormaps["magma"](shown)[..., :3])
    return (255 * np.concatenate(tiles, axis=0)).astype(np.uint8).transpose(1, 0, 2)


def _same_size(panels: Sequence[np.ndarray]) -> list[np.ndarray]:
    height, width = (max(panel.shape[axis] for panel in panels) for axis in (0, 1))
    return [np.pad(p, [(0, height - p.shape[0]), (0, width - p.shape[1]), (0, 0)]) for p in panels]
