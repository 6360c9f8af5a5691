from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from scipy.spatial import ConvexHull
from scipy.stats import kstest

from tests.bundles.conftest import load_script

sampling = load_script("tonno_mosmed", "sampling")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def identity(case: dict) -> dict:
    """Preprocessing: a ball as organ, as bright as the case says, below the organ mask."""
    size = case.get("size", 7.0)
    axes = torch.stack(torch.meshgrid(*(torch.arange(n) - 0.5 * (n - 1) for n in (20, 20, 16)), indexing="ij"))
    organ = (axes.norm(dim=0) < size).float()
    return {"image": MetaTensor(torch.stack([organ * case["bright"], organ]), affine=torch.diag(torch.ones(4)))}


CASES = [
    {"case": "ill", "bright": 2.0, "cls": 1},
    {"case": "well", "bright": 1.0, "cls": 0},
    {"case": "small", "bright": 1.0, "cls": 0, "size": 3.0},
]


def dataset(cases=CASES, **options):
    settings = {"planes": 6, "size": 24, "progress": False}
    return sampling.PlaneDataset(cases, identity, **(settings | options))


@pytest.mark.parametrize("cls", [1, [1]])
def test_a_picture_is_refused_naming_the_file_and_the_bundles_that_take_it(cls):
    picture = MetaTensor(torch.ones(2, 20, 20, 1), meta={"filename_or_obj": "a.png"})
    with pytest.raises(ValueError, match=r"a.png: a picture, or a volume of one slice; .*gp_unet_brats"):
        sampling.PlaneDataset([{"case": "a", "cls": cls}], lambda _: {"image": picture}, progress=False)


def test_normals_are_uniform_on_the_sphere():
    normals, _ = sampling.random_planes(torch.randn(50, 3), 4000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(4000))
    for axis in range(3):  # Archimedes: each coordinate of a uniform point on the sphere is uniform in [-1, 1]
        assert kstest(normals[:, axis].numpy(), "uniform", args=(-1, 2)).pvalue > 0.01
    azimuth = torch.atan2(normals[:, 1], normals[:, 0]).numpy()
    assert kstest(azimuth, "uniform", args=(-np.pi, 2 * np.pi)).pvalue > 0.01


def test_planes_meet_the_hull_and_fill_it_evenly():
    points = torch.randn(60, 3, generator=torch.Generator().manual_seed(1)) + torch.tensor([5.0, 0.0, -3.0])
    normals, offsets = sampling.random_planes(points, 3000, generator=torch.Generator().manual_seed(2))
    corners = points[torch.as_tensor(ConvexHull(points.numpy()).vertices, dtype=torch.long)] @ normals.T
    low, high = corners.amin(0), corners.amax(0)
    assert (offsets >= low - 1e-4).all()
    assert (offsets <= high + 1e-4).all()
    assert kstest(((offsets - low) / (high - low)).numpy(), "uniform").pvalue > 0.01


def test_axes_lie_in_the_plane_and_their_lengths_and_angle_stay_in_range():
    normals, _ = sampling.random_planes(torch.randn(10, 3), 2000, generator=torch.Generator().manual_seed(0))
    u, v = sampling.random_axes(normals, scale=0.2, shear=0.1, generator=torch.Generator().manual_seed(1))
    for axis in (u, v):
        torch.testing.assert_close((axis * normals).sum(1), torch.zeros(2000), atol=1e-5, rtol=0)
        assert 0.8 <= axis.norm(dim=1).min() < 0.82
        assert 1.18 < axis.norm(dim=1).max() <= 1.2
    lean = torch.arccos((u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1))) - torch.pi / 2
    assert 0.17 < lean.abs().max() <= 0.2 + 1e-4
    plain_u, plain_v = sampling.random_axes(normals, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch.linalg.cross(plain_u, plain_v, dim=1), normals, atol=1e-5, rtol=0)


def test_every_plane_has_its_volumes_label_and_content():
    planes = dataset()
    for index, case in enumerate(CASES):
        item = planes[index]
        assert item["image"].shape == (6, 1, 24, 24)
        assert item["cls"].tolist() == [float(case["cls"])] * 6
        assert item["image"].amax(dim=(1, 2, 3)).tolist() == pytest.approx([case["bright"]] * 6, rel=0.05)


def test_slice_labels_cut_a_case_into_stacks_of_equal_label():
    planes = dataset([{"case": "mixed", "bright": 1.0, "cls": [0] * 8 + [2] * 3 + [1] * 5}], min_slices=3, max_slices=5)
    assert planes.classes == [0, 0, 1, 1]
    assert [body.box[2].stop - body.box[2].start for body in planes.bodies] == [3, 4, 4, 3]  # the ball has 14 slices


def test_validation_planes_never_change_and_training_planes_do():
    fixed, drawn = dataset(fixed=True), dataset()
    assert torch.equal(fixed[0]["image"], fixed[0]["image"])
    assert not torch.equal(fixed[0]["image"], fixed[2]["image"])
    assert not torch.equal(drawn[0]["image"], drawn[0]["image"])


def test_augmentation_leaves_air_alone():
    planes = dataset(augment=lambda item: {"image": item["image"] + 1.0})
    image = planes[0]["image"]
    assert (image == 0).any(dim=-1).any()
    assert image[image != 0].min() > 1.0


