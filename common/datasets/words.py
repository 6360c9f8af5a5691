"""What single texts of a column of labels mean: yes, no, or that nobody knows; and slips of the pen."""

from __future__ import annotations

import re
import unicodedata

YES = ("yes", "y", "true", "positive", "1")
NO = ("no", "n", "false", "negative", "0", "none", "-", "normal", "healthy")
NO_NAMES = ("none", "normal", "healthy", "negative")  # those of them that name a class
SIDES = {
    "left": ("left", "l", "lt"),
    "right": ("right", "r", "rt"),
    "both": ("both", "b", "bilateral"),
}
NOBODY = ("?", "n/a", "na", "nan", "null", "missing", "unknown", "none", "-", "#n/a")  # no patient, whoever wrote it
_UNKNOWN = re.compile(
    r"\?|n/a|n\.\s?a\.?|na|nan|nd|null|missing|tbd|not (assessed|available|evaluated|known|rated|read|sure).*|.+\?|"
    r"(doubtful|equivocal|fraglich|incerto|incertain|inconclusive|indeterminate|maybe|möglich|perhaps|possible|"
    r"possibly|probable|probably|questionable|unbekannt|uncertain|unclear|unklar|unknown|unsicher|unsure|vielleicht)"
    r"\b.*",
    re.IGNORECASE | re.DOTALL,
)
# Texts that say no beside one of `NO`, in languages that are likely. Whole words: `nie` begins `Niere`, and `non` the
# name of a cancer. `benign` is missing here: normal, benign, malignant are three classes.
_SAYS_NO = re.compile(
    r"(absent|ausent|falsch|gesund|kein|negati|unauff|unremark)\w*|(healthy )?controls?|clear|falso|faux|hc|n[aã]o|nad|"
    r"nee|neg|nein|nej|nicht|nie|niente|nil|non|nope|not|nothing|o\.? ?b|ohne|ok|sain|sano|sans|sin|unaffected|without|"
    r"wnl|нет|否|无|無",
    re.IGNORECASE,
)
# Words that begin what is not there: `no finding`, `ohne Befund`. Others begin names as well: `clear cell`, `non-small
# cell`, `normal pressure hydrocephalus`, `not otherwise specified`.
_BEGINS_NO = re.compile(
    r"(no|kein\w*)[ _-]|(normal(?![ _]pressure)|not(?![ _]otherwise))[ _]|"
    r"(absent|absence of|healthy|n[aã]o|negati\w*|nicht|ohne|sans|sin|without|нет)[ _]",
    re.IGNORECASE,
)
# How names of what is not there begin; only to put them first in what is proposed.
NEGATIONS = re.compile(
    r"(absen|ausente|benign|control|falsch|falso|faux|gesund|kein|neg|nein|nej|nicht|nie|no\b|non\b|not\b|n[aã]o\b|"
    r"ohne|sain|sano|sans|sin\b|unauff|unremark|without|нет|否|无|無)",
    re.IGNORECASE,
)
_LONG_NO = tuple(word for word in NO if len(word) > 4)
# Marks that no screen shows: of order, of where a word may be broken, of zero width.
_UNSEEN = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")


def as_seen(text: str) -> str:
    """A text without what nobody sees: marks, another kind of blank or several, accents apart from their letters."""
    return re.sub(r"[^\S\n]+", " ", unicodedata.normalize("NFC", _UNSEEN.sub("", text))).strip()


def is_doubtful(text: str) -> bool:
    """Whether a text says that nobody knows: `unknown`, `equivocal`, `possible tumor`, `tumor?`."""
    return _UNKNOWN.fullmatch(text) is not None


def says_no(text: str) -> bool:
    """Whether a text, none of `NO` itself, says no in other words: `no finding`, `nein`, or `negativ` with a slip.

    Example:
        `nomal` does, and so does `ohne Befund`; `abnormal`, `benign` and `non-small cell` do not.
    """
    lower = text.lower().strip(" .,;:!_")
    if _SAYS_NO.fullmatch(lower) or _BEGINS_NO.match(lower) or lower in NO:
        return True
    # A word in front of the whole one, as in `abnormal`, turns it round.
    return any(one_slip(lower, word) and not lower.endswith(word) for word in _LONG_NO)


def one_slip(text: str, word: str) -> bool:
    """Whether one letter more, less or other, or two that changed places, make one text of the other."""
    start = next((k for k, (a, b) in enumerate(zip(text, word, strict=False)) if a != b), min(len(text), len(word)))
    one, other = text[start:], word[start:]
    swapped = one[1::-1] == other[:2] and one[2:] == other[2:]
    return text != word and (one[1:] == other or one == other[1:] or one[1:] == other[1:] or swapped)
