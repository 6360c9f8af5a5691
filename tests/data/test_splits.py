from __future__ import annotations

from collections import defaultdict
from itertools import chain

import numpy as np
import pytest

from common.data import matched_weights, patient_folds, split_patients, stratified_weights
from common.data.splits import first_that, kinds_of_patients, stratified_split, tells_classes_apart


class TestSplits:
    @pytest.mark.parametrize(
        ("count", "sizes"), [(100, [60, 15, 25]), (82, [49, 12, 21]), (3, [1, 1, 1]), (5, [3, 1, 1])]
    )
    def test_parts_have_their_shares_and_no_patient_twice(self, count, sizes):
        patients = [f"P{i}" for i in range(count)]
        parts = split_patients(patients, seed=3)
        assert [len(part) for part in parts] == sizes
        assert sorted(chain(*parts)) == sorted(patients)

    def test_order_and_repeats_do_not_matter_but_the_seed_does(self):
        patients = [f"P{i}" for i in range(30)]
        assert split_patients(patients, seed=1) == split_patients(patients[::-1] + patients[:9], seed=1)
        assert split_patients(patients, seed=1) != split_patients(patients, seed=2)

    def test_a_share_of_zero_gets_nobody(self):
        assert [len(part) for part in split_patients("abcd", fractions=(0.5, 0.5, 0.0))] == [2, 2, 0]

    @pytest.mark.parametrize("fractions", [(0.5, 0.2, 0.2), (1.2, -0.2, 0.0)])
    def test_fractions_that_are_none_are_refused(self, fractions):
        with pytest.raises(ValueError, match="sum to 1"):
            split_patients("abcd", fractions=fractions)

    def test_too_few_patients_are_refused(self):
        with pytest.raises(ValueError, match=r"2 patient\(s\) cannot fill 3 parts"):
            split_patients(["a", "b", "a"])
        with pytest.raises(ValueError, match=r"number of patients \(2\); got 3"):
            patient_folds(["a", "b"], folds=3)

    @pytest.mark.parametrize(
        ("positives", "negatives", "expected"),
        [(40, 60, [(24, 36), (6, 9), (10, 15)]), (4, 60, [(2, 36), (1, 9), (1, 15)]), (3, 3, [(1, 1)] * 3)],
    )
    def test_each_stratified_part_has_its_share_of_both(self, positives, negatives, expected):
        positive = {f"P{i * 37 % 101}": i < positives for i in range(positives + negatives)}
        parts = stratified_split(positive, seed=2)
        assert sorted(chain(*parts)) == sorted(positive)
        assert [(sum(positive[p] for p in part), sum(not positive[p] for p in part)) for part in parts] == expected
        assert parts == stratified_split(dict(reversed(positive.items())), seed=2) != stratified_split(positive, seed=3)

    def test_patients_of_one_kind_are_split_as_without_strata(self):
        patients = [f"P{i}" for i in range(30)]
        for few in (0, 2):
            assert stratified_split({p: i >= few for i, p in enumerate(patients)}) == split_patients(patients)
        with pytest.raises(ValueError, match=r"2 patient\(s\) cannot fill 3 parts"):
            stratified_split({"a": True, "b": False})

    def test_where_few_have_none_each_part_has_one_with_a_finding_if_that_can_be(self):
        few = {**dict.fromkeys("abcd", True), "z": False}
        for seed in range(20):
            parts = stratified_split(few, seed=seed)
            assert [len(part) for part in parts] == [3, 1, 1]
            assert all(any(few[patient] for patient in part) for part in parts)
        two = {**dict.fromkeys("ab", True), "y": False, "z": False}  # one part must do without
        assert sorted(chain(*stratified_split(two))) == sorted(two)

    def test_one_with_a_finding_who_is_fixed_leaves_those_who_are_drawn_to_the_other_parts(self):
        few = {**dict.fromkeys("abc", True), "y": False, "z": False}
        for seed in range(20):
            parts = stratified_split(few, fractions=(0.4, 0.4, 0.2), seed=seed, fixed={"a": 0})
            assert [len(part) for part in parts] == [2, 2, 1]
            assert "a" in parts[0]
            assert all(any(few[patient] for patient in part) for part in parts)

    def test_of_a_hundred_draws_the_first_that_suits_counts_and_else_the_first_of_all(self):
        for least, expected in ((0, 7), (9, 9), (106, 106), (107, 7)):
            found = first_that(lambda parts, n=least: parts[0][0] >= n, lambda seed: [[seed]], seed=7)
            assert found == [[expected]]

    def test_drawn_patients_fill_up_what_fixed_ones_leave(self):
        positive = {f"P{i:02d}": i % 2 == 0 for i in range(40)}
        fixed = {f"P{i:02d}": 2 for i in range(8)} | {"P10": 0, "P13": 1}
        parts = stratified_split(positive, fixed=fixed)
        assert [len(part) for part in parts] == [24, 6, 10]
        assert [sum(positive[p] for p in part) for part in parts] == [12, 3, 5]
        assert all(patient in parts[k] for patient, k in fixed.items())
        assert stratified_split({"a": True, "b": False}, fixed={"a": 0, "b": 0}) == [["a", "b"], [], []]
        many = stratified_split(positive, fixed={f"P{i:02d}": 2 for i in range(30)})
        assert [len(part) for part in many] == [8, 2, 30]

    @pytest.mark.parametrize(("count", "folds"), [(11, 5), (10, 5), (4, 4)])
    def test_each_patient_is_in_one_fold_and_folds_are_even(self, count, folds):
        patients = [f"P{i}" for i in range(count)]
        dealt = patient_folds(patients[::-1], folds=folds, seed=1)
        assert sorted(chain(*dealt)) == sorted(patients)
        assert len(dealt) == folds
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
        assert dealt == patient_folds(patients, folds=folds, seed=1) != patient_folds(patients, folds=folds, seed=2)

    @pytest.mark.parametrize(("positive", "negative", "folds"), [(7, 5, 3), (8, 4, 4), (5, 5, 2)])
    def test_each_fold_has_its_share_of_both_kinds(self, positive, negative, folds):
        kinds = {f"P{i:02d}": int(i < positive) for i in range(positive + negative)}
        dealt = patient_folds(kinds, folds=folds, kinds=kinds)
        assert sorted(chain(*dealt)) == sorted(kinds)
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
        for kind, count in ((1, positive), (0, negative)):
            held = [sum(kinds[patient] == kind for patient in fold) for fold in dealt]
            assert max(held) - min(held) <= 1
            assert sum(held) == count

    def test_too_few_of_a_kind_or_only_one_are_dealt_as_without_kinds(self):
        ids = [f"P{i}" for i in range(9)]
        for negative in (0, 2):
            kinds = {patient: int(i >= negative) for i, patient in enumerate(ids)}
            assert patient_folds(ids, folds=3, kinds=kinds) == patient_folds(ids, folds=3)


