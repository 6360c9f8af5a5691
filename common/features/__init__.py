"""Features of a frozen encoder: computed once, kept on disk, found again by what they were computed from."""

from .extraction import bag_of, extract, find, inside_cells, volume_entry
from .fingerprint import describe
from .store import Entry, EntryLocked, FeatureStore, content_key, encode, file_key

__all__ = [
    "Entry",
    "EntryLocked",
    "FeatureStore",
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
