"""Command line: `python -m common COMMAND`. Running a bundle itself is `python -m monai.bundle run`."""

from __future__ import annotations

import fire

from .commands.ablate import ablate
from .commands.crossvalidate import crossvalidate
from .commands.demo import demo
from .commands.export import export
from .commands.features import features
from .commands.folds import folds
from .commands.format import format_configs
from .commands.phantom import phantom
from .commands.prepare import prepare
from .commands.verify import verify

COMMANDS = {
    "demo": demo,
    "phantom": phantom,
    "prepare": prepare,
    "folds": folds,
    "features": features,
    "crossvalidate": crossvalidate,
    "ablate": ablate,
    "export": export,
    "verify": verify,
    "format": format_configs,
}

if __name__ == "__main__":
    fire.Fire(COMMANDS, name="python -m common")
