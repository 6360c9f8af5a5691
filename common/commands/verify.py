"""Does a bundle keep every rule of MONAI's model zoo and of this project? `python -m common verify NAME`.

Each rule is a function of the bundle's folder that yields one line per failure. They run one by one, and what one finds
does not keep the next from looking. The `SLOW` ones build the networks, in a process of their own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import read_chosen
from ..engines.ranges import wrong_choices
from ..engines.weights import unlike_training
from ..files import read_json
from .export import bundle_files, third_party
from .run import bundle_root

SCHEMA = Path(__file__).with_name("schema_20240725.json")
FILES = (
    *("LICENSE", "configs/metadata.json", "configs/inference.json", "configs/train.json", "configs/evaluate.json"),
    *("configs/logging.conf", "models/model.pt", "docs/README.md"),
)
SECTIONS = ("Overview", "Data", "Training", "Input and output", "Performance", "Commands", "References", "License")
# What a server that reads nothing but inference.json takes from it.
SERVED = ("network_def", "preprocessing", "inferer", "postprocessing")
LARGEST = 25 * 2**20
ABSOLUTE = re.compile(r"(?:^|['\"\s=(\[,])(/[A-Za-z_][\w.-]*/|~/|[A-Za-z]:[\\/])")
Rule = Callable[[Path], Iterator[str]]


def _json(root: Path, name: str) -> dict[str, Any]:
    return read_json(root / "configs" / f"{name}.json")


def _strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """All texts in a config, each with its path."""
    if isinstance(value, str):
        yield path, value
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _strings(inner, f"{path}#{key}" if path else str(key))


def _configs(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((root / "configs").glob("[!.]*.json")):
        yield f"configs/{path.name}", read_json(path)


def files(root: Path) -> Iterator[str]:
    """The zoo's files, and those that this project's bundles all have."""
    yield from (f"{file} is missing" for file in FILES if not (root / file).is_file())


def large_files(root: Path) -> Iterator[str]:
    """Each entry of `large_files.json` says where its file comes from and where it goes."""
    if (root / "large_files.json").is_file():
        for entry in read_json(root / "large_files.json")["large_files"]:
            if lacking := [key for key in ("path", "url") if not entry.get(key)]:
                yield f"large_files.json: {entry} lacks {lacking}"


def sizes(root: Path) -> Iterator[str]:
    """No file above 25 MB: what is larger belongs in `large_files.json`."""
    for file, data in bundle_files(root).items():
        if len(data) > LARGEST:
            yield f"{file} has {len(data) / 2**20:.1f} MB; 25 MB are allowed, more goes into large_files.json"


def changelog(root: Path) -> Iterator[str]:
    """The version has an entry in the changelog."""
    metadata = _json(root, "metadata")
    if metadata.get("version") not in metadata.get("changelog", {}):
        yield f"the version {metadata.get('version')} has no entry in the changelog of metadata.json"


def schema(root: Path, file: str | os.PathLike[str] = SCHEMA) -> Iterator[str]:
    """`metadata.json` fits the schema: our transcription of the published one's fields, or a given file."""
    try:
        from jsonschema import validators
    except ImportError as error:
        raise ImportError("the schema is checked by jsonschema: pip install jsonschema, or the extra [dev]") from error
    rules = read_json(file)
    for found in validators.validator_for(rules)(rules).iter_errors(_json(root, "metadata")):
        yield f"metadata.json, {'#'.join(map(str, found.absolute_path)) or 'top level'}: {found.message[:200]}"


def interface(root: Path) -> Iterator[str]:
    """One input `image` and one output `pred`: the names that the zoo's check and MONAI Label ask for."""
    formats = _json(root, "metadata")["network_data_format"]
    for kind, name in (("inputs", "image"), ("outputs", "pred")):
        if list(formats[kind]) != [name]:
            yield f"metadata.json: {kind} must be one tensor named {name!r}; found {list(formats[kind])}"
        for tensor in formats[kind].values():
            if "*" in tensor["spatial_shape"]:
                yield f"metadata.json: write '32*n' in place of '*' in the spatial_shape of {kind}"


