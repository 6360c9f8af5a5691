"""A bundle as one zip that runs without this project: `python -m common export NAME`.

`common` travels inside, as `scripts/common`, and whatever refers to it is rewritten to say so. In the bundle's root it
would share its name with any other `common` on the path, and a server that holds several bundles forgets `scripts` when
it goes from one bundle to the next, and nothing else: the second bundle would get the first one's `common`.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from ..files import atomic_path, read_json
from .run import BUNDLES, bundle_root

PACKAGE = Path(__file__).resolve().parents[1]
FILES, FOLDERS = ("LICENSE", "large_files.*"), ("configs", "docs", "models", "scripts")
REFERENCE = re.compile(r"(?<![\w./])common(?=\.[a-z_]|\s+import\b)")


def export(name: str = "", *, all: bool = False, output_dir: str = "dist") -> None:
    """Write `NAME_vVERSION.zip`, the same bytes from the same files.

    Args:
        name: a bundle under `bundles/`, or a path.
        all: every bundle under `bundles/` that has weights.
        output_dir: folder of the zips.

    Example:
        `python -m common export gp_unet_brats --output_dir dist`
    """
    if bool(name) == all:
        raise SystemExit("name one bundle, or say --all")
    names = sorted(path.parent.parent.name for path in BUNDLES.glob("*/models/model.pt")) if all else [name]
    for bundle in names:
        path = export_bundle(bundle_root(bundle), output_dir)
        print(f"{path} ({path.stat().st_size / 2**20:.1f} MB)")


def export_bundle(root: str | Path, output_dir: str | Path) -> Path:
    """Write one bundle's zip: a single top-level folder, named as the bundle.

    Args:
        root: the bundle.
        output_dir: folder of the zip, made when needed.

    Returns:
        The zip.

    Raises:
        FileNotFoundError: `LICENSE`, metadata, `inference.json` or `model.pt` is missing.
        ValueError: the version is not in the changelog, or something refers to a module that `common` does not have.
    """
    root = Path(root).resolve()
    needed = ("LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt")
    if missing := [file for file in needed if not (root / file).is_file()]:
        raise FileNotFoundError(f"{root.name} is not complete: {', '.join(missing)} missing")
    metadata = read_json(root / "configs" / "metadata.json")
    version = metadata["version"]
    if version not in metadata["changelog"]:
        raise ValueError(f"{root.name}: the version {version} has no entry in the changelog of metadata.json")
    path = Path(output_dir) / f"{root.name}_v{version}.zip"
    write_zip(path, {f"{root.name}/{file}": data for file, data in bundle_files(root).items()})
    return path


def bundle_files(root: Path) -> dict[str, bytes]:
    """What travels, by its path inside the bundle: the bundle's own files, and `common` in `scripts/common`."""
    paths = [*(path for pattern in FILES for path in root.glob(pattern)), *_below(root)]
    relative = {path.relative_to(root): path for path in paths}
    hidden = [file for file in relative if any(part.startswith((".", "__pycache__")) for part in file.parts)]
    files = {file.as_posix(): path.read_bytes() for file, path in relative.items() if file not in hidden}
    texts = {file: data.decode() for file, data in files.items() if _is_config(file) or file.endswith(".py")}
    modules = common_modules(texts)
    if not modules:
        return files
    files |= {file: REFERENCE.sub("scripts.common", text).encode() for file, text in texts.items()}
    inside = {f"scripts/common/{file}": (PACKAGE / file).read_bytes() for file in [*modules, *_beside(modules)]}
    files.setdefault("scripts/__init__.py", b"")
    return files | inside | {"scripts/common/LICENSE": files["LICENSE"]}


def _below(root: Path) -> Iterator[Path]:
    """Files of the folders that travel, and of folders that are linked into them: a glob would not enter these."""
    for top in FOLDERS:
        for folder, _, files in os.walk(root / top, followlinks=True):
            yield from (Path(folder) / name for name in files if (Path(folder) / name).is_file())


def _is_config(file: str) -> bool:
    return file.startswith("configs/") and file.endswith((".json", ".yaml", ".yml"))


