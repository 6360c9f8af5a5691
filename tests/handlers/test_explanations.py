"""Explanations of a phantom's slices, by a network whose map is its image."""

from __future__ import annotations

import csv
import json
import logging

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


class Kinds(Bright):
    """Class 1 is the image above 1.5, class 2 the image below 0.5."""

    num_classes = 3
    explained_layer = "seen"

    def explain(self, image):
        evidence = self.seen(image[:, :1])
        maps = torch.cat([0 * evidence, evidence, -1 - evidence], dim=1)
        return maps, (maps - 1e3 * (image[:, 1:] < 0.5)).amax(dim=(2, 3)) * torch.tensor([0.0, 1.0, 1.0])


class Two(Cases):
    """A bright slice, 2, and a dark one, 3."""

    def __init__(self, folder):
        super().__init__(folder)
        self.data = self.data[1:2]
        self.image[0, ..., 3] = 1.0
        self.image[0, 5:9, 5:9, 3] = -2.0


def explain(folder, dataset, network, **options):
    steps = Compose([MapsToMaskd(**options.pop("mask", {}))])
    settings = {"inferer": SliceMapInferer(), "postprocessing": steps, "patch": 8, "slices": 2, "progress": False}
    return Explanations(dataset, network=network, output_dir=str(folder), **settings | options).run()


def test_all_maps_are_of_the_class_shown(tmp_path):
    dataset = Two(tmp_path)
    found = explain(tmp_path, dataset, Kinds(), classes=["none", "bright", "dark"])
    rows = {(row["slice"], row["method"]): row for row in found}
    assert {z: row["class"] for (z, _), row in rows.items()} == {2: "bright", 3: "dark"}
    for z in (2, 3):
        own, occlusion = rows[z, "own"], rows[z, "occlusion"]
        logits = Kinds()(dataset.image.as_tensor()[None, ..., z]).detach()
        assert own["probability"] == pytest.approx(float(logits.softmax(1).amax()), abs=1e-5)
        assert own["deletion"] < 0.6 * own["probability"]  # filling what the class hangs on takes it away
        assert occlusion["rank_correlation"] > 0.4


def test_the_sum_of_all_classes_is_explained_as_any_finding(tmp_path):
    found = explain(tmp_path, Two(tmp_path), Kinds(), mask={"evidence": "sum"})
    assert {row["class"] for row in found} == {"any"}


@pytest.mark.parametrize("mask", [{}, {"gate": None}, {"one_class": True}, {"gate": 0.9}])
def test_the_class_shown_is_that_whose_map_the_heatmap_is(tmp_path, mask):
    torch.manual_seed(0)
    image, output = torch.rand(2, 6, 6, 9), torch.rand(6, 6, 6, 9)
    image[1] = 1.0
    output[3:] = output[3:, :1, :1].softmax(0)
    step = MapsToMaskd(**mask)
    done = step({"image": MetaTensor(image), "pred": output.clone()})
    steps = Compose([step])
    handler = Explanations(Cases(tmp_path), network=Kinds(), inferer=None, postprocessing=steps, output_dir=tmp_path)
    shown = handler._shown(np.asarray(done["slice_probability"]))
    assert (len(set(shown)) > 1) == (mask in ({}, {"gate": None}))  # else it is the volume's leading class
    for z, which in enumerate(shown):
        torch.testing.assert_close(done["heatmap"][0, ..., z].as_tensor(), output[which, ..., z] - output[0, ..., z])


def test_one_probability_a_volume_leaves_the_choice_of_slices_to_their_own(tmp_path):
    class Volumes(SliceMapInferer):
        def __call__(self, *args, **kwargs):
            output = super().__call__(*args, **kwargs)
            output[:, -2:] = 0.5
            return output

    found = explain(tmp_path, Cases(tmp_path), Bright(), inferer=Volumes(), layer="network.seen")
    assert {row["slice"] for row in found} == {2, 3}


def test_masks_that_nobody_finds_are_said_once(tmp_path, caplog):
    dataset = Two(tmp_path)
    with caplog.at_level(logging.WARNING):
        explain(tmp_path, dataset, Kinds(), label_pattern="*/nothing.nii.gz")
    assert [record.message for record in caplog.records if "'*/nothing.nii.gz'" in record.message] != []
    assert len([record for record in caplog.records if "points_at" in record.message]) == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        explain(tmp_path, Cases(tmp_path), Bright(), layer="network.seen", label_pattern="*/mask.nii.gz")
    assert [record for record in caplog.records if "points_at" in record.message] == []


def test_stacks_and_layers_that_do_not_exist_are_refused_before_any_case_is_read(tmp_path):
    volumetric = Bright()
    volumetric.spatial_dims = 3
    with pytest.raises(ValueError, match=r"leave that config out"):
        explain(tmp_path, Cases(tmp_path), volumetric, layer="network.seen")
    with pytest.raises(ValueError, match=r"no layer 'network\.sen'; did you mean"):
        explain(tmp_path, Cases(tmp_path), Bright(), layer="network.sen")
    with pytest.raises(ValueError, match="set explained_layer"):
        explain(tmp_path, Cases(tmp_path), Bright())
