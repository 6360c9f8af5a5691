"""What MONAI misses in combinations of a bundle's configs, in one process in the bundle's root.

Its argument is a JSON list of kind, names of configs and overrides; its last line says what is missing in each. Of the
kind "run" it is why the run ends at once, of the kind "network" the shape of what the network makes of an image.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ComponentLocator, ConfigParser, run

from common.commands.verify_build import missing_properties
from common.engines import cause


def end(names: list[str], **overrides: Any) -> str:
    """What `monai.bundle run` ends with."""
    try:
        run(config_file=[f"configs/{name}.json" for name in names], **overrides)
    except RuntimeError as error:
        return str(cause(error))
    return "nothing was wrong"


@torch.no_grad()
def output_shape(names: list[str], channels: int, **overrides: Any) -> list[int]:
    """Of the network for two slices of so many channels."""
    parser = ConfigParser()
    parser.read_config([f"configs/{name}.json" for name in names])
    parser.update({"channels": channels} | overrides)
    network = parser.get_parsed_content("network_def").eval()
    return list(network(torch.rand(2, channels + getattr(network, "organ_channel", False), 64, 64)).shape)


def remember_components() -> None:
    """Look through MONAI's modules once: it does so for each config, which takes as long as building a network."""
    find, known = ComponentLocator._find_classes_or_functions, {}

    def remembered(self: ComponentLocator, modules: list[str]) -> dict[str, list]:
        key = tuple(modules)
        if key not in known:
            known[key] = find(self, modules)
        return known[key]

    ComponentLocator._find_classes_or_functions = remembered


if __name__ == "__main__":
    remember_components()
    found = {}
    for kind, names, overrides in json.loads(sys.argv[1]):
        if "multi_gpu_train" in names and kind not in ("run", "network"):
            os.environ["LOCAL_RANK"] = "0"
            torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        try:
            special = {"run": end, "network": output_shape}
            checked = special.get(kind, partial(missing_properties, Path.cwd(), kind))
            found[f"{kind} {names}"] = checked(names.split("+"), **overrides)
        except Exception as error:
            found[f"{kind} {names}"] = f"{type(cause(error)).__name__}: {cause(error)}"
    print(json.dumps(found))
