"""Cases: found in folders or listed in a datalist, split by patient, cut into slices."""

from .bags import BagSampler, matched_sampler, slice_sampler
from .cache import CacheEntry, VolumeCache, in_turns
from .datalist import (
    SECTIONS,
    cases,
    check_patients,
    label_counts,
    label_of,
    labels_in_words,
    labels_slices,
    load_datalist,
    make_datalist,
    multi_hot,
    slice_labels,
    write_datalist,
)
from .find import Case, find_cases
from .pseudo import pseudo_masks, true_masks
from .slices import SliceDataset, case_label, labels_of, read_unmasked, runs, slice_classes
from .splits import (
    kinds_of_patients,
    matched_weights,
    patient_folds,
    patient_of,
    split_patients,
    stratified_split,
    stratified_weights,
)

__all__ = [
    "SECTIONS",
    "BagSampler",
    "CacheEntry",
    "Case",
    "SliceDataset",
    "VolumeCache",
    "case_label",
    "cases",
    "check_patients",
    "find_cases",
    "in_turns",
    "kinds_of_patients",
    "label_counts",
    "label_of",
    "labels_in_words",
    "labels_of",
    "labels_slices",
    "load_datalist",
    "make_datalist",
    "matched_sampler",
    "matched_weights",
    "multi_hot",
    "patient_folds",
    "patient_of",
    "pseudo_masks",
    "read_unmasked",
    "runs",
    "slice_classes",
    "slice_labels",
    "slice_sampler",
    "split_patients",
    "stratified_split",
    "stratified_weights",
    "true_masks",
    "write_datalist",
]
