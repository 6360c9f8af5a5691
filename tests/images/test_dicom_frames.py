from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from common.images import DicomCodes, dicom_results
from common.images.dicom import read_series, series_files
from tests.images.dicom_series import OBLIQUE, changed, datasets, pydicom, save, stack

CAPTURE = "1.2.840.10008.5.1.4.1.1.7.3"  # Multi-frame Grayscale Word Secondary Capture


def item(**attributes: Any) -> list[Any]:
    """A sequence of one item."""
    one = pydicom.Dataset()
    for name, value in attributes.items():
        setattr(one, name, value)
    return [one]


def enhanced(
    values: np.ndarray,
    order: Sequence[int],
    change: Callable[[int, Any], None] = lambda number, frame: None,
    **attributes: Any,
) -> list[Any]:
    """An Enhanced MR object: what is common in shared groups, positions and slopes frame by frame.

    Args:
        values: as of `datasets`.
        order: which slice each frame holds.
        change: gets the number and the functional groups of each frame.
        attributes: of the file.
    """
    slices = datasets(values, orientation=OBLIQUE, FrameOfReferenceUID="1.2.826.5")
    frames = []
    for number, i in enumerate(order):
        rescale = item(RescaleSlope=number + 1.0, RescaleIntercept=-3.0 * number, RescaleType="US")
        position = item(ImagePositionPatient=slices[i].ImagePositionPatient)
        frames += item(PlanePositionSequence=position, PixelValueTransformationSequence=rescale)
        change(number, frames[-1])
    whole = slices[0]
    whole.SOPClassUID, whole.NumberOfFrames = pydicom.uid.EnhancedMRImageStorage, len(order)
    whole.PixelData = b"".join([one.PixelData for one in slices][i] for i in order)
    whole.SharedFunctionalGroupsSequence = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=whole.ImageOrientationPatient),
        PixelMeasuresSequence=item(PixelSpacing=whole.PixelSpacing),
    )
    whole.PerFrameFunctionalGroupsSequence = frames
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(whole, name)
    return changed([whole], 0, **attributes)


@pytest.mark.parametrize("order", [[3, 2, 1, 0], [2, 0, 3, 1]])
def test_frames_are_read_like_the_files_of_a_series_each_with_its_own_rescale(tmp_path, order):
    folder = save(tmp_path / "enhanced", enhanced(stack(), order))
    volume = read_series(folder)
    plain = read_series(save(tmp_path / "plain", datasets(stack(), orientation=OBLIQUE)))
    numbers = np.argsort(order)  # of the frame that holds each slice
    assert np.array_equal(volume.array, plain.array * (numbers + 1) - 3 * numbers)
    np.testing.assert_allclose(volume.affine, plain.affine)
    assert series_files(folder) == [folder / "000.dcm"]
    assert volume.warnings == ()


def test_highdicom_finds_the_same_values_in_the_same_places(tmp_path):
    hd = pytest.importorskip("highdicom")
    folder = save(tmp_path / "enhanced", enhanced(stack(), [2, 0, 3, 1]))
    ours = read_series(folder)
    theirs = hd.imread(folder / "000.dcm").get_volume(apply_real_world_transform=False, apply_modality_transform=True)
    for slice_, row, column in ((0, 0, 0), (3, 1, 4), (2, 2, 1), (1, 0, 3)):
        place = theirs.affine @ [slice_, row, column, 1] * [-1, -1, 1, 1]
        index = np.rint(np.linalg.inv(ours.affine) @ place)[:3].astype(int)
        np.testing.assert_allclose(ours.affine @ [*index, 1], place, atol=1e-4)
        assert ours.array[tuple(index)] == theirs.array[slice_, row, column]


def test_padding_is_as_dark_as_the_darkest_pixel(tmp_path):
    values = stack(dtype=np.uint16)
    values[0, :, :] = 65535
    values[1, 0, :] = 65000
    padded = {"PixelPaddingValue": 65535, "PixelPaddingRangeLimit": 65000}
    array = read_series(save(tmp_path / "p1", datasets(values, **padded))).array
    assert np.array_equal(array[:, 0], np.broadcast_to(values[1, 1], (5, 4)))
    assert np.array_equal(array[0, 1], values[1, 1])
    assert np.array_equal(array[:, 1:].transpose(1, 0, 2)[1:], values[2:])
    dark = stack() - 1000
    dark[0] = -2000
    assert np.array_equal(
        read_series(save(tmp_path / "p2", datasets(dark, PixelPaddingValue=-2000))).array, dark.transpose(1, 0, 2)
    )


@pytest.mark.parametrize("count", [2, 5])
def test_pixels_of_more_frames_than_the_header_has_are_refused(tmp_path, count):
    slices = datasets(stack())
    for one in slices:
        one.PixelData *= count
    with pytest.raises(ValueError, match=rf"000\.dcm: pixels of {count} frames, but 1 by the header"):
        read_series(save(tmp_path, slices))


def mapped(number: int, frame: Any, *, others: int = 0, unit: str = "ms", **instead: Any) -> None:
    """Real-world values in the place of the rescale."""
    line = instead or {"RealWorldValueSlope": number + 0.5, "RealWorldValueIntercept": 10.0 * number}
    unit_of = item(CodeValue=unit, CodingSchemeDesignator="UCUM", CodeMeaning=unit)
    reach = {"RealWorldValueFirstValueMapped": 0, "RealWorldValueLastValueMapped": 99}
    one = item(**line, **reach, LUTLabel="a", MeasurementUnitsCodeSequence=unit_of)
    frame.RealWorldValueMappingSequence = one * (1 + others)
    frame.pop("PixelValueTransformationSequence", None)


