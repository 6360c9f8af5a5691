"""A preprocessing as text: the same for the same settings, in any process, and another as soon as one changes.

`joblib.hash` would not do: it is another for each `Compose` (whose random state is new), after use (readers remember
their last file) and for equal lists that are shared or not, and it sees neither versions nor sources. Nor would a hash
of the config, which those who look for features do not hold.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import os
import sys
import threading
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from types import BuiltinFunctionType, EllipsisType, FunctionType, NoneType
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader
from monai.transforms import Compose

from ..images import tensor_bytes


def describe(value: Any) -> str:
    """Everything that a transform's result depends on: class names with their versions, and all attributes, nested.

    Of packages with a `__version__` (MONAI) that number counts, of others (`common`, a bundle's `scripts`) the source
    of the module and of what it imports from its own package, within functions, too.

    Args:
        value: a transform, `Compose` included, or anything that is an option of one.

    Returns:
        Text, some hundred characters a transform.

    Raises:
        ValueError: something random, a function without a name, or an object without attributes: it cannot be told
            apart from another of its kind. The message says where.
    """
    return _describe(value, "preprocessing", ())


def _array(value: torch.Tensor | np.ndarray) -> str:
    data = torch.as_tensor(value)
    return f"array({data.dtype}, {list(data.shape)}, {hashlib.sha256(tensor_bytes(data)).hexdigest()})"


# What has no parts. The first that fits counts: an Enum may be a text, too.
_WHOLE: tuple[tuple[Any, Callable[[Any], str]], ...] = (
    (Enum, lambda value: f"{type(value).__qualname__}.{value.name}"),
    (NoneType | bool | int | float | complex | str | bytes | slice | EllipsisType, repr),
    (os.PathLike, lambda value: repr(os.fspath(value))),
    (torch.dtype | torch.device | np.dtype | np.generic, repr),
    (torch.Tensor | np.ndarray, _array),
    (type, lambda value: f"{value.__module__}.{value.__qualname__}"),
)


def _describe(value: Any, where: str, parents: tuple[int, ...]) -> str:
    def inner(part: Any, name: object) -> str:
        return _describe(part, f"{where}.{name}", (*parents, id(value)))

    if id(value) in parents:
        return "<itself>"
    for kinds, told in _WHOLE:
        if isinstance(value, kinds):
            return told(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {inner(part, key)}" for key, part in value.items()) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(inner(part, "element") for part in value)) + "}"
    if isinstance(value, list | tuple):
        parts = [part for part in value if not getattr(part, "only_looks", False)]  # those change nothing
        return "[" + ", ".join(inner(part, number) for number, part in enumerate(parts)) + "]"
    if isinstance(value, FunctionType | BuiltinFunctionType):
        if "<" in value.__qualname__:
            raise ValueError(f"{where} is {value.__qualname__}, which has no name: use a function of a module")
        return f"{value.__module__}.{value.__qualname__}[{_version(value.__module__)}]"
    if isinstance(value, functools.partial):
        return f"partial({inner([value.func, value.args, value.keywords], 'partial')})"
    kind = type(value)
    settings = ", ".join(f"{name}={inner(part, name)}" for name, part in _settings(value, where).items())
    return f"{kind.__module__}.{kind.__qualname__}[{_version(kind.__module__)}]({settings})"


def _settings(value: Any, where: str) -> dict[str, Any]:
    """The attributes of an object on which its results depend."""
    if isinstance(value, np.random.RandomState | np.random.Generator | torch.Generator):
        raise ValueError(f"{where} is random: features are computed once, from a preprocessing that is always the same")
    if not hasattr(value, "__dict__"):
        raise ValueError(f"{where} is a {type(value).__qualname__}, whose settings cannot be told")
    own = {k: v for k, v in sorted(vars(value).items()) if not isinstance(v, threading.local)}  # MONAI's tracing
    if isinstance(value, Compose):
        own.pop("R")  # it belongs to the transforms, and each of them is looked at
    if isinstance(value, ImageReader):  # they remember what they read last
        own = {name: part for name, part in own.items() if name in inspect.signature(type(value)).parameters}
    return own


def _version(name: str) -> str:
    """Version of the package that a module belongs to, or a digest of the sources."""
    package = name.partition(".")[0]
    version = getattr(sys.modules.get(package), "__version__", None)
    if version is not None or package in sys.stdlib_module_names:
        return str(version or "")
    sources: dict[str, bytes] = {}
    _collect(name, package, sources)
    digest = hashlib.sha256()
    for _, source in sorted(sources.items()):
        digest.update(hashlib.sha256(source).digest())
    return digest.hexdigest()[:16]


def _collect(name: str, package: str, sources: dict[str, bytes]) -> None:
    """Sources of a module and, in turn, of the modules of the same package that it imports from.

    The text tells them and not what is loaded: what a function imports counts before its first call as after it.
    """
    file = _file_of(name)
    if file is None or name in sources:
        return
    sources[name] = file.read_bytes()
    for _, other, imported in _imports(file, name):
        if other.partition(".")[0] == package:
            _collect(_home(other, imported), package, sources)


def _file_of(name: str) -> Path | None:
    """The file of a module, loaded or not; None where there is none."""
    if loaded := getattr(sys.modules.get(name), "__file__", None):
        return Path(loaded)
    top, *rest = name.split(".")
    folders = [Path(folder, *rest) for folder in getattr(sys.modules.get(top), "__path__", ()) if rest]
    files = [file for folder in folders for file in (folder / "__init__.py", folder.with_name(f"{folder.name}.py"))]
    return next((file for file in files if file.is_file()), None)


def _imports(file: Path, name: str) -> list[tuple[str, str, str]]:
    """The name that each import of a module gives, the module imported from, and what: empty for all of it."""
    if file.suffix != ".py":
        return []
    parents = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    within = {level: ".".join(parents[: len(parents) + 1 - level]) for level in range(1, len(parents) + 1)}
    return [
        (own, f"{within.get(level, '')}.{module}".strip("."), imported)
        for own, level, module, imported in _parsed(file.read_bytes())
    ]


@functools.cache
def _parsed(source: bytes) -> list[tuple[str, int, str, str]]:
    """Of each import: the name that it gives, the number of dots, the module, and what is imported."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found += [(one.asname or one.name, node.level, node.module or "", one.name) for one in node.names]
        elif isinstance(node, ast.Import):
            found += [(one.asname or one.name, 0, one.name, "") for one in node.names]
    return found


def _home(name: str, imported: str) -> str:
    """The module that something lies in which is imported from a module, or from a package that passes it on."""
    file = _file_of(name)
    if file is None or file.name != "__init__.py" or not imported:
        return name
    for own, *other in _imports(file, name):
        if own == imported and other != [name, imported]:
            return _home(*other)
    inner = f"{name}.{imported}"
    return name if _file_of(inner) is None else inner
