"""The first step of every bundle's `run`: its settings are checked, and what ends the command is said last."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, ReferenceResolver, scripts
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from monai.utils import ensure_tuple
from torch.distributed import is_initialized
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from ..files import print_any_text
from .ranges import out_of_range
from .settings import plain, problems, reached, tops
from .weights import as_trained, check_channels, check_chosen, check_classes, check_listed_classes

logger = logging.getLogger(__name__)

# What MONAI puts around an error on its way out of a config; the same words in 1.5 and 1.6.
WRAPPINGS = ("Failed to evaluate ", "Failed to instantiate component ", "applying transform ")


def check_settings() -> None:
    """Refuse settings that the configs of this run do not know, and apply those that MONAI drops.

    It stands in `"run": ["$engines.check_settings()", …]`, not in `initialize`: an exported bundle's `scripts` can be
    imported only once MONAI's `run` has begun. `None` and `null` set a key to null (MONAI drops the one and takes the
    other for a text), `true` and `false` are what they are in JSON.

    Where a workflow was made in Python, not by `monai.bundle.run`, nothing tells its files from its settings. Refused
    is then a key to which nothing refers and which nearly is one of a config of the bundle, and a value of a type that
    the key has in none of them.

    Raises:
        ValueError: naming every setting that is wrong, several processes for a run that does not share its work, more
            classes than the network tells apart, a datalist of other classes, what lies beside the weights and does
            not fit, or the bundle whose code this process has already loaded in place of the config's own.
    """
    print_any_text()
    end_with_the_cause()
    workflow, caller = _running()
    parser = workflow.parser
    base = _base(caller, workflow)
    _take_scripts_of(base)
    others = dict(_configs(base.parent))
    config, told = _told(caller, workflow) if caller else _found(workflow, others)
    given = {name: plain(value) for name, value in told.items()}
    now: Any = parser.config
    used = {key: given.get(key, value) for key, value in now.items()}
    if wrong := [*dict.fromkeys([*problems(given, config, others), *out_of_range(used)])]:
        raise ValueError("\n".join([f"{len(wrong)} settings are wrong:", *wrong] if len(wrong) > 1 else wrong))
    _check_processes(now.get("run"))
    _apply(given, told, parser)
    told_keys = {*map(_top, given)} if caller else set()
    as_trained(parser, others.get(base.name, {}), told_keys)
    check_classes(parser)
    check_listed_classes(parser)
    _check_one_logit(parser)
    check_chosen(parser)
    check_channels(parser)
    _warn_of_unused_selection(told_keys, parser)
    _warn_of_idle_settings(told_keys, workflow)


def _apply(given: Mapping[str, Any], told: Mapping[str, Any], parser: Any) -> None:
    """Put into the config the settings that MONAI has dropped, and those that it has as words of JSON."""
    for name, value in given.items():
        key = name.removeprefix("+")
        dropped = value is None and parser.get(key) is not None
        if dropped or repr(value) != repr(told[name]):
            parser[key] = value


def _warn_of_unused_selection(told_keys: Set[str], parser: Any) -> None:
    unused = sorted(key for key in told_keys if key.endswith("_pattern"))
    asked = unused or "section" in told_keys
    listed = parser.get_parsed_content("datalist") if asked and "datalist" in parser else None
    if "section" in told_keys and not listed:
        logger.warning("--section: not used, since no datalist is read; --datalist FILE names the cases of a section")
    if listed and unused:
        keys = ", ".join(f"--{key}" for key in unused)
        logger.warning('%s: not used, since %s names the cases; --datalist "" goes by patterns', keys, listed)


def _warn_of_idle_settings(told_keys: Set[str], workflow: ConfigWorkflow) -> None:
    config: Any = workflow.parser.config
    steps = ("imports", workflow.init_id, workflow.run_id, workflow.final_id)  # what MONAI itself asks for
    if idle := sorted(told_keys & config.keys() - reached(config, steps)):
        logger.warning("%s: nothing in this run uses it", ", ".join(f"--{key}" for key in idle))


def _base(caller: FrameType | None, workflow: ConfigWorkflow) -> Path:
    """The config that says where its bundle lies, else the first: others may lie anywhere.

    A workflow that was made in Python does not tell its files, but the folder of the first.
    """
    if caller is None:
        return workflow.config_root_path / "inference.json"
    files = [Path(file) for file in ensure_tuple(_call(caller, workflow)["config_file"])]
    return next((file for file in files if "bundle_root" in ConfigParser.load_config_file(file)), files[0])


def _take_scripts_of(config: Path) -> None:
    """Let `import scripts` find the code of the config's own bundle, wherever the command was typed.

    MONAI puts that behind the current directory: in the folder of another bundle a run would take that one's code and,
    by `bundle_root`, its weights.

    Raises:
        ValueError: another bundle's code is loaded already.
    """
    folder = config.absolute().parent
    root = folder.parent if folder.name == "configs" else folder
    if not (root / "scripts").is_dir():
        return  # a config that lies elsewhere; the path says whose
    if sys.path[0] != str(root):
        sys.path.insert(0, str(root))
    for place in getattr(sys.modules.get("scripts"), "__path__", ()):
        if (other := Path(place).parent.resolve()) != root.resolve():
            raise ValueError(
                f"{config} is of the bundle {root}, but the code of {other} is loaded: type the command in {root}, and "
                "in Python run each bundle in a process of its own"
            )


def _check_processes(steps: Any) -> None:
    """Refuse processes of `torchrun` that never hear of each other: each would do all, and write the same files."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    together = is_initialized() or "init_process_group" in str(steps)
    if count > 1 and "LOCAL_RANK" in os.environ and not together:
        raise ValueError(
            f"{count} processes were started, and each would do everything: put multi_gpu_evaluate.json (of a training "
            "multi_gpu_train.json) at the end of --config_file"
        )


