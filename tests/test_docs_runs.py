"""Runs of bundles as the documents type them: MONAI takes their settings, and no check of ours refuses one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from common.engines.settings import beyond_lists, plain, problems
from common.files import read_json

from .test_docs import BUNDLES, DOCUMENTS, RUN_BY_MONAI, blocks, bundles_of, called, name, words_of


def expanded(path: Path) -> Iterator[list[str]]:
    """Words of each command line, with the shell variables that its page has set before it."""
    known: dict[str, str] = {}
    for said in re.findall(r"`([A-Z]=[^`\n]*)`", path.read_text(encoding="utf-8")):
        remember(said, known)
    for block in blocks(path, "", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            remember(line.strip(), known)
            try:
                yield words_of(replaced(line.strip(), known))
            except ValueError:  # a text over several lines
                continue


def remember(line: str, known: dict[str, str]) -> None:
    for key, quoted, bare in re.findall(r'(?:^|; )([A-Z])=(?:"([^"]*)"|(\S+?)(?=;|\s|$))', line):
        known[key] = replaced(quoted or bare, known)


def replaced(text: str, known: dict[str, str]) -> str:
    return re.sub(r"\$([A-Z])\b", lambda found: known.get(found[1], found[0]), text)


def settings(words: list[str]) -> dict[str, object]:
    """Values after `--key`, read as the command line reads them."""
    given: dict[str, object] = {}
    for i, word in enumerate(words):
        if re.match(r"--[a-z]", word):
            key, equals, value = word[2:].partition("=")
            given[key] = literal(value if equals else words[i + 1])
    return given


def literal(text: str) -> object:
    try:
        return plain(ast.literal_eval(text))
    except (SyntaxError, ValueError):
        return plain(text)


def runs() -> Iterator[tuple[Path, Path, list[str], dict[str, object]]]:
    """Document, bundle, names of the configs and settings of each run that names configs of a bundle."""
    for path in DOCUMENTS:
        for words in expanded(path):
            rest = called(words, "monai.bundle")
            if rest is None or rest[:1] != ["run"]:
                continue
            given = settings(rest)
            files = given.pop("config_file")
            named = [Path(file) for file in (files if isinstance(files, list) else [files])]
            homes = [BUNDLES[0].parent / file.parent.parent.name for file in named]
            roots = [root for root in homes if root in BUNDLES] or bundles_of(path)
            names = [file.name for file in named if file.parent.name in ("configs", "…")]  # not what a run wrote
            yield path, roots[0], names, {key: value for key, value in given.items() if key not in RUN_BY_MONAI}


def test_documents_have_runs_of_all_bundles():
    found = list(runs())
    assert len(found) > 50
    assert {root for _, root, _, _ in found} == set(BUNDLES)


@pytest.mark.parametrize("path", sorted({path for path, *_ in runs()}), ids=name)
def test_runs_in_documents_take_their_settings(path):
    for _, root, names, given in (run for run in runs() if run[0] == path):
        files = [root / "configs" / file for file in names]
        config = ConfigParser.load_config_files([str(file) for file in files])
        others = {file.name: read_json(file) for file in (root / "configs").glob("*.json") if file not in files}
        assert beyond_lists(given, config) == [], (name(path), names)
        assert problems(given, config, others) == [], (name(path), names)
        parser = ConfigParser(config)
        for key, value in given.items():
            parser[key] = value  # as MONAI does before any of our code runs
