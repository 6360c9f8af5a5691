from __future__ import annotations

import hashlib
import json
from pathlib import Path

from common.files import write_json
from common.report.record import digest_of, run_record


def record(folder: Path, **changes) -> dict:
    (folder / "model.pt").write_bytes(b"weights")
    write_json(
        folder / "model.json", {"seen": {"cases": 3}, "chosen_from": {"labels": "slices"}, "chosen": {"gate": 1}}
    )
    image = folder / "image.nii.gz"
    image.write_bytes(b"12345")
    cases = {"p1": {"case": "p1", "image": str(image), "cls": [0, 1]}}
    options = {"config": {"gate": 0.5, "network": "$build()"}, "settings": {"gate": 0.5}, "ckpt": folder / "model.pt"}
    return run_record(cases, **(options | changes))


def test_a_record_is_json_and_says_what_was_run(tmp_path):
    found = record(tmp_path, failed={"p2": "broken"}, seconds=3.21, chosen={"gate": 0.5})
    assert json.loads(json.dumps(found)) == found
    assert found["weights"]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert found["weights"]["seen"]["cases"] == 3
    assert found["weights"]["chosen_from"] == {"labels": "slices"}
    assert (found["failed"], found["seconds"], found["chosen"]) == ({"p2": "broken"}, 3.2, {"gate": 0.5})
    assert found["options"] == {"gate": 0.5}  # what is an expression is in the digest alone
    assert found["versions"].keys() >= {"python", "torch", "monai", "numpy"}
    assert found["files"] == {"p1": {"image": str(tmp_path / "image.nii.gz")}}


def test_another_config_has_another_digest_and_another_order_has_not(tmp_path):
    first = record(tmp_path)["config_sha256"]
    assert record(tmp_path, config={"network": "$build()", "gate": 0.5})["config_sha256"] == first
    assert record(tmp_path, config={"network": "$build()", "gate": 0.6})["config_sha256"] != first


def test_the_data_are_told_by_names_and_sizes(tmp_path):
    first = record(tmp_path)["data"]["names_and_sizes_sha256"]
    assert digest_of({"p1": [5]}) == first
    assert digest_of({"p1": [6]}) != first


def test_a_bundle_is_named_by_its_metadata(tmp_path):
    root = Path(__file__).parents[2] / "bundles" / "gp_unet_brats"
    found = record(tmp_path, bundle_root=root)
    assert (found["bundle"], found["version"]) == ("gp_unet_brats", "0.1.0")
    assert "yes/no" in found["task"]