def _check_one_logit(parser: Any) -> None:
    network = parser.get("network_def")
    check_one_logit(network.get("num_classes") if isinstance(network, Mapping) else None, parser.get("classes"))


def check_one_logit(logits: Any, classes: Any) -> None:
    """Refuse several findings for a network of one logit: it would learn that there is one of them, and never which.

    Args:
        logits: `num_classes` of a config's network, resolved or not.
        classes: names, the negative one first.

    Raises:
        ValueError: naming the bundle that tells them apart.
    """
    if logits == 1 and isinstance(classes, list) and len(classes) > 2:
        raise ValueError(
            f"--classes: {', '.join(map(str, classes))}, but the network of this bundle has one logit, for one finding "
            "against none. gp_unet_brats tells several classes apart; or train for each finding on its own, yes or no"
        )


def _top(name: str) -> str:
    return ReferenceResolver.split_id(name.removeprefix("+"))[0]


def _configs(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Configs of a bundle by name; what else lies there, or cannot be read, is of no use here."""
    for path in sorted(folder.glob("[!.]*.json")):
        with suppress(OSError, ValueError):
            content = ConfigParser.load_config_file(path)
            if path.name != "metadata.json" and isinstance(content, dict):
                yield path.name, content


def _running() -> tuple[ConfigWorkflow, FrameType | None]:
    """The workflow whose `run` evaluates this, and the call of MONAI's `run` or `run_workflow` that made it, if any.

    An expression of a config has no access to the workflow, and a workflow does not keep what it was made from; both
    are in the frames of the calls that lead here.
    """
    frame: FrameType | None = sys._getframe()
    while frame and not isinstance(frame.f_locals.get("self"), ConfigWorkflow):
        frame = frame.f_back
    if frame is None:
        raise RuntimeError("check_settings is called by the `run` of a bundle's config, and by nothing else")
    workflow = frame.f_locals["self"]
    while frame and frame.f_code not in (scripts.run.__code__, scripts.run_workflow.__code__):
        frame = frame.f_back
    mine = frame is not None and any(value is workflow for value in frame.f_locals.values())
    return workflow, frame if mine else None


def running_config() -> tuple[dict[str, Any], dict[str, Any]]:
    """Config of the bundle whose `run` leads here, as it was merged, and the settings that came with its command.

    Returns:
        Both by key, unresolved; both empty where no bundle runs, the settings also where a workflow was made in Python.
    """
    try:
        workflow, caller = _running()
    except RuntimeError:
        return {}, {}
    return dict(workflow.parser.config), _told(caller, workflow)[1] if caller else {}


def _call(caller: FrameType, workflow: ConfigWorkflow) -> dict[str, Any]:
    """What came with a command: settings, and the options of MONAI's `run`."""
    names, _, keywords, values = inspect.getargvalues(caller)
    arguments = {name: values[name] for name in names} | values[str(keywords)]
    own = _options(workflow)
    arguments = {name: value for name, value in arguments.items() if name not in own or value is not None}
    file = deepcopy(arguments.pop("args_file", None))
    return scripts.update_kwargs(args=file, ignore_none=False, **arguments)


def _options(workflow: ConfigWorkflow) -> set[str]:
    return {*inspect.signature(type(workflow)).parameters, "workflow_name", "args_file"}


def _told(caller: FrameType, workflow: ConfigWorkflow) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of a workflow's files, and the settings that came with the command, read from its call."""
    everything, own = _call(caller, workflow), _options(workflow)
    config = ConfigParser.load_config_files(everything["config_file"])
    if tracking := everything.get("tracking"):
        ready: dict[str, Any] = DEFAULT_EXP_MGMT_SETTINGS
        config = (ready.get(str(tracking)) or ConfigParser.load_config_files(tracking))["configs"] | config
    return config, {name: value for name, value in everything.items() if name not in own}


def _found(workflow: ConfigWorkflow, others: Mapping[str, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What may be known of a workflow that was made in Python, and all that is in its config."""
    found: Any = workflow.parser.config
    known = set().union(*map(tops, others.values()))
    known |= {key for key in found if not get_close_matches(key, known, n=1)} | {*_references(found)}
    return dict.fromkeys(known) | {key: value for other in others.values() for key, value in other.items()}, found


def _references(config: Any) -> Iterator[str]:
    """Keys at the top to which anything in a config refers."""
    if isinstance(config, str):
        yield from (ReferenceResolver.split_id(name)[0] for name in ReferenceResolver.match_refs_pattern(config))
    elif isinstance(config, dict | list):
        for inner in config.values() if isinstance(config, dict) else config:
            yield from _references(inner)


def cause(error: BaseException) -> BaseException:
    """The error that MONAI has wrapped on its way out of a config, or out of a transform; else the error itself."""
    while isinstance(error, RuntimeError) and error.__cause__ and str(error).startswith(WRAPPINGS):
        error = error.__cause__
    return error


def end_with_the_cause() -> None:
    """Where the process is `python -m monai.bundle`, an error that ends it is followed by its cause, the last line.

    Under `torchrun` the cause is what its summary shows, too.
    """
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is None or main.name != "monai.bundle.__main__":
        return
    usual = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        usual(kind, error, trace)
        first = cause(error)
        if first is not error:
            print("", *traceback.format_exception_only(first), sep="\n", end="", file=sys.stderr)
        if "TORCHELASTIC_ERROR_FILE" in os.environ and isinstance(first, Exception):
            try:
                raise first
            except Exception as raised:  # what is recorded is the traceback of what is being handled
                get_error_handler().record_exception(raised)

    sys.excepthook = show