def test_real_world_values_count_where_they_are_all_there_is_as_highdicom_has_it(tmp_path):
    hd = pytest.importorskip("highdicom")
    volume = read_series(save(tmp_path / "p1", enhanced(stack(), range(4), mapped)))
    assert np.array_equal(volume.array, stack().transpose(1, 0, 2) * (np.arange(4) + 0.5) + 10 * np.arange(4))
    theirs = hd.imread(tmp_path / "p1" / "000.dcm").get_frame(4, apply_real_world_transform=True)
    assert np.array_equal(volume.array[:, :, 3], theirs.T)
    both = enhanced(stack(), range(4), RealWorldValueMappingSequence=item(RealWorldValueSlope=7.0))
    assert np.array_equal(
        read_series(save(tmp_path / "p2", both)).array, stack().transpose(1, 0, 2) * [1, 2, 3, 4] - [0, 3, 6, 9]
    )


def test_real_world_values_may_be_hounsfield_units(tmp_path):
    frames = enhanced(stack(), range(4), partial(mapped, unit="[hnsf'U]"), Modality="CT")
    assert read_series(save(tmp_path / "p1", frames)).warnings == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [(partial(mapped, others=1), "2 kinds"), (partial(mapped, RealWorldValueLUTData=[0.0, 2.0]), "a table")],
)
def test_real_world_values_of_several_kinds_are_refused(tmp_path, change, message):
    with pytest.raises(
        ValueError, match=rf"000\.dcm: .*but {message} in RealWorldValueMappingSequence; write one slope"
    ):
        read_series(save(tmp_path / "p1", enhanced(stack(), range(4), change)))


@pytest.mark.parametrize("kind", [pydicom.uid.EnhancedMRImageStorage, CAPTURE])
def test_files_of_frames_that_make_one_stack_are_one_volume_without_dicom_results(tmp_path, kind):
    slices = stack(4)
    parts = [
        enhanced(slices, [2, 3], SOPClassUID=kind),
        enhanced(slices, [0, 1], SOPInstanceUID="1.2", SOPClassUID=kind),
    ]
    folder = save(tmp_path / "p1", [part[0] for part in parts])
    volume = read_series(folder)
    assert np.array_equal(volume.array, slices.transpose(1, 0, 2) * [1, 2, 1, 2] - [0, 3, 0, 3])
    results, said = dicom_results(
        str(folder), volume.affine, volume.array, volume.array, classes=("none", "a"), codes=DicomCodes("a", "1")
    )
    assert (results, said) == ({}, "no DICOM results: the series is 2 files of frames, and results refer to one")


def test_a_secondary_capture_whose_frames_have_positions_is_no_screenshot(tmp_path):
    volume = read_series(save(tmp_path / "p1", enhanced(stack(), range(4), SOPClassUID=CAPTURE)))
    np.testing.assert_allclose(volume.affine[:3, 2], [0, 2, 1.5], atol=1e-6)


def of_echo(number: int, frame: Any) -> None:
    frame.MREchoSequence = item(EffectiveEchoTime=10.0 + number % 2)


def of_time(number: int, frame: Any) -> None:
    frame.FrameContentSequence = item(TemporalPositionIndex=number // 4 + 1)


def of_kind(number: int, frame: Any) -> None:
    frame.MRImageFrameTypeSequence = item(FrameType=["ORIGINAL", "PRIMARY", "MP"[number // 4], "NONE"])


def turned(number: int, frame: Any) -> None:
    if number == 2:
        frame.PlaneOrientationSequence = item(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])


def raw(number: int, frame: Any) -> None:
    if number == 1:
        del frame.PixelValueTransformationSequence


APART = "all are frames of one file: write each {} into a NIfTI file of its own"
VOLUMES = rf"2 slices at each of 4 positions \(4D\), with different values: 2 of {{}}; {APART.format('volume')}"
REFUSED = {
    "two echoes": ([0, 0, 1, 1, 2, 2, 3, 3], of_echo, VOLUMES.format("EffectiveEchoTime")),
    "two times": ([0, 1, 2, 3, 0, 1, 2, 3], of_time, VOLUMES.format("TemporalPositionIndex")),
    "magnitude and phase": ([0, 1, 2, 3, 0, 1, 2, 3], of_kind, VOLUMES.format("FrameType")),
    "two orientations": ([0, 1, 2, 3], turned, rf"orientation .* frame 1, but .* frame 3; {APART.format('kind')}"),
    "a raw frame": ([0, 1, 2, 3], raw, rf"frame 1 and 000.dcm frame 2 differ in rescale .*; {APART.format('kind')}"),
    "a frame missing": ([0, 1, 3], None, r"1 slice\(s\) missing .* between 000.dcm frame 2 and 000.dcm frame 3"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_frames_that_are_no_even_stack_are_refused_with_what_to_do(tmp_path, kind):
    order, change, message = REFUSED[kind]
    folder = save(tmp_path / "p1", enhanced(stack(), order, *([change] if change else [])))
    with pytest.raises(ValueError, match=message):
        read_series(folder)


def test_frames_without_positions_of_their_own_are_refused(tmp_path):
    place = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": list(OBLIQUE)}  # of which frame?
    groups: dict[str, list] = {"PerFrameFunctionalGroupsSequence": [], "SharedFunctionalGroupsSequence": []}
    slices = enhanced(stack(), [3, 2, 1, 0], Modality="NM", **groups, **place)
    with pytest.raises(ValueError, match=r"no image \(Modality NM\) has ImagePositionPatient"):
        read_series(save(tmp_path / "p1", slices))