def test_positives_and_negatives_are_drawn_one_to_one_from_organs_of_one_size():
    planes = dataset()
    drawn = np.bincount(list(sampling.balanced_sampler(planes, num_samples=4000)), minlength=3) / 4000
    assert drawn[0] == pytest.approx(0.5, abs=0.03)
    assert drawn[2] < 0.05
    plain = np.bincount(list(sampling.balanced_sampler(planes, num_samples=4000, match_size=False)), minlength=3) / 4000
    assert plain == pytest.approx([0.5, 0.25, 0.25], abs=0.03)


def test_pixels_of_a_plane_add_up_to_the_area_of_its_cut_through_a_ball():
    (body,) = dataset(CASES[:1], radius=12.0).bodies
    plane = sampling.sample_planes(
        body.inside[None].float(), torch.eye(3)[:1], torch.zeros(1), size=97, spacing=body.spacing, radius=body.radius
    )
    area = float(plane.sum()) * body.pixel_cm2(97)
    assert area == pytest.approx(np.pi * 0.7**2, rel=0.05)
    (cube,) = dataset(CASES[:1], geometry="paper").bodies
    plane = sampling.sample_planes(cube.inside[None].float(), torch.eye(3)[:1], torch.zeros(1), size=97, **cube.extent)
    assert float(plane.sum()) * cube.pixel_cm2(97) == pytest.approx(area, rel=0.15)  # its axes are stretched


def test_strata_are_matched_in_place_of_sizes():
    known = [("a", "right"), ("b", "left"), ("b", "right")]  # sizes alone would draw the second, not the third
    cases = [case | {"patient": p, "side": side} for case, (p, side) in zip(CASES, known, strict=True)]
    drawn = np.bincount(
        list(sampling.balanced_sampler(dataset(cases), num_samples=4000, stratify_by=["side"])), minlength=3
    )
    assert drawn / 4000 == pytest.approx([0.5, 0.0, 0.5], abs=0.03)


def test_a_batch_is_flat_and_labels_stay_with_their_planes():
    batch = next(iter(DataLoader(dataset(), batch_size=2)))
    image, cls = sampling.prepare_batch(batch, torch.device("cpu"))
    assert image.shape == (12, 1, 24, 24)
    assert cls.flatten().tolist() == [1.0] * 6 + [0.0] * 6
    assert (image.amax(dim=(1, 2, 3)) > 1.5).tolist() == [True] * 6 + [False] * 6


def doubtful(case):
    return identity(case) | {"warnings": "tilted"}


@pytest.mark.parametrize("cached", [False, True])
def test_what_is_doubtful_about_a_case_is_said_where_training_reads_it(tmp_path, caplog, cached):
    (tmp_path / "a.txt").touch()
    options = {"progress": False, "cache_dir": tmp_path / "cache" if cached else None}
    for _ in range(2):
        caplog.clear()
        sampling.PlaneDataset([CASES[0] | {"image": str(tmp_path / "a.txt")}], doubtful, **options)
        assert [record.getMessage() for record in caplog.records] == ["case ill: tilted"]


def test_no_organ_anywhere_is_refused():
    with pytest.raises(RuntimeError, match="is the organ mask"):
        dataset([{"case": "empty", "bright": 1.0, "cls": 1, "size": 0.0}])


def test_a_case_without_label_is_named():
    with pytest.raises(ValueError, match="case 'nameless' has no `cls`"):
        dataset([{"case": "nameless", "bright": 1.0}])


class TestCache:
    """Volumes in a cache on disk."""

    STACKS: tuple[dict, ...] = (*CASES, {"case": "cut", "bright": 3.0, "cls": [0] * 6 + [1] * 5 + [0] * 5})

    def cases(self, folder):
        found = [case | {"image": str(folder / f"{case['case']}.txt")} for case in self.STACKS]
        for case in found:
            (folder / f"{case['case']}.txt").write_text(case["case"])
        return found

    @pytest.mark.parametrize("options", [{}, {"geometry": "paper"}, {"radius": 12.0, "max_slices": None}])
    def test_items_are_those_of_a_dataset_in_memory(self, tmp_path, options):
        held = dataset(self.cases(tmp_path), fixed=True, **options)
        for _ in range(2):  # made, then found
            stored = dataset(self.cases(tmp_path), fixed=True, cache_dir=tmp_path / "cache", **options)
            assert (stored.classes, stored.sizes, len(stored)) == (held.classes, held.sizes, len(held))
            assert [case["case"] for case in stored.cases] == [case["case"] for case in held.cases]
            assert [body.box for body in stored.bodies] == [body.box for body in held.bodies]
            for one, other in zip(held, stored, strict=True):
                assert torch.equal(one["image"], other["image"])
                assert torch.equal(one["cls"], other["cls"])

    def test_a_second_run_makes_nothing_and_other_labels_other_stacks(self, tmp_path, capsys):
        cases = self.cases(tmp_path)
        made = []
        for cls in (cases[-1]["cls"], cases[-1]["cls"], [1] * 16):
            cases[-1]["cls"] = cls
            planes = dataset(cases, cache_dir=tmp_path / "cache", progress=True)
            made.append((capsys.readouterr().out.partition(" of them")[0].split()[-1], planes.classes.count(1)))
        assert made == [("4", 2), ("0", 2), ("1", 3)]
        assert len(planes) == 5

    def test_draws_are_balanced_without_reading_the_volumes(self, tmp_path, monkeypatch):
        planes = dataset(self.cases(tmp_path), cache_dir=tmp_path / "cache")
        monkeypatch.setattr(type(planes.bodies), "__getitem__", None)
        assert len(list(sampling.balanced_sampler(planes, num_samples=50))) == 50
