"""One layout for all configs: `python -m common format`; with `--check` files are only looked at."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from ..files import write
from .run import BUNDLES

WIDTH = 120


def format_configs(bundles: str = str(BUNDLES), *, check: bool = False) -> None:
    """Lay out the configs of all bundles as `format_json` does.

    Args:
        bundles: folder of the bundles, each with its `configs/`; by default the repository's.
        check: write nothing; end with an error that names the files whose layout is another.

    Example:
        `python -m common format --check`
    """
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(Path(bundles).glob("*/configs/*.json"))}
    if not texts:
        raise FileNotFoundError(f"no bundle in {bundles} has configs")
    wanting = {path: text for path, old in texts.items() if (text := format_json(json.loads(old))) != old}
    if check and wanting:
        raise SystemExit("\n".join(["run `python -m common format`; the layout differs in", *map(str, wanting)]))
    for path, text in wanting.items():
        write(path, text)
        print(path)


def format_json(value: dict[str, Any]) -> str:
    """JSON in lines of at most 120 characters where texts allow it, indented by 4, entries in the order given.

    The entries of `value` have lines of their own. What lies below is on one line if it fits and holds no dict but
    itself; else each entry has its line, and numbers fill theirs.
    """
    return _expanded(value, 0) + "\n"


def _laid_out(value: Any, indent: int, taken: int) -> str:
    """A value whose first line begins after `taken` characters, a key and the indentation, and ends with a comma."""
    flat = json.dumps(value, ensure_ascii=False)
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    fits = taken + len(flat) < WIDTH and not any(map(_holds_dict, entries))
    return flat if fits or not entries else _expanded(value, indent)


def _expanded(value: dict[str, Any] | list[Any], indent: int) -> str:
    margin = " " * (indent + 4)
    if isinstance(value, list) and all(isinstance(entry, int | float) for entry in value):
        lines = textwrap.fill(
            json.dumps(value)[1:-1], WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
        )
    else:
        named = value.items() if isinstance(value, dict) else ((None, entry) for entry in value)
        begun = [(margin if key is None else f"{margin}{json.dumps(key)}: ", entry) for key, entry in named]
        lines = ",\n".join(begin + _laid_out(entry, indent + 4, len(begin)) for begin, entry in begun)
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{lines}\n{' ' * indent}{closing}"


def _holds_dict(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_holds_dict, value)))
