"""Labels as people write them: yes and no, grades, scores, names of classes, several at once."""

from __future__ import annotations

import difflib
import json
import logging
import math
import re
import shlex
from collections import Counter
from collections.abc import Container, Mapping, Sequence

from ..files import PathLike
from .words import NEGATIONS, NO, NO_NAMES, SIDES, YES, as_seen, is_doubtful, says_no

logger = logging.getLogger(__name__)

Places = Sequence[tuple[str, str]]  # where a text stands, for messages, and the text

# What a spreadsheet makes of a label (a date of 1-2), and numbers that are no grades: no names of classes.
_MONTH = "(jan|feb|mar|mär|mrz|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez)[.]?"
_DATES = (
    r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}([ t].*)?",
    rf"\d{{1,2}}[-. ]+{_MONTH}([-. ]+\d{{2,4}})?",
    rf"{_MONTH}[- ]+\d+",
    r"\d{1,2}(:\d\d){1,2}",
)
_NO_NAME = re.compile("|".join((r"[-+]?\d*[.,]?\d+(e[-+]?\d+)?", *_DATES)), re.IGNORECASE)
_MOST_GRADES = 20
_WORDS = "yes, true, positive or 1; no, false, negative, none, - or 0"


def refuse(source: PathLike, problems: Sequence[str]) -> None:
    """Raise `ValueError` where there are problems: how many, and the first three."""
    if problems:
        count = f"{len(problems)} errors, the first: " if len(problems) > 3 else ""
        raise ValueError(f"{source}: {count}" + "; ".join(problems[:3]))


def parse_labels(
    texts: Places,
    source: PathLike,
    *,
    classes: Sequence[str] | None = None,
    positive_from: float | None = None,
    multi_label: bool = False,
) -> tuple[Sequence[int | list[str]], tuple[str, ...]]:
    """Labels of a datalist from the texts of a column, all of one kind.

    Yes and no in English words or as 1 and 0; grades 0, 1, 2 …; scores of which those from `positive_from` on are
    positive; names of classes; several names with `;`. Words that mean no, and `-`, stand for the negative class. Upper
    and lower case are the same.

    Args:
        texts: place and text of each label.
        source: the file.
        classes: names, the negative one first; by default those that are found, in this order. Their numbers may stand
            for them.
        positive_from: the least score that is positive.
        multi_label: labels are lists of names, as they are where any text holds several.

    Returns:
        Labels as a datalist has them (class indices, or lists of names), and the class names.

    Raises:
        ValueError: a text is empty, unknown or fits no other; the message says where, and what is accepted.
    """
    texts = [(place, as_seen(text)) for place, text in texts]
    empty = "the label is empty; write no or none where nothing was found"
    refuse(source, [f"{place}: {empty}" for place, text in texts if not text])
    classes = _given_classes(classes)
    texts = [(place, text if text in classes else whole_number(text)) for place, text in texts]
    if positive_from is not None:
        return _scores(texts, source, float(positive_from)), _two(classes)
    tokens = [(place, part) for place, text in texts for part in _parts(text)]
    several = multi_label or len(tokens) > len(texts)
    names = tuple(classes) or _found_classes(tokens, source, several)
    found = _numbers(texts, names, source)
    if several:
        return [[names[k] for k in row if k] for row in found], names
    return [row[0] for row in found], names


def _parts(text: str) -> list[str]:
    """The names in a text, at least one."""
    return [part.strip() for part in text.split(";") if part.strip()] or [""]


def _numbers(texts: Places, names: Sequence[str], source: PathLike) -> list[list[int]]:
    """The classes that each text names, in their order."""
    index = _numbers_by_text(names)
    unknown = [(place, part) for place, text in texts for part in _parts(text) if part.lower() not in index]
    refuse(source, [f"{place}: {_unknown(part, names)}" for place, part in unknown])
    found = [sorted({index[part.lower()] for part in _parts(text)}) for _, text in texts]
    both = [said for said, (first, *more) in zip(texts, found, strict=True) if first == 0 and more]
    refuse(source, [f"{place}: {text!r} says both {names[0]} and more" for place, text in both])
    return found


