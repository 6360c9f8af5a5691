from __future__ import annotations

from pathlib import Path

import pytest

from common.data import cases, find_cases
from common.data.matches import some
from common.images import read_volume


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_names_cases_after_their_folder_and_pairs_masks_where_present(tmp_path):
    touch(tmp_path, "b/flair.nii.gz", "a/flair.nii.gz", "a/mask.nii.gz", "c/other.nii.gz")
    cases = find_cases(tmp_path, "*/flair.nii.gz", label_pattern="*/mask.nii.gz")
    assert cases == [
        {
            "case": "a",
            "patient": "a",
            "image": str(tmp_path / "a/flair.nii.gz"),
            "label": str(tmp_path / "a/mask.nii.gz"),
        },
        {"case": "b", "patient": "b", "image": str(tmp_path / "b/flair.nii.gz")},
    ]


@pytest.mark.parametrize("pattern", ["*/*/flair.nii.gz", "**/flair.nii.gz"])
def test_joins_nested_folders_with_underscores(tmp_path, pattern):
    touch(tmp_path, "site1/p1/flair.nii.gz", "site2/p1/flair.nii.gz")
    assert [c["case"] for c in find_cases(tmp_path, pattern)] == ["site1_p1", "site2_p1"]


def test_names_flat_files_by_their_stem(tmp_path):
    touch(tmp_path, "x.1.nii.gz", "y.nii")
    assert [c["case"] for c in find_cases(tmp_path, "*.nii*")] == ["x.1", "y"]


