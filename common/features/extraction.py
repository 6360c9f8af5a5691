"""Features of volumes: bags of slices, and the extraction of many cases into a store."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..encoders import Encoder
from ..engines import CaseDataset
from ..files import NotWritten, write_json
from .fingerprint import describe
from .store import Entry, EntryLocked, FeatureStore, case_files, content_key, file_key

logger = logging.getLogger(__name__)


def bag_of(image: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """The slices of a volume that hold some of the organ.

    Args:
        image: preprocessed, `[C + 1, H, W, D]`, the last channel the organ (above 0.5).

    Returns:
        Slices `[N, C, H, W]`, organ `[N, 1, H, W]` (0 or 1), and the N positions along the last axis.
    """
    slices = torch.as_tensor(image).as_subclass(Tensor).permute(3, 0, 1, 2)
    organ = slices[:, -1:] > 0.5
    indices = torch.nonzero(organ.flatten(1).any(1)).flatten()
    return slices[indices, :-1].contiguous(), organ[indices].float(), indices.tolist()


def volume_entry(
    image: Tensor,
    encoder: Encoder,
    store: FeatureStore,
    *,
    batch_size: int = 16,
    chunk: int = 32,
    progress: bool = False,
    about: dict[str, Any] | None = None,
) -> Entry:
    """The entry of a preprocessed volume, found by its content, or computed and stored.

    Args:
        image: see `bag_of`.
        encoder, store, batch_size, chunk, progress, about: see `FeatureStore.compute`.

    Raises:
        EntryLocked, ValueError, NotWritten: see `FeatureStore.compute`.
    """
    image = torch.as_tensor(image).as_subclass(Tensor)
    key = content_key(encoder.fingerprint, image)
    entry = store.get(key)
    if entry is not None:
        return entry
    slices, organ, indices = bag_of(image)
    about = {"indices": indices, "volume": list(image.shape[1:]), **(about or {})}
    options: dict[str, Any] = {"batch_size": batch_size, "chunk": chunk, "progress": progress, "about": about}
    return store.compute(key, slices, encoder, inside=encoder.coverage(organ), **options)


def find(case: dict, preprocessing: Callable, encoder: Encoder, store: FeatureStore) -> Entry | None:
    """The entry of a case, found by its files without preprocessing them; None where there is none yet.

    Args:
        case: as a datalist has it.
        preprocessing: see `extract`.
    """
    return store.get(store.resolve(_alias(case, describe(preprocessing), encoder.fingerprint)))


def _alias(case: dict, preprocessing: str, fingerprint: str) -> str:
    return file_key(fingerprint, case_files(case), preprocessing)


class _Inputs(Dataset):
    """What extraction needs of each case: the entry's key where it is there, else the preprocessed image."""

    def __init__(self, cases: Sequence[dict], preprocessing: Callable, store: FeatureStore, fingerprint: str) -> None:
        # Masks do not decide on features, so they are not even opened.
        self.cases = [{key: value for key, value in case.items() if key != "label"} for case in cases]
        self.preprocessed = CaseDataset(self.cases, preprocessing)
        self.store = store
        self.fingerprint = fingerprint
        self.preprocessing = describe(preprocessing)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            alias = _alias(self.cases[index], self.preprocessing, self.fingerprint)
            found = self.store.get(self.store.resolve(alias))
        except (OSError, ValueError) as error:
            return {"index": index, "error": f"{type(error).__name__}: {error}"}
        if found is not None:
            return {"index": index, "found": found.about["key"]}
        case = self.preprocessed[index]
        if "error" in case:
            return {"index": index, "error": case["error"]}
        image = torch.as_tensor(case["image"]).as_subclass(Tensor)
        return {"index": index, "alias": alias, "image": image, "warnings": str(case.get("warnings") or "")}


def _same(item: Any) -> Any:
    return item


