"""Balls with a bright cube, and a network that counts bright pixels."""

from __future__ import annotations

import torch
from monai.data import MetaTensor


class Bright(torch.nn.Module):
    """One logit: how many pixels are bright. Its layer is the bright part of the slice."""

    stages = ("excess",)

    def __init__(self) -> None:
        super().__init__()
        self.excess = torch.nn.Threshold(1.4, 0.0)

    def forward(self, image):
        return self.excess(image).mean(dim=(1, 2, 3))[:, None] * 30 - 0.5


def ball_case(case: dict) -> dict:
    """Preprocessing: a ball with a bright cube somewhere, and beside it a bright voxel that is no finding."""
    axes = torch.stack(torch.meshgrid(*(torch.arange(n) - 0.5 * (n - 1) for n in (18, 18, 14)), indexing="ij"))
    organ = (axes.norm(dim=0) < 8.5).float()
    place = tuple(slice(c, c + 4) for c in case["at"])
    label = torch.zeros_like(organ)
    label[place] = 1
    image = organ * (1 + 0.8 * label)
    image[9, 3, 7] = 2.5
    affine = torch.eye(4)
    return {"image": MetaTensor(torch.stack([image, organ]), affine=affine), "label": MetaTensor(label[None], affine)}


def balls(count: int, first: int = 0) -> list[dict]:
    cls = [0] * 5 + [1] * 4 + [0] * 5
    places = [(4 + (k % 3) * 2, 7, 5) for k in range(first, first + count)]
    return [
        {"case": f"ball{k}", "patient": f"ball{k}", "label": "", "at": at, "cls": cls} for k, at in enumerate(places)
    ]