def test_tells_files_of_one_folder_apart_by_their_stem(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz")
    cases = find_cases(tmp_path, "images/*.nii.gz", label_pattern="labels/*.nii.gz")
    assert [c["case"] for c in cases] == ["images_a", "images_b"]
    assert [c.get("label") for c in cases] == [str(tmp_path / "labels/a.nii.gz"), None]


def test_lists_modalities_in_the_order_of_their_patterns(tmp_path):
    touch(tmp_path, "a/a_t1.nii", "a/a_flair.nii", "b/b_t1.nii", "b/b_flair.nii")
    cases = find_cases(tmp_path, ["*/*_t1.nii", "*/*_flair.nii"])
    assert [Path(p).name for p in cases[1]["image"]] == ["b_t1.nii", "b_flair.nii"]


def test_the_organ_stands_beside_its_image_and_none_may_lack(tmp_path):
    touch(tmp_path, "a/ct.nii.gz", "a/lung.nii.gz", "b/ct.nii.gz", "b/lung.nii.gz", "b/mask.nii.gz")
    for found in (find_cases, cases):
        listed = found(tmp_path, "*/ct.nii.gz", label_pattern="*/mask.nii.gz", organ_pattern="*/lung.nii.gz")
        assert [c["organ"] for c in listed] == [str(tmp_path / name / "lung.nii.gz") for name in "ab"]
        assert ["label" in c for c in listed] == [False, True]
    (tmp_path / "a/lung.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 image\(s\) missing: '\*/lung.nii.gz' beside a/ct.nii.gz"):
        find_cases(tmp_path, "*/ct.nii.gz", organ_pattern="*/lung.nii.gz")


@pytest.mark.parametrize("order", [["*/t1.nii", "*/t2.nii"], ["*/t2.nii", "*/t1.nii"]])
def test_names_what_a_case_lacks(tmp_path, order):
    touch(tmp_path, "a/t1.nii", "a/t2.nii", "b/t1.nii")
    with pytest.raises(FileNotFoundError, match=r"1 image.*'\*/t2.nii' beside b/t1.nii"):
        find_cases(tmp_path, order)


@pytest.mark.parametrize("order", [["*/t1.nii", "*/t2.nii"], ["*/t2.nii", "*/t1.nii"]])
def test_cases_that_lack_something_are_left_out_and_named_where_that_is_asked_for(tmp_path, order, caplog):
    touch(tmp_path, "a/t1.nii", "a/t2.nii", "a/brain.nii", "b/t1.nii", "b/brain.nii", "c/t1.nii", "c/t2.nii")
    options = {"organ_pattern": "*/brain.nii", "skip_incomplete": True}
    assert [c["case"] for c in find_cases(tmp_path, order, **options)] == ["a"]
    assert "cases left out, of which 2 image(s) are missing: '*/brain.nii' beside c/" in caplog.text
    assert "'*/t2.nii' beside b/t1.nii" in caplog.text
    (tmp_path / "a/brain.nii").unlink()
    with pytest.raises(FileNotFoundError, match=r"image\(s\) missing"):
        find_cases(tmp_path, order, **options)


def test_says_where_it_looked_when_nothing_matches(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"no file matches '\*/flair.nii.gz' in {tmp_path}"):
        find_cases(tmp_path, "*/flair.nii.gz")


def test_refuses_two_masks_for_one_case(tmp_path):
    touch(tmp_path, "a/flair.nii", "a/mask1.nii", "a/mask2.nii")
    with pytest.raises(ValueError, match="fit one case"):
        find_cases(tmp_path, "*/flair.nii", label_pattern="*/mask?.nii")


@pytest.mark.parametrize("pattern", ["*/flair.nii", "*/*.nii"])
def test_an_image_is_not_its_own_mask(tmp_path, pattern):
    touch(tmp_path, "a/flair.nii", "b/flair.nii")
    for key in ("label", "organ"):
        with pytest.raises(ValueError, match=rf"a/flair.nii is matched as image and as {key}"):
            find_cases(tmp_path, "*/flair.nii", **{f"{key}_pattern": pattern})


@pytest.mark.parametrize("image", [["a.nii.gz"], []])
def test_masks_that_the_pattern_of_images_matches_are_no_cases(tmp_path, image):
    touch(tmp_path, *image, "b.nii.gz", "b_seg.nii.gz", "a_seg.nii.gz")
    with pytest.raises(
        ValueError, match=r"a_seg\.nii\.gz is matched as image and as label, .*make one of them narrower"
    ):
        find_cases(tmp_path, "*.nii.gz", label_pattern="*_seg.nii.gz")
    found = find_cases(tmp_path, "?.nii.gz", label_pattern="*_seg.nii.gz")
    assert [(case["case"], Path(case["label"]).name[0]) for case in found] == [
        (n, n) for n in "ab" if n == "b" or image
    ]


def test_masks_that_fit_no_case_are_told_where_a_case_has_none(tmp_path, caplog):
    touch(tmp_path, "a/ct.nii", "a/m.nii", "x/ct.nii", "masks/x/m.nii")
    find_cases(tmp_path, "a/ct.nii", label_pattern="**/m.nii")
    find_cases(tmp_path, "*/ct.nii", organ_pattern="**/m.nii", skip_incomplete=True)
    assert "fit no case" not in caplog.text
    find_cases(tmp_path, "*/ct.nii", label_pattern="**/m.nii")
    assert "1 mask(s) of '**/m.nii' fit no case, e.g. masks/x/m.nii, while x/ct.nii has none" in caplog.text


def test_what_lies_packed_beside_a_file_or_unpacked_is_told_since_it_may_differ(tmp_path, caplog):
    touch(tmp_path, "a/ct.nii.gz", "a/m.nii", "a/brain.nii", "b/ct.nii.gz", "c/ct.nii.gz")
    find_cases(tmp_path, "*/ct.nii.gz", label_pattern="*/m.nii")
    assert not caplog.text
    touch(tmp_path, "a/m.nii.gz", "a/brain.nii.gz", "b/ct.nii", "c/ct.nii")
    find_cases(tmp_path, "*/ct.nii.gz", label_pattern="*/m.nii")
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "2 file(s) are there twice; read is b/ct.nii.gz and not b/ct.nii, c/ct.nii.gz and not c/ct.nii: keep the right "
        "one",
        "1 file(s) are there twice; read is a/m.nii and not a/m.nii.gz: keep the right one",
    ]


