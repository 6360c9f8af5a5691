"""Attributes of a frame, wherever a DICOM file keeps them: functional groups of frames, shared ones, the file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset

HOUNSFIELD = "[hnsf'U]"  # their code among units of measurement (UCUM)


class Lookup:
    """An attribute of a frame: of its own functional groups, of the shared ones, or of the file.

    Of the file only where it has one frame, unless `shared`: one position cannot be that of many frames.
    """

    def __init__(self, data: Dataset, own: Dataset | None, count: int) -> None:
        self.data, self.count = data, count
        shared = data.get("SharedFunctionalGroupsSequence")
        self.groups = [group for group in (own, *(shared or ())) if group is not None]

    def __call__(self, group: str, name: str, *, shared: bool = False) -> Any:
        for groups in self.groups:
            items = groups.get(group)
            if items and items[0].get(name) is not None:
                return items[0].get(name)
        return self.data.get(name) if self.count == 1 or shared else None

    def items(self, sequence: str) -> Sequence[Dataset]:
        """Of a sequence that is a functional group, or stands in the file itself."""
        found = (groups.get(sequence) for groups in (*self.groups, self.data))
        return next((items for items in found if items), ())


def floats(value: Any, length: int) -> tuple[float, ...] | None:
    """So many numbers; None where there are others."""
    if value is None or isinstance(value, str) or not hasattr(value, "__len__") or len(value) != length:
        return None
    return tuple(float(v) for v in value)


def number(value: Any) -> float | None:
    """None where a value is missing or empty."""
    return None if value is None or value == "" else float(value)


def whole(value: Any) -> int | None:
    """None where a value is missing or empty."""
    return None if value is None or value == "" else int(value)


def rescale_of(rescale: Lookup) -> tuple[float | None, float | None, str]:
    """Slope, intercept and unit of what makes values of what a frame stores; None where nothing does.

    The modality's rescale, which viewers show, and ITK and pydicom read. Real-world values, which the standard keeps
    beside it (PS3.3, C.7.6.16.2.11), count where they are all there is: frames may have other slopes each.

    Raises:
        ValueError: an intercept without a slope, or real-world values alone, of several kinds or by a table.
    """
    group = "PixelValueTransformationSequence"
    slope, intercept = (number(rescale(group, name)) for name in ("RescaleSlope", "RescaleIntercept"))
    if slope is None and intercept:
        raise ValueError(
            f"RescaleIntercept {intercept:g} without RescaleSlope; write the slope, as a rule 1, beside it"
        )
    if slope is not None or "ModalityLUTSequence" in rescale.data:
        return slope, intercept, str(rescale(group, "RescaleType") or "")
    mappings = rescale.items("RealWorldValueMappingSequence")
    if not mappings:
        return None, None, ""
    slope = number(mappings[0].get("RealWorldValueSlope"))
    if len(mappings) > 1 or slope is None:
        kind = f"{len(mappings)} kinds" if len(mappings) > 1 else "a table"
        raise ValueError(f"no RescaleSlope, but {kind} in RealWorldValueMappingSequence; write one slope and intercept")
    units = mappings[0].get("MeasurementUnitsCodeSequence")
    unit = str(units[0].get("CodeValue") or "") if units else ""
    return slope, number(mappings[0].get("RealWorldValueIntercept")), "HU" if unit == HOUNSFIELD else unit
