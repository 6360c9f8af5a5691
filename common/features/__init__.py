"""Features of a frozen encoder: computed once, kept on disk, found again by what they were computed from."""

from .extraction import bag_of, extract, find, inside_cells, volume_entry
from .fingerprint import describe
from .locks import EntryLocked, Lock
from .store import Entry, FeatureStore, content_key, encode, file_key

__all__ = [
    "Entry",
    "EntryLocked",
    "FeatureStore",
    "Lock",
    "bag_of",
    "content_key",
    "describe",
    "encode",
    "extract",
    "file_key",
    "find",
    "inside_cells",
    "volume_entry",
]
