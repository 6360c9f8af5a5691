from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, ConcatItemsd, EnsureChannelFirstd, LoadImaged, ScaleIntensityRanged
from torch import Tensor

import common.features.extraction
from common.encoders import Encoder
from common.features import EntryLocked, FeatureStore, bag_of, extract, find, volume_entry
from common.features.store import content_key
from common.files import NotWritten
from tests.features.helpers import FORK, counted

KEYS = ("image", "organ")


def preprocessing(a_max: float = 1.0) -> Compose:
    return Compose(
        [
            LoadImaged(keys=KEYS, reader="NumpyReader"),
            EnsureChannelFirstd(keys=KEYS, channel_dim="no_channel"),
            ScaleIntensityRanged(keys="image", a_min=0.0, a_max=a_max, b_min=0.0, b_max=1.0),
            ConcatItemsd(keys=KEYS, name="image"),
            LoadImaged(keys="label", allow_missing_keys=True),
        ]
    )


def volume(seed: int, depth: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """An image in [0, 1], and an organ in the slices 1 to depth - 2."""
    rng = np.random.default_rng(seed)
    organ = rng.random((12, 8, depth)) > 0.5
    organ[..., [0, -1]] = False
    return rng.random((12, 8, depth)).astype(np.float32), organ.astype(np.float32)


@pytest.fixture
def cases(tmp_path) -> list[dict[str, Any]]:
    listed = []
    for i in range(4):
        paths = {key: str(tmp_path / f"{key}{i}.npy") for key in KEYS}
        for path, array in zip(paths.values(), volume(i), strict=True):
            np.save(path, array)
        listed.append({"case": f"case{i}", "cls": [0, 1], "label": str(tmp_path / "absent.nii.gz"), **paths})
    return listed


def run(cases, store, encoder, **options) -> dict[str, Any]:
    return extract(cases, preprocessing(), encoder, store, **{"progress": False, "batch_size": 2, **options})


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore(tmp_path / "store")


class TestBag:
    def test_it_holds_the_slices_with_organ_in_their_order(self):
        image, organ = (torch.from_numpy(array) for array in volume(0))
        second = image * 0.5
        slices, masks, indices = bag_of(torch.stack([image, second, organ]))
        assert indices == [1, 2, 3, 4]
        assert slices.shape == (4, 2, 12, 8)
        for n, z in enumerate(indices):
            assert torch.equal(slices[n], torch.stack([image[..., z], second[..., z]]))
            assert torch.equal(masks[n, 0], organ[..., z])


class TestVolumeEntry:
    def test_inference_finds_by_content_what_extraction_computed_from_files(self, cases, store):
        encoder, calls = counted()
        run(cases[:1], store, encoder)
        assert calls.value == 2
        image = torch.from_numpy(np.stack(volume(0)))
        entry = volume_entry(image, encoder, store)
        assert calls.value == 2
        assert entry.indices == [1, 2, 3, 4]
        assert entry.about["volume"] == [12, 8, 6]
        slices, organ, _ = bag_of(image)
        assert torch.equal(entry[:], encoder(slices).half().float())
        assert torch.equal(entry.inside, organ.reshape(4, 1, 3, 4, 2, 4).mean((3, 5)))
        image[0, 0, 0, 0] += 0.125  # even where there is no organ: another input
        volume_entry(image, encoder, store)
        assert calls.value == 4  # this and the one four lines above

    def test_a_volume_without_organ_is_refused(self, store):
        with pytest.raises(ValueError, match="no slice holds any organ"):
            volume_entry(torch.zeros(2, 8, 8, 3), counted()[0], store)


def doubted(data: dict) -> dict:
    return data | {"warnings": "tilted"}


class TestExtract:
    def test_what_is_doubtful_about_a_case_is_said_in_each_run_that_takes_it(self, cases, store, caplog):
        for _ in range(2):  # the second finds the features, and reads nothing
            caplog.clear()
            extract(cases[:1], Compose([*preprocessing().transforms, doubted]), counted()[0], store, progress=False)
            said = [record.getMessage() for record in caplog.records if record.name == "common.features.extraction"]
            assert said == ["case case0: tilted"]

    def test_a_second_run_opens_neither_images_nor_the_encoder(self, cases, store, monkeypatch):
        encoder, calls = counted()
        first = run(cases, store, encoder)
        assert first["computed"] == ["case0", "case1", "case2", "case3"]
        assert calls.value == 8
        monkeypatch.setattr(common.engines.CaseDataset, "__getitem__", None)
        second = run(cases, store, encoder)
        assert (second["computed"], second["found"]) == ([], first["computed"])
        assert calls.value == 8
        assert first["bytes"] == second["bytes"] == sum(p.stat().st_size for p in store.root.rglob("*.npy"))

    def test_cases_are_found_until_a_byte_an_option_or_a_weight_changes(self, cases, store):
        encoder, _ = counted()
        assert find(cases[0], preprocessing(), encoder, store) is None
        run(cases, store, encoder)
        for i, case in enumerate(cases):
            image = torch.from_numpy(np.stack(volume(i)))
            assert find(case, preprocessing(), encoder, store).about["key"] == content_key(encoder.fingerprint, image)
        assert find(cases[0], preprocessing(2.0), encoder, store) is None
        other = Encoder(encoder.body, name="other", channels=3, stride=4)
        assert find(cases[0], preprocessing(), other, store) is None
        for key in KEYS:
            path = Path(cases[1][key])
            before = path.read_bytes()
            path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
            assert find(cases[1], preprocessing(), encoder, store) is None
            path.write_bytes(before)
            assert find(cases[1], preprocessing(), encoder, store) is not None

    def test_a_new_way_to_the_same_input_is_preprocessed_but_not_encoded_again(self, cases, store):
        encoder, calls = counted()
        run(cases, store, encoder)
        changed = Compose([*preprocessing().transforms, ScaleIntensityRanged("image", 0.0, 1.0, 0.0, 1.0)])
        assert find(cases[0], changed, encoder, store) is None
        extract(cases, changed, encoder, store, progress=False)
        assert calls.value == 8
        assert find(cases[0], changed, encoder, store) is not None

    def test_bad_cases_are_listed_after_the_others_are_done(self, cases, store, caplog):
        Path(cases[0]["image"]).unlink()
        np.save(cases[1]["organ"], np.zeros((12, 8, 6), np.float32))
        Path(cases[2]["image"]).write_bytes(Path(cases[2]["image"]).read_bytes()[:100])
        with pytest.raises(RuntimeError, match="3 of 4 cases failed") as error, caplog.at_level(logging.CRITICAL):
            run(cases, store, counted()[0])
        lines = str(error.value).splitlines()[1:]
        assert "case0: FileNotFoundError" in lines[0]
        assert cases[0]["image"] in lines[0]
        assert "case1: ValueError: there is nothing to encode: no slice holds any organ" in lines[1]
        assert "case2:" in lines[2]
        assert cases[2]["image"] in lines[2]
        record = json.loads((store.root / "features.json").read_text())
        assert record["computed"] == ["case3"]
        assert list(record["failed"]) == ["case0", "case1", "case2"]

    def test_without_skip_errors_the_first_bad_case_ends_the_run(self, cases, store):
        Path(cases[1]["image"]).unlink()
        with pytest.raises(ValueError, match="image1"):
            run(cases, store, counted()[0], skip_errors=False)
        record = json.loads((store.root / "features.json").read_text())
        assert (record["computed"], record["finished"]) == (["case0"], False)

    def test_a_full_disk_ends_the_run_and_says_so(self, cases, store, monkeypatch):
        write, written = Path.write_bytes, []

        def full(path: Path, data: bytes) -> int:
            written.append(path)
            if path.name.endswith("inside.npy") and len(written) > 4:  # the first case has 4 files, its name included
                raise OSError(28, "No space left on device")
            return write(path, data)

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(NotWritten, match="No space left"):
            run(cases, store, counted()[0])
        names = [path.name.partition(f".{os.getpid()}.")[2] for path in written[4:]]
        assert names == ["0000000.npy", "inside.npy", "features.json"]
        monkeypatch.undo()
        assert len(list(store.entries())) == 1
        encoder, calls = counted()
        assert run(cases, store, encoder)["found"] == ["case0"]
        assert calls.value == 4  # the second case's chunk was whole

    def test_an_interrupted_run_leaves_its_record_and_goes_on_later(self, cases, store):
        def interrupt(call: int) -> None:
            if call == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(cases, store, counted(interrupt)[0])
        record = json.loads((store.root / "features.json").read_text())
        assert (record["computed"], record["finished"]) == (["case0"], False)
        assert {path.name for path in store.root.rglob(".*")} <= {".lock"}
        record = run(cases, store, counted()[0])
        assert (record["found"], record["computed"]) == (["case0"], ["case1", "case2", "case3"])

    def test_two_processes_share_the_cases_and_both_end_with_all(self, cases, store):
        encoder, calls = counted()
        results = FORK.SimpleQueue()

        def work() -> None:
            torch.set_num_threads(1)
            record = run(cases, store, encoder, batch_size=1)
            results.put((len(record["computed"]) + len(record["found"]), record["finished"]))

        children = [FORK.Process(target=work) for _ in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join(30)
        assert [results.get(), results.get()] == [(4, True), (4, True)]
        assert calls.value == 16
        for i, case in enumerate(cases):
            slices, _, _ = bag_of(torch.from_numpy(np.stack(volume(i))))
            assert torch.equal(find(case, preprocessing(), encoder, store)[:], encoder(slices).half().float())

    def test_a_case_that_another_is_at_is_tried_again_after_the_others(self, cases, store, monkeypatch):
        order: list[str] = []
        original = common.features.volume_entry

        def busy_at_first(image: Tensor, *args: Any, about: dict, **options: Any) -> Any:
            order.append(about["case"])
            if order == ["case0"]:
                raise EntryLocked
            return original(image, *args, about=about, **options)

        monkeypatch.setattr(common.features.extraction, "volume_entry", busy_at_first)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        record = run(cases, store, counted()[0])
        assert order == ["case0", "case1", "case2", "case3", "case0"]
        assert sorted(record["computed"]) == ["case0", "case1", "case2", "case3"]

    def test_loading_in_other_processes_changes_nothing(self, cases, store, tmp_path):
        encoder, _ = counted()
        run(cases, store, encoder)
        other = FeatureStore(tmp_path / "other")
        run(cases, other, encoder, num_workers=1)
        names = {path.relative_to(store.root) for path in store.root.rglob("*") if path.suffix in (".npy", ".key")}
        assert len(names) == 12
        assert all((other.root / name).read_bytes() == (store.root / name).read_bytes() for name in names)

    def test_a_subset_is_taken_and_unknown_names_are_refused(self, cases, store):
        encoder, _ = counted()
        assert run(cases, store, encoder, subset=["case2"])["computed"] == ["case2"]
        with pytest.raises(ValueError, match=r"there are no cases \['case9'\]; the first of 4: case0"):
            run(cases, store, encoder, subset=["case2", "case9"])

    def test_sizes_are_told_after_the_first_case_and_at_the_end(self, cases, store, capsys):
        record = run(cases, store, counted()[0], progress=True)
        out = capsys.readouterr().out
        megabytes = record["bytes"] / 2**20
        assert f"case0: 4 slices, {megabytes / 4:.1f} MB; 4 cases like it: {megabytes:.0f} MB" in out
        assert f"4 cases computed, 0 found, 0 failed; {megabytes:.1f} MB, {megabytes / 4:.1f} MB a case" in out
