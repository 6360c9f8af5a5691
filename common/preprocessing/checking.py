"""Each case against what its weights saw in training, which is kept beside them: `model.json` for `model.pt`."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..checkpoint import read_beside
from ..engines import running_config
from ..engines.weights import check_trained, misplaced, sees_native_pixels
from ..files import PathLike
from ..images import as_array, file_of, spacing_of
from .channels import compare_names
from .seen import Description, describe_case
from .strange import compare
from .windows import OutsideWindow, outside_window

logger = logging.getLogger(__name__)


def read_seen(
    ckpt: PathLike,
    *,
    check_range: bool = True,
    datalist: PathLike | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What weights saw in training, from the `.json` of the same name beside them.

    Args:
        ckpt: the weights.
        check_range: whether a case that certainly does not fit is an error; else a warning.
        datalist: file whose `modalities` are compared with the names of the channels in training.
        settings: what the weights depend on, as this config has it. It is held against their training where no run of
            MONAI leads here: a run has taken what they were trained with, but for what its command says, and a server
            takes all from its config.

    Returns:
        For `CheckSeend`: a description, see `common.preprocessing.strange`, `check_range`, and under `names` what
        is doubtful about the modalities; empty, with a line in the console, where the file does not exist or does
        not say.

    Raises:
        ValueError: the file is no JSON, the datalist has the channels in another order, or a server's config has other
            settings than the training.
    """
    content = read_beside(ckpt)
    names = [] if running_config()[0] else check_trained(ckpt, settings or {}, refuse=check_range)
    if "seen" not in content:
        path = Path(ckpt).with_suffix(".json")
        logger.warning("%s does not say what the weights saw in training: images are not compared with it", path)
        return {}
    seen = content["seen"] | {"native_pixels": sees_native_pixels(content.get("trained", {}))}
    modalities = listed_modalities(datalist or None)
    if modalities is not None and len(modalities) == len(seen["channels"]):
        errors, doubts = compare_names(modalities, seen["channels"])
        if errors and check_range:
            raise ValueError(f"{datalist}: {errors[0]}; --check_range false goes on")
        names += errors + doubts
    return {**seen, "check_range": check_range, "names": names}


class CheckSeend(MapTransform):
    """Compare a case with what the weights saw in training; in training, note what they see. Images stay as they are.

    Belongs after the organ mask and before intensities are scaled. What is unlike, but may be right, is added to the
    text under `warnings`.

    Args:
        keys: one image key, `[C, H, W, D]`, axial slices along the last axis.
        seen: of `read_seen`; empty: nothing is compared; None, in training: cases are described and kept for
            `SeenWriter`.
        window: `[low, high]` that a later transform scales to [0, 1]; None where the organ's own intensities scale.
        organ_key: the organ mask.

    Attributes:
        described: description of each case by its name, where `seen` is None.

    Raises:
        ValueError: the case certainly does not fit, e.g. Hounsfield units where the training had 0 to 255, its first
            channel is called as another one of the training, or, in training, the window; the message names the file.
    """

    only_looks = True  # features and caches of images do not depend on it

    def __init__(
        self,
        keys: KeysCollection,
        *,
        seen: Mapping[str, Any] | None,
        window: Sequence[float] | None = None,
        organ_key: str = "organ",
    ) -> None:
        super().__init__(keys)
        self.seen = seen
        self.window = window
        self.organ_key = organ_key
        self.described: dict[str, Description] = {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            if self.seen is None:
                described = self.describe(data, key)
                if text := outside_window(described, self.window):
                    raise OutsideWindow(
                        f"{file_of(data[key])}: {text}. --skip_outside_window true leaves such cases out"
                    )
                self.described[str(data.get("case"))] = described
            elif self.seen:
                self._compare(data, key)
        return data

    def describe(self, data: Mapping[Hashable, Any], key: Hashable | None = None) -> Description:
        """Of a case that has its organ mask."""
        image = data[self.keys[0] if key is None else key]
        organ = as_array(data[self.organ_key])[0] > 0.5
        spacing = spacing_of(image)
        native = _axial_spacing(image.meta.get("original_affine")) if hasattr(image, "meta") else None
        return describe_case(
            as_array(image), organ, spacing=spacing, native_spacing=native or spacing, window=self.window
        )

    def _compare(self, data: dict[Hashable, Any], key: Hashable) -> None:
        assert self.seen is not None
        errors, warnings = compare(self.describe(data, key), dict(self.seen), window=self.window)
        # An image knows the file of its first channel alone; patterns were held against all as the run began.
        if text := misplaced([file_of(data[key])], self.seen["channels"]):
            errors = [text, *errors]
        if errors and self.seen.get("check_range", True):
            raise ValueError(f"{file_of(data[key])}: {'; '.join(errors)}; --check_range false goes on")
        said = [str(data["warnings"])] if data.get("warnings") else []
        data["warnings"] = "; ".join([*said, *self.seen.get("names", []), *errors, *warnings])


def _axial_spacing(affine: Any) -> list[float] | None:
    """Spacing to the left, to the back and upwards of an image with its axes in any order."""
    if affine is None:
        return None
    affine = np.asarray(affine)
    axes = np.argsort(nib.io_orientation(affine)[:, 0])
    return [float(s) for s in nib.affines.voxel_sizes(affine)[axes]]


def listed_modalities(datalist: PathLike | None) -> list[str] | None:
    """Names of the channels in the file of a datalist; None where it says none."""
    return listed(datalist).get("modalities")


def listed(datalist: PathLike | None) -> dict[str, Any]:
    """What the file of a datalist holds; nothing where there is none."""
    if datalist is None or not Path(datalist).is_file():
        return {}
    return json.loads(Path(datalist).read_text(encoding="utf-8"))
