from __future__ import annotations

import logging
import sys

import numpy as np
import pytest

from common.images import read_grid, read_volume
from common.images.dicom import read_series, read_series_grid, series_files
from common.images.dicom_files import header_of, read_tree
from tests.images.dicom_series import BIRTH, NAME, PATIENT, alone, changed, datasets, packaged, pydicom, save, stack


def without(slices, *numbers):
    return [one for i, one in enumerate(slices) if i not in numbers]


def moved(slices, by):
    """Every slice shifted by a multiple of `by`."""
    for i, one in enumerate(slices):
        one.ImagePositionPatient = [float(x + i * b) for x, b in zip(one.ImagePositionPatient, by, strict=True)]
    return slices


def echoes(slices, count=2):
    again = [one for time in range(count) for one in datasets(stack(6), series="1.2.826.1", EchoTime=10.0 + time)]
    for i, one in enumerate(again):
        one.SOPInstanceUID, one.InstanceNumber = f"1.2.826.1.{i + 1}", i + 1
    return again


REFUSED = {
    "an intercept without a slope": (
        lambda s: changed(s, *range(6), RescaleIntercept=-1024),
        r"RescaleIntercept -1024 without RescaleSlope; write the slope, as a rule 1, beside it",
    ),
    "a slice missing": (
        lambda s: without(s, 2),
        r"p1: 1 slice\(s\) missing in 1 place\(s\): 5 mm between 001.dcm and 002.dcm, where 2.5 mm is usual",
    ),
    "slices missing in two places": (
        lambda s: without(datasets(stack(12)), 2, 6, 7),
        r"3 slice\(s\) missing in 2 place\(s\): 5 mm between 001.dcm and 002.dcm; 7.5 mm between 004.dcm and 005.dcm",
    ),
    "a double slice": (
        lambda s: [*s, changed(datasets(stack(6)), 3, SOPInstanceUID="1.2.3")[3]],
        r"1 double slice\(s\): 003.dcm and 006.dcm both lie at 47.50 mm along the normal",
    ),
    "uneven": (
        lambda s: changed(s, 1, ImagePositionPatient=[-20, -30, 43.0]),
        r"uneven distances between slices, 2 to 3 mm",
    ),
    "a tilted gantry": (
        lambda s: moved(s, (0, 0.5, 0)),
        r"tilted gantry: the slices are sheared by 11.3 degrees .* resample",
    ),
    "one shifted sideways": (
        lambda s: changed(s, 2, ImagePositionPatient=[-20, -28, 45.0]),
        r"slices shifted sideways: 002.dcm by 2.00 mm",
    ),
    "two orientations": (
        lambda s: changed(s, 5, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
        r"two kinds of images in one series: orientation \(1.0, 0.0, .*\) in 000.dcm, but \(0.0, 1.0, .* in 005.dcm",
    ),
    "another pixel spacing": (
        lambda s: changed(s, 4, PixelSpacing=[0.8, 0.6]),
        r"spacing \(0.8, 0.5\) in 000.dcm, but \(0.8, 0.6\) in 004.dcm",
    ),
    "another size": (
        lambda s: [*s[:5], *datasets(np.zeros((3, 6, 6), np.int16))[5:]],
        r"columns 5 in 000.dcm, but 6 in 005.dcm",
    ),
    "several echoes": (
        echoes,
        r"2 slices at each of 6 positions \(4D\), with different values: 2 of EchoTime; put",
    ),
    "one place": (lambda s: [s[0], changed(s, 0, SOPInstanceUID="1.2")[0]], r"2 slices at each of 1 positions"),
    "some without position": (
        lambda s: changed(s, 3, ImagePositionPatient=None),
        r"1 of 6 images lack ImagePositionPatient or ImageOrientationPatient, e.g. 003.dcm",
    ),
    "none with position": (
        lambda s: [changed([one], 0, ImagePositionPatient=None, Modality="NM")[0] for one in s],
        r"no image \(Modality NM\) has ImagePositionPatient .* --dicom_geometry assume_axial",
    ),
    "no spacing": (
        lambda s: changed(changed(s, 0, PixelSpacing=None), 1, PixelSpacing=[-1, 1]),
        r"no PixelSpacing above 0 in 2 of 6 images, e.g. 000.dcm",
    ),
    "raw values beside Hounsfield units": (
        lambda s: [
            changed([one], 0, Modality="CT", **({} if i == 3 else {"RescaleSlope": 1, "RescaleIntercept": -1024}))[0]
            for i, one in enumerate(s)
        ],
        r"two kinds of images in one series: 000.dcm and 003.dcm differ in rescale",
    ),
    "a slope of 0": (
        lambda s: changed(s, 3, **dict.fromkeys(("RescaleSlope", "RescaleIntercept"), 0)),
        r"RescaleSlope 0 in 003.dcm, which leaves nothing of its values",
    ),
    "a slice inverted": (
        lambda s: changed(s, 2, PhotometricInterpretation="MONOCHROME1"),
        r"000.dcm and 002.dcm differ in MONOCHROME1",
    ),
    "a slice of another frame of reference": (
        lambda s: changed(s, 4, FrameOfReferenceUID="1.2.3"),
        r"000.dcm and 004.dcm differ in frame of reference",
    ),
    "two kernels": (
        lambda s: changed(s, 1, 3, 5, ConvolutionKernel="B70f"),
        r"000.dcm and 001.dcm differ in ConvolutionKernel",
    ),
    "two patients": (
        lambda s: changed(s, 4, 5, PatientID="another"),
        r"p1: files of several patients \(PatientID\) in one series",
    ),
    "directions that are none": (
        lambda s: [changed([one], 0, ImageOrientationPatient=[1, 0, 0, 1, 0, 0])[0] for one in s],
        r"ImageOrientationPatient .* is no pair of perpendicular unit vectors",
    ),
    "an impossible spacing": (
        lambda s: [changed([one], 0, PixelSpacing=[800, 500])[0] for one in s],
        r"an impossible spacing of 500 × 800 × 2.5 mm",
    ),
    "slices wider than a bore": (
        lambda s: [
            changed([one], 0, PixelSpacing=[80, 250 / 3])[0] for one in datasets(np.zeros((13, 5, 6), np.int16))
        ],
        r"a spacing of 83.3333 × 80 × 2.5 mm makes its axial slices 1040 mm wide",
    ),
}


class TestRefused:
    @pytest.mark.parametrize("kind", REFUSED)
    def test_what_is_no_even_stack_is_named(self, tmp_path, caplog, kind):
        change, message = REFUSED[kind]
        folder = save(tmp_path / "p1", change(datasets(stack(6))))
        for read in (read_series, read_series_grid, series_files):
            with pytest.raises(ValueError, match=message) as caught:
                read(folder)
            assert str(caught.value).count(str(folder)) == 1
        assert not [marker for marker in (NAME, NAME[:5], BIRTH, PATIENT) if marker in f"{caught.value}{caplog.text}"]

    def test_copies_in_two_folders_are_told_from_two_volumes(self, tmp_path):
        for name in ("one", "two"):
            save(tmp_path / name, datasets(stack(6)))
        with pytest.raises(ValueError, match=r"4D.*; put each volume into .* own, or keep one of \['one', 'two'\]$"):
            read_series(tmp_path)

    @pytest.mark.parametrize(
        ("values", "wrong"),
        [
            (np.int16, {"PixelRepresentation": 0}),
            (np.int16, {"PixelRepresentation": 0, "BitsStored": 12, "HighBit": 11}),
            (np.uint16, {"PixelRepresentation": 1, "BitsStored": 10, "HighBit": 9}),
            (np.uint16, {"BitsStored": 9, "HighBit": 8}),
        ],
    )
    def test_bits_that_are_taken_for_others_are_refused(self, tmp_path, values, wrong):
        x, y = np.mgrid[:48, :48] - 23.5
        hill = np.repeat(1000 * np.exp(-(x**2 + y**2) / 300)[..., None], 4, axis=-1)
        hill = (hill - 300 if values is np.int16 else hill).astype(values)
        right = dict(zip(("BitsStored", "HighBit"), (12, 11), strict=True))
        assert read_series(save(tmp_path / "p1", datasets(hill, **right))).warnings == ()
        with pytest.raises(ValueError, match=r"p2: \d+% of its edges .* PixelRepresentation or BitsStored is wrong"):
            read_series(save(tmp_path / "p2", datasets(hill, **right | wrong)))

    @pytest.mark.parametrize(
        ("attributes", "told"),
        [
            ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "MIP"]}, "ImageType says MIP: computed from scans"),
            ({"ImageType": ["DERIVED", "PRIMARY", "PROJECTION IMAGE"]}, "ImageType says PROJECTION IMAGE"),
            ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "AVERAGE"]}, ""),
            ({"Modality": "CT", "RescaleSlope": 1}, "CT without a rescale to Hounsfield units"),
            ({"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}, ""),
        ],
    )
    def test_what_is_no_scan_or_in_no_known_unit_is_told(self, tmp_path, attributes, told):
        said = read_series(save(tmp_path / "p1", datasets(stack(6), **attributes))).warnings
        assert len(said) == bool(told)
        assert "".join(said).startswith(told)

    def test_a_ct_whose_slices_have_different_rescales_is_told(self, tmp_path):
        slices = datasets(stack(6), Modality="CT", RescaleSlope=1, RescaleIntercept=-1024)
        said = read_series(save(tmp_path / "p1", changed(slices, 3, 4, 5, RescaleIntercept=0))).warnings
        assert said == ("2 kinds of rescale among the slices of a CT: are some of another series?",)

    def test_pixels_that_need_a_decoder_name_it(self, tmp_path):
        data = pydicom.dcmread(packaged("JPGExtended.dcm"))
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
        folder = save(tmp_path / "p1", [data])
        message = r"000.dcm: its pixels are compressed \(JPEG Extended.*pip install pylibjpeg pylibjpeg-libjpeg"
        with pytest.raises(ValueError, match=message):
            read_series(folder, dicom_geometry="assume_axial")

    def test_a_syntax_of_the_makers_own_is_named(self, tmp_path):
        folder = save(tmp_path / "p1", datasets(stack()))
        for file in sorted(folder.iterdir()):
            file.write_bytes(file.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.113619.5.2\0\0"))
        with pytest.raises(
            ValueError, match=r"000.dcm: its pixels are compressed \(1.2.840.113619.5.2\).*decompress it"
        ):
            read_series(folder)

    def test_an_empty_file_is_no_slice_that_can_be_missed(self, tmp_path):
        folder = save(tmp_path / "p1", datasets(stack()), "1.2.826.{}".format)
        for name, refused in (("1.2.826.4", True), ("IM5", True), ("Thumbs.db", False)):
            (folder / name).touch()
            if refused:
                with pytest.raises(ValueError, match=rf"{name}: an empty file; it may be a slice of the series"):
                    read_series(folder)
                (folder / name).unlink()
        assert read_series(folder).array.shape == (5, 3, 4)

    def test_a_file_that_is_cut_short_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"MR_truncated.dcm: the pixels cannot be read"):
            read_series(alone(tmp_path, "MR_truncated.dcm"))
        folder = save(tmp_path / "p1", datasets(stack()))
        (folder / "999.dcm").write_bytes(b"")
        with pytest.raises(ValueError, match=r"999.dcm: no DICOM header; it may be a slice of the series"):
            read_series(folder)
        (folder / "999.dcm").unlink()
        whole = (folder / "003.dcm").read_bytes()
        for length in (140, 300, 500):  # in a header, before the rows of the last slice
            (folder / "003.dcm").write_bytes(whole[:length])
            with pytest.raises(ValueError, match=r"003.dcm: a header that ends early; it may be a slice of the series"):
                read_series(folder)
        (folder / "003.dcm").write_bytes(whole)
        (folder / "999").symlink_to(folder / "nowhere")
        with pytest.raises(ValueError, match=r"999: a link to a file that does not exist"):
            read_series(folder)

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("liver_1frame.dcm", "Segmentation"),
            ("rtdose_1frame.dcm", "RT Dose"),
            ("rtplan.dcm", "object without pixels"),
            ("SC_rgb_small_odd.dcm", "picture in color"),
        ],
    )
    def test_what_is_no_scan_is_not_taken_for_one(self, tmp_path, name, kind):
        folder = alone(tmp_path, name)
        with pytest.raises(FileNotFoundError, match=rf"no DICOM scan there \(only: {kind}\)"):
            read_series(folder)
        save(folder, datasets(stack()))
        assert read_series(folder).array.shape == (5, 3, 4)

    def test_a_mosaic_is_no_slice(self, tmp_path):
        folder = save(tmp_path / "p1", datasets(stack(1), ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]))
        with pytest.raises(FileNotFoundError, match=r"no DICOM scan there \(only: mosaic of slices\)"):
            read_series(folder)

    def test_every_second_slice_of_a_series_is_doubted_by_its_numbers(self, tmp_path):
        for step, warnings in ((1, ()), (2, ("InstanceNumber goes up in steps of 2: have slices been left out?",))):
            volume = read_series(save(tmp_path / f"p{step}", datasets(stack(6))[::step]))
            assert (np.linalg.norm(volume.affine[:3, 2]), volume.warnings) == (step * 2.5, warnings)

    def test_localizers_are_left_out_with_a_word(self, tmp_path):
        slices = datasets(stack())
        slices[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        volume = read_series(save(tmp_path / "p1", slices))
        assert volume.array.shape == (5, 3, 3)
        assert volume.warnings == ("left out of the series: 1 localizer(s)",)

    def test_says_which_extra_is_missing(self, tmp_path, monkeypatch):
        folder = save(tmp_path / "p1", datasets(stack()))
        monkeypatch.setitem(sys.modules, "pydicom", None)
        with pytest.raises(ImportError, match=r"pip install 'weakseg-bundles\[dicom\]'"):
            read_series(folder)


class TestPaths:
    def test_one_of_several_series_is_named_by_its_uid(self, tmp_path):
        slices = [*datasets(stack()), *datasets(stack() + 100, series="1.2.826.2")]
        save(tmp_path, slices)
        with pytest.raises(ValueError, match=r"holds 2 series: 1.2.826.1 \(4 files\), 1.2.826.2 \(4 files\); name one"):
            read_series(tmp_path)
        volume = read_volume(tmp_path / "1.2.826.2")
        assert volume.array[0, 0, 0] == 100
        assert volume.path == str(tmp_path / "1.2.826.2")
        assert read_grid(tmp_path / "1.2.826.2")[0] == (5, 3, 4)
        with pytest.raises(FileNotFoundError, match=r"1.2.826.3: no DICOM scan there"):
            read_volume(tmp_path / "1.2.826.3")
        with pytest.raises(ValueError, match=r"000.dcm is one file; a DICOM series is named by its folder"):
            read_series(tmp_path / "000.dcm")
        with pytest.raises(FileNotFoundError, match="neither the folder of a DICOM series"):
            read_series(tmp_path / "p7")

    def test_each_header_is_read_once_for_all_series_of_a_tree(self, tmp_path, monkeypatch):
        for i in range(3):
            save(tmp_path / "mixed", datasets(stack(), series=f"1.2.826.{i}"), (f"{i}" + "{}").format)
        (tmp_path / "mixed" / "notes.txt").write_text("no DICOM")
        read = []
        original = pydicom.dcmread
        monkeypatch.setattr(pydicom, "dcmread", lambda file, **o: read.append(file) or original(file, **o))
        for _ in range(2):
            assert [len(series.files) for series in read_tree(tmp_path).series.values()] == [4, 4, 4]
        assert len(read) == len(set(read)) == 12
        changed(slices := datasets(stack(), series="1.2.826.7"), 0)
        save(tmp_path / "mixed", slices, "0{}".format)
        assert "1.2.826.7" in read_tree(tmp_path).series

    def test_nobody_is_named_in_what_is_kept_of_a_header(self, tmp_path, caplog):
        caplog.set_level(logging.DEBUG)
        folder = save(tmp_path / "p1", datasets(stack()))
        said = f"{header_of(str(folder / '000.dcm'))} {read_tree(folder)} {read_series(folder)} {caplog.text}".lower()
        assert not [marker for marker in ("zyxwv", "qrst", BIRTH, PATIENT.lower()) if marker in said]
