"""What is typed after `python -m common COMMAND`: checked before the command runs; what ends it is said in one line."""

from __future__ import annotations

import inspect
import subprocess
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any

from ..engines.settings import ANY, NULL, mismatch, plain

PACKAGE = Path(__file__).resolve().parents[1]
LACKING = object()  # in place of a required argument that was not typed
ANYTHING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# Kinds of values, by the first word of an annotation.
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "tuple": "a list",
    "Sequence": "a list",
    "None": NULL,
}


def checked(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with its arguments compared with their annotations, and `null`, `true` and `false` as in JSON.

    Raises:
        ValueError: (from the command) an argument that it does not have or lacks, or of another type, by name.
    """
    signature = inspect.signature(command)
    places = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        _check_count(places, args)
        named = dict(zip(places, args, strict=False)) | kwargs  # Fire gives by place what was typed by name
        named = {key: value for key, value in named.items() if value is not LACKING}
        _check_names(signature, named)
        given = signature.bind(**named)
        for name, value in given.arguments.items():
            parameter = signature.parameters[name]
            if parameter.kind is not parameter.VAR_KEYWORD:
                given.arguments[name] = as_annotated(value, parameter)
        command(*given.args, **given.kwargs)

    # So Fire hands over what is unknown or lacking, too; it would complain of the first only when the command has done
    # its work, and of the second in words that do not work.
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    more = [inspect.Parameter(f"_{kind.name}", kind) for kind in ANYTHING if kind not in kinds]
    optional = [
        p.replace(default=LACKING) if p.default is p.empty and p.kind not in ANYTHING else p
        for p in signature.parameters.values()
    ]
    everything = sorted([*optional, *more], key=lambda parameter: parameter.kind)
    run.__signature__ = signature.replace(parameters=everything)  # type: ignore[attr-defined]
    return run


def as_annotated(value: Any, parameter: inspect.Parameter) -> Any:
    """What was typed for a parameter, with `null`, `true` and `false` as in JSON.

    Raises:
        ValueError: it is of another type.
    """
    found = plain(value)
    asked = {KINDS.get(part.partition("[")[0], ANY) for part in str(parameter.annotation).split(" | ")}
    if line := mismatch(found, asked):
        raise ValueError(f"--{parameter.name}: {line}")
    return found


def _check_count(places: Sequence[str], args: Sequence[Any]) -> None:
    if len(args) > len(places):
        raise ValueError(f"{args[len(places)]!r} is more than what is expected: {', '.join(places)}")


def _check_names(signature: inspect.Signature, named: Mapping[str, Any]) -> None:
    parameters = [p for p in signature.parameters.values() if p.kind not in ANYTHING]
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        _check_known([parameter.name for parameter in parameters], named)
    lacking = [p for p in parameters if p.default is p.empty and p.name not in named]
    if lacking:
        shown = [f"--{p.name}" if p.kind is p.KEYWORD_ONLY else p.name.upper() for p in lacking]
        raise ValueError(f"{', '.join(shown)} must be given, too")


def _check_known(known: Sequence[str], named: Mapping[str, Any]) -> None:
    unknown = [key for key in named if key not in known]
    if unknown:
        near = get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean --{near[0]}?" if near else f"there are {', '.join(f'--{name}' for name in known)}"
        raise ValueError(f"there is no option --{unknown[0]}; {hint}")


@contextmanager
def ending_in_words() -> Iterator[None]:
    """An error that says what is wrong with the input ends the command in these words, without a traceback.

    Such are those that this project raises, and files that cannot be read or written.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit("interrupted; what trains or scores goes on from here by the same command") from None
    except subprocess.CalledProcessError as error:  # the run has said why
        raise SystemExit(error.returncode) from None
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if not isinstance(error, OSError) and not raised_in.is_relative_to(PACKAGE):
            raise
        raise SystemExit(f"{type(error).__name__}: {error}") from error
