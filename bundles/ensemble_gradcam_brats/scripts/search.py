"""The threshold grid over all tuples of members, and the search for members and combination.

Source: Ostrowski et al., arXiv:2303.07896, Sec. 2.3 and Appendix E (grid on training cases); the choice of members and
combination on validation cases goes beyond the paper.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib.figure
import numpy as np
from monai.transforms import ResampleToMatch

from common.files import atomic_path, write_csv, write_json
from common.handlers import CaseHandler
from common.images import as_array
from common.masks import gate_slices
from common.metrics import dice_from_counts, miou_from_counts

from .combine import HARD, SOFT, MemberMaps

LEVELS = tuple(np.round(np.arange(0, 1.01, 0.1), 1).tolist())
Counts = dict[str, np.ndarray]  # "predicted" and "hits" [K, …, K], "truth" and "size" [1]


def grid_counts(
    maps: np.ndarray, truth: np.ndarray, *, how: str, levels: Sequence[float] = LEVELS, gated: np.ndarray | None = None
) -> Counts:
    """Voxel counts of a combination at every tuple of thresholds, without building a mask for any of them.

    A joint histogram of the members' levels holds all that `or` and `and` need (cumulative sums along its axes); `min`
    and `max` need each member's counts by slice. One pass over the voxels in place of one for each of K^N tuples.

    Args:
        maps: `[N, H, W, D]` in [0, 1].
        truth: `[H, W, D]` bool.
        how: see `combine`.
        levels: K ascending thresholds.
        gated: `[D]` bool, slices that may hold a mask; None for all.

    Returns:
        `predicted` and `hits` (predicted and true) with one axis of K per member, a single one for `mean` and
        `product`; `truth` and `size`, the number of true and of all voxels.
    """
    if how in SOFT:
        maps = (maps.mean(axis=0) if how == "mean" else maps.prod(axis=0))[None]
    members, bins = len(maps), len(levels) + 1
    shown = slice(None) if gated is None else gated
    maps, true = maps[..., shown], truth[..., shown]
    totals = {"truth": np.array(truth.sum()), "size": np.array(truth.size)}
    inside = (maps > levels[0]).any(axis=0)  # elsewhere no tuple predicts anything
    # q = number of levels below the value, so that value > levels[k] where q > k.
    q = np.searchsorted(np.asarray(levels, dtype=maps.dtype), maps[:, inside], side="left")
    if how in ("min", "max"):
        return totals | _of_one_member(q, np.nonzero(inside)[-1], true[inside], bins, fewest=how == "min")
    joint = np.ravel_multi_index(tuple(q), (bins,) * members)
    result = {}
    for name, chosen in (("predicted", slice(None)), ("hits", true[inside])):
        counts = np.bincount(joint[chosen], minlength=bins**members).reshape((bins,) * members)
        if how == "or":  # all but those at or below every threshold
            below = counts
            for axis in range(members):
                below = below.cumsum(axis)
            result[name] = counts.sum() - below[(slice(0, -1),) * members]
        else:
            for axis in range(members):
                counts = _from_above(counts, axis)
            result[name] = counts[(slice(1, None),) * members]
    return totals | result


def _from_above(counts: np.ndarray, axis: int) -> np.ndarray:
    return np.flip(np.flip(counts, axis).cumsum(axis), axis)


def _of_one_member(q: np.ndarray, z: np.ndarray, true: np.ndarray, bins: int, *, fewest: bool) -> Counts:
    """Counts where each slice takes the mask of the member with the fewest (or most) positive pixels.

    Args:
        q: levels `[N, voxels]`.
        z: slice of each voxel.
        true: whether each voxel is.
        bins: number of levels and one.
        fewest: or most.
    """
    members, depth = len(q), int(z.max(initial=-1)) + 1
    predicted, hits = [], []
    for i in range(members):
        # Member i's counts vary along its own axis of thresholds only: [depth, 1, …, K, …, 1].
        shape = (depth, *(bins - 1 if axis == i else 1 for axis in range(members)))
        for part, chosen in ((predicted, slice(None)), (hits, true)):
            index = np.ravel_multi_index((z[chosen], q[i][chosen]), (depth, bins))
            by_level = np.bincount(index, minlength=depth * bins).reshape(depth, bins)
            spread = _from_above(by_level, 1)[:, 1:].reshape(shape)
            part.append(np.broadcast_to(spread, (depth, *(bins - 1,) * members)))
    sizes = np.stack(predicted)
    chosen = (sizes.argmin(axis=0) if fewest else sizes.argmax(axis=0))[None]
    of_chosen = (np.take_along_axis(part, chosen, axis=0)[0].sum(axis=0) for part in (sizes, np.stack(hits)))
    return dict(zip(("predicted", "hits"), of_chosen, strict=True))


def grid_scores(cases: Sequence[Counts], objective: str = "dice") -> np.ndarray:
    """Score of every tuple of thresholds over cases.

    Args:
        cases: as `grid_counts` gives them, all of one combination.
        objective: `dice` (mean foreground Dice of cases with a lesion) or `miou` (the paper: voxels of all cases
            pooled, mean of background and foreground IoU).

    Returns:
        The shape of `predicted`.
    """
    if objective == "dice":
        lesions = [dice_from_counts(c["hits"], c["predicted"], c["truth"]) for c in cases if c["truth"] > 0]
        if not lesions:
            raise ValueError("no case has a mask of a lesion: the thresholds that mark nothing would be the best")
        return np.mean(lesions, axis=0)
    if objective != "miou":
        raise ValueError(f"objective must be 'dice' or 'miou', got {objective!r}")
    hits, predicted, truth, size = (sum(c[k] for c in cases) for k in ("hits", "predicted", "truth", "size"))
    return miou_from_counts(hits, predicted, truth, size)


def best_thresholds(scores: np.ndarray, levels: Sequence[float] = LEVELS) -> tuple[list[float], tuple[int, ...]]:
    """The tuple with the highest score; at a tie the one that comes first, i.e. with the lowest thresholds.

    Returns:
        Thresholds, and their indices.
    """
    index = np.unravel_index(int(np.argmax(np.round(scores, 12))), scores.shape)
    return [float(levels[i]) for i in index], tuple(int(i) for i in index)


class EnsembleSearch(CaseHandler):
    """Handler: fit thresholds on training cases, choose members and combination on validation cases.

    Every member alone, and every combination of two members or more, gets the thresholds that score best on the cases
    named in `fit_cases`, under each intensity mask; the best of them on the other cases is chosen. The evaluator must
    have no postprocessing.
    Written: `search.csv` (every candidate), `threshold_grid.png` (the grid of `and` for each pair, Appendix E), and
    `calibrated.json`, a config that overrides `inference.json` and `evaluate.json`: the choice, and under `table` the
    best of every member and of every combination of all members, as rows of the paper's Table 1, and the choice again
    (scored there without refinement).

    Args:
        output_dir: where the files go.
        names: of the members; the second of a name is called `<name>_2`.
        fit_cases: names of the cases on which thresholds are fitted.
        classes: number of classes.
        objective: see `grid_scores`.
        within: `scan`, or `organ`: voxels of slices without organ are not counted, as where a paper cuts them off.
        gate: as in `MapsToMaskd`.
        levels: thresholds to try.
        intensity_masks: to try, see `MemberMaps`.
        maps: other options of `MemberMaps`.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        names: Sequence[str],
        fit_cases: Sequence[str],
        classes: int = 2,
        objective: str = "dice",
        within: Literal["scan", "organ"] = "scan",
        gate: float | None = 0.5,
        levels: Sequence[float] = LEVELS,
        intensity_masks: Sequence[float | None] = (None,),
        maps: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(output_dir)
        self.names = distinct(names)
        self.fit_cases = set(fit_cases)
        self.classes = classes
        self.objective = objective
        self.within = within
        self.gate = gate
        self.levels = list(levels)
        self.maps = {mask: MemberMaps(**{**(maps or {}), "intensity_mask": mask}) for mask in intensity_masks}
        self.candidates = [
            {**candidate, "intensity_mask": mask} for mask in self.maps for candidate in candidates(len(self.names))
        ]

    def _collect(self, batch: dict, output: dict, engine: Any) -> None:
        image = batch["image"].cpu()
        truth = as_array(ResampleToMatch(mode="nearest")(batch["label"].cpu(), image))[0] > 0
        counted = slice(None) if self.within == "scan" else as_array(image)[-1].any(axis=(0, 1))
        seen = {k: maps(as_array(output["pred"]), as_array(image), self.classes) for k, maps in self.maps.items()}
        counts = []
        for candidate in self.candidates:
            maps, probability = seen[candidate["intensity_mask"]]
            members = maps[list(candidate["use"])][..., counted]
            gated = gate_slices(probability, self.gate)[counted] > 0
            counts.append(
                grid_counts(members, truth[..., counted], how=candidate["how"], levels=self.levels, gated=gated)
            )
        self.rows.append({"case": batch["case"], "counts": counts})

    def _counts(self, number: int, *, fit: bool) -> list[Counts]:
        """Of a candidate, by case: of those on which thresholds are fitted, or of the others."""
        return [row["counts"][number] for row in self.rows if (row["case"] in self.fit_cases) == fit]

    def _check(self) -> None:
        if not (self._counts(0, fit=True) and self._counts(0, fit=False)):
            raise RuntimeError("the search needs cases with masks in both the training and the validation section")

    def _write(self) -> None:
        rows, grids = [], []
        for number, candidate in enumerate(self.candidates):
            fit = grid_scores(self._counts(number, fit=True), self.objective)
            thresholds, index = best_thresholds(fit, self.levels)
            unseen = grid_scores(self._counts(number, fit=False), self.objective)[index]
            grids.append(fit)
            rows.append(
                {
                    "members": "+".join(self.names[i] for i in candidate["use"]),
                    "how": candidate["how"] if len(candidate["use"]) > 1 else "",
                    "intensity_mask": candidate["intensity_mask"],
                    "thresholds": " ".join(map(str, thresholds)),
                    f"training_{self.objective}": round(float(fit[index]), 4),
                    f"validation_{self.objective}": round(float(unseen), 4),
                }
            )
            candidate["thresholds"] = thresholds
        scores = [row[f"validation_{self.objective}"] for row in rows]
        chosen = self.candidates[int(np.argmax(scores))]
        result = {"use": chosen["use"], "combine": chosen["how"], "thresholds": chosen["thresholds"]}
        result |= {"intensity_mask": chosen["intensity_mask"], "table_gate": self.gate}
        result["normalize_maps"] = next(iter(self.maps.values())).normalize
        alike = [c for c in self.candidates if c["intensity_mask"] == chosen["intensity_mask"]]
        table = self._table(alike) | {"chosen": _row(chosen)}
        write_csv(self.output_dir / "search.csv", rows)
        write_json(self.output_dir / "calibrated.json", {**result, "table": table})
        self._plot([(c, g) for c, g in zip(self.candidates, grids, strict=True) if c in alike])
        print(f"{self.objective} on validation cases: {max(scores):.4f} with {json.dumps(result)}")

    def _table(self, alike: Sequence[dict]) -> dict[str, dict]:
        """Each member alone, and each combination of all members."""
        return {
            self.names[c["use"][0]] if len(c["use"]) == 1 else c["how"]: _row(c)
            for c in alike
            if len(c["use"]) in (1, len(self.names))
        }

    def _plot(self, grids: Sequence[tuple[dict, np.ndarray]]) -> None:
        chosen = [(c, g) for c, g in grids if c["how"] == "and" and g.ndim == 2]
        if not chosen:
            return
        figure = matplotlib.figure.Figure(figsize=(4.2 * len(chosen), 4), layout="constrained")
        for axis, (candidate, grid) in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
            picture = axis.imshow(grid, origin="lower", cmap="viridis")
            first, second = (self.names[i] for i in candidate["use"])
            axis.set(xlabel=f"threshold of {second}", ylabel=f"threshold of {first}", title=f"and, {self.objective}")
            ticks = range(0, len(self.levels), 2)
            axis.set_xticks(ticks, [self.levels[i] for i in ticks])
            axis.set_yticks(ticks, [self.levels[i] for i in ticks])
            figure.colorbar(picture, ax=axis, shrink=0.8)
        with atomic_path(self.output_dir / "threshold_grid.png") as path:
            figure.savefig(path, dpi=100)


def _row(candidate: Mapping[str, Any]) -> dict[str, Any]:
    return {key: candidate[key] for key in ("use", "how", "thresholds")}


def distinct(names: Sequence[str]) -> list[str]:
    """Names that tell members apart: the second of a name is `<name>_2`, the third `<name>_3`."""
    return [f"{n}_{names[: i + 1].count(n)}" if n in names[:i] else n for i, n in enumerate(names)]


def candidates(members: int) -> list[dict[str, Any]]:
    """Every member alone (as `and` of one), and every combination of every subset of two or more."""
    subsets = [list(s) for n in range(1, members + 1) for s in itertools.combinations(range(members), n)]
    return [{"use": s, "how": how} for s in subsets for how in (HARD + SOFT if len(s) > 1 else ("and",))]
