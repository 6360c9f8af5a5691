from __future__ import annotations

import json

import pytest

from common.commands.format import WIDTH, format_configs, format_json

EXAMPLE = """{
    "classes": ["none", "tumor"],
    "levels": [
        1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0, 18.0, 19.0, 20.0,
        21.0, 22.0, -1e-05, true
    ],
    "labels": [["L", "R"], ["P", "A"], ["I", "S"]],
    "clean": {},
    "refine": {"opening_mm": 0.0, "largest": true},
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": ["image", "Müller"], "channel": null},
            {
                "_target_": "Compose",
                "transforms": [
                    {"_target_": "CopyItemsd"}
                ]
            }
        ]
    }
}
"""


def scalar(seed: int) -> object:
    return [seed, -seed / 7, True, None, f"'{seed}' \"@é\\", seed * 1e-9, "x" * (seed % 150)][seed % 7]


def value(seed: int, depth: int) -> object:
    """A value of every kind, nested up to `depth`."""
    if depth == 0 or seed % 3 == 0:
        return scalar(seed)
    inner = [value(seed * 31 + i, depth - 1) for i in range(seed % 23)]
    return inner if seed % 2 else {f"key {i}": entry for i, entry in enumerate(inner)}


CONFIGS = [{f"+a#{i}": value(seed + i, 3) for i in range(1, 9)} for seed in range(0, 300, 8)]


def test_what_is_short_has_one_line_numbers_fill_theirs_and_dicts_in_lists_have_their_own():
    assert format_json(json.loads(EXAMPLE)) == EXAMPLE


@pytest.mark.parametrize("config", CONFIGS)
def test_content_and_order_stay_and_a_second_pass_changes_nothing(config):
    text = format_json(config)
    assert json.dumps(json.loads(text)) == json.dumps(config)
    assert format_json(json.loads(text)) == text


@pytest.mark.parametrize("config", CONFIGS)
def test_a_line_is_too_long_only_where_one_text_is(config):
    for line in format_json(config).splitlines():
        if len(line) > WIDTH:
            entry = line.strip().removesuffix(",")
            (alone,) = json.loads(f"{{{entry}}}").values() if '": ' in entry[:12] else json.loads(f"[{entry}]")
            assert isinstance(alone, str)


def test_some_example_has_a_line_that_is_too_long():
    assert any(len(line) > WIDTH for config in CONFIGS for line in format_json(config).splitlines())


def test_a_line_may_be_full_with_its_comma_and_no_longer():
    full = {"a": ["x" * (WIDTH - len('    "a": [""],'))], "b": 1}
    assert [len(line) for line in format_json(full).splitlines()] == [1, WIDTH, 10, 1]
    full["a"][0] += "x"
    assert [len(line) for line in format_json(full).splitlines()] == [1, 10, WIDTH - 3, 6, 10, 1]


def test_our_configs_have_this_layout():
    format_configs(check=True)


def test_check_names_the_file_and_leaves_it_as_it_is(tmp_path):
    good, bad = (tmp_path / "bundle" / "configs" / f"{name}.json" for name in ("good", "bad"))
    good.parent.mkdir(parents=True)
    good.write_text(EXAMPLE)
    bad.write_text(json.dumps(json.loads(EXAMPLE), indent=4))
    before = bad.read_text()
    with pytest.raises(SystemExit, match=r"run `python -m common format`.*\n.*bad\.json$"):
        format_configs(str(tmp_path), check=True)
    assert bad.read_text() == before
    format_configs(str(tmp_path))
    assert bad.read_text() == good.read_text() == EXAMPLE
    format_configs(str(tmp_path), check=True)
