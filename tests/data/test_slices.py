from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, get_track_meta, set_rnd
from monai.transforms import Compose, RandGaussianNoised

from common.data import SliceDataset, case_label, matched_sampler, read_unmasked, runs, slice_classes
from tests.pipeline import save

DEPTH = 6


def volume(seed: int = 0, empty: tuple[int, ...] = (0, 4)) -> torch.Tensor:
    """`[2, 5, 4, DEPTH]`: image and organ, which is absent from the slices `empty`."""
    image = torch.rand((1, 5, 4, DEPTH), generator=torch.Generator().manual_seed(seed)) + 0.5
    organ = torch.ones_like(image)
    organ[..., list(empty)] = 0
    return torch.cat([image * organ, organ])


def dataset(cases: list[dict[str, Any]], **options: Any) -> SliceDataset:
    """Cases whose `image` is already a tensor."""
    return SliceDataset(cases, lambda case: case, progress=False, **options)


def test_labels_are_those_of_the_list_and_slices_without_organ_are_left_out():
    data = dataset([{"case": "a", "image": volume(), "cls": [0, 1, 0, 2, 1, 0]}])
    assert data.classes == [1, 0, 2, 0]
    assert data.where == [(0, 1), (0, 2), (0, 3), (0, 5)]
    assert data.positions == pytest.approx([1 / 5, 2 / 5, 3 / 5, 1])


def test_one_label_counts_for_every_slice():
    assert dataset([{"case": "a", "image": volume(), "cls": 2}]).classes == [2] * 4
    assert case_label({"case": "a", "cls": np.int64(1)}, 3) == 1
    assert slice_classes({"case": "a", "cls": np.int64(1)}, 3) == [1, 1, 1]


class TestBags:
    def data(self, *labels: Any) -> SliceDataset:
        return dataset([{"case": str(i), "image": volume(i), "cls": cls} for i, cls in enumerate(labels)])

    def test_a_positive_label_of_a_volume_makes_bags_of_all_volumes_without_positive_slices(self, capsys):
        data = self.data(1, 0, [0] * DEPTH)
        assert data.bags == [0] * 4 + [1] * 4 + [2] * 4
        assert [item["bag"] for item in data] == data.bags
        assert data.pooled
        assert data.whole == [True, True, True]
        assert capsys.readouterr().out == "one label a volume: 3 volumes, 1 positive; slices are pooled\n"

    def test_slices_of_a_mixed_datalist_that_have_their_own_labels_are_on_their_own(self, capsys):
        data = self.data([0, 1, 0, 1, 0, 0], 2, 0)
        assert data.bags == [-1] * 4 + [1] * 4 + [2] * 4
        assert data.whole == [False, True, True]
        assert capsys.readouterr().out == (
            "one label a volume: 2 volumes, 1 positive; slices are pooled; "
            "one label a slice: 4 slices of 1 volumes, 2 positive\n"
        )

    def test_without_a_positive_label_of_a_volume_every_slice_is_on_its_own(self, capsys):
        data = self.data([0, 1, 0, 1, 0, 0], 0)
        assert data.bags == [-1] * 8
        assert not data.pooled
        assert capsys.readouterr().out == "one label a slice: 8 slices of 2 volumes, 2 positive\n"


def test_items_are_the_slices_in_half_precision_with_the_organ_apart():
    volumes = [volume(0), MetaTensor(volume(1, empty=(5,)))]
    data = dataset([{"case": str(i), "image": v, "cls": [0, 1, 0, 1, 0, 1]} for i, v in enumerate(volumes)])
    assert len(data) == 9
    for item, (number, z) in zip(data, data.where, strict=True):
        assert item.keys() == {"image", "organ", "cls", "bag"}
        assert item["cls"] == z % 2
        assert type(item["image"]) is torch.Tensor
        assert item["image"].dtype == torch.float32
        torch.testing.assert_close(item["image"], torch.as_tensor(volumes[number][:1, ..., z]), atol=1e-3, rtol=0)
        torch.testing.assert_close(item["organ"], torch.ones(1, 5, 4))


def test_without_organ_channel_items_are_whole_and_flat_slices_are_left_out():
    image = volume()[:1]
    image[..., 1] = 0.7
    data = dataset([{"case": "a", "image": image, "cls": 1}], organ_channel=False)
    assert [z for _, z in data.where] == [2, 3, 5]
    assert data[0].keys() == {"image", "cls", "bag"}
    assert data[0]["image"].shape == (1, 5, 4)


def test_flat_slices_are_left_out_where_everything_is_organ():
    image = volume()
    image[1] = 1
    image[0, ..., 1] = 0.7
    data = dataset([{"case": "a", "image": image, "cls": [0, 1, 0, 1, 0, 1]}])
    assert 1 not in [z for _, z in data.where]
    assert len(data) >= 3


