from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose

from common.commands.benchmark_suite import benchmark_suite
from common.commands.folds import write_folds
from common.commands.prepare import prepare
from common.commands.run import BUNDLES
from common.data.splits import stratum
from common.datasets import labeled_table
from common.datasets.phantom import phantom_case
from common.datasets.sides import halves, middle_of, parse_side, side_of
from common.files import read_json
from common.images import read_grid, read_volume
from common.preprocessing import LoadCased, NormalizeByOrgand, OrganMaskd
from tests.datasets.tables import write

SHAPE = (48, 56, 8)


def head(path: Path, *, axes: str = "LPS", seed: int = 0) -> np.ndarray:
    """Write a head and its brain along other axes; returns its lesion `[x, y, z]`, left to right."""
    image, mask, organ = phantom_case(np.random.default_rng(seed), SHAPE)
    for name, array in (("flair", image[0]), ("mask", mask.astype(np.uint8)), ("brain", organ.astype(np.uint8))):
        volume = nib.Nifti1Image(array, np.diag([-2.0, -2.0, 4.0, 1.0]))  # the phantom is in LPS
        turn = nib.orientations.ornt_transform(nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(axes))
        path.mkdir(exist_ok=True, parents=True)
        nib.save(volume.as_reoriented(turn), path / f"{name}.nii.gz")
    return mask[::-1]


def case_of(folder: Path, **more) -> dict:
    files = {"image": str(folder / "flair.nii.gz"), "organ": str(folder / "brain.nii.gz")}
    return {"case": folder.name, "patient": folder.name, "cls": 1} | files | more


@pytest.mark.parametrize(
    ("text", "side"),
    [
        *(("left", "left"), ("L", "left"), ("rt.", "right"), ("right-sided", "right"), ("Both", "both")),
        *(("bilateral", "both"), ("left and right", "both"), ("l/r", "both")),
    ],
)
def test_sides_as_people_write_them(text, side):
    assert parse_side(text) == side


@pytest.mark.parametrize("text", ["", "frontal", "left frontal", "yes", "1"])
def test_other_words_are_no_side(text):
    with pytest.raises(ValueError, match="is no side; accepted: left, right, both"):
        parse_side(text)


def test_the_middle_is_where_the_image_is_symmetric_and_not_where_the_organ_has_its_half():
    x = np.arange(40)
    profile = np.exp(-(((x - 19.5) / 9) ** 2)) + 0.5 * np.exp(-(((np.abs(x - 19.5) - 8) / 1.5) ** 2))
    image = np.broadcast_to(profile[:, None, None], (40, 10, 4))
    organ = np.ones(image.shape, dtype=bool)
    assert middle_of(image, organ, spacing=2.0) == 20
    organ[30:] = False  # a mask that lacks a rim: its halves meet at 15
    assert middle_of(image, organ, spacing=2.0) == 20
    assert 15 < middle_of(image, organ, spacing=6.0) <= 17  # 20 is 30 mm from where the halves meet: too far
    with pytest.raises(ValueError, match="organ is empty"):
        middle_of(image, np.zeros_like(organ), spacing=2.0)


def test_less_than_a_tenth_across_the_middle_is_of_one_side():
    mask = np.zeros((20, 10, 10), dtype=bool)
    mask[5:10] = True
    assert side_of(mask, 10) == "left"
    mask[10, :4] = True  # 40 voxels of 540
    assert side_of(mask, 10) == "left"
    mask[10] = True
    assert side_of(mask, 10) == "both"
    assert side_of(mask, 4) == "right"


