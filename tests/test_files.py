from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.files import NotWritten, alone, atomic_path, file_digest, print_any_text, write_csv, write_json


def no_constant(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def test_json_holds_null_for_what_is_no_number(tmp_path):
    value = {"mean": 0.5, "std": float("nan"), "interval": (np.float64("inf"), [-float("inf"), 1]), "cases": 3}
    write_json(tmp_path / "summary.json", {"dice": value})
    read = json.loads((tmp_path / "summary.json").read_text(), parse_constant=no_constant)
    assert read == {"dice": {"mean": 0.5, "std": None, "interval": [None, [None, 1]], "cases": 3}}


def test_json_holds_numpy_numbers_as_plain_ones(tmp_path):
    value = {"a": np.float32(0.5), "b": [np.int64(3), np.bool_(True)], "c": np.float32("nan")}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 0.5, "b": [3, True], "c": None}


def test_json_is_indented_by_four_and_ends_with_a_line(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"ö": [1, True, None], "path": Path("a/b")})
    expected = '{\n    "\\u00f6": [\n        1,\n        true,\n        null\n    ],\n    "path": "a/b"\n}\n'
    assert (tmp_path / "new" / "a.json").read_text() == expected


@pytest.mark.parametrize("value", [{"a": np.zeros(2)}, {"a": {1, 2}}])
def test_json_refuses_what_it_cannot_hold_and_leaves_the_old_file(tmp_path, value):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritten, match=r"file/a\.json cannot be written"):
        write_json(tmp_path / "file" / "a.json", {})
    with pytest.raises(NotWritten, match=r"file/a\.csv cannot be written"):
        write_csv(tmp_path / "file" / "a.csv", [{"x": 1}])


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "free space"), (errno.ENAMETOOLONG, "shorter names"), (errno.EIO, None)]
)
def test_a_full_disk_is_named_with_the_file_whoever_writes_it(tmp_path, number, advice):
    with pytest.raises(OSError, match=os.strerror(number)) as raised, atomic_path(tmp_path / "a.png"):
        raise OSError(number, os.strerror(number))
    assert isinstance(raised.value, NotWritten) == (advice is not None)
    assert advice is None or advice in str(raised.value).split(f"{tmp_path}/a.png cannot be written")[1]
    assert not list(tmp_path.iterdir())


def test_tables_are_utf8_whatever_the_locale_says(tmp_path):
    code = f"from common.files import write_csv; write_csv({str(tmp_path / 'a.csv')!r}, [{{'case': '\\u6f22'}}])"
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | plain)
    assert "\u6f22" in (tmp_path / "a.csv").read_text(encoding="utf-8")


def test_write_csv_has_all_columns_in_order_of_appearance(tmp_path):
    write_csv(tmp_path / "a.csv", [{"x": 1, "y": "a,b"}, {"z": 2, "x": 3}])
    assert (tmp_path / "a.csv").read_text().splitlines() == ["x,y,z", '1,"a,b",', "3,,2"]


def test_a_digest_is_that_of_the_whole_file(tmp_path):
    content = bytes(range(256)) * 2**13  # two reads
    (tmp_path / "a").write_bytes(content)
    assert file_digest(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_one_process_is_at_work_in_a_folder_until_it_ends_in_whatever_way(tmp_path):
    code = (
        "import sys, common.files as f; lock = f.alone(sys.argv[1], 'fit'); print('on', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "new")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"on\n"
        with pytest.raises(RuntimeError, match=r"another fit is at work in .*new, perhaps left by a command"):
            alone(tmp_path / "new", "fit")
        with alone(tmp_path / "new", "training"):
            other.kill()
    with alone(tmp_path / "new", "fit"):
        pass


def test_a_name_that_the_console_has_no_letters_for_ends_no_run(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    print_any_text()
    print("case_\u00fc", flush=True)
    assert stream.buffer.getvalue() == b"case_\\xfc\n"