def test_the_label_of_a_volume_of_one_slice_is_the_slices():
    cases = [{"case": name, "image": volume()[..., 2:3], "cls": cls} for name, cls in (("a", 1), ("b", 0))]
    data = dataset(cases)
    assert data.classes == [1, 0]
    assert data.bags == [-1, -1]
    assert not data.pooled


def test_a_dataset_with_a_window_holds_that_part_of_each_volume():
    image = volume()
    image[1, 3:] = 0  # the organ: three rows, four columns
    data = dataset([{"case": "a", "image": image, "cls": 1}], window=[3, 2 * 4])
    assert data[0]["image"].shape == (1, 3, 8)
    torch.testing.assert_close(data[0]["image"][:, :, 2:6], image[:1, :3, :, 1], atol=1e-3, rtol=0)
    assert data[0]["image"][:, :, :2].abs().max() == 0


def test_targets_are_cut_into_slices_and_follow_the_window():
    image = volume()
    image[1, 3:] = 0

    def targets(case, seen):
        assert case["case"] == "a"
        assert torch.equal(seen, image)  # whole, in full precision
        return {"mask": image[:1] > 1, "number": torch.arange(DEPTH)}

    data = dataset([{"case": "a", "image": image, "cls": 1}], window=[3, 2 * 4], targets=targets)
    for item, (_, z) in zip(data, data.where, strict=True):
        assert item["number"] == z
        assert item["mask"].dtype == torch.float32
        assert torch.equal(item["mask"][:, :, 2:6] > 0, image[:1, :3, :, z] > 1)
        assert item["mask"].shape == item["image"].shape


def test_augmentation_gets_the_item():
    data = dataset([{"case": "a", "image": volume(), "cls": 1}], augment=lambda item: item | {"cls": item["cls"] + 5})
    assert data[0]["cls"] == 6


def test_augmentation_is_of_plain_tensors_and_what_follows_is_tracked_again():
    """Records of MONAI's `MetaTensor` take as long as the augmentation itself."""
    noise = RandGaussianNoised("image", prob=1.0)
    data = dataset([{"case": "a", "image": MetaTensor(volume()), "cls": 1}], augment=noise)
    assert type(data[0]["image"]) is torch.Tensor
    with pytest.raises(RuntimeError):
        dataset([{"case": "a", "image": volume(), "cls": 1}], augment=RandGaussianNoised("absent", prob=1.0))[0]
    assert get_track_meta()


def test_augmentation_gets_the_loaders_first_seed_whatever_else_the_data_set_holds():
    augment = Compose([RandGaussianNoised("image", prob=1.0)])
    cases = [{"case": "a", "image": volume(), "cls": 1}]
    data = SliceDataset(cases, Compose([lambda case: case]), augment=augment, progress=False)
    set_rnd(data, 7)
    drawn = augment.transforms[0].R.rand()
    augment.set_random_state(seed=7)
    assert drawn == augment.transforms[0].R.rand()


def test_the_mask_is_never_read_where_there_is_a_label(tmp_path, monkeypatch):
    def read(*_: Any) -> None:
        raise AssertionError("the mask was read")

    monkeypatch.setattr("common.data.slices.slice_labels", read)
    seen = []
    case = {"case": "a", "image": volume(), "cls": [0, 1, 0, 1, 0, 1], "label": str(tmp_path / "deleted.nii.gz")}
    data = SliceDataset([case], lambda c: seen.append(c.keys()) or c, progress=False)
    assert data.classes == [1, 0, 1, 1]
    assert seen == [{"case", "image", "cls"}]  # the preprocessing does not even learn of it


def doubtful(case: dict[str, Any]) -> dict[str, Any]:
    return case | {"image": volume(), "warnings": "tilted" if case["case"] == "a" else ""}


def first_channel(case: dict[str, Any], image: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"mask": image[:1]}


@pytest.mark.parametrize("cached", [False, True])
def test_what_is_doubtful_about_a_case_is_said_once_where_training_reads_it(tmp_path, caplog, cached):
    for name in "ab":
        (tmp_path / f"{name}.nii.gz").write_bytes(name.encode())
    cases = [{"case": name, "image": str(tmp_path / f"{name}.nii.gz"), "cls": 1} for name in "ab"]
    options = {"progress": False, "cache_dir": tmp_path / "cache" if cached else None}
    for _ in range(2):  # read, then found where they are cached
        caplog.clear()
        data = SliceDataset(cases, doubtful, targets=first_channel, **options)
        assert [record.getMessage() for record in caplog.records] == ["case a: tilted"]
    caplog.clear()
    read_unmasked(data.data[0], doubtful)  # again, for a picture of it
    assert not caplog.records