class TestMatchedWeights:
    @pytest.fixture
    def slices(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        positions = rng.uniform(0, 1, 600)
        chance = np.clip(1 - 5 * np.abs(positions - 0.55), 0, 0.9)  # none below 0.35 or above 0.75
        return np.where(rng.uniform(size=600) < chance, rng.integers(1, 3, 600), 0), positions

    def test_negatives_follow_the_positives_position(self, slices):
        cls, positions = slices
        weights = matched_weights(cls, positions, bins=10, floor=0.05)
        edges = np.linspace(0, 1, 11)
        positive = np.histogram(positions[cls > 0], edges, weights=weights[cls > 0])[0]
        negative = np.histogram(positions[cls == 0], edges, weights=weights[cls == 0])[0]
        shared = positive > 0
        assert 3 < shared.sum() < 8  # the example has bins of both kinds
        np.testing.assert_allclose(negative[shared] / 0.95, positive[shared], rtol=0, atol=1e-6)
        assert negative[~shared].sum() == pytest.approx(0.5 * 0.05)

    def test_draws_are_half_positive_in_equal_shares_per_class(self, slices):
        cls, positions = slices
        weights = matched_weights(cls, positions)
        assert [weights[cls == c].sum() for c in (0, 1, 2)] == pytest.approx([0.5, 0.25, 0.25])

    def test_no_floor_is_set_aside_where_every_bin_has_positives(self):
        weights = matched_weights([1, 0, 1, 0, 0], [0.1, 0.1, 0.9, 0.9, 0.9], bins=2)
        np.testing.assert_allclose(weights, [0.25, 0.25, 0.25, 0.125, 0.125])

    def test_without_a_common_bin_all_are_drawn_evenly(self):
        np.testing.assert_allclose(matched_weights([1, 1, 0, 0], [0.1, 0.2, 0.9, 1.0], bins=2), 0.25)

    @pytest.mark.parametrize(
        ("cls", "positions", "message"),
        [
            ([1, 1], [0, 1], "one positive .* and one negative"),
            ([1, 0], [0, 1.1], r"\[0, 1\]"),
            ([1, 0], [0], "equally long"),
        ],
    )
    def test_refuses_what_cannot_be_matched(self, cls, positions, message):
        with pytest.raises(ValueError, match=message):
            matched_weights(cls, positions)


def shares(cases: list[dict], **options) -> list[float]:
    """Probability that each volume is drawn."""
    weights = stratified_weights(cases, [case["positive"] for case in cases], **options)
    return (weights / weights.sum()).tolist()


def total(cases: list[dict], share: list[float], **group) -> float:
    return sum(s for case, s in zip(cases, share, strict=True) if group.items() <= case.items())


def part(patient: str, positive: int, side: str = "left", position: float = 0.5) -> dict:
    return {"case": patient, "patient": patient, "positive": positive, "side": side, "position": position}


# Positives mostly on the left, negatives mostly on the right; patient p has many parts; the upper side has no negative.
PARTS = [
    *(part("p", 1, "left") for _ in range(5)),
    *(part(patient, 1, "left") for patient in "qr"),
    part("q", 1, "right"),
    *(part("p", 0, "right") for _ in range(7)),
    *(part(patient, 0, "right") for patient in "qrs"),
    part("s", 0, "left"),
    *(part("t", 1, "upper") for _ in range(3)),
]


class TestStratifiedWeights:
    @pytest.mark.parametrize("stratify_by", [[], ["side"]])
    def test_positives_and_negatives_are_drawn_alike(self, stratify_by):
        share = shares(PARTS, stratify_by=stratify_by)
        assert total(PARTS, share, positive=1) == pytest.approx(0.5)

    def test_with_strata_no_side_speaks_for_a_label(self):
        share = shares(PARTS, stratify_by=["side"])
        for side in ("left", "right"):
            assert total(PARTS, share, side=side, positive=1) == pytest.approx(
                total(PARTS, share, side=side, positive=0)
            )
            assert total(PARTS, share, side=side) > 0
        assert total(PARTS, share, side="upper") == 0
        free = shares(PARTS)
        assert total(PARTS, free, side="left", positive=1) > 2 * total(PARTS, free, side="left", positive=0)

    def test_patients_weigh_the_same_however_many_parts_they_have(self):
        share = shares(PARTS, stratify_by=["side"])
        groups = defaultdict(dict)
        for case in PARTS:
            group = {key: case[key] for key in ("side", "positive", "patient")}
            groups[case["side"], case["positive"]][case["patient"]] = total(PARTS, share, **group)
        assert len(groups["left", 1]) == 3
        for patients in groups.values():
            assert list(patients.values()) == pytest.approx([next(iter(patients.values()))] * len(patients))

    def test_a_stratum_weighs_as_much_as_its_rarer_class_has_patients(self):
        cases = [part(p, y, "left") for p in "abc" for y in (0, 1)] + [part("a", 0, "right"), part("b", 1, "right")]
        share = shares(cases, stratify_by=["side"])
        assert total(cases, share, side="left") == pytest.approx(3 * total(cases, share, side="right"))

    def test_positions_are_matched_in_bins(self):
        cases = [part("a", 1, position=x) for x in (0.1, 0.9)] + [part("b", 0, position=x) for x in (0.0, 0.2, 1.0)]
        share = shares(cases, stratify_by=["position"], bins=2)
        assert share == pytest.approx([0.25, 0.25, 0.125, 0.125, 0.25])
        with pytest.raises(ValueError, match="no stratum holds both"):
            shares([part("a", 1, position=0.1), part("b", 0, position=0.9)], stratify_by=["position"])

    def test_what_cannot_be_balanced_is_explained(self):
        for positive in (0, 1):
            with pytest.raises(ValueError, match="volumes with and without a finding"):
                shares([part("a", positive), part("b", positive)])
        with pytest.raises(ValueError, match="case 'a' has no 'lobe' in the datalist"):
            shares([part("a", 0), part("b", 1)], stratify_by=["side", "lobe"])
        with pytest.raises(ValueError, match="2 labels for 1 volumes"):
            stratified_weights([part("a", 1)], [True, False])

    def test_without_strata_all_are_one(self):
        cases = [part("a", 1), part("b", 1, "right"), part("a", 0, "upper")]
        assert stratified_weights(cases, [True, True, False]).tolist() == [0.5, 0.5, 1.0]


@pytest.mark.parametrize(
    ("training", "validation", "apart"),
    [
        ([1, 2, 3], [1], True),
        ([[1, 1], [2, 1]], [], True),
        ([1, 1], [1], False),  # one class
        ([1, 1], [2], False),  # of which training sees one
        ([0, 1, 2], [1], False),
        ([1, 2], [0], False),
        ([1, [2, 0]], [1], False),
        ([["low"], ["high"]], [["low"]], False),  # several at once
        ([], [1, 2], False),
    ],
)
def test_classes_are_told_apart_where_training_has_several_and_nobody_a_negative(training, validation, apart):
    sections = {"training": training, "validation": validation, "test": [0]}
    cases = {name: [{"patient": f"{name}{i}", "cls": cls} for i, cls in enumerate(s)] for name, s in sections.items()}
    assert tells_classes_apart(cases) is apart


def test_patients_are_told_apart_by_their_highest_class():
    labels = {"P0": 0, "P1": [0, 1], "P2": [1, 2], "P3": [0, 2], "P4": 2, "P5": 1}
    cases = [{"case": name, "patient": name, "cls": cls} for name, cls in labels.items()]
    assert kinds_of_patients(cases) == {"P0": 0, "P1": 1, "P2": 2, "P3": 2, "P4": 2, "P5": 1}
    named = [{"case": name, "patient": name, "cls": cls} for name, cls in (("P0", []), ("P1", ["a", "b"]))]
    assert kinds_of_patients(named) == {"P0": 0, "P1": 1}


@pytest.mark.parametrize("counts", [(6, 8, 6), (10, 12, 2), (7, 5, 5)])
def test_folds_hold_healthy_and_ill_of_each_class_that_has_enough(counts):
    kinds = {f"P{kind}{i:02}": kind for kind, count in enumerate(counts) for i in range(count)}
    for seed in range(10):
        folds = patient_folds(kinds, folds=5, seed=seed, kinds=kinds)
        assert sorted(chain(*folds)) == sorted(kinds)
        assert max(map(len, folds)) - min(map(len, folds)) <= 1
        for fold in folds:
            found = {kinds[patient] for patient in fold}
            assert {bool(kind) for kind in found} == {True, False}
            assert min(counts) < 5 or found == {0, 1, 2}


def test_a_class_of_too_few_for_every_part_is_split_with_the_most_frequent_one_and_not_with_the_healthy():
    kinds = {f"P{kind}{i:02}": kind for kind, count in enumerate((10, 10, 2)) for i in range(count)}
    for seed in range(10):
        for part in stratified_split(kinds, seed=seed):
            assert {bool(kinds[patient]) for patient in part} == {True, False}


def test_each_section_has_a_class_of_three_patients():
    labels = [0] * 20 + [1] * 17 + [2] * 3
    cases = [{"case": f"P{i}", "patient": f"P{i}", "cls": cls} for i, cls in enumerate(labels)]
    for seed in range(5):
        parts = stratified_split(kinds_of_patients(cases), seed=seed)
        assert [sum(int(name[1:]) >= 37 for name in part) for part in parts] == [1, 1, 1]