@pytest.mark.parametrize("bundle", ["insight_ct", "tonno_mosmed"])
def test_halves_know_the_side_by_which_trainings_on_lungs_stratify(bundle, tmp_path):
    head(tmp_path / "p")
    parts = halves([case_of(tmp_path / "p", finding_side="left")], tmp_path / "h", organ="brain")
    strata = read_json(BUNDLES / bundle / "configs" / "covid.json")["stratify_by"]
    assert strata == ["side"]
    assert [stratum(part, strata) for part in parts] == [("left",), ("right",)]


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PSR", "IRA"])
def test_the_finding_is_in_the_half_that_is_called_ill_however_axes_run(axes, tmp_path):
    for seed in range(4):
        lesion = head(tmp_path / f"p{seed}", axes=axes, seed=seed)
        case = case_of(tmp_path / f"p{seed}", label=str(tmp_path / f"p{seed}" / "mask.nii.gz"))
        parts = {part["half"]: part for part in halves([case], tmp_path / "halves", organ="brain", gap_mm=4.0)}
        half = {side: read_volume(part["organ"]).array > 0 for side, part in parts.items()}
        assert not (half["left"] & half["right"]).any()
        assert read_grid(parts["left"]["organ"])[0] == SHAPE  # written left to right, back to front, upwards
        share = {side: lesion[:, ::-1][organ].sum() / lesion.sum() for side, organ in half.items()}
        ill = [side for side, part in parts.items() if part["cls"]]
        assert ill == [max(share, key=lambda side: share[side])] or (ill == ["left", "right"] and min(share.values()))


def test_a_half_has_its_label_its_organ_and_no_mask(tmp_path):
    head(tmp_path / "p")
    case = case_of(tmp_path / "p", finding_side="left", label="gone.nii.gz")
    brain = read_volume(tmp_path / "p" / "brain.nii.gz").array.sum()
    wide = halves([case], tmp_path / "h", organ="brain", gap_mm=0.0)
    assert sum(read_volume(part["organ"]).array.sum() for part in wide) == brain
    narrow = halves([case], tmp_path / "h", organ="brain", gap_mm=12.0)  # of about 58
    assert 0.6 * brain < sum(read_volume(part["organ"]).array.sum() for part in narrow) < 0.85 * brain
    left, right = narrow
    assert [part["case"] for part in narrow] == ["p_left", "p_right"]
    assert (left["cls"], right["cls"], left["patient"]) == (1, 0, "p")
    assert left["image"] == right["image"] == str(tmp_path / "p" / "flair.nii.gz")
    assert not {"label", "finding_side"} & {*left, *right}


def test_a_network_sees_its_half_and_nothing_of_the_other(tmp_path):
    head(tmp_path / "p", axes="PSR")
    parts = halves([case_of(tmp_path / "p", finding_side="left")], tmp_path / "h", organ="brain")
    see = Compose([LoadCased(channels=1), OrganMaskd("image", organ="brain"), NormalizeByOrgand("image")])
    left, right = (see(part) for part in parts)
    for half in (left, right):
        assert half["organ"].sum() > 0
        np.testing.assert_array_equal(half["image"] > 0, half["organ"] > 0)
    assert not ((left["image"] > 0) & (right["image"] > 0)).any()


@pytest.mark.parametrize(
    ("cls", "side", "labels"),
    [
        *((1, "right", (0, 1)), (2, "both", (2, 2)), (0, "", (0, 0))),
        *((["a"], "left", (["a"], [])), ([], "", ([], [])), ([0, 1] * 4, "left", ([0, 1] * 4, [0] * 8))),
    ],
)
def test_labels_of_all_kinds_go_to_their_side(cls, side, labels, tmp_path):
    head(tmp_path / "p")
    case = case_of(tmp_path / "p", cls=cls) | ({"finding_side": side} if side else {})
    assert tuple(part["cls"] for part in halves([case], tmp_path / "h", organ="brain")) == labels


def test_what_cannot_be_halved_is_named(tmp_path):
    head(tmp_path / "p")
    with pytest.raises(ValueError, match=r"case 'p': which side is ill"):
        halves([case_of(tmp_path / "p")], tmp_path / "h", organ="brain")
    with pytest.raises(ValueError, match="case 'p': nothing of the organ is on the left side; does the image show"):
        halves([case_of(tmp_path / "p", finding_side="left")], tmp_path / "h", organ="brain", gap_mm=200.0)