def extract(
    cases: Sequence[dict],
    preprocessing: Callable,
    encoder: Encoder,
    store: FeatureStore,
    *,
    batch_size: int = 16,
    chunk: int = 32,
    device: torch.device | str = "cpu",
    subset: Sequence[str] | None = None,
    skip_errors: bool = True,
    num_workers: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Compute the features of all cases that are not in the store yet.

    It may be interrupted at any time, and started twice to share the work: each process skips what the other is at,
    and comes back to it. Writes `features.json`, the record of the run, beside the entries.

    Args:
        cases: as a datalist has them.
        preprocessing: gives `image`, `[C + 1, H, W, D]`, values in [0, 1], the last channel the organ; deterministic.
        encoder: what to compute.
        store: where to.
        batch_size, chunk: slices per forward, and per file.
        device: where to compute.
        subset: names of the cases to take; None: all.
        skip_errors: go on after a bad case; otherwise it ends the run.
        num_workers: processes that load the next cases meanwhile.
        progress: show a progress bar with the time left.

    Returns:
        The record: `found`, `computed` (names), `failed` (name: reason), `keys` (name: key in the store), `bytes`,
        `seconds`, `encoder` …

    Raises:
        RuntimeError: (after all others are done) some cases failed; the message lists them with the reasons.
        NotWritten: the disk is full.
        ValueError: `subset` names a case that there is not, the preprocessing is random, or it is one of slides.
    """
    if hasattr(preprocessing, "recipe"):  # a tiler
        raise ValueError(
            "features.json is for volumes. Features of slides are kept by a run that needs them: wsi_inference.json "
            "with --store_dir FOLDER, or a training (train.json, wsi.json)"
        )
    if subset is not None:
        if unknown := sorted(set(subset) - {case["case"] for case in cases}):
            raise ValueError(f"there are no cases {unknown}; the first of {len(cases)}: {cases[0]['case']}")
        cases = [case for case in cases if case["case"] in subset]
    encoder = encoder.to(device)
    inputs = _Inputs(cases, preprocessing, store, encoder.fingerprint)
    work = {"batch_size": batch_size, "chunk": chunk, "progress": progress}
    run = _Run(inputs, encoder, store, work, skip_errors)
    start = time.perf_counter()
    try:
        with tqdm(total=len(cases), desc="features", unit="case", disable=not progress) as bar:
            # Only names and tensors come from the workers, so that nothing of theirs needs collating.
            run.take_all(DataLoader(inputs, batch_size=None, collate_fn=_same, num_workers=num_workers), bar)
            while run.later:
                time.sleep(1.0)
                run.take_all((inputs[index] for index in run.later.copy()), bar)
        run.record["finished"] = True
    finally:
        run.record["seconds"] = round(time.perf_counter() - start, 2)
        run.record["options"] = {"batch_size": batch_size, "chunk": chunk, "device": str(device)}
        run.write()
    if describe(preprocessing) != inputs.preprocessing:
        logger.warning("the preprocessing changes its settings as it runs: features will be found by content only")
    if failed := run.record["failed"]:
        lines = "\n".join(f"  {name}: {reason}" for name, reason in failed.items())
        raise RuntimeError(f"{len(failed)} of {len(cases)} cases failed:\n{lines}")
    return run.record


class _Run:
    """One extraction: what was done, and what is to be tried again."""

    def __init__(
        self, inputs: _Inputs, encoder: Encoder, store: FeatureStore, work: dict[str, Any], skip_errors: bool
    ) -> None:
        self.inputs, self.encoder, self.store, self.work, self.skip_errors = inputs, encoder, store, work, skip_errors
        self.later: list[int] = []
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.record: dict[str, Any] = {"started": now, "finished": False, "cases": len(inputs), "bytes": 0}
        self.record |= {"found": [], "computed": [], "failed": {}, "keys": {}}
        self.record |= {
            "encoder": encoder.options,
            "fingerprint": encoder.fingerprint,
            "preprocessing": inputs.preprocessing,
        }

    def take_all(self, items: Iterable[dict[str, Any]], bar: tqdm) -> None:
        for item in items:
            index = item["index"]
            name = self.inputs.cases[index]["case"]
            if index in self.later:
                self.later.remove(index)
            try:
                self._take(item, name)
            except EntryLocked:
                self.later.append(index)
                continue
            except NotWritten:
                raise
            except Exception as error:
                if not self.skip_errors:
                    raise
                reason = item.get("error") or f"{type(error).__name__}: {error}"
                self.record["failed"][name] = reason
                logger.error("case %s failed and is skipped: %s", name, reason)
            bar.update()

    def _take(self, item: dict[str, Any], name: str) -> None:
        if "error" in item:
            raise ValueError(item["error"])
        if "found" in item:
            entry = self.store.open(item["found"])
            self._say(name, entry.about.get("warnings"))
            self.record["found"].append(name)
        else:
            case = self.inputs.cases[item["index"]]
            self._say(name, item["warnings"])
            about = {"case": name, "files": [Path(path).name for path in case_files(case)]}
            about |= {"warnings": item["warnings"]} if item["warnings"] else {}
            entry = volume_entry(item["image"], self.encoder, self.store, about=about, **self.work)
            self.store.set_alias(item["alias"], entry.about["key"])
            self.record["computed"].append(name)
        self.record["keys"][name] = entry.about["key"]
        self.record["bytes"] += entry.about["bytes"]
        if self.work["progress"] and len(self.record["found"]) + len(self.record["computed"]) == 1:
            size, cases = entry.about["bytes"] / 2**20, len(self.inputs)
            tqdm.write(f"{name}: {len(entry)} slices, {size:.1f} MB; {cases} cases like it: {size * cases:.0f} MB")

    @staticmethod
    def _say(name: str, warnings: str | None) -> None:
        if warnings:
            logger.warning("case %s: %s", name, warnings)

    def write(self) -> None:
        record = self.record
        # A full disk has no room for it, and should not hide what came before.
        with contextlib.suppress(NotWritten):
            write_json(self.store.root / "features.json", record)
        done = len(record["found"]) + len(record["computed"])
        mean = record["bytes"] / 2**20 / max(done, 1)
        print(
            f"{self.store.root}: {len(record['computed'])} cases computed, {len(record['found'])} found, "
            f"{len(record['failed'])} failed; {record['bytes'] / 2**20:.1f} MB, {mean:.1f} MB a case"
        )
