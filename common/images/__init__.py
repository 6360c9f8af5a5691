"""Images in the world: read from NIfTI, DICOM and pictures, placed by one rule, written where they came from."""

from .dicom_codes import DicomCodes
from .dicom_output import dicom_results, write_dicom
from .geometry import LPS_TO_RAS, check_affine, check_one_grid, corners, in_axes_of, nifti_affine
from .pictures import is_picture, read_picture, write_heat_picture, write_mask_picture, write_raw_picture
from .reading import is_dicom, mask_on_grid, on_grid, read_grid, read_labels, read_mask, read_volume
from .tensors import (
    as_array,
    axial,
    file_of,
    filled_slices,
    like_image,
    meta_tensor,
    spacing_of,
    tensor_bytes,
    window_pads,
)
from .volume import Volume
from .writing import write_nifti

__all__ = [
    "LPS_TO_RAS",
    "DicomCodes",
    "Volume",
    "as_array",
    "axial",
    "check_affine",
    "check_one_grid",
    "corners",
    "dicom_results",
    "file_of",
    "filled_slices",
    "in_axes_of",
    "is_dicom",
    "is_picture",
    "like_image",
    "mask_on_grid",
    "meta_tensor",
    "nifti_affine",
    "on_grid",
    "read_grid",
    "read_labels",
    "read_mask",
    "read_picture",
    "read_volume",
    "spacing_of",
    "tensor_bytes",
    "window_pads",
    "write_dicom",
    "write_heat_picture",
    "write_mask_picture",
    "write_nifti",
    "write_raw_picture",
]
