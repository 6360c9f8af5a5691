"""A network whose evidence is known exactly, run through a bundle's own preprocessing and postprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.engines import IterationEvents
from torch import Tensor

from common.engines import CaseDataset, CaseEvaluator

CONFIG = Path(__file__).parents[1] / "bundles" / "gp_unet_brats" / "configs" / "inference.json"

CHOSEN = {
    **{"gate": 0.5, "gate_smooth_mm": 0.0, "binarize": "fixed", "threshold": 0.0, "refine": None},
    **{"min_volume_ml": 0.0, "raw_threshold": 0.0},
}


class BrightnessNet(torch.nn.Module):
    """Evidence for class 1 is the brightness above `level`; its maximum inside the organ decides."""

    num_classes = 2

    def __init__(self, level: float = 2.0) -> None:
        super().__init__()
        self.level = level

    def explain(self, image: Tensor) -> tuple[Tensor, Tensor]:
        evidence = 8.0 * (image[:, :1] - self.level)
        maps = torch.cat([torch.zeros_like(evidence), evidence], dim=1)
        return maps, maps.masked_fill(image[:, -1:] <= 0.5, -torch.inf).amax(dim=(2, 3))

    def forward(self, image: Tensor) -> Tensor:
        return self.explain(image)[1]


def evaluator(
    cases: Sequence[dict],
    handlers: Sequence[Any],
    *,
    level: float = 2.0,
    network: torch.nn.Module | None = None,
    num_workers: int = 0,
    **overrides: Any,
) -> CaseEvaluator:
    """The evaluator of `inference.json` with `BrightnessNet`; `overrides` change the config's top-level keys."""
    parser = ConfigParser()
    parser.read_config(CONFIG)
    for key, value in {"organ": "none", "chosen": CHOSEN, "seen": None, **overrides}.items():
        parser[key] = value
    # What the bundle's own does with slices; it lies in `scripts`, of which a process has those of one bundle.
    options = {key: parser["inferer"][key] for key in ("batch_size", "window", "flip", "divisor")}
    parser["inferer"] = {"_target_": "common.engines.SliceMapInferer", **options}
    preprocessing, postprocessing, inferer = (
        parser.get_parsed_content(key) for key in ("preprocessing", "postprocessing", "inferer")
    )
    return CaseEvaluator(
        "cpu",
        CaseDataset(cases, preprocessing),
        network or BrightnessNet(level),
        num_workers=num_workers,
        inferer=inferer,
        postprocessing=postprocessing,
        val_handlers=list(handlers),
        progress=False,
    )


def run_handler(handler: Any, items: Sequence[tuple[dict, dict]], *, cases: Mapping[str, dict] | None = None) -> None:
    """Give a handler hand-made `(batch, output)` pairs, one an iteration; `cases` as a `CaseEvaluator` has them."""

    def step(engine: Engine, item: Any) -> None:
        engine.state.batch, engine.state.output = [item[0]], [item[1]]  # type: ignore[assignment]
        engine.started = 0.0  # type: ignore[attr-defined]
        engine.fire_event(IterationEvents.MODEL_COMPLETED)

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    engine.cases = dict(cases or {})  # type: ignore[attr-defined]
    handler.attach(engine)
    engine.run(list(items))


def save(path: Path, volume: np.ndarray, affine: np.ndarray | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)
    return str(path)


def affine_of(axcodes: str, spacing: Sequence[float], shape: Sequence[int], degrees: float = 0.0) -> np.ndarray:
    """Affine of a volume centered in the world, axes along `axcodes`, then turned about an oblique axis."""
    columns = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    directions = np.array([columns[code] for code in axcodes], dtype=float).T
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14.0)
    cross = np.cross(np.eye(3), axis) * -1
    angle = np.deg2rad(degrees)
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    affine = np.eye(4)
    affine[:3, :3] = turn @ directions * np.asarray(spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2) + [3.0, -7.0, 11.0]
    return affine


def world(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """World coordinates `[H, W, D, 3]` of a grid."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]
