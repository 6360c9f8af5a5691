from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from common.images import read_volume
from common.images.dicom import read_series, read_series_grid, series_files
from tests.images.dicom_series import OBLIQUE, alone, changed, datasets, packaged, pydicom, save, stack


class TestGeometry:
    @pytest.mark.parametrize(
        ("orientation", "affine"),
        [
            # Columns step by .5 mm, rows by .8, slices by 2.5; the origin in RAS+ is (20, 30, 40).
            ((1, 0, 0, 0, 1, 0), [[-0.5, 0, 0, 20], [0, -0.8, 0, 30], [0, 0, 2.5, 40]]),
            ((-1, 0, 0, 0, 1, 0), [[0.5, 0, 0, 20], [0, -0.8, 0, 30], [0, 0, -2.5, 40]]),  # feet first
            ((0, 1, 0, 0, 0, -1), [[0, 0, 2.5, 20], [-0.5, 0, 0, 30], [0, -0.8, 0, 40]]),  # sagittal
            (OBLIQUE, [[-0.4, 0.48, 0, 20], [-0.18, -0.384, 2, 30], [0.24, 0.512, 1.5, 40]]),
        ],
    )
    def test_lies_where_its_headers_say_whatever_the_files_are_called(self, tmp_path, orientation, affine):
        slices = datasets(stack(), orientation=orientation)
        folder = save(tmp_path / "p1", slices, "{}.dcm".format)
        for old, new in ((0, 7), (1, 5), (2, 9), (3, 6)):
            (folder / f"{old}.dcm").rename(folder / f"{new}.dcm")
        volume = read_series(folder)
        assert np.array_equal(volume.array, stack().transpose(1, 0, 2))
        np.testing.assert_allclose(volume.affine[:3], affine, atol=1e-6)
        assert volume.warnings == ()
        shape, grid = read_series_grid(folder)
        assert shape == volume.array.shape
        assert np.array_equal(grid, volume.affine)
        assert [file.name for file in series_files(folder)] == ["7.dcm", "5.dcm", "9.dcm", "6.dcm"]

    @pytest.mark.parametrize("orientation", [OBLIQUE, (-1, 0, 0, 0, 1, 0)])
    def test_itk_reads_the_same_values_in_the_same_places(self, tmp_path, orientation):
        slices = datasets(stack(), orientation=orientation, RescaleSlope=2.0, RescaleIntercept=-7.0)
        folder = save(tmp_path / "p1", slices[::-1])
        image = sitk.ReadImage([str(file) for file in series_files(folder)])
        volume = read_volume(folder)
        assert np.array_equal(sitk.GetArrayFromImage(image).T, volume.array)
        for index in ((0, 0, 0), (4, 0, 0), (0, 2, 0), (0, 0, 3), (3, 1, 2)):
            theirs = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
            np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], theirs, atol=1e-4)

    def test_positions_may_be_rounded(self, tmp_path):
        slices = datasets(stack(), orientation=OBLIQUE, spacing=(0.8, 0.5, 1.33))
        for one in slices:
            one.ImagePositionPatient = [round(float(x), 2) for x in one.ImagePositionPatient]
        affine = read_series(save(tmp_path / "p1", slices)).affine
        np.testing.assert_allclose(affine[:3, 2], [0, 1.33 * 0.8, 1.33 * 0.6], atol=0.005)

    def test_a_packaged_series_of_a_real_scanner(self):
        volume = read_series(packaged("dicomdirtests/98892001/CT5N"))
        files = [pydicom.dcmread(file) for file in series_files(volume.path)]
        assert [float(one.ImagePositionPatient[2]) for one in files] == pytest.approx(np.arange(5) * 2.5 - 1.2375)
        expected = [pydicom.pixels.apply_modality_lut(one.pixel_array, one).T for one in files]
        assert np.array_equal(volume.array, np.stack(expected, axis=2))