def found_kinds(texts: Places, source: PathLike) -> tuple[str, ...]:
    """Names of kinds as a column has them, grades by their size, others by the alphabet; words for no are left out.

    Example:
        `[("row 2", "3"), ("row 3", "2.0"), ("row 4", "none")]` has the kinds `("2", "3")`.

    Raises:
        ValueError: a text means that nobody knows, is a number but no grade, or a date.
    """
    texts = [(place, whole_number(as_seen(text))) for place, text in texts]
    doubtful = "means that nobody knows; leave the cell empty, and the case is left out"
    _check_texts(texts, source, doubtful=doubtful, spoiled="is a number or a date, and no kind")
    names: dict[str, str] = {}
    for _, text in texts:
        names.setdefault(text.lower(), text)
    kinds = [text for lower, text in names.items() if lower not in NO]
    return tuple(sorted(kinds, key=lambda t: (not t.isdecimal(), int(t) if t.isdecimal() else 0, t.lower())))


def _check_texts(texts: Places, source: PathLike, *, doubtful: str, spoiled: str) -> None:
    """Refuse, in these words, what says that nobody knows, and numbers and dates that are no grades."""
    refuse(source, [f"{place}: {text!r} {doubtful}" for place, text in texts if is_doubtful(text)])
    changed = [(place, text) for place, text in texts if not text.isdecimal() and _NO_NAME.fullmatch(text)]
    refuse(source, [f"{place}: {text!r} {spoiled}" for place, text in changed])


def _given_classes(given: Sequence[str] | None) -> list[str]:
    """The names without surrounding blanks, none where none were given."""
    classes = [as_seen(name) for name in given or ()]
    lower = [name.lower() for name in classes]
    if given is not None and (len(classes) < 2 or len({*lower}) < len(classes)):
        raise ValueError(f"classes must be two or more names, the negative one first, all different; got {classes}.")
    words = [name for name in lower[1:] if name in NO] + [name for name in lower[:1] if name in YES]
    if words and not words[0].isdecimal():
        swapped = sorted(classes, key=lambda name: name.lower() not in NO)
        raise ValueError(f"classes must begin with the negative one; got {classes}: {_as_option(swapped)}")
    saying_no = [name for name in classes if name.lower() in NO or says_no(name)]
    if saying_no and classes[0] not in saying_no and not saying_no[0].isdecimal():
        swapped = sorted(classes, key=lambda name: name not in saying_no)
        raise ValueError(
            f"classes must begin with the negative one, which {saying_no[0]!r} seems to be; got {classes}: "
            f"{_as_option(swapped)}; if all are findings, name the class without one, too: "
            f"{_as_option(['none', *classes])}"
        )
    return classes


def _as_option(names: Sequence[str]) -> str:
    """How the classes are named on a command line; a list where names hold commas."""
    listed = any("," in name for name in names)
    return f"--classes {shlex.quote(json.dumps([*names], ensure_ascii=False) if listed else ','.join(names))}"


def whole_number(text: str) -> str:
    """`1` for `1.0`, which programs write where a column has gaps."""
    return re.sub(r"^(\d+)(\.0+|,00?)$", r"\1", text)


def _two(classes: Sequence[str]) -> tuple[str, ...]:
    if len(classes) not in (0, 2):
        raise ValueError(f"with positive_from there are two classes, the negative one first; got {tuple(classes)}.")
    return tuple(classes) or ("none", "finding")


def _scores(texts: Places, source: PathLike, positive_from: float) -> list[int]:
    if not math.isfinite(positive_from):
        raise ValueError(f"positive_from must be a finite number; got {positive_from}.")
    scores = [_number(text) for _, text in texts]
    wrong = [
        f"{place}: {t!r} is no number, and positive_from is given"
        for (place, t), x in zip(texts, scores, strict=True)
        if x is None
    ]
    refuse(source, wrong)
    return [int(score >= positive_from) for score in scores if score is not None]


