from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from common.commands.fit_minutes import Grids, minutes, read_grids
from common.commands.fit_runs import merged
from common.commands.run import bundle_root
from tests.pipeline import affine_of, save

LGG = Grids(np.array([[160.0, 160.0, 22.0]]), np.array([[1.5, 1.5, 5.0]]))
PHANTOM = Grids(np.array([[64.0, 64.0, 16.0]]), np.array([[3.0, 3.0, 5.0]]))


def guess(bundle: str, *configs: str, grids: Grids, sections: tuple[int, ...], cls=1, runs: int = 4, **settings) -> int:
    """Of sections of so many cases, and the bundle's own configs."""
    named = zip(("training", "validation", "test"), sections, strict=True)
    content = {name: [{"case": f"{name}{i}", "cls": cls} for i in range(count)] for name, count in named}
    keys = merged(bundle_root(bundle), ("inference.json", "train.json", *configs)) | settings
    return minutes(bundle, content, keys, grids, rounds=settings.get("rounds", 0), runs=runs)


def test_the_guess_grows_with_slices_epochs_rounds_and_pixels():
    def of(**settings) -> int:
        return guess("gp_unet_brats", grids=LGG, sections=(50, 1, 1), cls=[0, 1] * 10, runs=0, **settings)

    assert of(max_epochs=50) == 12  # 50 epochs of 12 s, and masks of 52 volumes, twice
    assert of(max_epochs=100) == 22
    assert of(max_epochs=50, rounds=1) == 22
    assert of(max_epochs=50, slice_size=[64, 72]) == 5


@pytest.mark.parametrize(
    ("bundle", "configs", "grids", "sections", "cls", "options", "took"),
    [
        # 40 phantoms with one label each: 4.7 minutes on two cores.
        ("tonno_mosmed", ("phantom.json", "phantom_volumes.json"), PHANTOM, (24, 6, 10), 1, {"runs": 4}, 4.7),
        # 32 phantoms, 8 epochs and a second round: 1.5 minutes.
        (
            "gp_unet_brats",
            ("phantom.json",),
            PHANTOM,
            (16, 6, 10),
            [0, 1] * 8,
            {"rounds": 1, "runs": 6, "max_epochs": 8},
            1.5,
        ),
        # 18 phantoms and a second round: 160 seconds of one core.
        ("insight_ct", ("phantom.json",), PHANTOM, (10, 4, 4), [0, 1] * 8, {"rounds": 1, "runs": 6}, 2.0),
        # 45 patients with glioma, as published: 15 minutes of one core.
        ("gp_unet_brats", (), LGG, (30, 8, 7), [0, 1] * 11, {"rounds": 1, "runs": 6}, 7.5),
    ],
)
def test_the_guess_lies_within_a_factor_of_two_of_what_it_took(bundle, configs, grids, sections, cls, options, took):
    assert took / 2 <= guess(bundle, *configs, grids=grids, sections=sections, cls=cls, **options) <= took * 2


@pytest.mark.parametrize("axcodes", ["LPS", "SAL", "IRP"])
def test_slices_are_counted_along_the_body_whatever_the_order_of_axes(tmp_path, axcodes):
    image = nib.Nifti1Image(np.zeros((6, 8, 5), np.int16), affine_of("LPS", (2, 3, 4), (6, 8, 5)))
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axcodes))
    turned = image.as_reoriented(turn)
    save(tmp_path / "a.nii", np.asanyarray(turned.dataobj), turned.affine)
    grids = read_grids({"training": [{"image": "a.nii"}]}, tmp_path)
    assert (grids.shapes.tolist(), grids.spacings.tolist()) == ([[6, 8, 5]], [[2, 3, 4]])
    assert grids.in_words() == "spacing 2 × 3 × 4 mm"
    assert grids.resampled([1.0, -1.0, 8.0]).tolist() == [12, 8, 2.5]


def test_a_second_network_that_draws_has_epochs_of_its_own():
    content = {"training": [{"case": str(i), "cls": 1} for i in range(10)]}
    keys = merged(bundle_root("insight_ct"), ("inference.json", "train.json"))
    drawing = merged(bundle_root("insight_ct"), ("train_draw.json",))
    one, two, longer = (
        minutes("insight_ct", content, keys, PHANTOM, rounds=rounds, runs=0, drawing=more)
        for rounds, more in ((0, drawing), (1, drawing), (1, drawing | {"max_epochs": 100}))
    )
    assert two - one == 5  # ten epochs of 640 slices, at 50 s for a thousand
    assert longer - one == 53
