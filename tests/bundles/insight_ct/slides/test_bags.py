from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from common.features import EntryLocked, FeatureStore, extract
from tests.bundles.conftest import REPOSITORY, load_script, read_json
from tests.bundles.insight_ct.slides.helpers import ColorEncoder, color_network, run_slides, slide_case, write_slide

slide_bags, slide_tiles = load_script("insight_ct", "slides.bags"), load_script("insight_ct", "slides.tiles")


class TestStore:
    def test_inference_takes_the_features_that_training_left(self, tmp_path):
        case, store, network = slide_case(tmp_path), FeatureStore(tmp_path / "store"), color_network()
        tiler = slide_tiles.Tiler()
        (bag,) = slide_bags.slide_bags(
            [case], store, tiler, network.encoder, classes=("none", "tumor"), tiles_dir=tmp_path, progress=False
        )
        assert (bag["labels"], bag["case"]) == ([1], "a")
        assert (tmp_path / "a_tiles.png").is_file()
        entry = store.open(bag["key"])
        first = next(i for i, (x, y) in enumerate(entry.coordinates.tolist()) if (x, y) == (672, 672))
        assert entry[first][:, 6, 6].mul(255).round().tolist() == [90, 40, 140]
        assert entry.inside[first].min() == 1
        calls = network.encoder.calls
        assert calls == len(entry)
        run_slides([case], tmp_path / "stored", network=network, store=store)
        assert network.encoder.calls == calls
        run_slides([case], tmp_path / "fresh", network=network)
        assert network.encoder.calls == 2 * calls
        stored, fresh = (tifffile.imread(tmp_path / n / "a_heatmap.ome.tif") for n in ("stored", "fresh"))
        np.testing.assert_allclose(stored, fresh, atol=2e-3)  # float16

    def test_extraction_skips_what_is_there_and_lists_bad_slides_at_the_end(self, tmp_path):
        cases = [slide_case(tmp_path, "a"), slide_case(tmp_path, "b", cls=0), slide_case(tmp_path, "c")]
        store, network = FeatureStore(tmp_path / "store"), ColorEncoder()
        options = {"classes": ("none", "tumor"), "progress": False}
        write_slide(Path(cases[0]["image"]), (2500, 2500))
        with pytest.raises(RuntimeError, match=r"1 of 3 slides failed:\n  a: ValueError: .*a.tif: no tissue"):
            slide_bags.slide_bags(cases, store, slide_tiles.Tiler(), network, **options)
        calls = network.calls
        bags = slide_bags.slide_bags(cases[1:], store, slide_tiles.Tiler(), network, **options)
        assert network.calls == calls
        assert [bag["labels"] for bag in bags] == [[0], [1]]
        slide_bags.slide_bags(cases[1:], store, slide_tiles.Tiler(stride=112), network, **options)
        assert network.calls > calls

    def test_features_are_of_all_files_of_a_slide(self, tmp_path):
        case = slide_case(tmp_path) | {"image": str(tmp_path / "a.mrxs")}
        (tmp_path / "a.tif").rename(case["image"])
        (tmp_path / "a").mkdir()
        store, network, calls = FeatureStore(tmp_path / "store"), color_network(), []
        for content in ("pixels", "pixels", "others"):
            (tmp_path / "a" / "Data0000.dat").write_text(content)
            slide_bags.slide_bags(
                [case], store, slide_tiles.Tiler(), network.encoder, classes=("none", "tumor"), progress=False
            )
            calls.append(network.encoder.calls)
            run_slides([case], tmp_path / "out", network=network, store=store)
            assert network.encoder.calls == calls[-1]
        assert calls == [calls[0], calls[0], 2 * calls[0]]

    def test_comes_back_to_slides_that_another_process_is_at(self, tmp_path, monkeypatch):
        cases = [slide_case(tmp_path, "a"), slide_case(tmp_path, "b", cls=0)]
        store, done = FeatureStore(tmp_path / "store"), []
        compute = store.compute

        def busy_at_first(key: str, *arguments: Any, **options: Any) -> Any:
            done.append(options["about"]["case"])
            if done == ["a"]:
                raise EntryLocked("another process is at it")
            return compute(key, *arguments, **options)

        monkeypatch.setattr(store, "compute", busy_at_first)
        options = {"classes": ("none", "tumor"), "progress": False, "patience": 0.0}
        bags = slide_bags.slide_bags(cases, store, slide_tiles.Tiler(), ColorEncoder(), **options)
        assert done == ["a", "b", "a"]
        assert [bag["case"] for bag in bags] == ["a", "b"]


def test_the_config_for_features_of_volumes_says_how_those_of_slides_are_kept(tmp_path):
    with pytest.raises(ValueError, match=r"wsi_inference.json with --store_dir FOLDER"):
        extract([slide_case(tmp_path)], slide_tiles.Tiler(), ColorEncoder(), FeatureStore(tmp_path / "store"))
    configs = REPOSITORY / "bundles" / "insight_ct" / "configs"
    run = read_json(configs / "features.json")["run"]
    known = {*read_json(configs / "features.json"), *read_json(configs / "wsi_inference.json")}
    assert set(re.findall(r"@(\w+)", " ".join(run))) <= known  # so that the message is reached
