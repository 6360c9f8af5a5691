"""A preprocessing as text: the same for the same settings, in any process, and another as soon as one changes.

`joblib.hash` would not do: it is another for each `Compose` (whose random state is new), after use (readers remember
their last file) and for equal lists that are shared or not, and it sees neither versions nor sources. Nor would a hash
of the config, which those who look for features do not hold.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import sys
import threading
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader
from monai.transforms import Compose

from ..images import tensor_bytes


def describe(value: Any) -> str:
    """Everything that a transform's result depends on: class names with their versions, and all attributes, nested.

    Of packages with a `__version__` (MONAI) that number counts, of others (`common`, a bundle's `scripts`) the source
    of the module and of what it imports from its own package.

    Args:
        value: a transform, `Compose` included, or anything that is an option of one.

    Returns:
        Text, some hundred characters a transform.

    Raises:
        ValueError: something random, a function without a name, or an object without attributes: it cannot be told
            apart from another of its kind. The message says where.
    """
    return _describe(value, "preprocessing", ())


def _describe(value: Any, where: str, parents: tuple[int, ...]) -> str:
    def inner(part: Any, name: object) -> str:
        return _describe(part, f"{where}.{name}", (*parents, id(value)))

    if id(value) in parents:
        return "<itself>"
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | slice | type(...)):
        return repr(value)
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    if isinstance(value, torch.dtype | torch.device | np.dtype | np.generic):
        return repr(value)
    if isinstance(value, torch.Tensor | np.ndarray):
        data = torch.as_tensor(value)
        return f"array({data.dtype}, {list(data.shape)}, {hashlib.sha256(tensor_bytes(data)).hexdigest()})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {inner(part, key)}" for key, part in value.items()) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(inner(part, "element") for part in value)) + "}"
    if isinstance(value, list | tuple):
        parts = [part for part in value if not getattr(part, "only_looks", False)]  # those change nothing
        return "[" + ", ".join(inner(part, number) for number, part in enumerate(parts)) + "]"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, FunctionType | BuiltinFunctionType):
        if "<" in value.__qualname__:
            raise ValueError(f"{where} is {value.__qualname__}, which has no name: use a function of a module")
        return f"{value.__module__}.{value.__qualname__}[{_version(value.__module__)}]"
    if isinstance(value, functools.partial):
        return f"partial({inner([value.func, value.args, value.keywords], 'partial')})"
    if isinstance(value, np.random.RandomState | np.random.Generator | torch.Generator):
        raise ValueError(f"{where} is random: features are computed once, from a preprocessing that is always the same")
    if not hasattr(value, "__dict__"):
        raise ValueError(f"{where} is a {type(value).__qualname__}, whose settings cannot be told")
    own = {k: v for k, v in sorted(vars(value).items()) if not isinstance(v, threading.local)}  # MONAI's tracing
    if isinstance(value, Compose):
        own.pop("R")  # it belongs to the transforms, and each of them is looked at
    if isinstance(value, ImageReader):  # they remember what they read last
        own = {name: part for name, part in own.items() if name in inspect.signature(type(value)).parameters}
    settings = ", ".join(f"{name}={inner(part, name)}" for name, part in own.items())
    return f"{type(value).__module__}.{type(value).__qualname__}[{_version(type(value).__module__)}]({settings})"


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
    """Sources of a module and, in turn, of the modules of the same package that it imports from."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None or file is None or name in sources:
        return
    sources[name] = Path(file).read_bytes()
    for value in list(vars(module).values()):
        other = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(other, str) and other.partition(".")[0] == package:
            _collect(other, package, sources)
