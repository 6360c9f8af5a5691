from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from common.metrics import class_scores, patient_accuracy

LABELS = np.array([0, 0, 1, 1, 2, 2])
CALLED = np.array([0, 1, 1, 1, 2, 0])


def probabilities(called: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    scores = rng.random((len(called), 3)) + 2 * np.eye(3)[called]
    return scores / scores.sum(axis=1, keepdims=True)


def test_confusion_and_accuracies_by_hand():
    found = class_scores(probabilities(CALLED), LABELS, list("aabbcc"), resamples=5)
    assert found["confusion"] == [[1, 1, 0], [0, 2, 0], [1, 0, 1]]
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["tumor_only_accuracy"] == pytest.approx(3 / 4)
    # F1 of each class: 1/2, 4/5, 2/3; Jaccard: 1/3, 2/3, 1/2; all classes weigh the same here.
    assert found["f1_weighted"] == pytest.approx((1 / 2 + 4 / 5 + 2 / 3) / 3)
    assert found["jaccard_weighted"] == pytest.approx((1 / 3 + 2 / 3 + 1 / 2) / 3)


def test_forced_accuracy_does_not_count_healthy_as_an_answer():
    probability = np.array([[0.6, 0.1, 0.3], [0.6, 0.3, 0.1]])
    found = class_scores(probability, np.array([2, 2]), ["a", "b"], resamples=5)
    assert (found["tumor_only_accuracy"], found["tumor_only_accuracy_forced"]) == (0.0, 0.5)
    assert found["classes"] == {}  # one class alone has no curve


def test_curves_are_of_each_class_against_the_rest_and_intervals_hold_them():
    probability = probabilities(CALLED)
    assert np.isnan(class_scores(probability, LABELS, list("abcabc"), resamples=5)["classes"][0]["auc_interval"]).all()
    labels, probability = np.tile(LABELS, 5), np.tile(probability, (5, 1)) + np.random.default_rng(1).random((30, 3))
    found = class_scores(probability, labels, list("abcdefghijklmno" * 2), resamples=50)["classes"]
    assert sorted(found) == [0, 1, 2]
    for k, scores in found.items():
        assert scores["auc"] == pytest.approx(roc_auc_score(k == labels, probability[:, k]))
        assert scores["average_precision"] == pytest.approx(average_precision_score(k == labels, probability[:, k]))
        low, high = scores["auc_interval"]
        assert low <= scores["auc"] <= high


def test_a_patient_is_called_by_the_slices_that_are_not_called_healthy():
    probability = np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6], [0.1, 0.2, 0.7], [0.8, 0.1, 0.1]])
    patients = ["a", "a", "a", "a", "b"]
    assert patient_accuracy(probability, np.array([0, 2, 2, 2, 0]), patients) == 1.0
    assert patient_accuracy(probability, np.array([0, 1, 1, 1, 0]), patients) == 0.5
    assert patient_accuracy(probability, np.array([0, 2, 2, 2, 1]), patients) == 0.5


def test_intervals_draw_patients_so_that_copies_of_their_slices_change_nothing():
    labels = np.repeat([0, 1, 2], 5)
    probability = np.random.default_rng(2).dirichlet(np.ones(3), 15) + 0.3 * np.eye(3)[labels]
    patients = np.array([f"p{i:02}" for i in range(15)])
    once = class_scores(probability, labels, patients, resamples=40)
    copies = class_scores(*(np.repeat(part, 6, axis=0) for part in (probability, labels, patients)), resamples=40)
    for k in range(3):
        for name in ("auc_interval", "average_precision_interval"):
            assert copies["classes"][k][name] == pytest.approx(once["classes"][k][name])
