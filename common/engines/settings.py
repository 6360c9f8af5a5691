"""What a run was told, compared with what its configs have: pure functions over settings and configs.

MONAI takes every `--key value`: a key that no config has is added and does nothing, and a value of another type fails
far from here, without the key's name.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from difflib import get_close_matches
from numbers import Integral, Real
from pydoc import locate
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver
from monai.bundle.config_item import ConfigComponent

from .ranges import unsuitable

Config = Mapping[str, Any]
REFERENCE = r"@[\w#:]+"
NULL, ANY = "null", "anything"
KINDS: tuple[tuple[Any, str], ...] = (
    (str | os.PathLike, "a text"),
    (bool, "true or false"),
    (Integral, "a whole number"),
    (Real, "a number"),
    (Mapping, "a dict"),
    (list | tuple, "a list"),
)
# What is not the kind that is asked for, and as good.
FITS = {("a whole number", "a number"), ("a text", "a path")}
# What an expression gives that is one of these calls.
CALLS = {"os.path.join": "a path", "float": "a number", "int": "a whole number", "str": "a text"}
# A key that is one of these in every config of a bundle has to be something; dicts of options may be null, components
# may not.
NEVER_NULL = {"a text", "a path", "a whole number", "a number", "a list", "a dict"}
DICTS = ("candidates", "start")  # that may not
MAY_BE_NULL = ("finalize", "handlers", "sampler", "seed")
# JSON's words, of which the command line makes texts.
WORDS: dict[str, Any] = {"null": None, "true": True, "false": False}


def plain(value: Any) -> Any:
    """A value of the command line with JSON's `null`, `true` and `false` in place of these words, in lists as well.

    A path that begins with `~/` becomes that of the user's folder: shells leave it alone in `--output_dir=~/out`.
    """
    if isinstance(value, str):
        return os.path.expanduser(value) if value.startswith("~/") else WORDS.get(value, value)
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return {key: plain(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def problems(given: Config, config: Config, others: Mapping[str, Config]) -> list[str]:
    """What is wrong with settings, a line each; empty when nothing is.

    Args:
        given: values by key, as they were given: `a`, `a#b` or `a::0::b`. None, expressions, references and `%file`
            may stand for everything.
        config: of the run, without them.
        others: configs of the bundle by name. A type that a key has there is as good as the one in `config`.
    """
    found = []
    now: Any = {**config}
    merged = ConfigParser(config=now)  # one setting may lie inside what another one brings
    for name, value in given.items():
        parts = ReferenceResolver.split_id(name.removeprefix("+"))
        if parts[0] == ConfigParser.meta_key:
            continue
        line = _unknown(parts, now, others) or _mistyped(parts, value, now, others)
        line = line or unsuitable(_meant(parts, now), value)
        if line:
            found.append(f"--{name}: {line}")
        elif value is not None and "::".join(parts) in merged:
            merged["::".join(parts)] = value
    return found


def beyond_lists(given: Iterable[str], config: Config) -> list[str]:
    """A line for each key with a number beyond its list: MONAI stops at it with a bare IndexError, before any check."""
    found = []
    for name in given:
        parts = ReferenceResolver.split_id(name.removeprefix("+"))
        for depth in range(1, len(parts)):
            entries = _entry(parts[:depth], config)
            if isinstance(entries, list) and not _indexes(parts[depth], entries):
                found.append(f"--{name}: {_unknown(parts[: depth + 1], config, {})}")
                break
    return found


def _unknown(parts: Sequence[str], config: Any, others: Mapping[str, Config]) -> str:
    """Why there is no such key; empty if there is one, or where anything may be."""
    for depth, part in enumerate(parts):
        if isinstance(config, list):
            if not _indexes(part, config):
                inside = "#".join(parts[:depth])
                return f"{inside} is a list of {len(config)}, {inside}#0 to {inside}#{len(config) - 1}"
            config = config[int(part)]
        elif not isinstance(config, Mapping):
            return ""  # a reference, or an expression
        elif part in config:
            config = config[part]
        elif depth:
            return _no_entry(part, parts[:depth], config, others)
        else:
            return _no_key(parts, config, others)
    return ""


def _no_entry(part: str, outer: Sequence[str], config: Config, others: Mapping[str, Config]) -> str:
    """Why a dict has no such entry; empty where it may have any."""
    known = {*config, *_more(config, outer, others)}
    if not config or {part, ANY} & known or re.fullmatch("_.*_", part):
        return ""
    return f"{'#'.join(outer)} has no {part!r}; {_nearest(part, known) or f'it has {_listed(known)}'}"


def _no_key(parts: Sequence[str], config: Config, others: Mapping[str, Config]) -> str:
    owners = [name for name, other in others.items() if parts[0] in tops(other)]
    owners.sort(key=lambda name: "run" not in others[name])  # train.json before what goes over it
    hint = f"it is one of {', '.join(owners[:3])}" if owners else _nearest("#".join(parts), _ids(config))
    return f"the configs of this run have no such key; {hint or f'they have {_listed(tops(config))}'}"


def _mistyped(parts: Sequence[str], value: Any, config: Config, others: Mapping[str, Config]) -> str:
    """Why a value cannot be meant; empty if it can."""
    everywhere = [one for one in (config, *others.values()) if _has(parts, one)]
    entries = [_entry(parts, one) for one in everywhere]
    asked = {kind(entry, one) for entry, one in zip(entries, everywhere, strict=True)}
    if value is not None:
        return mismatch(value, asked - {NULL}) if asked - {NULL} else ""
    return "" if _may_be_null(parts, entries, asked) else f"expected {' or '.join(sorted(asked))}, got null"


def _may_be_null(parts: Sequence[str], entries: Sequence[Any], asked: Set[str]) -> bool:
    if len(parts) > 1 or parts[0] in MAY_BE_NULL or not asked or not asked <= NEVER_NULL:
        return True
    component = any(isinstance(entry, Mapping) and "_target_" in entry for entry in entries)
    return "a dict" in asked and not component and parts[0] not in DICTS


def mismatch(value: Any, asked: Set[str]) -> str:
    """Why a value is of none of these kinds; empty if it is of one, or may turn out to be.

    Args:
        value: as it was given; None, expressions, references and `%file` may stand for everything.
        asked: as `kind` names them.
    """
    got = ANY if isinstance(value, str) and value.startswith(("$", "@", "%")) else kind(value)
    several = got == "a list" and "a text" in asked and all(isinstance(entry, str) for entry in value)
    if ANY in asked or got in {NULL, ANY, *asked} or any((got, one) in FITS for one in asked) or several:
        return ""
    advice = ""
    if got in ("a whole number", "a number") and asked & {"a path", "a text"}:
        advice = f"; write ./{value}" if "a path" in asked else f"; write \"'{value}'\""
    return f"expected {' or '.join(sorted(asked))}, got {got}: {value!r}{advice}"


def kind(value: Any, config: Config | None = None) -> str:
    """The type of a setting in words; "anything" where it is known only when it is evaluated.

    Args:
        value: of a config; an expression is read, never evaluated.
        config: in which a reference is looked up.
    """
    if value is None:
        return NULL
    if not isinstance(value, str) or not value.startswith(("$", "@", "%")):
        return next((name for kinds, name in KINDS if isinstance(value, kinds)), ANY)
    if re.fullmatch(REFERENCE, value):
        entry = _entry(ReferenceResolver.split_id(value[1:]), config)
        return ANY if entry is None or (isinstance(entry, str) and entry.startswith("@")) else kind(entry, config)
    return _kind_of_code(value[1:]) if value.startswith("$") else ANY


def _kind_of_code(code: str) -> str:
    try:
        node = ast.parse(re.sub(REFERENCE, "_", code).strip(), mode="eval").body
    except SyntaxError:
        return ANY
    if isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
        return CALLS[ast.unparse(node.func)]
    if isinstance(node, ast.List | ast.ListComp):
        return "a list"
    return kind(node.value) if isinstance(node, ast.Constant) else ANY


def _more(item: Config, parts: Sequence[str], others: Mapping[str, Config]) -> Iterator[str]:
    """Keys that a dict may have beside those it has: those in other configs, or the arguments of its target."""
    if "_target_" not in item:
        for other in others.values():
            entry = _entry(parts, other)
            yield from entry if isinstance(entry, Mapping) else ()
        return
    try:
        target: Any = locate(str(ConfigComponent(config=dict(item)).resolve_module_name()))
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        yield ANY
        return
    yield from (ANY if parameter.kind is parameter.VAR_KEYWORD else parameter.name for parameter in parameters)


def _meant(parts: Sequence[str], config: Config) -> str:
    """The id of an entry, or of the key to which it refers: `batch_size` for `inferer#batch_size`."""
    entry = _entry(parts, config)
    return entry[1:] if isinstance(entry, str) and re.fullmatch(REFERENCE, entry) else "#".join(parts)


def _has(parts: Sequence[str], config: Config) -> bool:
    """Whether a config has that entry, null or not."""
    inside = _entry(parts[:-1], config)
    return parts[-1] in inside if isinstance(inside, Mapping) else _entry(parts, config) is not None


def _entry(parts: Sequence[str], config: Any) -> Any:
    """The entry of that id, None if there is none."""
    for part in parts:
        if isinstance(config, list):
            config = config[int(part)] if _indexes(part, config) else None
        else:
            config = config.get(part) if isinstance(config, Mapping) else None
    return config


def _indexes(part: str, entries: Sequence) -> bool:
    return re.fullmatch(r"-?\d+", part) is not None and -len(entries) <= int(part) < len(entries)


def _nearest(key: str, known: Iterable[str]) -> str:
    near = get_close_matches(key, [*known], n=1)
    return f"did you mean {near[0]}?" if near else ""


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(sorted(key for key in keys if key != ConfigParser.meta_key))


def reached(config: Config, steps: Iterable[str]) -> set[str]:
    """Keys at the top that these refer to, by whatever way; a config laid over may have cut a key off.

    Example:
        `reached({"run": ["$@a"], "a": "@b", "b": 1, "c": 2}, ["run"])` is `{"run", "a", "b"}`.
    """
    found: set[str] = set()
    ahead = [*steps]
    while ahead:
        if (key := ahead.pop()) in config and key not in found:
            found.add(key)
            ahead += re.findall(r"[@%](\w+)", str(config[key]))
    return found


def tops(config: Config) -> set[str]:
    """Keys at the top, where a file may name what lies below: `+handlers`, `train#dataset`."""
    return {ReferenceResolver.split_id(key.removeprefix("+"))[0] for key in config}


def _ids(config: Config) -> Iterator[str]:
    """Keys at the top, and those of the dicts of options among them."""
    for key, value in config.items():
        yield key
        if isinstance(value, Mapping) and "_target_" not in value:
            yield from (f"{key}#{inner}" for inner in value)
