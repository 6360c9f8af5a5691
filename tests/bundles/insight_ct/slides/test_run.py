from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
import torch
from PIL import Image

import common.commands.fit_runs
from common.commands.export import bundle_files
from common.commands.fit import fit
from common.commands.own_bundle import slide_settings
from common.commands.prepare import prepare
from common.commands.verify import problems
from common.features import FeatureStore
from common.files import file_digest
from common.metrics import dice
from tests.bundles.conftest import REPOSITORY, load_script, run_bundle
from tests.bundles.insight_ct.slides.helpers import (
    LESIONS,
    TISSUE_BOX,
    Box,
    color_network,
    corners_of,
    run_slides,
    slide_case,
    write_annotation,
    write_slide,
)
from tests.running import run_code


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def mask_of(path: Path) -> tuple[np.ndarray, float]:
    """A written mask, and the side of its cells in µm by the file's resolution tag."""
    with tifffile.TiffFile(path) as file:
        numerator, denominator = file.pages[0].tags["XResolution"].value
        return file.series[0].asarray() > 0, 1e4 * denominator / numerator


SIDE = 1250  # of slides that are read often: as large, with pixels twice as large


def planted(shape: tuple[int, ...], cell: float, lesions: tuple[Box, ...] = LESIONS) -> np.ndarray:
    """Cells whose centers lie in a lesion."""
    y, x = np.meshgrid(*((np.arange(n) + 0.5) * cell for n in shape), indexing="ij")
    return np.any([(x0 <= x) & (x < x1) & (y0 <= y) & (y < y1) for x0, y0, x1, y1 in lesions], axis=0)


