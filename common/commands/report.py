"""`python -m common report RUN_DIR`: a page about a run, from the files that it has left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import report as page


def report(
    run_dir: str = "",
    *,
    dataset_dir: str | None = None,
    image_pattern: str | Sequence[str] | None = None,
    label_pattern: str | None = None,
    datalist: str | None = None,
    section: str = "test",
    max_embedded: int = 8,
    max_mb: float = 15.0,
    get_viewer: bool = False,
) -> None:
    """Write `report.html` into the folder of an inference or evaluation. It opens from disk and can be e-mailed.

    Args:
        run_dir: the run's `output_dir`.
        dataset_dir: folder of the scans, where the run has not written down where they lie.
        image_pattern: glob pattern of the scans below it, as for the run.
        label_pattern: the same of ground-truth masks, which are opened only where the run has scored them.
        datalist: in place of patterns.
        section: of the datalist.
        max_embedded: cases whose volumes are in the page; the others have their picture.
        max_mb: of these volumes.
        get_viewer: get NiiVue, the viewer of volumes, by npm; once for all reports.

    Example:
        `python -m common report eval`
    """
    if get_viewer:
        print(page.get_viewer())
    if not run_dir:
        if get_viewer:
            return
        raise ValueError("name the folder of a run: python -m common report RUN_DIR")
    options: dict[str, Any] = {"max_embedded": max_embedded, "max_mb": max_mb}
    if dataset_dir:
        patterns = image_pattern if image_pattern is None or isinstance(image_pattern, str) else list(image_pattern)
        options["files"] = page.find_files(
            dataset_dir, image_pattern=patterns, label_pattern=label_pattern, datalist=datalist, section=section
        )
    path = page.write_report(run_dir, **options)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