def test_names_are_those_of_visible_files_and_not_too_long_for_one(tmp_path):
    touch(tmp_path, "data/x.nii", "a/f.nii", "b/f.nii", "/".join(["ä" * 70] * 3) + "/g.nii")
    assert [c["case"] for c in find_cases(tmp_path / "data", "../?/f.nii")] == ["a", "b"]
    assert [c["case"] for c in find_cases(tmp_path / "a", str(tmp_path / "b" / "f.nii"))] == [
        f"{tmp_path}/b".replace("/", "_")[1:]
    ]
    (case,) = find_cases(tmp_path, "**/g.nii")
    assert case["case"][10:] == "_" + "ä" * 50


def test_names_that_are_one_on_many_systems_are_refused(tmp_path):
    touch(tmp_path, "s/P1/f.nii", "s/p1/f.nii", "t/Z\u00fc/f.nii", "t/Zu\u0308/f.nii")
    for folder, name in (("s", "P1"), ("t", "Z")):
        with pytest.raises(ValueError, match=rf"the case names '{name}.*' and '.*' would name the same files"):
            find_cases(tmp_path / folder, "*/f.nii")


def test_files_of_one_name_are_named_both(tmp_path):
    touch(tmp_path, "a.nii.gz", "a.nii", "p\nx/f.nii")
    with pytest.raises(
        ValueError, match=r"'a' occurs more than once, for \S+/a\.nii and \S+/a\.nii\.gz; .* rename one"
    ):
        find_cases(tmp_path, "a.*")
    with pytest.raises(ValueError, match=r"the case name 'p\\nx' has a line break or the like; rename it"):
        find_cases(tmp_path, "*/f.nii")


def test_an_ending_in_capitals_is_one_and_told_where_a_pattern_leaves_it_out(tmp_path, caplog):
    touch(tmp_path, "x/A.NII.GZ", "x/b.nii.gz", "x/C.NII")
    assert [case["case"] for case in find_cases(tmp_path, "x/*")] == ["x_A", "x_C", "x_b"]
    assert caplog.messages == []
    assert [case["case"] for case in find_cases(tmp_path, "x/[!z]*.nii.gz")] == ["x"]
    assert "1 file(s) left out that match image_pattern 'x/[!z]*.nii.gz' but for upper and lower" in caplog.text
    assert caplog.text.strip().endswith("case: x/A.NII.GZ")


def test_a_link_to_a_folder_above_gives_no_case_again(tmp_path, caplog):
    touch(tmp_path, "d/a.nii", "d/p/f.nii", "e/f.nii")
    (tmp_path / "d" / "loop").symlink_to(tmp_path / "d")
    (tmp_path / "d" / "b.nii").symlink_to("a.nii")
    (tmp_path / "d" / "q").symlink_to(tmp_path / "e")
    assert [case["case"] for case in find_cases(tmp_path / "d", "**/*.nii")] == ["a", "b", "p", "q"]
    assert caplog.messages == []


@pytest.mark.parametrize("pattern", [None, "", [], [None]])
def test_no_pattern_at_all_is_named(tmp_path, pattern):
    with pytest.raises(ValueError, match="image_pattern must be a pattern"):
        find_cases(tmp_path, pattern)


def test_files_of_one_case_are_paired_by_their_folder(tmp_path):
    touch(tmp_path, "site_1/ct.nii.gz", "site_1/lung.nii.gz", "site_2/ct.nii.gz", "site_2/lung.nii.gz", "1/lung.nii.gz")
    found = find_cases(tmp_path, "site_*/ct.nii.gz", organ_pattern="*/lung.nii.gz", label_pattern="s*_2/lung.nii.gz")
    assert [c["organ"] for c in found] == [str(tmp_path / f"site_{i}/lung.nii.gz") for i in (1, 2)]
    assert [c.get("label") for c in found] == [None, str(tmp_path / "site_2/lung.nii.gz")]
    (tmp_path / "site_2/lung.nii.gz").unlink()
    touch(tmp_path, "2/lung.nii.gz")  # of another case
    with pytest.raises(FileNotFoundError, match=r"'\*/lung.nii.gz' beside site_2/ct.nii.gz"):
        find_cases(tmp_path, "site_*/ct.nii.gz", organ_pattern="*/lung.nii.gz")