class TestRun:
    def test_lesions_come_back_at_their_place(self, tmp_path):
        case = slide_case(tmp_path)
        case["label"] = str(write_annotation(tmp_path / "a.xml", [("Tumor", corners_of(box)) for box in LESIONS]))
        run_slides([case], tmp_path / "out", pictures=True)
        out = sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
        files = ["cells.npz", "heatmap.ome.tif", "heatmap_tumor.tif", "overlay.png", "seg.tif", "tiles.png"]
        assert out == sorted([f"a_{name}" for name in files] + ["predictions.csv", "metrics.csv", "summary.json"])
        heat, mask = (tifffile.imread(tmp_path / "out" / f"a_{name}.tif") for name in ("heatmap.ome", "seg"))
        expected = planted(mask.shape, 14)
        assert ((mask > 0) != expected).sum() < 0.15 * expected.sum()  # cells that are cut by an edge
        assert heat[expected].mean() > 0.9
        with openslide.OpenSlide(tmp_path / "out" / "a_heatmap_tumor.tif") as picture:
            assert float(picture.properties["openslide.mpp-x"]) * picture.dimensions[0] >= 2500 * 0.5
            assert np.asarray(picture.read_region((850 // 14, 800 // 14), 0, (1, 1)))[0, 0, 0] == 255
        (row,) = rows_of(tmp_path / "out" / "predictions.csv")
        assert (row["case"], float(row["probability_tumor"]), float(row["probability_none"])) == ("a", 1, 0)
        assert float(row["area_mm2_tumor"]) == pytest.approx(150_000 * 0.25e-6, rel=0.15)
        assert float(row["tissue_mm2"]) == pytest.approx(1750 * 1550 * 0.25e-6, rel=0.02)
        (row,) = rows_of(tmp_path / "out" / "metrics.csv")
        assert float(row["dice"]) > 0.9
        assert (row["tp"], row["fp"], row["fn"], row["dice_empty"]) == ("2", "0", "0", "0.0")
        assert float(row["dice_tissue"]) == pytest.approx(2 * 0.15 / (0.15 + 1.75 * 1.55), rel=0.1)
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert summary["slides"] == 1
        assert summary["dice"]["mean"] == float(row["dice"])

    def test_glass_has_no_heat_whatever_the_head_makes_of_it(self, tmp_path):
        network = color_network()
        network.head.heatmap = lambda features, inside: (
            torch.ones_like(features[:, :1]) if inside is None else (inside > 0.5).float()
        )
        run_slides([slide_case(tmp_path)], tmp_path / "out", network=network)
        heat = tifffile.imread(tmp_path / "out" / "a_heatmap.ome.tif")
        margin = 14  # cells that are cut by the tissue's edge may go either way
        x0, y0, x1, y1 = TISSUE_BOX
        tissue = planted(heat.shape, 14, ((x0 - margin, y0 - margin, x1 + margin, y1 + margin),))
        assert heat[~tissue].max() == 0
        assert heat[planted(heat.shape, 14)].min() == 1

    def test_overlapping_tiles_agree_with_tiles_side_by_side(self, tmp_path):
        case = slide_case(tmp_path)
        heats = []
        for stride in (224, 112):
            run_slides([case], tmp_path / str(stride), tiler={"stride": stride, "min_tissue": 0.001})
            heats.append(tifffile.imread(tmp_path / str(stride) / "a_heatmap.ome.tif"))
        side = min(len(heat) for heat in heats)
        np.testing.assert_allclose(heats[0][:side, :side], heats[1][:side, :side], atol=1e-5)

    def test_several_labels_have_a_map_each_and_one_mask(self, tmp_path):
        classes = ("none", "DCIS", "ADH")
        run_slides([slide_case(tmp_path, cls=["DCIS"])], tmp_path / "out", classes=classes, pictures=True)
        heat, mask = (tifffile.imread(tmp_path / "out" / f"a_{name}.tif") for name in ("heatmap.ome", "seg"))
        assert heat.shape[0] == 2
        assert heat[1].max() == 0
        assert set(np.unique(mask)) == {0, 1}
        assert (tmp_path / "out" / "a_heatmap_ADH.tif").is_file()
        (row,) = rows_of(tmp_path / "out" / "predictions.csv")
        assert (row["probability_ADH"], row["threshold_ADH"], row["area_mm2_ADH"]) == ("0.0", "inf", "0.0")

    def test_a_negative_slide_has_an_empty_mask_behind_the_gate_and_its_false_area_without(self, tmp_path):
        case = slide_case(tmp_path, cls=0, colors=((244, 243, 245), (230, 150, 200), (0, 0, 0)))
        for gate in (0.5, 0.0):
            out = tmp_path / str(gate)
            options = {"binarize": "fixed", "threshold": 0.05}
            run_slides([case], out, gate=gate, **options)
            (row,) = rows_of(out / "metrics.csv")
            assert (float(row["false_mm2"]) > 0.5) == (gate == 0)
            assert (row["truth_mm2"], "dice" in row) == ("0.0", False)

    def test_one_bad_slide_is_named_and_the_others_are_done(self, tmp_path):
        good, cut, blank, plain = (slide_case(tmp_path, name, mpp=None if name == "plain" else 0.5) for name in (
            "good", "cut", "blank", "plain"))  # fmt: skip
        Path(cut["image"]).write_bytes(Path(cut["image"]).read_bytes()[:-3000])
        write_slide(Path(blank["image"]), (2500, 2500))
        with pytest.raises(RuntimeError, match="3 of 4 cases failed") as error:
            run_slides([cut, blank, plain, good], tmp_path / "out", pictures=True)
        for message in (
            "cut.tif: it cannot be read",
            "blank.tif: no tissue found",
            "plain.tif: the file does not say how",
        ):
            assert message in str(error.value)
        assert [row["case"] for row in rows_of(tmp_path / "out" / "predictions.csv")] == ["good"]
        assert {path.name.split("_")[0] for path in (tmp_path / "out").glob("*_*")} == {"good"}
        assert {path.name for path in (tmp_path / "out").glob(".*")} <= {".cases"}

    def test_a_tile_that_cannot_be_read_is_an_error_and_not_the_end_of_the_slide(self, tmp_path):
        case = slide_case(tmp_path)
        with tifffile.TiffFile(case["image"]) as file:
            place = file.pages[0].dataoffsets[45]  # in the middle; the thumbnail is of another level
        with open(case["image"], "r+b") as content:
            content.seek(place)
            content.write(b"damaged")
        inferer = load_script("insight_ct", "slides.inference").SlideInferer(
            load_script("insight_ct", "slides.tiles").Tiler()
        )
        with pytest.raises(ValueError, match="its part at x"):
            inferer(case, color_network())
        inferer.close()

    def test_auc_is_taken_by_label_and_averaged(self, tmp_path):
        classes = ("none", "DCIS", "ADH")
        labels = {"a": ["DCIS"], "b": [], "c": ["ADH"], "d": ["DCIS", "ADH"]}
        cases = [slide_case(tmp_path, n, cls=c, lesions=LESIONS if "DCIS" in c else ()) for n, c in labels.items()]
        polygons = [("DCIS", corners_of(LESIONS[0])), ("ADH", corners_of(LESIONS[1]))]
        cases[3]["label"] = str(write_annotation(tmp_path / "d.xml", polygons))
        run_slides(cases, tmp_path / "out", classes=classes, tiler={"mpp": 1.0})
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert summary["auc"] == {"DCIS": 1.0, "ADH": 0.5}
        assert summary["auc_macro"] == 0.75
        row = rows_of(tmp_path / "out" / "metrics.csv")[3]
        # All is marked as DCIS: nothing of ADH, and of DCIS twice 100,000 in 150,000 + 100,000 pixels.
        assert float(row["DCIS_dice"]) == pytest.approx(0.8, abs=0.05)
        assert (row["ADH_dice"], summary["labels"]["ADH"]["dice"]["count"]) == ("0.0", 1)
        assert float(row["dice"]) > 0.9

    def test_a_slide_coarser_than_its_tiles_is_said_in_the_console_and_in_the_table(self, tmp_path, caplog):
        cases = [slide_case(tmp_path, name, side=side) for name, side in (("fine", 500), ("coarse", 250))]
        run_slides(cases, tmp_path / "out", tiler={"mpp": 2.0})
        said = "pixels of 5 µm enlarged 2.5 times to 2: a finer scan, or a training with --mpp"
        assert [row["warnings"] for row in rows_of(tmp_path / "out" / "predictions.csv")] == ["", said]
        assert [r.getMessage() for r in caplog.records if "enlarged" in r.msg % r.args] == [
            f"{cases[1]['image']}: {said}"
        ]

    def test_temporary_files_are_gone_after_the_run(self, tmp_path):
        (tmp_path / "work").mkdir()
        run_slides([slide_case(tmp_path)], tmp_path / "out", work_dir=tmp_path / "work")
        assert not list((tmp_path / "work").iterdir())


LARGE = """
import json, resource, sys
from pathlib import Path
import torch
from tests.bundles.insight_ct.slides.helpers import run_slides, write_slide

torch.set_num_threads(1)
peaks = []
for side in (5_000, 20_000):
    tissue = [(side // 20, side // 20, side - side // 20, side - side // 20)]
    lesions = [(side // 2, side // 4, side // 2 + 900, side // 4 + 600)]
    folder = Path(sys.argv[-1]) / str(side)
    path = write_slide(folder / "large.tif", (side, side), tissue=tissue, lesions=lesions)
    run_slides([{"case": "a", "patient": "a", "image": str(path)}], folder, tiler={"mpp": 2.0}, batch_size=16,
        pictures=True)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print("MIB", json.dumps(peaks))
"""


def test_memory_stays_flat_from_5_000_to_20_000_pixels_and_lesions_are_found(tmp_path):
    small, large = json.loads(run_code(LARGE, str(tmp_path), environment={"OMP_NUM_THREADS": "1"}).split("MIB")[1])
    assert large - small < 60  # the whole slide is 1,144 MiB
    for side in (5_000, 20_000):
        mask = tifffile.imread(tmp_path / str(side) / "a_seg.tif")
        expected = planted(mask.shape, 56, ((side // 2, side // 4, side // 2 + 900, side // 4 + 600),))
        assert ((mask > 0) != expected).sum() < 0.3 * expected.sum()


def test_fit_goes_from_a_table_of_slides_to_masks_and_a_bundle_and_computes_features_once(
    tmp_path, monkeypatch, capsys
):
    rows = ["image,label,patient,mask,split"]
    for number, section in enumerate(["training"] * 4 + ["validation"] * 2 + ["test"] * 2):
        ill = number % 2
        tissue = [(350, 400 - 8 * number, 2100, 1950)]
        slide_case(tmp_path / "data", f"s{number}", cls=ill, tissue=tissue, side=SIDE)
        if ill:
            polygons = [("_0", corners_of(box, SIDE)) for box in LESIONS]
            write_annotation(tmp_path / "data" / f"s{number}.xml", polygons)
        rows.append(f"s{number}.tif,{'yes' if ill else 'no'},p{number},{f's{number}.xml' if ill else ''},{section}")
    (tmp_path / "data" / "slides.csv").write_text("\n".join(rows))
    prepare("table", str(tmp_path / "data" / "slides.csv"), classes="none,lesion")
    monkeypatch.setattr(common.commands.fit_runs, "run_bundle", run_bundle)
    settings = {"mpp": 2.0, "width": 16, "max_epochs": 1, "learning_rate": 0.005, "store_dir": str(tmp_path / "store")}
    settings["report"] = True
    command = ("insight_ct", str(tmp_path / "data"), str(tmp_path / "out"))
    fit(*command, **settings)
    said = capsys.readouterr().out
    assert "training 4 cases of 4 patients, slides none 2, lesion 2; validation" in said
    assert "slides: 8 .tif; 1 µm per pixel, longer side 1,250 pixels; tiles of 448 µm at 2 µm per pixel, 8 a" in said
    assert "test, from labels: lesion, AUC of slides" in said
    assert "with outlines, which chose nothing: Dice" in said
    assert len(list(FeatureStore(tmp_path / "store").entries())) == 8
    scale = torch.load(tmp_path / "out" / "training" / "model.pt", weights_only=True)["head.scale.spread"]
    assert (scale != 1).all()  # fitted, and kept with the weights
    page = (tmp_path / "out" / "training" / "report.html").read_text()
    assert "yes/no labels of slides: 4 cases" in page
    assert [Image.open(path).mode for path in (tmp_path / "out" / "training").glob("montages/*.png")] == ["RGB"] * 2
    own = tmp_path / "out" / "insight_ct"
    config = json.loads((own / "configs" / "wsi_inference.json").read_text())
    assert (config["classes"], config["mpp"], config["width"]) == (["none", "lesion"], 2.0, 16)
    assert config["image_pattern"] == "*.tif"
    beside = json.loads((own / "models" / "slides.json").read_text())
    assert (beside["trained_on"]["labels"], beside["trained_on"]["teacher"]["trained_on"]["masks"]) == (
        "slides",
        "none",
    )
    assert beside["chosen_from"]["cases"] == 6  # validation has few labels, so training slides are asked, too
    assert beside["chosen_from"]["weights_sha256"] == file_digest(own / "models" / "slides.pt")
    assert problems(own, slow=()) == []
    out = tmp_path / "out" / "evaluation"
    page = (out / "report.html").read_text()
    assert '"unit":"slide"' in page
    assert str(tmp_path) not in page
    negative, positive = rows_of(out / "metrics.csv")
    assert (negative["label_lesion"], positive["label_lesion"]) == ("0", "1")
    for row, found in zip((negative, positive), rows_of(out / "predictions.csv"), strict=True):
        mask, cell_um = mask_of(out / f"{row['case']}_seg.tif")
        mm2 = (cell_um / 1000) ** 2
        assert row["case"] == found["case"]
        assert float(row["mask_mm2"]) == float(found["area_mm2_lesion"]) == pytest.approx(mask.sum() * mm2, abs=1e-4)
        share = float(row["mask_mm2"]) / float(found["tissue_mm2"])
        assert float(row["share_lesion"]) == pytest.approx(share, abs=1e-3)
    lesions = planted(mask.shape, cell_um / 0.5)
    assert float(positive["dice"]) == pytest.approx(dice(mask, lesions), abs=1e-4)
    report = json.loads(re.search(r'<script type="application/json" id="report">(.*?)</script>', page, re.DOTALL)[1])
    shown = {row["case"]: row["slide"]["labels"][0] for row in report["cases"]}
    for row in (negative, positive):  # at the run's own threshold the slider says what the tables say
        label = shown[row["case"]]
        if label["stop"] is not None:
            assert label["share"][label["stop"]] == pytest.approx(float(row["share_lesion"]), abs=1e-4)
            assert label["mm2"][label["stop"]] == pytest.approx(float(row["mask_mm2"]), abs=1e-4)
    own = shown[positive["case"]]
    assert own["dice"][own["stop"]] == pytest.approx(float(positive["dice"]), abs=1e-4)
    assert shown[negative["case"]]["dice"] is None  # nothing to agree with
    assert float(positive["truth_mm2"]) == pytest.approx(lesions.sum() * mm2, abs=1e-4)
    assert len(list((tmp_path / "out" / "masks").glob("*_overlay.png"))) == 8
    monkeypatch.setattr(common.commands.fit_runs, "run_bundle", None)  # everything was done before
    fit(*command, **settings)


def test_shipped_weights_run_by_default_with_the_settings_chosen_for_them_and_travel_in_the_zip(tmp_path):
    root = REPOSITORY / "bundles" / "insight_ct"
    beside, config = (
        json.loads((root / name).read_text()) for name in ("models/slides.json", "configs/wsi_inference.json")
    )
    assert beside["chosen_from"]["weights_sha256"] == file_digest(root / "models" / "slides.pt")
    assert {beside[key]["masks"] for key in ("trained_on", "chosen_from")} == {"none"}
    assert beside["trained"]
    assert beside["trained"] == {key: config[key] for key in beside["trained"]}
    assert {"models/slides.pt", "models/slides.json"} <= bundle_files(root).keys()
    slide_case(tmp_path / "data")
    run_bundle(
        "insight_ct", ["wsi_inference.json"], dataset_dir=tmp_path / "data", image_pattern="*.tif", output_dir=tmp_path
    )
    (row,) = rows_of(tmp_path / "predictions.csv")
    passes = float(row["probability_tumor"]) >= beside["chosen"]["gate"][0]
    assert float(row["threshold_tumor"]) == pytest.approx(
        beside["chosen"]["threshold"][0] if passes else np.inf, abs=1e-4
    )


def test_what_the_config_of_several_labels_changes_are_settings_of_slides():
    """A misspelled key would be taken without a word."""
    root = REPOSITORY / "bundles" / "insight_ct"
    assert json.loads((root / "configs" / "wsi_labels.json").read_text()).keys() <= slide_settings(root)