def _number(text: str) -> float | None:
    """A number with a point, or with a comma that cannot stand between thousands."""
    try:
        value = float(text.replace(",", ".") if re.fullmatch(r"[-+]?\d+,\d{1,2}", text) else text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _numbers_by_text(names: Sequence[str]) -> dict[str, int]:
    """The class that each accepted text stands for, in lower case."""
    index = dict.fromkeys(NO, 0)
    if len(names) == 2:
        index |= dict.fromkeys(YES, 1)
    if any(name.isdecimal() for name in names):  # where names are numbers, no other number stands for them
        index = {text: k for text, k in index.items() if not text.isdecimal() or (k == 0 and not names[0].isdecimal())}
    else:
        index |= {str(k): k for k in range(len(names))}
    return index | {name.lower(): k for k, name in enumerate(names)}


def _unknown(text: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(text.lower(), [name.lower() for name in names], 1)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    accepted = f"; or {_WORDS}" if len(names) == 2 else f"; or 0 to {len(names) - 1}"
    return f"{text!r}{meant} is unknown; accepted: {', '.join(names)}{accepted}"


def _found_classes(tokens: Places, source: PathLike, several: bool) -> tuple[str, ...]:
    """The classes of a column whose names were not given."""
    texts = {text.lower() for _, text in tokens}
    doubtful = "is no label; leave the row out, or name all classes by --classes"
    advice = "has a spreadsheet changed it? If these are scores: --positive_from 1; else name all classes by --classes"
    _check_texts(tokens, source, doubtful=doubtful, spoiled=f"is a number or a date, and no label: {advice}")
    if texts <= {*YES, *NO}:
        return ("none", "finding")
    if not several and all(text.isdecimal() or text in NO for text in texts):
        return _grades(tokens, source)
    _check_alike(tokens, source)
    return _names(tokens, source)


def _check_alike(tokens: Places, source: PathLike) -> None:
    """Refuse names of classes beside yes, or beside numbers."""
    named = [(place, text) for place, text in tokens if text.lower() not in (*NO, *YES) and not text.isdecimal()]
    plain = [(place, text) for place, text in tokens if text.lower() in YES or (text.isdecimal() and text != "0")]
    few, many = sorted((named, plain), key=len)
    if few:
        (place, odd), (_, rest) = few[0], many[0]
        raise ValueError(
            f"{source}: {place}: {odd!r} does not go with {rest!r} of other rows; accepted are {_WORDS}; or grades 0, "
            "1, 2 …; or names of classes in all rows"
        )


def _grades(tokens: Places, source: PathLike) -> tuple[str, ...]:
    highest, place = max((int(text), place) for place, text in tokens if text.isdecimal())
    if highest > _MOST_GRADES:
        raise ValueError(
            f"{source}: {place}: {highest} is no grade (0 to {_MOST_GRADES}); if it says that a label is missing, take "
            "the row out; if these are scores, say from which on they are positive: --positive_from 1"
        )
    if not any(text.lower() in NO for _, text in tokens):
        found = sorted({text for _, text in tokens}, key=int)
        orders = ",".join(found) + (f", or {found[1]},{found[0]}" if len(found) == 2 else "")
        raise ValueError(
            f"{source}: the labels are numbers up to {highest}, and none is 0: name the classes, the negative one "
            f"first (--classes {orders}; --classes 0,{','.join(found)} if all are findings), or say from which on they "
            "are positive (--positive_from 2)"
        )
    count = Counter(str(int(text)) for _, text in tokens if text.isdecimal())
    gaps = [str(grade) for grade in range(1, highest) if not count[str(grade)]]
    if gaps:
        grades = ",".join(map(str, range(highest + 1)))
        raise ValueError(
            f"{source}: {place}: {highest} would make a class of its own and of {', '.join(gaps)}, which no row has; "
            f"if {highest} says that a label is missing, take such rows out; else name all classes: --classes {grades}"
        )
    if highest > 1 and count[str(highest)] == 1 < min(count["0"], count["1"]):
        logger.warning(
            "%s: %s is the only one with the grade %d, which makes a class of its own", source, place, highest
        )
    return tuple(map(str, range(highest + 1)))


def _names(tokens: Places, source: PathLike) -> tuple[str, ...]:
    written: dict[str, str] = {}
    for _, text in tokens:
        written.setdefault(text.lower(), text)
    count = Counter(text.lower() for _, text in tokens)
    held = ", ".join(f"{written[text]} ({n})" for text, n in count.most_common(10))
    if not any(text in NO for text in written):
        raise ValueError(f"{source}: the labels are {held}: {_without_negative([*written.values()][:10])}")
    positive = {lower: text for lower, text in written.items() if lower not in NO}
    _check_positive(tokens, source, positive)
    _check_slips(tokens, source, positive, count)
    names = [*positive.values()]
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    negative = next((written[text] for text in written if text in NO_NAMES), "none")
    return (negative, *names)


def _check_slips(tokens: Places, source: PathLike, positive: Mapping[str, str], count: Mapping[str, int]) -> None:
    """Refuse a long name that is a more frequent one but for a letter; names that differ by a number are two."""
    for text in (text for text in positive if len(text) > 5):
        others = [o for o in positive if count[o] > count[text] and re.sub(r"\D", "", o) == re.sub(r"\D", "", text)]
        if near := difflib.get_close_matches(text, others, 1, cutoff=0.85):
            place = next(place for place, t in tokens if t.lower() == text)
            raise ValueError(
                f"{source}: {place}: {positive[text]!r} looks like {positive[near[0]]!r}; correct it, or name all "
                f"classes: {_as_option(['none', *positive.values()])}"
            )


def _check_positive(tokens: Places, source: PathLike, positive: Mapping[str, str]) -> None:
    """Refuse names that would be classes, but say no in other words, or name several."""
    negative = next(text for _, text in tokens if text.lower() in NO)
    option = _as_option(["none", *positive.values()])
    places = {text.lower(): place for place, text in reversed(tokens)}
    another = f"seems to say {negative!r}: write one word for both; if it is a class, {option}"
    refuse(source, [f"{places[lower]}: {text!r} {another}" for lower, text in positive.items() if says_no(text)])
    joined = [lower for lower in positive if _joins(lower, positive)]
    several = f"names classes of other rows; put ';' between several names; if it is a class, {option}"
    refuse(source, [f"{places[lower]}: {positive[lower]!r} {several}" for lower in joined])


def _joins(text: str, names: Container[str]) -> bool:
    """Whether a text joins several names, of which other rows have one; of a slash all, as it is in single ones."""
    apart, divided = ([part.strip() for part in re.split(signs, text)] for signs in ("[,+&\n]", "[,/+&\n]"))
    one = len(apart) > 1 and all(apart) and any(part in names for part in apart)
    return one or (len(divided) > 1 and all(part in names for part in divided))


def _without_negative(names: Sequence[str]) -> str:
    """What to do where no name says no; no order that is proposed can turn labels round where it is copied."""
    if {name.lower() for name in names} <= {word for words in SIDES.values() for word in words}:
        return "sides go into a column 'side', with yes in the column 'label'"
    negations = [name for name in names if NEGATIONS.match(name)]
    orders = [shlex.quote(",".join([one, *(n for n in names if n != one)])) for one in (negations or names)[:2]]
    chosen = f"say which of them is the negative one by naming all, that one first: --classes {', or '.join(orders)}"
    absent = f"if all are findings, name the class without one, too: {_as_option(['none', *names])}"
    return chosen if len(negations) == 1 else absent if len(names) == 1 else f"{chosen}; {absent}"
