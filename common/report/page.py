"""The page: the data of a report, the script that shows them, and NiiVue, in one HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import json_text
from .viewer import COMMAND, read_viewer

FOLDER = Path(__file__).parent / "page"
SCRIPTS = ("dom", "charts", "head", "list", "viewer", "slide", "case", "training", "main")


def page(report: Mapping[str, Any]) -> str:
    """A report as HTML that opens from disk and asks the network for nothing.

    Args:
        report: of `common.report.build_report` or `build_training_report`.
    """
    viewer = read_viewer() if any(row.get("volumes") for row in report.get("cases", ())) else ""
    # An empty text: no case needs the viewer; None: it was never got.
    data = dict(report) | {"viewer": None if viewer is None else bool(viewer), "viewer_command": COMMAND}
    parts = {
        "title": _title(report),
        "style": _read("style.css"),
        "viewer": f"/* {_read('niivue_license.txt')} */\n{viewer}" if viewer else "",
        "data": json.dumps(json.loads(json_text(data)), ensure_ascii=False, separators=(",", ":")).replace(
            "<", "\\u003c"
        ),
        "script": "\n".join(_read(f"{name}.js") for name in SCRIPTS),
    }
    first, *rest = _read("page.html").split("{{")
    return first + "".join(parts[name] + text for name, _, text in (piece.partition("}}") for piece in rest))


def _title(report: Mapping[str, Any]) -> str:
    run = report["run"]
    return f"{run.get('bundle') or 'Run'}: {run['kind']}".replace("&", "&amp;").replace("<", "&lt;")


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
