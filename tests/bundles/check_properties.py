"""What MONAI misses in combinations of a bundle's configs, in one process in the bundle's root.

Its argument is a JSON list of kind, names of configs and overrides; its last line says what is missing in each.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from common.commands.verify_build import missing_properties

if __name__ == "__main__":
    found = {}
    for kind, names, overrides in json.loads(sys.argv[1]):
        if "multi_gpu_train" in names:
            os.environ["LOCAL_RANK"] = "0"
            torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        try:
            found[f"{kind} {names}"] = missing_properties(Path.cwd(), kind, names.split("+"), **overrides)
        except Exception as error:
            found[f"{kind} {names}"] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))
