"""Explanations of a phantom's slices, by a network whose map is its image."""

from __future__ import annotations

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from PIL import Image

from common.engines import SliceMapInferer
from common.handlers import Explanations
from common.masks import MapsToMaskd

SHAPE = (24, 20, 5)
SPOT = (slice(6, 11), slice(8, 13), slice(2, 4))


class Bright(torch.nn.Module):
    """The map is the image above 1.5; the logit its maximum inside the organ."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.nn.Conv2d(1, 1, 1)
        torch.nn.init.ones_(self.seen.weight)
        torch.nn.init.constant_(self.seen.bias, -1.5)

    def explain(self, image):
        evidence = self.seen(image[:, :1])
        maps = torch.cat([0 * evidence, evidence], dim=1)
        return maps, (maps - 1e3 * (image[:, 1:] < 0.5)).amax(dim=(2, 3)) * torch.tensor([0.0, 1.0])

    def forward(self, image):
        return self.explain(image)[1]


class Cases(torch.utils.data.Dataset):
    """Two patients with a spot in slices 2 and 3, the second without a mask, and a case that cannot be read."""

    def __init__(self, folder):
        affine = np.diag([2.0, 2.0, 5.0, 1.0])
        organ, image, mask = np.zeros(SHAPE), np.zeros(SHAPE), np.zeros(SHAPE, np.uint8)
        organ[2:-2, 2:-2] = 1
        image[2:-2, 2:-2] = 1
        image[SPOT], mask[SPOT] = 3, 1
        nib.save(nib.Nifti1Image(image, affine), folder / "image.nii.gz")
        nib.save(nib.Nifti1Image(mask, affine), folder / "mask.nii.gz")
        self.data = [{"case": "a", "label": str(folder / "mask.nii.gz")}, {"case": "b"}, {"case": "c"}]
        tensor = MetaTensor(np.stack([image, organ]).astype(np.float32), affine=torch.as_tensor(affine))
        tensor.meta["filename_or_obj"] = str(folder / "image.nii.gz")
        self.image = tensor

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        if index == 2:
            return {"case": "c", "error": "no such file"}
        return {"case": self.data[index]["case"], "image": self.image}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explanations")
    steps = Compose([MapsToMaskd(), Invertd("pred", transform=Compose([]), orig_keys="image")])
    options = {"inferer": SliceMapInferer(), "postprocessing": steps, "layer": "network.seen", "patch": 8, "slices": 2}
    Explanations(Cases(folder), network=Bright(), output_dir=str(folder), progress=False, **options).run()
    return folder


def rows(run):
    with open(run / "explanations.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_four_methods_explain_the_most_probable_slices_of_every_case_that_can_be_read(run):
    assert {(row["case"], int(row["slice"])) for row in rows(run)} == {(c, z) for c in "ab" for z in (2, 3)}
    assert len(rows(run)) == 4 * 4


def test_figures_say_what_each_map_is_worth(run):
    found = {(row["case"], row["method"]): row for row in rows(run)}
    own = found["a", "own"]
    assert float(own["rank_correlation"]) == pytest.approx(1)
    assert float(own["top_overlap"]) == 1
    assert float(own["points_at"]) == 1
    assert float(found["a", "grad_cam"]["rank_correlation"]) > 0.5
    assert float(own["deletion"]) < float(own["insertion"])
    assert found["b", "own"]["points_at"] in ("", "nan")


def test_means_with_intervals_and_a_picture(run):
    summary = json.loads((run / "explanations.json").read_text())
    assert summary["slices"] == 4
    assert list(summary["methods"]) == ["own", "occlusion", "guided_backpropagation", "grad_cam"]
    assert summary["methods"]["own"]["points_at"]["slices"] == 2
    assert Image.open(run / "explanations.png").size == (5 * 24, 4 * 20)
