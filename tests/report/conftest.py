"""A run as `CaseWriter`, `CaseScores` and `LabelScores` leave it, made by hand: four cases, one of them healthy."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from common.files import write_csv, write_json
from common.handlers import draw_montage
from common.metrics import dice, summarize
from tests.pipeline import affine_of, save

SHAPE = (40, 36, 8)
AFFINE = affine_of("LPS", (1.0, 1.5, 4.0), SHAPE, degrees=10.0)
THRESHOLD = 0.4
CASES = ("p1", "p2", "p3", "p4")


def volumes(number: int) -> dict[str, np.ndarray]:
    """Scan, heatmap, mask and truth of a case: two blobs of heat; the truth is one of them, shifted more and more."""
    x, y, z = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")

    def blob(at: tuple[int, int, int], width: float) -> np.ndarray:
        return np.exp(-(((x - at[0]) / width) ** 2 + ((y - at[1]) / width) ** 2 + ((z - at[2]) / 2) ** 2))

    organ = ((x - 20) / 11) ** 2 + ((y - 18) / 9) ** 2 < 1
    heat = np.where(organ, blob((15, 18, 3), 4) + (0.6 + 0.1 * number) * blob((26, 18, 5), 3) + 0.01, 0)
    truth = (blob((15 + 2 * number, 18, 3), 4) > 0.5) & organ & (number < 3)
    noise = np.random.default_rng(number).normal(0, 5, SHAPE)
    return {
        "image": np.where(organ, 100 + 80 * truth + noise, 0).astype(np.float32),
        "heat": heat.astype(np.float32),
        "mask": ((heat > THRESHOLD) & (x < 21)).astype(np.uint8),
        "truth": truth.astype(np.uint8),
    }


def embedded(folder: Path) -> dict:
    """What `report.html` of a folder shows, as plain data."""
    text = (folder / "report.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="report">(.*?)</script>', text, re.DOTALL)[1])


def write_run(folder: Path, data: Path, *, scored: bool = True, record: bool = True) -> Path:
    """The folder of a run over scans in `data`."""
    predictions, metrics, labels, slices, files = [], [], [], [], {}
    milliliter = abs(np.linalg.det(AFFINE[:3, :3])) / 1000
    for number, case in enumerate(CASES):
        found = volumes(number)
        mask, truth = found["mask"] > 0, found["truth"] > 0
        files[case] = {key: save(data / case / f"{key}.nii.gz", found[key], AFFINE) for key in ("image", "truth")}
        files[case]["label"] = files[case].pop("truth")
        save(folder / f"{case}_heatmap.nii.gz", found["heat"], AFFINE)
        save(folder / f"{case}_seg.nii.gz", found["mask"], AFFINE)
        draw_montage(found["image"], found["heat"], found["mask"], truth, affine=AFFINE, height=96).save(
            folder / f"{case}_montage.png"
        )
        shared = {"case": case, "patient": case}
        probability = 0.9 - 0.1 * number
        predictions.append(
            {
                "case": case,
                **{"probability_none": round(1 - probability, 4), "probability_tumor": probability},
                **{"threshold": THRESHOLD, "volume_ml": round(mask.sum() * milliliter, 3), "seconds": 1.0},
                "warnings": "/data/scans/p2/image.nii.gz is odd" if case == "p2" else "",
            }
        )
        scores = {"dice": dice(mask, truth), "dice_raw": dice(found["heat"] > THRESHOLD, truth), "dice_empty": 0.0}
        scores |= {"dice_baseline_threshold": 0.3, "dice_baseline_gated": 0.2 + 0.1 * number}
        metrics.append({**shared, **{key: round(value, 4) for key, value in scores.items()}})
        labels.append({**shared, "positive": int(truth.any()), "probability": probability})
        for z in range(SHAPE[2]):
            positive = int(truth[..., z].any())
            slices.append(
                {**shared, "slice": z, "positive": positive, "probability": 0.2 + 0.5 * positive + 0.03 * number}
            )
    write_csv(folder / "predictions.csv", predictions)
    if scored:
        write_csv(folder / "metrics.csv", metrics)
        write_csv(folder / "labels.csv", labels)
        write_csv(folder / "slices.csv", slices)
        names = [key for key in metrics[0] if key not in ("case", "patient")]
        write_json(folder / "summary.json", {k: summarize([row[k] for row in metrics]) for k in names})
        volumes_ = {"positives": 3, "negatives": 1, "auc": 1.0, "auc_interval": [1.0, 1.0], "sensitivity": 1.0}
        write_json(folder / "labels.json", {"gate": 0.5, "volumes": volumes_ | {"specificity": 0.0}})
    if record:
        write_json(folder / "run.json", {"bundle": "gp_unet_brats", "version": "0.1.0", "files": files})
    return folder


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory) -> Path:
    """Scored, with a record; tests leave it as it is."""
    home = tmp_path_factory.mktemp("run")
    return write_run(home / "eval", home / "data")


_RNG = np.random.default_rng(0)
CELLS = {
    "heat": _RNG.random((16, 20)).astype(np.float32),
    "tissue": _RNG.random((16, 20)) > 0.3,
    "truth": _RNG.random((16, 20)) > 0.5,
    "threshold": 0.123456789,
}


def write_slides(folder: Path) -> Path:
    """The tables and pictures of a run over four slides, two of them ill."""
    found = [("s1", 0.9, 1, 2.5), ("s2", 0.2, 0, 0.1), ("s3", 0.6, 1, 0.0), ("s4", 0.4, 0, 0.0)]
    predictions, metrics = [], []
    for case, p, label, area in found:
        predictions.append({"case": case, "probability_none": 1 - p, "probability_tumor": p, "threshold_tumor": 0.5})
        predictions[-1] |= {"area_mm2_tumor": area, "tissue_mm2": 9.0, "tiles": 7, "seconds": 1.5}
        metrics.append({"case": case, "patient": case, "probability_tumor": p, "label_tumor": label})
        Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(folder / f"{case}_overlay.png")
    write_csv(folder / "predictions.csv", predictions)
    write_csv(folder / "metrics.csv", metrics)
    write_json(folder / "summary.json", {"slides": 4, "auc": {"tumor": 1.0}, "auc_macro": 1.0})
    return folder


def write_cells(
    folder: Path, case: str, *, truth: np.ndarray = CELLS["truth"], labels: dict[str, float] | None = None
) -> None:
    """Heat, mask and cells of a slide as a run leaves them; `labels` says the threshold of each."""
    labels, tissue = labels or {"tumor": CELLS["threshold"]}, CELLS["tissue"]
    heat = np.stack([np.roll(CELLS["heat"], 3 * number, axis=1) for number in range(len(labels))])
    thresholds = np.array([*labels.values()])
    above = np.where(heat > thresholds.astype(np.float32)[:, None, None], heat, 0)
    mask = np.where(above.any(axis=0) & tissue, above.argmax(axis=0) + 1, 0)
    tifffile.imwrite(folder / f"{case}_heatmap.ome.tif", heat, metadata={"axes": "CYX"}, ome=True)
    tifffile.imwrite(folder / f"{case}_seg.tif", mask.astype(np.uint8))
    buffer = io.BytesIO()
    Image.new("RGB", (96, 80), "pink").save(buffer, "JPEG")
    view = np.frombuffer(buffer.getvalue(), np.uint8)
    cells = {"names": np.array([*labels]), "thresholds": thresholds, "tissue": tissue[:, :19]}
    cells |= {"cell_um": np.array(8.0), "extent": np.array([19.2, 16.0]), "view": view, "truth": truth}
    np.savez(folder / f"{case}_cells.npz", **cells)
