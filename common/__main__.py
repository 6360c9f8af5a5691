"""Command line: `python -m common COMMAND`, or `weakseg COMMAND`.

Running a bundle itself is `python -m monai.bundle run`.
"""

from __future__ import annotations

from collections.abc import Callable

import fire

from .commands.ablate import ablate
from .commands.arguments import checked, ending_in_words
from .commands.benchmark_suite import benchmark_suite
from .commands.crossvalidate import crossvalidate
from .commands.demo import demo
from .commands.describe import describe
from .commands.export import export
from .commands.features import features
from .commands.fit import fit
from .commands.folds import folds
from .commands.format import format_configs
from .commands.phantom import phantom
from .commands.prepare import prepare
from .commands.verify import verify

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "phantom": phantom,
    "prepare": prepare,
    "fit": fit,
    "folds": folds,
    "features": features,
    "crossvalidate": crossvalidate,
    "ablate": ablate,
    "benchmark_suite": benchmark_suite,
    "describe": describe,
    "export": export,
    "verify": verify,
    "format": format_configs,
}


def main(command: list[str] | None = None) -> None:
    """Run a command, by default that of the command line."""
    with ending_in_words():
        fire.Fire({name: checked(run) for name, run in COMMANDS.items()}, command=command, name="python -m common")


if __name__ == "__main__":
    main()
