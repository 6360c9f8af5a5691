"""What results are called in DICOM: coded terms, and who made them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import PathLike

Code = Sequence[str]  # value, coding scheme, meaning: ["12738006", "SCT", "Brain"]
ABNORMAL: Code = ("49755003", "SCT", "Morphologically Abnormal Structure")  # CID 7150, categories of a property
LESION: Code = ("52988006", "SCT", "Lesion")


@dataclass(frozen=True)
class DicomCodes:
    """What a bundle's results are called in DICOM.

    Args:
        name: of the algorithm.
        version: of it.
        anatomy: code of the body part; None: not said.
        findings: code by class name; a class without one is a lesion. One that is no abnormal structure is given as
            two, category and type: `{"prostate": [["91723000", "SCT", "Anatomical Structure"], ["41216001", …]]}`.

    Raises:
        ValueError: a code is not three texts.
    """

    name: str
    version: str
    anatomy: Code | None = None
    findings: Mapping[str, Code | Sequence[Code]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [] if self.anatomy is None else [("anatomy", self.anatomy)]
        for name in self.findings:
            given += [(f"findings.{name}", code) for code in self.finding(name)]
        for name, code in given:
            if len(code) != 3 or not all(isinstance(part, str) for part in code):
                raise ValueError(
                    f'{name}: a code is three texts, value, scheme and meaning, e.g. ["12738006", "SCT", "Brain"]; '
                    f"got {code!r}"
                )

    @classmethod
    def of_bundle(cls, bundle_root: PathLike, **codes: Any) -> DicomCodes:
        """Those of a bundle, with the name of its folder and the version in its `configs/metadata.json`."""
        metadata = json.loads((Path(bundle_root) / "configs" / "metadata.json").read_text(encoding="utf-8"))
        return cls(Path(bundle_root).resolve().name, metadata["version"], **codes)

    def finding(self, name: str) -> tuple[Code, Code]:
        """Category and type of a class."""
        code: Any = self.findings.get(name, LESION)
        category, kind = code if len(code) == 2 else (ABNORMAL, code)
        return category, kind
