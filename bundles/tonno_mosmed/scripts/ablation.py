"""What M and L cost and bring, and what the logits look like: Fig. 8 and Fig. 2 of the paper, on one's own volumes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from common.files import atomic_path, write_csv, write_json
from common.images import spacing_of
from common.masks import best_threshold
from common.metrics import roc_auc
from common.radon import extreme_points, sample_planes

from .compare import read_with_truth
from .geometry import Geometry, crop_to_organ
from .inferers import ToNNOInferer
from .planes import Planes
from .sampling import PlaneDataset, random_planes


def ablate(
    network: nn.Module,
    preprocessing: Callable,
    *,
    cases: Sequence[dict],
    grid: Sequence[tuple[int, int]],
    options: Mapping[str, Any],
    output_dir: str | Path,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Dice of the best threshold and seconds a volume for pairs of M and L: `ablation.csv` and `ablation.png`.

    The threshold is fitted to the very cases, those with a lesion, so that figures are comparable with each other and
    with nothing else.

    Args:
        network: with its weights.
        preprocessing: of the bundle.
        cases: validation cases with masks.
        grid: pairs (M, L).
        options: of `ToNNOInferer`.
        output_dir: where the files go.
        device: where the network runs.
        progress: show a bar.
    """
    network = network.to(device).eval()
    read = [read_with_truth(case, preprocessing) for case in cases]
    ill = [i for i, (_, truth) in enumerate(read) if truth.any()]
    truths = [read[i][1].numpy() for i in ill]
    rows: list[dict[str, Any]] = []
    for count, number in tqdm(grid, desc="ablation", unit="setting", disable=not progress):
        settings = {**options, "num_slices": count, "num_directions": number, "progress": False}
        inferer = ToNNOInferer(**settings)
        start, heats = time.perf_counter(), []
        for image, _ in read:
            maps, _ = inferer.volumes(image.as_tensor().to(device), spacing_of(image), network)
            heats.append(next(iter(maps.values())).cpu().numpy())
        seconds = (time.perf_counter() - start) / len(read)
        values = np.concatenate([heat[heat != 0] for heat in heats])
        candidates = np.unique(np.quantile(values, 1 - np.geomspace(0.5, 1e-3, 60)))
        threshold, dice = best_threshold([heats[i] for i in ill], truths, candidates)
        row = {"num_slices": count, "num_directions": number, "dice": dice, "threshold": threshold, "seconds": seconds}
        rows.append({k: v if isinstance(v, int) else float(f"{v:.4g}") for k, v in row.items()})
    write_csv(Path(output_dir) / "ablation.csv", rows)
    figure = Figure(figsize=(9, 3.5))
    for axes, key in zip(figure.subplots(1, 2), ("dice", "seconds"), strict=True):
        for count in sorted({row["num_slices"] for row in rows}):
            line = sorted((row["num_directions"], row[key]) for row in rows if row["num_slices"] == count)
            axes.plot(*zip(*line, strict=True), marker="o", label=f"M = {count}")
        axes.set(xlabel="directions L", ylabel=key if key == "dice" else "seconds a volume", xscale="log")
        axes.legend()
    _save(figure, Path(output_dir) / "ablation.png")
    return rows


def plane_scores(
    network: nn.Module,
    preprocessing: Callable,
    *,
    cases: Sequence[dict],
    output_dir: str | Path,
    planes: int = 64,
    size: int = 224,
    geometry: Geometry = "organ",
    radius: float | None = None,
    min_area_cm2: float = 1.0,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """How well the network tells planes that meet the finding from those that miss it: `planes.json`.

    Planes of whole volumes at random angles, the same each time; those that only graze the mask do not count.

    Args:
        network: with its weights.
        preprocessing: of the bundle.
        cases: validation cases with masks.
        output_dir: where the file goes.
        planes: of each case.
        size, geometry, radius: of the planes, as in training.
        min_area_cm2: of the mask in a plane that meets it.
        device: where the network runs.

    Returns:
        `auc` of all planes, and `auc_within`, the mean over the cases that have planes of both kinds.
    """
    network = network.to(device).eval()
    hits_finding, scores = [], []
    for case in cases:
        image, truth = read_with_truth(case, preprocessing)
        marked = torch.cat([image[:-1], truth[None].to(image), image[-1:]])
        body = crop_to_organ(marked, spacing_of(image), geometry=geometry, radius=radius)
        if body is None:
            continue
        points = extreme_points(body.inside, body.spacing)
        normals, offsets = random_planes(points, planes, generator=torch.Generator().manual_seed(0))
        cut = sample_planes(body.volume, normals, offsets, size=size, **body.extent)
        area = cut[:, -1].sum(dim=(1, 2)) * body.pixel_cm2(size)
        with torch.no_grad():
            logits = network(cut[:, :-1].to(device))[:, 0].cpu()
        clear = (area == 0) | (area >= min_area_cm2)
        hits_finding.append((area[clear] > 0).numpy())
        scores.append(logits[clear].numpy())
    within = [roc_auc(s, m) for m, s in zip(hits_finding, scores, strict=True) if 0 < m.mean() < 1]
    result = {"auc": roc_auc(np.concatenate(scores), np.concatenate(hits_finding)), "auc_within": np.mean(within)}
    result = {key: round(float(value), 4) for key, value in result.items()}
    write_json(Path(output_dir) / "planes.json", result)
    return result


def logit_figure(
    network: nn.Module,
    dataset: PlaneDataset,
    *,
    output_dir: str | Path,
    num_slices: int = 100,
    device: torch.device | str = "cpu",
) -> None:
    """Histograms of the logits of planes by label, and the profiles of one positive volume along its axes (Fig. 2).

    Writes `logits.csv` (label, logit) and `logits.png`.

    Args:
        network: with its weights.
        dataset: fixed planes of validation volumes.
        output_dir: where the files go.
        num_slices: of the profiles.
        device: where the network runs.
    """
    network = network.to(device).eval()
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for index, label in enumerate(dataset.classes):
            logits = network(dataset[index]["image"].to(device))[:, 0].cpu()
            rows += [{"label": label, "logit": round(float(logit), 4)} for logit in logits]
    write_csv(Path(output_dir) / "logits.csv", rows)
    figure = Figure(figsize=(9, 3.5))
    histogram, profile = figure.subplots(1, 2)
    for label, name in enumerate(("negative", "positive")):
        values = [row["logit"] for row in rows if row["label"] == label]
        histogram.hist(values, bins=40, density=True, alpha=0.6, label=f"{name} volumes")
    histogram.set(xlabel="logit", ylabel="density")
    histogram.legend()
    if 1 in dataset.classes:
        body = dataset.bodies[dataset.classes.index(1)]
        inferer = ToNNOInferer(num_directions=1, size=dataset.size, progress=False)
        inferer.planes = Planes(torch.eye(3), num_slices=num_slices, size=dataset.size)
        image = torch.cat([body.volume.float(), body.inside[None].float()]).to(device)
        whole = crop_to_organ(image, body.spacing, radius=body.radius)
        if whole is not None:
            with torch.no_grad():
                profiles, hits_organ = inferer.profiles(whole, network)
            offsets = torch.linspace(-1, 1, num_slices) * whole.radius
            for axis, (values, inside) in enumerate(
                zip(profiles[:, 1:-1].cpu(), hits_organ[:, 1:-1].cpu(), strict=True)
            ):
                profile.plot(offsets[inside], values[inside], label=f"axis {axis}")
            profile.set(xlabel="mm from the center", ylabel="logit")
            profile.legend()
    _save(figure, Path(output_dir) / "logits.png")


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
