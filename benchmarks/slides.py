"""What a whole slide costs, and where the seconds go: `python -m benchmarks slides`."""

from __future__ import annotations

import io
import multiprocessing
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser
from PIL import Image

from common.commands.run import BUNDLES
from common.files import read_json, write_json

TILE = 256
ROOT = BUNDLES / "insight_ct"


def write_textured(path: Path, side: int, *, mpp: float = 0.5, levels: int = 4, share: float = 0.5) -> Path:
    """A square slide as scanners write it: tiles of JPEG, a pyramid by halves; tissue is a disk with texture.

    Tiles but those at the edge of the tissue are packed once, so that 60,000² pixels take seconds.

    Args:
        path: the TIFF.
        side: pixels of the finest level.
        mpp: micrometers per pixel of it.
        levels: of the pyramid.
        share: of the area that is tissue.
    """
    import tifffile

    rng = np.random.default_rng(0)
    texture = np.clip(rng.normal((200, 120, 170), 30, (TILE // 4, TILE // 4, 3)), 0, 255).astype(np.uint8)
    tissue = np.asarray(Image.fromarray(texture).resize((TILE, TILE), Image.Resampling.BICUBIC))
    glass = np.full_like(tissue, 243)
    packed = {False: _jpeg(glass), True: _jpeg(tissue)}
    radius = side * np.sqrt(share / np.pi)

    def tiles(count: int, scale: int) -> Iterator[bytes]:
        pixels = (np.arange(TILE) + 0.5) * scale - side / 2
        for row, column in np.ndindex(count, count):
            y, x = (pixels + place * TILE * scale for place in (row, column))
            inside = np.hypot(y[[0, -1], None], x[[0, -1]]) < radius
            if inside.all() or not inside.any():
                yield packed[bool(inside.all())]
            else:
                yield _jpeg(np.where((np.hypot(y[:, None], x) < radius)[..., None], tissue, glass))

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(levels):
            scale = 2**level
            size = side // scale
            file.write(
                tiles(-(-size // TILE), scale),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                compression="jpeg",
                photometric="ycbcr",
                subsampling=(1, 1),
                subfiletype=int(level > 0),
                resolution=(1e4 / (mpp * scale),) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85, subsampling=0)
    return buffer.getvalue()


def benchmark_slides(
    sides: Sequence[int] = (4480, 60_000),
    workers: int = 2,
    slides: int = 8,
    folder: str | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Mask slides of several sizes with the shipped weights, then encode some with one and with several processes.

    Every process has one thread. The slides are synthetic, so only their cost means something.

    Args:
        sides: pixels of the slides' sides at 0.5 µm.
        workers: processes that share a store.
        slides: of the first size, that they encode.
        folder: for slides and results, removed afterwards; by default the system's.
        overrides: top-level keys of `wsi_inference.json`.

    Returns:
        `slides`, a row each, and `store`: seconds of one process and of several.
    """
    context = multiprocessing.get_context("fork")  # nothing here has used torch's threads yet
    rows = []
    with tempfile.TemporaryDirectory(dir=folder) as name:
        home = Path(name)
        for side in sides:
            place = home / str(side)
            place.mkdir()
            write_textured(place / "a.tif", side)
            rows.append({"side": side} | _in_process(context, _mask, place, overrides))
            print(_line(rows[-1]), flush=True)
        place = home / "shared"
        place.mkdir()
        for number in range(slides):  # a file's content is in its key: the shares of tissue differ
            write_textured(place / f"{number}.tif", sides[0], share=0.4 + 0.02 * number)
        store = {}
        for count in (1, workers):
            for old in home.glob("features*/**/entry.json"):
                old.unlink()
            start = time.perf_counter()
            processes = [
                context.Process(
                    target=_encode, args=(place, home / f"features{count}", home / f"{count}_{i}", overrides)
                )
                for i in range(count)
            ]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            parts = [read_json(home / f"{count}_{i}") for i in range(count)]
            store[count] = {
                "wall": round(time.perf_counter() - start, 1),
                "cpu": round(sum(p["cpu"] for p in parts), 1),
            }
            print(f"{slides} slides into one store, {count} process(es): {store[count]}", flush=True)
    return {"slides": rows, "store": store}


def _line(row: dict[str, Any]) -> str:
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["stages"].items())
    return (
        f"{row['side']:,} px, {row['tiles']} tiles: {row['wall']:.1f} s, {row['cpu']:.1f} CPU-s ({stages}), "
        f"{row['mib']} MiB of which {row['mib_before']} before"
    )


def _in_process(context: Any, function: Any, place: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    process = context.Process(target=function, args=(place, overrides))
    process.start()
    process.join()
    return read_json(place / "result.json")


def _config(place: Path, overrides: dict[str, Any]) -> ConfigParser:
    """`wsi_inference.json` over the slides of a folder, with one thread."""
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT))
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / "wsi_inference.json"))
    settings = {"dataset_dir": str(place), "image_pattern": "*.tif", "output_dir": str(place / "out"), "threads": 1}
    parser.update({**settings, "progress": False, "device": "cpu", **overrides})
    return parser


def _mask(place: Path, overrides: dict[str, Any]) -> None:
    """Run inference; write what it took as a whole, and of which stage."""
    parser = _config(place, overrides)
    evaluator: Any = parser.get_parsed_content("evaluator")
    from common.checkpoint import load_weights

    network = load_weights(parser.get_parsed_content("network_def"), parser.get_parsed_content("ckpt"))
    from scripts.slides import inference, tiles  # type: ignore[import-not-found]

    spent: dict[str, Any] = defaultdict(float)
    for owner, name, stage in (
        (tiles.Tiler, "__call__", "tissue"),
        (tiles.Tiles, "__getitem__", "reading"),
        (type(network.encoder), "forward", "encoder"),
        (inference.HeatCanvas, "add", "heat"),
        (inference.SlideWriter, "_collect", "files"),
    ):
        setattr(owner, name, _timed(getattr(owner, name), stage, spent))
    before, wall, cpu = _peak(), time.perf_counter(), time.process_time()
    evaluator.run()
    cpu = time.process_time() - cpu
    found = {"tiles": spent.pop("tiles", 0), "wall": time.perf_counter() - wall, "cpu": cpu}
    stages: dict[str, float] = {**spent, "rest": cpu - sum(spent.values())}
    write_json(place / "result.json", {**found, "stages": stages, "mib": _peak(), "mib_before": before})


def _timed(function: Any, stage: str, spent: dict[str, Any]) -> Any:
    """The function, which adds the CPU seconds of its thread to a stage."""

    def run(self: Any, *arguments: Any, **options: Any) -> Any:
        start = time.thread_time()
        result = function(self, *arguments, **options)
        spent[stage] += time.thread_time() - start
        if stage == "tissue":
            spent["tiles"] = len(result.tiles)
        return result

    return run


def _encode(place: Path, store: Path, result: Path, overrides: dict[str, Any]) -> None:
    """Put the features of a folder's slides into a store that others may be at, too."""
    parser = _config(place, overrides)
    encoder: Any = parser.get_parsed_content("encoder")
    from scripts.slides.bags import slide_bags  # type: ignore[import-not-found]

    from common.features import FeatureStore

    cases = [
        {"case": path.stem, "patient": path.stem, "image": str(path), "cls": 0} for path in place.glob("[!.]*.tif")
    ]
    cpu, options = (
        time.process_time(),
        {"classes": ["none", "tumor"], "batch_size": 4, "progress": False, "patience": 0.1},
    )
    slide_bags(cases, FeatureStore(store), parser.get_parsed_content("preprocessing"), encoder, **options)
    write_json(result, {"cpu": time.process_time() - cpu})


def _peak() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
