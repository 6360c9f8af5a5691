"""What lies beside weights, and goes with them."""

from __future__ import annotations

import shutil

import pytest
import torch
from monai.bundle import ConfigParser

from common.checkpoint import add_beside, load_weights, read_beside, read_chosen, save_weights
from common.files import read_json
from tests.running import REPOSITORY


def test_what_lies_beside_weights_is_kept_part_by_part(tmp_path):
    add_beside(tmp_path / "model.pt", seen={"cases": 3}, chosen={"gate": 0.5})
    add_beside(tmp_path / "model.pt", chosen={"gate": 0.25})
    assert read_beside(tmp_path / "model.pt") == {"seen": {"cases": 3}, "chosen": {"gate": 0.25}}
    assert read_chosen(tmp_path / "model.pt")["gate"] == 0.25


def test_weights_of_another_network_say_with_which_settings_they_were_trained(tmp_path):
    save_weights(torch.nn.Linear(3, 4), tmp_path / "model.pt")
    other = torch.nn.Linear(3, 5)
    with pytest.raises(
        ValueError, match=r"2 entries differ, .* another bundle\? Use the config that it was trained with$"
    ):
        load_weights(other, tmp_path / "model.pt")
    add_beside(tmp_path / "model.pt", trained={"backbone": "wide", "channels": 3, "network_options": {}, "gate": 1})
    with pytest.raises(ValueError, match=r'it was trained with: --backbone "wide" --channels "3"$'):
        load_weights(other, tmp_path / "model.pt")


def test_what_was_chosen_for_other_weights_is_refused(tmp_path):
    for name in ("one", "other"):
        (tmp_path / f"{name}.pt").write_bytes(name.encode())
        add_beside(tmp_path / f"{name}.pt", chosen={"gate": 0.5}, chosen_from={"labels": "slices"})
    assert read_chosen(tmp_path / "one.pt")["gate"] == 0.5
    shutil.copy2(tmp_path / "other.json", tmp_path / "one.json")
    with pytest.raises(ValueError, match=r"one\.json were chosen for other weights than .*one\.pt: copy the \.json"):
        read_chosen(tmp_path / "one.pt")


def test_a_setting_that_was_never_chosen_is_refused_with_what_to_do(tmp_path):
    assert read_beside(tmp_path / "model.pt") == {}
    with pytest.raises(ValueError, match=r"model\.json holds no 'gate'.*calibrate_labels\.json.*--gate"):
        read_chosen(tmp_path / "model.pt")["gate"]
    with pytest.raises(ValueError, match=r"Run wsi_calibrate\.json over wsi_inference\.json with --ckpt .*slides\.pt"):
        read_chosen(tmp_path / "slides.pt", by=by_slides("wsi_inference", "chosen"))["gate"]
    assert by_slides("wsi_refine", "teacher_chosen#by") == by_slides("wsi_inference", "chosen")


def by_slides(config: str, key: str) -> str:
    content = read_json(REPOSITORY / "bundles" / "insight_ct" / "configs" / f"{config}.json")[key]
    return content if isinstance(content, str) else content["by"]


def test_a_broken_file_beside_weights_is_named(tmp_path):
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ValueError, match=r"model\.json: not a JSON file"):
        read_beside(tmp_path / "model.pt")
    (tmp_path / "model.json").write_text('{"chosen": [1]}')
    with pytest.raises(ValueError, match=r"model\.json: chosen is \[1\], no dict; mend it"):
        read_chosen(tmp_path / "model.pt")


@pytest.mark.parametrize("bundle", ["ensemble_gradcam_brats", "gp_unet_brats", "insight_ct", "tonno_mosmed"])
def test_single_options_of_the_chosen_refinement_change_on_the_command_line(bundle):
    """As `--refine#largest false` reaches the parser; the others stay with the weights."""
    chosen = {"intensity": 1.4, "largest": True}
    config = read_json(REPOSITORY / "bundles" / bundle / "configs" / "inference.json")
    for key, value, refine in (
        ("refine#intensity", 1.4, chosen),
        ("refine#largest", False, {"intensity": 1.4, "largest": False}),
        ("refine", None, None),
    ):
        parser = ConfigParser({"chosen": {"refine": chosen}, "refine": config["refine"]})
        parser[key] = value
        assert parser.get_parsed_content("refine") == refine