def test_an_image_without_sides_is_refused(tmp_path):
    write(tmp_path, "image", "a.png")
    nib.save(nib.Nifti1Image(np.ones((8, 8, 4, 3)), np.eye(4)), tmp_path / "b.nii.gz")
    for name, error in (
        ("a.png", "a picture does not say which side of it is left"),
        ("b.nii.gz", "expected a 3D vol"),
    ):
        case = case_of(tmp_path, image=str(tmp_path / name), finding_side="left")
        with pytest.raises(ValueError, match=f"{name}: {error}"):
            halves([case], tmp_path / "h", organ="brain")
    with pytest.raises(ValueError, match="halves are of brain, head, lung, lungmask; got 'liver'"):
        halves([], tmp_path / "h", organ="liver")


def test_a_mask_that_is_inside_out_says_no_side(tmp_path):
    head(tmp_path / "p")
    mask = nib.load(tmp_path / "p" / "mask.nii.gz")
    nib.save(nib.Nifti1Image(1 - np.asanyarray(mask.dataobj), mask.affine), tmp_path / "p" / "out.nii.gz")
    case = case_of(tmp_path / "p", label=str(tmp_path / "p" / "out.nii.gz"))
    with pytest.raises(ValueError, match=r"out\.nii\.gz: every corner of the mask is marked"):
        halves([case], tmp_path / "h", organ="brain")


class TestTable:
    def test_a_side_is_that_of_a_positive_case(self, tmp_path):
        table = write(tmp_path, "image,label,side", "a.nii.gz,yes,L", "b.nii.gz,no,", "c.nii.gz,no,none")
        assert [case.get("finding_side") for case in labeled_table(table)[0]] == ["left", None, None]

    @pytest.mark.parametrize(
        ("row", "error"),
        [
            ("b.nii.gz,yes,", r"row 3, column 'side': empty, but other rows have one"),
            ("b.nii.gz,yes,front", r"row 3, column 'side': 'front' is no side; accepted: left, right, both"),
            ("b.nii.gz,no,left", r"row 3, column 'side': 'left', but the label says that nothing is there"),
        ],
    )
    def test_a_side_that_says_nothing_or_contradicts_the_label_is_refused(self, row, error, tmp_path):
        with pytest.raises(ValueError, match=error):
            labeled_table(write(tmp_path, "image,label,side", "a.nii.gz,yes,left", row))


