from __future__ import annotations

import pytest

from common.checkpoint import add_beside, read_beside
from common.files import file_digest, write_json
from common.preprocessing import SeenWriter, supervision_of

CLASSES = ["none", "tumor"]
SLICES = {"case": "p1", "patient": "p1", "cls": [0, 1, 1]}
VOLUME = {"case": "p2", "patient": "p2", "cls": 0}


@pytest.mark.parametrize(
    ("cases", "unit", "labels"),
    [
        ([SLICES], "volumes", "slices"),
        ([VOLUME], "slides", "slides"),
        ([SLICES, VOLUME], "volumes", "slices and volumes"),
        ([VOLUME | {"cls": ["tumor"]}], "volumes", "volumes"),
    ],
)
def test_labels_are_of_what_has_them(cases, unit, labels):
    assert supervision_of(cases, classes=CLASSES, unit=unit)["labels"] == labels


def test_a_training_on_masks_says_so_and_no_other_does():
    told = {
        source: supervision_of([VOLUME], classes=CLASSES, learns_from=source)["masks"]
        for source in ("labels", "pseudo_masks", "masks")
    }
    assert told == {"labels": "none", "pseudo_masks": "none", "masks": "those of its own cases"}
    with pytest.raises(ValueError, match="learns_from must be one of"):
        supervision_of([VOLUME], classes=CLASSES, learns_from="outlines")


def test_who_learns_from_pseudo_masks_says_what_their_teacher_learned_and_chose_from(tmp_path):
    teacher = tmp_path / "model.pt"
    teacher.write_bytes(b"weights")
    beside = {"trained_on": {"labels": "slices", "masks": "none"}, "chosen_from": {"masks": "12 cases"}}
    add_beside(teacher, **beside, trained={"classes": CLASSES})
    told = supervision_of([SLICES], classes=CLASSES, learns_from="pseudo_masks", teacher_ckpt=teacher)["teacher"]
    assert told["sha256"] == file_digest(teacher)
    assert told["trained_on"]["labels"] == "slices"
    assert told["chosen_from"]["masks"] == "12 cases"
    assert told.keys() == {"sha256", "trained_on", "chosen_from"}
    both = supervision_of([SLICES], classes=CLASSES, learns_from="pseudo_masks", teacher_ckpt=[teacher, teacher])
    assert both["teacher"] == [told, told]
    # A teacher that is named in the configs and taught nothing.
    assert "teacher" not in supervision_of([SLICES], classes=CLASSES, teacher_ckpt=teacher)


def test_a_training_leaves_what_it_was_told_beside_its_weights(tmp_path):
    write_json(tmp_path / "datalist.json", {"training": [SLICES], "validation": [VOLUME]})
    options = {"preprocessing": None, "trained": {"classes": CLASSES}, "learns_from": "masks"}
    SeenWriter(tmp_path / "model.json", data=[VOLUME], datalist=tmp_path / "datalist.json", **options).write()
    told = read_beside(tmp_path / "model.pt")["trained_on"]
    assert (told["labels"], told["masks"]) == ("slides", "those of its own cases")  # no image of a volume is described
    assert told["validation"] == "1 cases of 1 patients, volumes none 1, tumor 0"