class TestValues:
    def test_each_slice_has_its_own_slope_and_intercept(self, tmp_path):
        slices = datasets(stack(2), RescaleSlope=2.0, RescaleIntercept=-5.0)
        slices[1].RescaleSlope, slices[1].RescaleIntercept = 0.5, 100.0
        array = read_series(save(tmp_path / "p1", slices)).array
        assert array[4, 2].tolist() == [28 * 2 - 5, 29 * 0.5 + 100]  # 28 and 29 are stored

    @pytest.mark.parametrize(
        ("dtype", "bits", "stored", "value"),
        [
            (np.int16, 16, -1000, -1000),
            (np.uint16, 16, 65000, 65000),
            (np.int16, 12, 0x0FFB, -5),  # the sign is bit 11
            (np.uint16, 12, 0xF005, 5),  # an overlay in the unused bits
        ],
    )
    def test_signed_unsigned_and_unused_bits(self, tmp_path, dtype, bits, stored, value):
        values = np.full((3, 5, 2), stored, dtype)
        folder = save(tmp_path / "p1", datasets(values, BitsStored=bits, HighBit=bits - 1))
        assert np.unique(read_series(folder).array).tolist() == [value]

    def test_values_that_do_not_begin_at_bit_0_are_refused(self, tmp_path):
        folder = save(tmp_path / "p1", datasets(stack(dtype=np.uint16) << 4, BitsStored=12, HighBit=15))
        with pytest.raises(ValueError, match=r"000.dcm: .*HighBit 15 of 12 BitsStored: .* convert the file"):
            read_series(folder)

    @pytest.mark.parametrize(("dtype", "stored", "inverted"), [(np.uint16, 12, 4095 - 7), (np.int16, 16, -1 - 7)])
    def test_monochrome1_is_inverted_as_itk_does_but_for_quantities(self, tmp_path, dtype, stored, inverted):
        values = np.full((3, 5, 2), 7, dtype)
        bits = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": stored, "HighBit": stored - 1}
        folder = save(tmp_path / "mr", datasets(values, **bits))
        volume = read_series(folder)
        assert np.unique(volume.array).tolist() == [inverted]
        assert np.unique(sitk.GetArrayFromImage(sitk.ReadImage(folder / "000.dcm"))).tolist() == [inverted]
        assert volume.warnings == ("MONOCHROME1: values inverted, so that bright is high",)
        ct = {"Modality": "CT", "RescaleSlope": 1.0, "RescaleIntercept": -1024.0}
        volume = read_series(save(tmp_path / "ct", datasets(values, **bits, **ct)))
        assert np.unique(volume.array).tolist() == [7 - 1024]
        assert volume.warnings == ()

    @pytest.mark.parametrize("kind", ["", "_RLE", "_bigendian", "_implicit", "_jpeg_ls_lossless", "_jp2klossless"])
    def test_packaged_files_have_the_values_that_pydicom_finds(self, tmp_path, kind):
        values = read_series(alone(tmp_path, f"MR_small{kind}.dcm")).array[..., 0]
        assert np.array_equal(values, pydicom.dcmread(packaged("MR_small.dcm")).pixel_array.T)

    def test_ct_is_in_hounsfield_units_or_says_that_it_is_not(self, tmp_path):
        data = pydicom.dcmread(packaged("CT_small.dcm"))
        volume = read_series(alone(tmp_path, "CT_small.dcm"))
        assert np.array_equal(volume.array[..., 0], pydicom.pixels.apply_modality_lut(data.pixel_array, data).T)
        np.testing.assert_allclose(np.diag(volume.affine)[:3], [-0.661468, -0.661468, 5.0])
        assert volume.warnings == ("a single slice, as thick as its header says: 5 mm",)
        folder = save(tmp_path / "no_hu", datasets(stack(), Modality="CT"))
        assert read_series(folder).warnings == ("CT without a rescale to Hounsfield units",)

    def test_a_table_of_values_is_applied(self, tmp_path):
        table = pydicom.Dataset()
        table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [30, 0, 16], list(range(1000, 1030)), "US"
        table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
        folder = save(tmp_path / "p1", datasets(stack(2, np.uint16), ModalityLUTSequence=[table]))
        assert np.array_equal(read_series(folder).array, 1000 + stack(2).transpose(1, 0, 2))


class TestAssumeAxial:
    def test_sorts_by_instance_number_from_feet_to_head_and_says_so(self, tmp_path):
        slices = datasets(stack(), Modality="NM", SpacingBetweenSlices=4.0)
        for i, one in enumerate(slices):
            del one.ImagePositionPatient, one.ImageOrientationPatient
            one.InstanceNumber = 12 - i
        volume = read_volume(save(tmp_path / "p1", slices), dicom_geometry="assume_axial")
        assert np.array_equal(volume.array, stack().transpose(1, 0, 2)[..., ::-1])
        assert volume.affine.tolist() == np.diag([-0.5, -0.8, 4.0, 1.0]).tolist()
        said = "no positions (Modality NM): slices taken as axial by InstanceNumber, spacing 0.5 × 0.8 × 4 mm"
        assert volume.warnings == (said,)
        save(tmp_path / "p1", [changed(slices, 1, InstanceNumber=12)[1]], "001.dcm".format)
        for _ in range(2):
            with pytest.raises(ValueError, match="nothing orders them"):
                read_volume(tmp_path / "p1", dicom_geometry="assume_axial")
            save(tmp_path / "p1", [changed(slices, 1, InstanceNumber=None)[1]], "001.dcm".format)

    @pytest.mark.parametrize(
        ("attributes", "message"),
        [
            ({"PixelSpacing": [0.8, 0.6]}, r"spacing \(0\.8, 0\.5\) in 000\.dcm, but \(0\.8, 0\.6\) in 002\.dcm"),
            ({"PixelSpacing": None}, r"spacing \(0\.8, 0\.5\) in 000\.dcm, but None in 002\.dcm"),
            ({"SpacingBetweenSlices": 3.0}, r"between 77\.0 in 000\.dcm, but 3\.0 in 002\.dcm"),
            ({"SliceThickness": 3.0}, ""),  # SpacingBetweenSlices counts
        ],
    )
    def test_compares_what_stands_for_the_positions_in_all_slices(self, tmp_path, attributes, message):
        slices = changed(datasets(stack(), SOPClassUID=pydicom.uid.NuclearMedicineImageStorage), 2, **attributes)
        for one in slices:
            del one.ImagePositionPatient, one.ImageOrientationPatient
        folder = save(tmp_path / "p1", slices)
        if message:
            with pytest.raises(ValueError, match=f"two kinds of images in one series: {message}"):
                read_series(folder, dicom_geometry="assume_axial")
        else:
            assert read_series(folder, dicom_geometry="assume_axial").affine[2, 2] == 77.0
        save(folder, changed(slices, *range(4), PixelSpacing=[0.8, 0.5], SpacingBetweenSlices=-2.0))  # as NM has it
        assert read_series(folder, dicom_geometry="assume_axial").affine[2, 2] == -2.0

    def test_changes_nothing_where_there_are_positions(self, tmp_path):
        folder = save(tmp_path / "p1", datasets(stack()))
        assert np.array_equal(read_series(folder, dicom_geometry="assume_axial").affine, read_series(folder).affine)
        with pytest.raises(ValueError, match="dicom_geometry must be null or 'assume_axial'; got 'axial'"):
            read_series(folder, dicom_geometry="axial")