def all_ill(folder: Path, count: int = 6) -> Path:
    """A table of heads that are all ill, with a side and a mask each."""
    rows = ["image,label,side,mask,organ"]
    for seed in range(count):
        lesion = head(folder / f"p{seed}", seed=seed)
        side = side_of(lesion, SHAPE[0] // 2)
        rows.append(f"p{seed}/flair.nii.gz,yes,{side},p{seed}/mask.nii.gz,p{seed}/brain.nii.gz")
    table = folder / "labels.csv"
    table.write_text("\n".join(rows))
    return table


def test_halves_teach_and_whole_scans_are_tested(tmp_path, capsys):
    table = all_ill(tmp_path)
    with pytest.raises(SystemExit, match="the column 'side' says which half of an organ is ill: --halves brain"):
        prepare("table", str(table))
    prepare("table", str(table), halves="brain", fractions=(0.5, 0.25, 0.25))
    found = read_json(tmp_path / "datalist.json")
    for section in ("training", "validation"):
        assert {case["half"] for case in found[section]} == {"left", "right"}
        assert {case["cls"] for case in found[section]} == {0, 1}  # no patient is healthy
        assert all("label" not in case and case["organ"].startswith("halves/") for case in found[section])
    assert found["test"]
    for case in found["test"]:
        name = case["case"]
        files = {"image": f"{name}/flair.nii.gz", "label": f"{name}/mask.nii.gz", "organ": f"{name}/brain.nii.gz"}
        assert case == {"case": name, "patient": name, "cls": 1} | files


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_mask_of_one_half_alone_is_not_halved_again(tmp_path, side):
    head(tmp_path / "p")
    volume = nib.load(tmp_path / "p" / "brain.nii.gz")
    array = np.array(volume.dataobj)
    array[slice(24, None) if side == "left" else slice(24)] = 0
    nib.save(nib.Nifti1Image(array, volume.affine), tmp_path / "p" / "brain.nii.gz")
    with pytest.raises(ValueError, match="'p': the mask of the brain seems to hold one side alone"):
        halves([case_of(tmp_path / "p", finding_side=side)], tmp_path / "h", organ="brain")


def test_one_lung_is_not_halved(tmp_path):
    head(tmp_path / "p")
    organ = np.zeros(SHAPE, dtype=np.uint8)
    organ[4:18, 8:48], organ[28:44, 8:48] = 1, 1
    case = case_of(tmp_path / "p", finding_side="left")
    for left, refused in ((1, False), (0, True)):
        organ[4:18] *= left
        nib.save(nib.Nifti1Image(organ, np.diag([-2.0, -2.0, 4.0, 1.0])), tmp_path / "p" / "brain.nii.gz")
        if refused:
            with pytest.raises(ValueError, match="mask of the lung seems to hold one side"):
                halves([case], tmp_path / "h", organ="lung")
        else:
            assert len(halves([case], tmp_path / "h", organ="lung")) == 2


@pytest.mark.parametrize("mode", ["organ_median", "organ_mode", "slice_max", "none"])
def test_halves_of_a_scan_are_two_images_in_any_mode(tmp_path, mode):
    head(tmp_path / "p")
    parts = halves([case_of(tmp_path / "p", finding_side="left")], tmp_path / "h", organ="brain")
    see = Compose([LoadCased(channels=1), OrganMaskd("image", organ="brain"), NormalizeByOrgand("image", mode=mode)])
    left, right = (see(part)["image"] for part in parts)
    assert not ((left != 0) & (right != 0)).any()
    whole = {key: value for key, value in parts[0].items() if key != "half"}
    assert ((see(whole)["image"] != 0).sum() > (left != 0).sum()) == (mode in ("slice_max", "none"))


class TestTables:
    @pytest.fixture
    def table(self, tmp_path) -> Path:
        for seed in range(6):
            head(tmp_path / f"p{seed}", seed=seed)
        rows = [
            f"p{i}/flair.nii.gz,yes,{('left', 'right')[i % 2]},p{i}/mask.nii.gz,p{i}/brain.nii.gz" for i in range(6)
        ]
        (tmp_path / "l.csv").write_text("\n".join(["image,label,side,mask,organ", *rows]))
        return tmp_path / "l.csv"

    def test_each_datalist_has_halves_of_its_own(self, table):
        prepare("table", str(table), halves="brain")
        prepare("table", str(table), halves="brain", datalist=str(table.parent / "more.json"))
        folders = [
            Path(read_json(table.parent / f"{name}.json")["training"][0]["organ"]).parent.name
            for name in ("datalist", "more")
        ]
        assert folders == ["halves", "halves_more"]

    def test_whole_scans_are_listed_for_scoring(self, table):
        with pytest.raises(SystemExit, match="for_scoring true lists the whole scans"):
            prepare("table", str(table))
        prepare("table", str(table), for_scoring=True)
        content = read_json(table.parent / "datalist.json")
        assert {*content["training"][0]} == {"case", "patient", "image", "organ", "label", "cls"}

    def test_a_mask_of_a_table_does_not_say_the_side(self, table):
        table.write_text(table.read_text().replace("side", "laterality"))
        with pytest.raises(SystemExit, match="A table says it in a column 'side'"):
            prepare("table", str(table), halves="brain")

    def test_slices_of_halves_are_not_drawn_whatever_patient_they_are_of(self, table):
        with pytest.raises(SystemExit, match="choose one of them"):
            prepare("table", str(table), halves="brain", split="paper")

    def test_halves_and_whole_scans_do_not_teach_together(self, table):
        prepare("table", str(table), halves="brain")
        with pytest.raises(ValueError, match="halves of scans and whole ones"):
            write_folds(table.parent / "datalist.json", table.parent, count=2)
        with pytest.raises(ValueError, match="list these by --scans"):
            benchmark_suite("phantom", str(table.parent), str(table.parent / "out"))