def test_names_of_one_folder_are_told_apart_by_their_wildcards(tmp_path):
    touch(tmp_path, "s1/x_ct.nii", "s1/y_ct.nii", "s1/y_lung.nii", "s1/x_lung.nii")
    found = find_cases(tmp_path, "s*/*_ct.nii", organ_pattern="*/*_lung.nii")
    assert {Path(c["image"]).name: Path(c["organ"]).name for c in found} == {
        "x_ct.nii": "x_lung.nii",
        "y_ct.nii": "y_lung.nii",
    }


def test_links_to_nothing_stay_cases_so_that_they_are_named(tmp_path):
    touch(tmp_path, "a/flair.nii.gz", "b/mask.nii.gz")
    (tmp_path / "a/mask.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (tmp_path / "b/flair.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    found = find_cases(tmp_path, "*/flair.nii.gz", label_pattern="*/mask.nii.gz")
    assert [(c["case"], Path(c["label"]).parent.name) for c in found] == [("a", "a"), ("b", "b")]
    with pytest.raises(FileNotFoundError, match=r"a/mask\.nii\.gz does not exist"):
        read_volume(found[0]["label"])


class TestResultsOfRuns:
    RESULTS = ("p1_seg.nii.gz", "p1_heatmap.nii.gz", "p1_montage.png")

    def run_of(self, folder: Path, *cases: str) -> None:
        touch(folder, "predictions.csv")
        (folder / "predictions.csv").write_text("\n".join(["case,probability_none", *(f"{c},0.5" for c in cases)]))

    @pytest.mark.parametrize("out", [".", "out"])
    def test_are_no_input_of_the_next(self, tmp_path, caplog, out):
        touch(tmp_path, "p1.nii.gz", "p2_seg.nii.gz")
        touch(tmp_path / out, *self.RESULTS, "p1_seg.dcm", "p1_heatmap_tumor.tif", "p1_heatmap.ome.tif")
        (tmp_path / out / "p1_montage.png").unlink()
        self.run_of(tmp_path / out, "p1", "p1_b")
        found = find_cases(tmp_path, "**/p?.nii.gz", label_pattern="**/*_seg.nii.gz")
        assert [(c["case"], "label" in c) for c in found] == [("p1", False)]
        assert [c["case"] for c in find_cases(tmp_path, "**/*.nii.gz")] == ["p1", "p2_seg"]
        assert "2 file(s) that match '**/*.nii.gz' are results of an earlier run and left out: " in caplog.text
        assert [c["case"] for c in find_cases(tmp_path, "**/p[12]*")] == ["p1", "p2_seg"]

    def test_are_known_after_a_killed_run_too(self, tmp_path):
        touch(tmp_path, "p1.nii.gz", *self.RESULTS)
        assert [c["case"] for c in find_cases(tmp_path, "*.nii.gz")] == ["p1"]

    def test_a_mask_of_that_name_is_one_where_no_run_wrote_it(self, tmp_path):
        touch(tmp_path, "p1.nii.gz", "p1_seg.nii.gz", "p2.nii.gz", "p2_seg.nii.gz", "p2_heatmap.nii.gz")
        self.run_of(tmp_path, "p3")
        found = find_cases(tmp_path, "p?.nii.gz", label_pattern="p?_seg.nii.gz")
        assert [Path(c["label"]).name for c in found] == ["p1_seg.nii.gz", "p2_seg.nii.gz"]
        (tmp_path / "predictions.csv").write_text("id,p1\np1,1")  # somebody else's table
        assert len(find_cases(tmp_path, "p?_seg.nii.gz")) == 2


def test_of_many_names_a_message_has_the_first():
    names = [f"c{n}" for n in range(11)]
    assert some(names[:10]) == "c0, c1, c2, c3, c4, c5, c6, c7, c8, c9"
    assert some(names) == f"{some(names[:10])}, …"
    assert some(names, most=2) == "c0, c1, …"
