"""Whether a training's network has the weights of `start_ckpt`, in one process in the bundle's root.

Its arguments are a folder and the names of configs that lie over each other.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from common.checkpoint import save_weights


def parsed(names: list[str], **overrides: object) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([f"configs/{name}.json" for name in names])
    parser.update({"device": "$torch.device('cpu')"} | overrides)
    return parser


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    network = parsed(names).get_parsed_content("network")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    save_weights(network, Path(folder) / "model.pt")
    begun = parsed(names, start_ckpt=str(Path(folder) / "model.pt")).get_parsed_content("network")
    pairs = zip(network.parameters(), begun.parameters(), strict=True)
    print("as told" if all(torch.equal(*pair) for pair in pairs) else "other weights")
