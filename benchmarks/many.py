"""A run over many small cases, some of them broken, killed and started again: `python -m benchmarks many`."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Events
from monai.bundle import ConfigParser

from common.commands.run import BUNDLES
from common.datasets import write_phantom
from common.files import write_json
from common.handlers.finished import FOLDER


def benchmark_many(
    bundle: str = "gp_unet_brats",
    config: str = "inference.json,phantom.json",
    cases: int = 1000,
    broken: int = 10,
    shape: tuple[int, int, int] = (48, 48, 12),
    kill_after: int = 0,
    **overrides: Any,
) -> dict[str, Any]:
    """Run a bundle, with random weights, over many cases; memory of the first tenth of them against the last tenth.

    Args:
        bundle: name under `bundles/`.
        config: file names in its `configs/`, comma-separated; later ones override earlier ones.
        cases: how many.
        broken: of them are cut off, evenly spread.
        shape: voxels of the phantom.
        kill_after: kill the process when it has finished so many, and start another one with `overwrite` false.
        overrides: top-level keys of the config.

    Returns:
        `written`, `failed`, `kept` (cases that the second process skipped), `mb_first` and `mb_last` (mean memory of
        the process over a tenth of its cases), `per_minute`.
    """
    context = multiprocessing.get_context("fork")  # nothing here has used torch's threads yet
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_cases(folder / "in", cases, broken, shape)
        settings = {"dataset_dir": str(folder / "in"), "output_dir": str(folder / "out"), "progress": False}
        settings |= {"check_range": False, **overrides}  # phantoms are not what weights were trained on
        kept = 0
        if kill_after:
            process = context.Process(target=_run, args=(bundle, config, settings, folder / "first.json"))
            process.start()
            while process.is_alive() and len(list((folder / "out" / FOLDER).glob("[!.]*.json"))) < kill_after:
                time.sleep(0.01)
            process.kill()
            process.join()
            kept = len(list((folder / "out" / FOLDER).glob("[!.]*.json")))
        settings["overwrite"] = False
        process = context.Process(target=_run, args=(bundle, config, settings, folder / "result.json"))
        process.start()
        process.join()
        result = ConfigParser.load_config_file(folder / "result.json")
        written = len(list((folder / "out").glob("[!.]*_seg.nii.gz")))
        rows = (folder / "out" / "predictions.csv").read_text(encoding="utf-8").count("\n") - 1
    print(
        f"{cases} cases: {written} written, {rows} rows, {result['failed']} listed as failed, exit {process.exitcode}; "
        f"{kept} were there when it started; {result['per_minute']} a minute; "
        f"memory {result['mb_first']} MB at first, {result['mb_last']} MB at last"
    )
    return {"written": written, "rows": rows, "exit": process.exitcode, "kept": kept, **result}


def _write_cases(folder: Path, cases: int, broken: int, shape: tuple[int, int, int]) -> None:
    write_phantom(folder / "one", cases=1, shape=shape, healthy_fraction=0.0)
    whole = (folder / "one" / "phantom_000" / "flair.nii.gz").read_bytes()
    bad = set(np.linspace(0, cases - 1, broken + 2).astype(int)[1:-1].tolist())
    for number in range(cases):
        (folder / f"case_{number:05d}").mkdir()
        content = whole[: len(whole) // 2] if number in bad else whole
        (folder / f"case_{number:05d}" / "flair.nii.gz").write_bytes(content)


def _run(bundle: str, config: str, settings: dict[str, Any], result: Path) -> None:
    """In a process of its own: run, write what is told of it, and exit as the bundle would."""
    root = BUNDLES / bundle
    sys.path.insert(0, str(root))
    parser = ConfigParser()
    parser.read_config([str(root / "configs" / name) for name in config.split(",")])
    parser.update(settings)
    import torch

    torch.manual_seed(0)  # the same random weights after the kill
    evaluator: Any = parser.get_parsed_content("evaluator")
    memory: list[float] = []
    page = os.sysconf("SC_PAGE_SIZE") / 2**20

    @evaluator.on(Events.ITERATION_COMPLETED)
    def measure() -> None:
        memory.append(int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * page)

    start, code = time.perf_counter(), 0
    try:
        evaluator.run()
    except RuntimeError:
        code = 1
    tenth = max(1, len(memory) // 10)
    about = {
        "failed": len(evaluator.failed),
        "mb_first": round(float(np.mean(memory[:tenth]))),
        "mb_last": round(float(np.mean(memory[-tenth:]))),
        "per_minute": round(60 * len(memory) / (time.perf_counter() - start)),
    }
    write_json(result, about)
    sys.exit(code)