def channels(root: Path) -> Iterator[str]:
    """`channel_def` of the output names the classes of `inference.json`: the mask's values are its keys."""
    classes = _json(root, "inference").get("classes", [])
    defined = _json(root, "metadata")["network_data_format"]["outputs"]["pred"].get("channel_def", {})
    if list(defined) != [str(i) for i in range(len(classes))]:
        yield f"channel_def has the keys {list(defined)}, but inference.json has {len(classes)} classes: {classes}"
    elif list(defined.values()) != ["background", *classes[1:]]:
        yield f"channel_def must name background and {classes[1:]}, as inference.json does; it names {defined}"


def paths(root: Path) -> Iterator[str]:
    """No absolute path in a config."""
    for file, config in _configs(root):
        for where, text in _strings(config):
            if found := ABSOLUTE.search(text):
                yield f"{file}, {where}: absolute path {found[1]}… in {text[:80]!r}; begin with @bundle_root"


def keys(root: Path) -> Iterator[str]:
    """No item named `image_…` or `label_…`: MONAI 1.6's `Spacingd` takes those for meta data."""
    for file, config in _configs(root):
        for where, text in _strings(config):
            if re.search(r"#(keys|names?)(#\d+)?$", where) and text.startswith(("image_", "label_")):
                yield f"{file}, {where}: the key {text!r} breaks Spacingd; choose one that begins otherwise"


def stands_alone(root: Path) -> Iterator[str]:
    """MONAI Label reads `inference.json` alone, without metadata and without merging."""
    config = _json(root, "inference")
    yield from (f"inference.json lacks {key!r}, which MONAI Label reads" for key in SERVED if key not in config)
    for where, text in _strings(config):
        if "_meta_" in text or text.startswith("%"):
            yield f"inference.json, {where}: {text!r} needs another file"
    for step in config.get("preprocessing", {}).get("transforms", []):
        loaded = step.get("keys", []) if step.get("_target_") == "LoadImaged" else []
        for key in {loaded} if isinstance(loaded, str) else set(loaded):
            if key != "image":
                yield f"inference.json: LoadImaged asks for {key!r} too, and MONAI Label insists; wrap it in a Compose"


def packages(root: Path) -> Iterator[str]:
    """What the code imports is named in `required_packages_version`; torch, monai and numpy have their own fields."""
    required = _json(root, "metadata").get("required_packages_version", {})
    named = {_normal(name) for name in ("torch", "monai", "numpy", *required)}
    provided = packages_distributions()
    for module, file in third_party(bundle_files(root)).items():
        names = provided.get(module, [module])
        if not named & {_normal(name) for name in names}:
            yield f"{file} imports {module}: add {' or '.join(sorted(set(names)))} to required_packages_version"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def weights(root: Path) -> Iterator[str]:
    """Weights are plain state dicts, which `torch.load` reads without running code."""
    for path in sorted((root / "models").glob("[!.]*.pt")):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            yield f"models/{path.name} cannot be loaded with weights_only=True ({type(error).__name__})"
            continue
        if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
            yield f"models/{path.name} is no plain state dict; save network.state_dict()"


def seen(root: Path) -> Iterator[str]:
    """Beside weights stands what they saw in training, so that cases can be compared with it; of slides, in words."""
    for path in sorted((root / "models").glob("[!.]*.pt")):
        beside = path.with_suffix(".json")
        if not beside.is_file() or not {"seen", "trained_on"} & read_json(beside).keys():
            yield f"models/{beside.name} does not say what {path.name} saw: python -m common describe {root.name} DIR"


