"""What is installed, and what each bundle can do with it: `python -m common doctor`."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "weakseg-bundles"
PIP = "pip install --constraint constraints.txt"
INSTALL = f"{PIP} --editable"
EXTRAS = {
    "dicom": "DICOM in and out",
    "dinov2": "DINOv2 features (insight_ct)",
    "docs": "the site of the documentation",
    "figshare": "T1ce slices of Cheng et al.",
    "lung": "lung masks by a network (insight_ct)",
    "radon": "faster reconstruction on CPUs (tonno_mosmed)",
    "report": "npm, which gets the viewer of reports",
    "timm": "backbones and encoders of timm",
    "track": "trainings in TensorBoard and MLflow",
    "wsi": "slides (insight_ct)",
    "xlsx": "tables of labels as .xlsx",
}
# What these packages would download once, and where it then lies below the home directory.
VIEWER = "niivue-0.69.0.umd.js"
DOWNLOADS = {
    "DINOv2": ("dinov2", ".cache/huggingface/hub/models--facebook--dinov2*"),
    "lungmask R231": ("lung", ".cache/torch/hub/checkpoints/unet_r231-*.pth"),
}
LEAST_GB = 5.0


class Finding(NamedTuple):
    """A line of the report; `mend` is a command, empty where nothing is amiss."""

    what: str
    state: str
    mend: str = ""


def requirement_findings(required: Sequence[str], installed: Mapping[str, str | None]) -> Iterator[Finding]:
    """What the project needs in any case: versions, and those that are missing or do not fit.

    Args:
        required: requirements as in `pyproject.toml`; those of extras are left out.
        installed: version by name; None where there is none.
    """
    for requirement in map(Requirement, required):
        if not _of_extra(requirement):
            yield Finding(requirement.name, *_state(requirement, installed.get(requirement.name)))


def extra_findings(required: Sequence[str], installed: Mapping[str, str | None]) -> Iterator[Finding]:
    """Which extras are there, and the command that installs each other."""
    extras: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, required):
        if (extra := _of_extra(requirement)) and _applies(requirement, extra):
            extras.setdefault(extra, []).append(requirement)
    for extra, needs in sorted(extras.items()):
        if extra == "dev":
            continue
        missing = [need.name for need in needs if _state(need, installed.get(need.name))[1]]
        what = f"[{extra}] {EXTRAS.get(extra, '')}".strip()
        if missing:
            yield Finding(what, f"without {', '.join(missing)}", f'{INSTALL} ".[{extra}]"')
        else:
            yield Finding(what, "there")


def bundle_findings(bundle: str, weights_mb: float | None, data: str) -> Finding:
    """What a bundle can do.

    Args:
        bundle: its name.
        weights_mb: size of its `model.pt`; None where there is none.
        data: what these were trained on.
    """
    if weights_mb is None:
        mend = f"python -m common fit {bundle} DIR OUT"
        return Finding(bundle, "can be trained on yes/no labels; masks need weights", mend)
    return Finding(bundle, f"masks, by weights of {weights_mb:.1f} MB from {data}; training on your labels")


def disk_finding(place: str, free_gb: float) -> Finding:
    """Whether there is room for masks, heatmaps and caches."""
    mend = "" if free_gb >= LEAST_GB else f"free some, or write elsewhere: --output_dir, --cache_dir ({LEAST_GB:g} GB)"
    return Finding(f"free in {place}", f"{free_gb:.0f} GB", mend)


def table(sections: Mapping[str, Sequence[Finding]]) -> str:
    """All findings under their titles, each with the command that mends it."""
    lines = []
    for title, findings in sections.items():
        width = max(len(finding.what) for finding in findings) + 2
        lines.append(title)
        for what, state, mend in findings:
            lines.append(f"{'!' if mend else ' '} {what:{width}}{state}")
            if mend:
                lines.append(f"  {'':{width}}-> {mend}")
    return "\n".join(lines)


def _of_extra(requirement: Requirement) -> str:
    """The extra that a requirement belongs to; empty for none."""
    return str(requirement.marker).rpartition('extra == "')[2].rstrip('"') if "extra" in str(requirement.marker) else ""


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _state(requirement: Requirement, version: str | None) -> tuple[str, str]:
    """Version in words, and the command that mends it."""
    if version is None:
        return "missing", f'{PIP} "{requirement.name}{requirement.specifier}"'
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{version}, needs {requirement.specifier}", f'{PIP} "{requirement.name}{requirement.specifier}"'
    return version, ""


def _installed(required: Sequence[str]) -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in {Requirement(line).name for line in required}:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _devices() -> list[Finding]:
    """Cores, memory and accelerators; torch is imported for these alone."""
    found = [Finding("CPU", f"{len(_cores())} cores, {platform.machine()}")]
    try:
        import torch
    except ImportError:
        return [*found, Finding("accelerators", "unknown without torch", "pip install --requirement constraints.txt")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(Finding(f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    if torch.backends.mps.is_available():
        found.append(Finding("mps", "there"))
    if len(found) == 1:
        found.append(Finding("accelerators", "none: bundles run on the CPU"))
    return found


def _cores() -> Sequence[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _bundles() -> Iterator[Finding]:
    for folder in sorted((REPOSITORY / "bundles").glob("*/configs")):
        weights = folder.parent / "models" / "model.pt"
        described = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        size = weights.stat().st_size / 1e6 if weights.is_file() else None
        yield bundle_findings(folder.parent.name, size, described.get("data_source", "unknown data").partition(",")[0])


def _downloads(installed: Sequence[Finding]) -> Iterator[Finding]:
    """Weights that come from the internet at first use, for extras that are there."""
    there = {finding.what.partition("]")[0][1:] for finding in installed if not finding.mend}
    for name, (extra, pattern) in DOWNLOADS.items():
        if extra in there:
            found = any(Path.home().glob(pattern))
            yield Finding(f"weights of {name}", "there" if found else "not here: downloaded once, at first use")


def _viewer() -> Finding:
    """NiiVue; where it lies is as in `common.report.viewer`, whose import would take seconds."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weakseg"
    if (Path(os.environ.get("WEAKSEG_CACHE") or cache) / VIEWER).is_file():
        return Finding("viewer of reports", "there")
    mend = "python -m common report --get_viewer true"
    return Finding("viewer of reports", "not here: pages show pictures in place of volumes", mend)


def doctor() -> None:
    """Say what is installed, what each bundle can do here, and how to mend what is missing.

    Example:
        `python -m common doctor`

    Raises:
        SystemExit: (after everything is said) something that every bundle needs is missing.
    """
    try:
        required = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        raise SystemExit(f"{NAME} is not installed here: {INSTALL} .") from None
    installed = _installed(required)
    needed = list(requirement_findings(required, installed))
    extras = list(extra_findings(required, installed))
    if shutil.which("npm"):  # which is all that this extra brings
        extras = [finding for finding in extras if not finding.what.startswith("[report]")]
    sections = {
        f"Python {platform.python_version()}, {NAME} {metadata.version(NAME)}": needed,
        "Devices": _devices(),
        "Extras": [*extras, *_downloads(extras), _viewer()],
        "Disk": [disk_finding(str(Path.cwd()), shutil.disk_usage(Path.cwd()).free / 1e9)],
        "Bundles": list(_bundles()),
    }
    print(table(sections))
    if any(finding.mend for finding in needed):
        raise SystemExit("what is marked ! above is needed by every bundle")