def test_without_a_label_the_mask_gives_it(tmp_path):
    mask = np.zeros((5, 4, DEPTH), np.uint8)
    mask[2, 2, [1, 2]] = 3
    case = {"case": "a", "image": save(tmp_path / "image.nii.gz", mask), "label": save(tmp_path / "mask.nii.gz", mask)}
    data = SliceDataset([case], lambda case: {"image": volume()}, progress=False)
    assert data.classes == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("case", "message"),
    [({"cls": [0, 1]}, r"case 'scan 7' has 2 labels in `cls` for 6 slices"), ({}, r"case 'scan 7' has no `cls`")],
)
def test_wrong_or_missing_labels_name_the_case(case, message):
    with pytest.raises(ValueError, match=message):
        dataset([{"case": "scan 7", "image": volume()} | case])


def test_no_slice_left_is_an_error():
    with pytest.raises(RuntimeError, match="no slice is left"):
        dataset([{"case": "a", "image": volume(empty=tuple(range(DEPTH))), "cls": 1}])


class TestMatchedSampler:
    def data(self) -> SliceDataset:
        labels = [0] * 20 + [1] * 4 + [0] * 6
        images = [torch.cat([torch.rand(1, 2, 2, 30), torch.ones(1, 2, 2, 30)]) for _ in range(4)]
        return dataset([{"case": str(i), "image": image, "cls": labels} for i, image in enumerate(images)])

    def test_draws_positives_and_negatives_one_to_one(self):
        data = self.data()
        torch.manual_seed(0)
        drawn = np.array([data.classes[i] for i in matched_sampler(data, num_samples=4000)])
        assert drawn.mean() == pytest.approx(0.5, abs=0.03)

    def test_draws_negatives_from_where_positives_lie(self):
        data = self.data()
        torch.manual_seed(0)
        drawn = list(matched_sampler(data, num_samples=4000, bins=5))
        positions = np.array(data.positions)[drawn]
        negative = np.array(data.classes)[drawn] == 0
        # Positives lie in the fourth of five bins; 5 % of the negatives are spread over the other four.
        near = (positions >= 0.6) & (positions < 0.8)
        assert near[negative].mean() == pytest.approx(0.95, abs=0.02)

    def test_by_default_an_epoch_has_twice_as_many_draws_as_there_are_positives(self):
        assert len(list(matched_sampler(self.data()))) == 2 * 16


class TestRuns:
    def test_counts_by_hand(self):
        assert runs([0, 0, 1, 1, 1, 0]) == [(0, 2, 0), (2, 5, 1), (5, 6, 0)]
        assert runs([0, 0, 1, 1, 1, 0], min_slices=2) == [(0, 2, 0), (2, 5, 1)]
        assert runs([1] * 7, max_slices=3) == [(0, 2, 1), (2, 4, 1), (4, 7, 1)]
        assert runs([]) == []

    def test_short_rest_is_left_out_rather_than_shortening_every_piece(self):
        assert runs([1] * 9, min_slices=8, max_slices=8) == [(0, 8, 1)]
        assert runs([1] * 7, min_slices=8, max_slices=8) == []

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("limits", [(1, None), (1, 4), (3, 4), (5, 5)])
    def test_pieces_hold_one_label_and_only_short_ends_are_lost(self, seed, limits):
        rng = np.random.default_rng(seed)
        labels = np.repeat(rng.integers(2, size=12), rng.integers(1, 12, size=12))
        smallest, largest = limits
        pieces = runs(labels, min_slices=smallest, max_slices=largest)
        used = np.zeros(len(labels), int)
        for start, stop, label in pieces:
            assert smallest <= stop - start <= (largest or len(labels))
            assert (labels[start:stop] == label).all()
            used[start:stop] += 1
        assert used.max() == 1
        lost = runs(used, min_slices=smallest)
        if smallest == 1:
            assert used.all()
        # A lost stretch may join the rests of two runs, so it is checked run by run.
        assert all((np.diff(labels[a:b]) != 0).any() for a, b, kept in lost if not kept)

    def test_refuses_limits_that_nothing_fits(self):
        with pytest.raises(ValueError, match="1 <= min_slices <= max_slices; got 4 and 3"):
            runs([0, 1], min_slices=4, max_slices=3)
        with pytest.raises(ValueError, match="got 0 and None"):
            runs([0, 1], min_slices=0)


def test_slices_of_real_masks_match_their_labels(real_data):
    folder = sorted(real_data("lgg").glob("*/mask.nii.gz"))[0].parent
    mask = np.asanyarray(nib.Nifti1Image.from_filename(Path(folder) / "mask.nii.gz").dataobj)
    case = {"case": folder.name, "image": str(folder / "flair.nii.gz"), "label": str(folder / "mask.nii.gz")}
    assert slice_classes(case, mask.shape[2]) == (mask > 0).any(axis=(0, 1)).astype(int).tolist()