def trained(root: Path) -> Iterator[str]:
    """`inference.json` has the settings that `model.pt` was trained with: a server takes them from nowhere else."""
    unlike = unlike_training(root / "models" / "model.pt", _json(root, "inference"))
    yield from (f"inference.json: {text}; write that" for text in unlike)


def chosen(root: Path) -> Iterator[str]:
    """Gate, threshold and the like were chosen for the weights beside them, and some run could use them."""
    for path in sorted((root / "models").glob("[!.]*.pt")):
        try:
            yield from (f"models/{path.stem}.json, chosen, {line}" for line in wrong_choices(read_chosen(path)))
        except ValueError as error:
            yield str(error)


def readme(root: Path) -> Iterator[str]:
    """The sections of the zoo's template."""
    text = (root / "docs" / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    yield from (f"docs/README.md has no section {name!r}" for name in SECTIONS if name not in headings)
    for target in re.findall(r"!\[[^]]*\]\(([^)#]+)\)", text):
        if not re.match(r"https?:", target) and not (root / "docs" / target).is_file():
            yield f"docs/README.md shows {target}, which does not exist"


def licenses(root: Path) -> Iterator[str]:
    """Code under Apache-2.0; where metadata name a data source, its terms are stated."""
    text = (root / "LICENSE").read_text(encoding="utf-8")
    if "Apache License" not in text or "Version 2.0" not in text:
        yield "LICENSE is not the Apache License, Version 2.0"
    terms = root / "docs" / "data_license.txt"
    if _json(root, "metadata").get("data_source") and not (
        terms.is_file() and terms.read_text(encoding="utf-8").strip()
    ):
        yield "docs/data_license.txt must state the terms of the data that metadata.json names as data_source"


QUICK: tuple[Rule, ...] = (
    *(files, large_files, sizes, changelog, schema, interface, channels, paths, keys, stands_alone, packages),
    *(weights, seen, trained, chosen, readme, licenses),
)
SLOW = ("properties", "network", "torchscript")


def problems(root: str | Path, rules: Sequence[Rule] = QUICK, slow: Sequence[str] = SLOW) -> list[str]:
    """What is wrong with a bundle: a line each, with the rule's name in front; empty when nothing is.

    Args:
        root: the bundle's folder.
        rules: those to check here.
        slow: names of those in `common.commands.verify_build` to check.
    """
    found = []
    for rule in rules:
        try:
            found += [f"{_name(rule)}: {line}" for line in rule(Path(root))]
        except (OSError, ValueError, KeyError, TypeError) as error:  # what another rule reports, or a broken file
            found.append(f"{_name(rule)}: cannot be checked ({type(error).__name__}: {error})")
    return found + [f"{name}: {line}" for name, lines in build_problems(Path(root), slow).items() for line in lines]


def build_problems(root: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """What the rules of `common.commands.verify_build` find, by their names, in one process of its own."""
    if not names:
        return {}
    command = [sys.executable, "-m", "common.commands.verify_build", *names]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {name: [f"the check ended early: {last[:300]}"] for name in names}
    return json.loads(done.stdout.splitlines()[-1])


def _name(rule: Rule) -> str:
    return str(getattr(rule, "__name__", "schema"))


def verify(name: str, *, schema_file: str = "", quick: bool = False) -> None:
    """Check a bundle against every rule; list all failures and end with an error if there are any.

    Args:
        name: a bundle under `bundles/`, or the folder of one.
        schema_file: a JSON schema of the metadata in place of the one kept here.
        quick: leave out the rules that build networks.

    Example:
        `python -m common verify gp_unet_brats --quick`
    """
    root = bundle_root(name)
    rules, slow = list(QUICK), () if quick else SLOW
    if schema_file:
        rules[rules.index(schema)] = partial(schema, file=schema_file)
    found = problems(root, rules, slow)
    if found:
        raise SystemExit("\n".join([f"{root.name}: {len(found)} failure(s)", *found]))
    print(f"{root.name}: {len(rules) + len(slow)} rules kept")