def common_modules(texts: Mapping[str, str]) -> list[str]:
    """Files of `common` that configs and scripts need, and those that these need in turn.

    Args:
        texts: configs (`configs/…`) and Python files, by path.

    Returns:
        Paths below `common`, sorted: `files.py`, `masks/__init__.py`, `masks/refine.py` …

    Raises:
        ValueError: a module that `common` does not have, or no Python; the message names the file.
    """
    asked: dict[str, str] = {}
    for file, text in sorted(texts.items()):
        try:
            names = (
                re.findall(REFERENCE.pattern + r"\.([\w.]+)", text) if _is_config(file) else [*_imports_of_common(text)]
            )
        except SyntaxError as error:
            raise ValueError(f"{file}, line {error.lineno}: {error.msg}; mend it or take it out") from None
        asked |= {name: file for name in names if name not in asked}
    found: set[str] = set()
    done: set[str] = set()
    while asked:
        name, asking = asked.popitem()
        done.add(name)
        files = _files_of(name)
        if not files:
            raise ValueError(f"{asking} refers to common.{name}, which does not exist")
        for file in {"__init__.py", *files} - found:
            found.add(file)
            inner = set(_relative_imports(file, (PACKAGE / file).read_text(encoding="utf-8"))) - done
            asked |= dict.fromkeys(inner, f"common/{file}")
    return sorted(found)


def _beside(modules: Iterable[str]) -> list[str]:
    """What the rooms of these modules hold beside Python: the parts of a page."""
    rooms = {PurePosixPath(file).parts[0] for file in modules if "/" in file}
    files = [path for room in rooms for path in (PACKAGE / room).rglob("*") if path.is_file()]
    return sorted(path.relative_to(PACKAGE).as_posix() for path in files if path.suffix not in (".py", ".pyc"))


def _files_of(name: str) -> list[str]:
    """What importing `common.<name>` runs: its packages' `__init__.py`, then the module; what is left is an attribute.

    Nothing where there is no module of the first part.
    """
    files: list[str] = []
    place = PurePosixPath()
    for part in name.split("."):
        if (PACKAGE / place / f"{part}.py").is_file():
            return [*files, str(place / f"{part}.py")]
        place /= part
        if not (PACKAGE / place / "__init__.py").is_file():
            return files
        files.append(str(place / "__init__.py"))
    return files


def _imports_of_common(text: str) -> Iterator[str]:
    """`a.b` of `import common.a.b`, `from common.a import b`."""
    for name in _absolute_imports(text):
        head, _, rest = name.partition(".")
        if head == "common" and rest:
            yield rest


def _absolute_imports(text: str) -> Iterator[str]:
    """Dotted names of all absolute imports; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _relative_imports(file: str, text: str) -> Iterator[str]:
    """What a file of `common` imports from `common`: `a.b` of `from .b import c` in `a/d.py`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            home = PurePosixPath(file).parents[node.level - 1].parts
            base = (*home, *(node.module.split(".") if node.module else ()))
            yield from (".".join((*base, alias.name)) for alias in node.names)


def write_zip(path: str | Path, files: Mapping[str, bytes]) -> None:
    """Write files in the order of their names, without anything that another day or machine would change.

    They are stored, not deflated: weights hardly shrink, and zlib's versions differ in their output.

    Args:
        path: the zip, replaced atomically.
        files: content by name.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix, on whatever system it is written
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name])


def third_party(files: Mapping[str, bytes]) -> dict[str, str]:
    """Top-level packages that importing the code needs, each with the first file that imports it.

    Imports inside functions do not count: they are of optional packages, used where needed. Neither do the standard
    library, `common` and `scripts`.

    Args:
        files: of a bundle, by path, as `bundle_files` gives them.
    """
    found: dict[str, str] = {}
    for file in sorted(files):
        if file.endswith(".py"):
            names = _outer_imports(files[file].decode())
        elif _is_config(file) and not file.endswith("metadata.json"):
            names = _named_in(json.loads(files[file]))
        else:
            continue
        for name in names:
            head = name.split(".")[0]
            if head not in sys.stdlib_module_names and head not in ("common", "scripts"):
                found.setdefault(head, file)
    return found


def _outer_imports(text: str) -> Iterator[str]:
    """Absolute imports outside functions, without those under `if TYPE_CHECKING`."""
    nodes: list[ast.AST] = [ast.parse(text)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "",) if node.level == 0 else ()
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not _for_types_only(node):
            nodes += ast.iter_child_nodes(node)


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _named_in(config: object) -> Iterator[str]:
    """Modules that a config imports, and those of its dotted `_target_`s."""
    if isinstance(config, Mapping):
        target = str(config.get("_target_", ""))
        yield from (target,) if "." in target and not target.startswith(("$", "@")) else ()
    if isinstance(config, str) and (found := re.match(r"\$\s*(?:import|from)\s+([\w.]+)", config)):
        yield found[1]
    inner: Iterable = config.values() if isinstance(config, Mapping) else config if isinstance(config, list) else ()
    for value in inner:
        yield from _named_in(value)
