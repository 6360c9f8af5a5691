from __future__ import annotations

import ast
import re
import shlex
from typing import Any

import pytest

from common.datasets.labels import found_kinds, parse_labels


def parse(*texts: str, **options: Any) -> tuple[list, tuple[str, ...]]:
    return parse_labels([(f"row {number}", text) for number, text in enumerate(texts, 2)], "a.csv", **options)


class TestParseLabels:
    @pytest.mark.parametrize(
        ("texts", "classes", "expected"),
        [
            ("Yes no TRUE false positive Negative 1 0 y N - none", None, [1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 0]),
            ("yes no", ["none", "infection"], [1, 0]),
            ("malignant Benign 1 no", ["benign", "malignant"], [1, 0, 1, 0]),
            ("severe mild none 1", ["none", "mild", "severe"], [2, 1, 0, 1]),
            ("2 1 3", ["1", "2", "3"], [1, 0, 2]),
            ("1.0 0.0 1 0,0", None, [1, 0, 1, 0]),
            ("1.0 2.0", ["2.0", "1.0"], [1, 0]),
            ("3 no no", ["0", "1", "2", "3"], [3, 0, 0]),
        ],
    )
    def test_words_numbers_and_names_become_class_indices(self, texts, classes, expected):
        assert parse(*texts.split(), classes=classes) == (expected, tuple(classes or ("none", "finding")))

    @pytest.mark.parametrize(
        ("texts", "expected", "classes"),
        [
            ("0 3 1 2", [0, 3, 1, 2], ("0", "1", "2", "3")),
            ("2 none 1", [2, 0, 1], ("0", "1", "2")),
            ("severe Normal mild Severe", [1, 0, 2, 1], ("Normal", "severe", "mild")),
            ("no pneumonia", [0, 1], ("none", "pneumonia")),
            ("none CT-1 CT-2 CT-2", [0, 1, 2, 2], ("none", "CT-1", "CT-2")),
            ("normal benign abnormal", [0, 1, 2], ("normal", "benign", "abnormal")),
            ("no tumor-L1 tumor-L1 tumor-L2", [0, 1, 1, 2], ("none", "tumor-L1", "tumor-L2")),
            ("no cyst cyst cysts", [0, 1, 1, 2], ("none", "cyst", "cysts")),
            ("none native anormal", [0, 1, 2], ("none", "native", "anormal")),
        ],
    )
    def test_grades_and_names_are_found(self, texts, expected, classes):
        assert parse(*texts.split()) == (expected, classes)

    def test_a_sign_that_joins_no_name_of_other_rows_makes_a_class(self):
        assert parse("none", "HER2+", "HER2", "grade 1/2", "grade 1")[0] == [0, 1, 2, 3, 4]
        with pytest.raises(ValueError, match=r"--classes") as told:
            parse("none", "mass, edema", "mass")
        option = shlex.split(str(told.value).rpartition("--classes ")[2])[0]
        assert parse("none", "mass, edema", "mass", classes=ast.literal_eval(option))[0] == [0, 1, 2]

    def test_what_no_screen_shows_makes_no_class(self):
        texts = ("low grade", "low\u00a0grade", "low  grade\u200b", "Ha\u0308matom", "H\u00e4matom", "\ufeffno")
        assert parse(*texts) == ([1, 1, 1, 2, 2, 0], ("none", "low grade", "H\u00e4matom"))
        assert parse(*texts, classes=["none", "Ha\u0308matom", "low\u00a0grade"])[0] == [2, 2, 2, 1, 1, 0]
        assert found_kinds([("row 2", "low grade"), ("row 3", "low\u00a0grade")], "a.csv") == ("low grade",)
        with pytest.raises(ValueError, match=r"'ADH.nDCIS' names classes of other rows; put ';' between"):
            parse("ADH\nDCIS", "ADH", "DCIS", "none")

    @pytest.mark.parametrize(
        ("texts", "classes", "expected"),
        [
            ("FEA;ADH none FEA -", None, [["FEA", "ADH"], [], ["FEA"], []]),
            ("FEA;ADH none FEA -", ["none", "ADH", "FEA"], [["ADH", "FEA"], [], ["FEA"], []]),
            ("adh;ADH; 0 2", ["none", "ADH", "FEA"], [["ADH"], [], ["FEA"]]),
            ("3;1 0 1", None, [["1", "3"], [], ["1"]]),
        ],
    )
    def test_several_names_become_lists(self, texts, classes, expected):
        assert parse(*texts.split(), classes=classes, multi_label=True)[0] == expected
        if ";" in texts.replace("; ", ""):
            assert parse(*texts.split(), classes=classes)[0] == expected

    def test_scores_are_positive_from_a_number_on(self):
        texts = ("0", "2.9", "3", "1e3", "3,5")
        assert parse(*texts, positive_from=3, classes=["low", "high"]) == ([0, 0, 1, 1, 1], ("low", "high"))

    @pytest.mark.parametrize(
        ("texts", "options", "message"),
        [
            ("yes||no", {}, r"a.csv: row 3: the label is empty; write no or none where nothing was found"),
            (
                "yes|no|ja",
                {},
                r"row 4: 'ja' does not go with 'yes' of other rows; accepted are yes, true, positive or 1; ",
            ),
            ("none|flu|flu|2", {}, r"row 5: '2' does not go with 'flu'"),
            ("yes|no|unknown", {}, r"row 4: 'unknown' is no label; leave the row out"),
            *(
                (
                    f"0|{text}",
                    {},
                    rf"row 3: '{re.escape(text)}' is a number or a date, and no label: .* --positive_from 1",
                )
                for text in (
                    "-1",
                    "0.5",
                    "1e3",
                    "2024-02-01 00:00:00",
                    "01.02.24",
                    "1-Feb",
                    "2. Mär",
                    "Feb 24",
                    "01-Feb-24",
                    "1 Feb 2024",
                )
            ),
            ("0|93", {}, r"row 3: 93 is no grade \(0 to 20\); .* --positive_from 1"),
            (
                "1|2|3",
                {},
                r"up to 3, and none is 0: .* the negative one first \(--classes 1,2,3; --classes 0,1,2,3 if all are",
            ),
            ("benign|cancer|benign", {}, r"benign \(2\), cancer \(1\): say which .* --classes benign,cancer"),
            ("ADH;FEA|benign", {}, r"say which of them is the negative one"),
            ("1|2", {}, r"the negative one first \(--classes 1,2, or 2,1; --classes 0,1,2 if all are findings\)"),
            ("left|right|Both", {}, r"left \(1\), .*: sides go into a column 'side', with yes in"),
            ("glioma|glioma", {}, r"glioma \(2\): if all are findings, .*: --classes none,glioma$"),
            ("ja|nein", {}, r"that one first: --classes nein,ja$"),
            ("tumor|no tumor", {}, r"--classes 'no tumor,tumor'$"),
            (
                "red|blue|green",
                {},
                r"--classes red,blue,green, or blue,red,green; if all .*: --classes none,red,blue,green$",
            ),
            ("x|healthy", {"classes": ["x", "healthy"]}, r"must begin with the negative one; .* --classes healthy,x"),
            (
                "a",
                {"classes": ["big tumor", "none"]},
                r"must begin with the negative one; .* --classes 'none,big tumor'",
            ),
            (
                "a",
                {"classes": ["tumor", "no_tumor"]},
                r"must begin with the negative one, which 'no_tumor' seems to be; .* --classes no_tumor,tumor; if all "
                r"are findings, .* --classes none,tumor,no_tumor$",
            ),
            ("a", {"classes": ["mild", "sévère", "ohne Befund"]}, r"--classes 'ohne Befund,mild,sévère'; if"),
            ("yes|no", {"classes": ["yes", "no"]}, r"must begin with the negative one; .* --classes no,yes"),
            ("1", {"positive_from": float("nan")}, r"positive_from must be a finite number"),
            (
                "none|infection|infection|infecton",
                {},
                r"row 5: 'infecton' looks like 'infection'; .* --classes none,infection,infecton",
            ),
            ("no|big tumor|big tumor|big tumur", {}, r"row 5: 'big tumur' looks .* 'none,big tumor,big tumur'$"),
            (
                "none|infecton",
                {"classes": ["none", "infection"]},
                r"row 3: 'infecton' \(did you mean 'infection'\?\) is unknown; accepted: none, infection; or yes, true",
            ),
            ("yes", {"classes": ["none", "mild", "severe"]}, r"row 2: 'yes' .*accepted: none, mild, severe; or 0 to 2"),
            ("0", {"classes": ["1", "2", "3"]}, r"row 2: '0' is unknown"),
            ("3", {"classes": ["none", "mild", "severe"]}, r"row 2: '3' is unknown"),
            ("ADH;none", {}, r"row 2: 'ADH;none' says both none and more"),
            ("2|n/a", {"positive_from": 1}, r"row 3: 'n/a' is no number, and positive_from is given"),
            ("nan", {"positive_from": 1}, r"row 2: 'nan' is no number"),
            ("1,000", {"positive_from": 1}, r"row 2: '1,000' is no number"),
            ("1", {"positive_from": 1, "classes": ["a", "b", "c"]}, r"with positive_from there are two classes"),
            ("1", {"classes": ["a", "A"]}, r"classes must be two or more names, the negative one first, all different"),
            (
                "|||||yes",
                {},
                r"a.csv: 5 errors, the first: row 2: .*; row 3: .*; row 4: [^;]*; write no or none [^;]*$",
            ),
        ],
    )
    def test_says_where_a_text_is_unclear_and_what_is_accepted(self, texts, options, message):
        with pytest.raises(ValueError, match=message):
            parse(*texts.split("|"), **options)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        *(
            (
                f"{no}|tumor|{other}",
                rf"row 4: '{other}' seems to say '{no}': write one .* --classes '?none,tumor,{other}",
            )
            for no, other in (
                ("normal", "no finding"),
                ("no", "no tumor"),
                ("no", "non"),
                ("no", "No."),
                ("none", "kein Tumor"),
                ("none", "ohne Befund"),
                ("healthy", "control"),
                ("negative", "negativ"),
                ("normal", "nomal"),
                ("normal", "nromal"),
                ("normal", "nagative"),
            )
        ),
        *(
            (
                f"{no}|tumor|{text}",
                rf"row 4: '{re.escape(text)}' is no label; leave the row out, or name all classes by",
            )
            for no in ("no", "0")
            for text in ("uncertain", "?", "Equivocal", "possible tumor", "tumor?", "not assessed")
        ),
        (
            "none|A|B|A, B",
            r"""'A, B' names classes of other rows; put ';' between several names; .* '."none", "A", "B", "A, B".'$""",
        ),
        ("none|A+B|B|A", r"row 3: 'A\+B' names classes of other rows"),
        ("none|mass, edema|mass", "row 3: 'mass, edema' names classes of other rows; put ';' between several names"),
        (
            "0|1|9|9",
            r"row 5: 9 would make a class of its own and of 2, 3, 4, 5, 6, 7, 8, .* --classes 0,1,2,3,4,5,6,7,8,9$",
        ),
        (
            "none|2",
            r"row 3: 2 would make a class of its own and of 1, which no row has; if 2 says that a label is missing",
        ),
        ("0|1|99", r"row 4: 99 is no grade .*; if it says that a label is missing, take the row out"),
    ],
)
def test_no_class_is_made_of_another_word_for_no_a_doubt_or_a_code_unless_it_is_named(texts, message):
    with pytest.raises(ValueError, match=message):
        parse(*texts.split("|"))
    names = list(dict.fromkeys(texts.split("|")))
    found, classes = parse(*texts.split("|"), classes=names)
    assert (found, classes) == ([names.index(text) for text in texts.split("|")], tuple(names))


def test_a_grade_that_a_slip_of_the_pen_may_have_made_is_told(caplog):
    assert parse("0", "1", "1", "2", "0")[1] == ("0", "1", "2")
    assert caplog.messages == ["a.csv: row 5 is the only one with the grade 2, which makes a class of its own"]
    assert parse("0", "1", "2", "2", "0", "1")[1] == ("0", "1", "2")
    assert len(caplog.messages) == 1
