"""Features of a frozen encoder: computed once, kept on disk, found again by what they were computed from."""

from .encoding import encode, encode_batches
from .extraction import bag_of, extract, find, volume_entry
from .store import Entry, EntryLocked, FeatureStore, case_files, file_key

__all__ = [
    "Entry",
    "EntryLocked",
    "FeatureStore",
    "bag_of",
    "case_files",
    "encode",
    "encode_batches",
    "extract",
    "file_key",
    "find",
    "volume_entry",
]
