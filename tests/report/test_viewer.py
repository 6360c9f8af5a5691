from __future__ import annotations

import runpy

import pytest

from common.report import viewer
from common.report.viewer import VERSION, get_viewer, read_viewer, viewer_path


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WEAKSEG_CACHE", str(tmp_path / "cache"))


def test_a_viewer_that_was_never_got_is_none():
    assert read_viewer() is None


def test_another_file_in_its_place_is_refused():
    viewer_path().parent.mkdir()
    viewer_path().write_text("alert(1)")
    with pytest.raises(ValueError, match=rf"not the one of NiiVue {VERSION}; remove it"):
        read_viewer()


def test_without_npm_it_is_said_where_npm_comes_from(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(RuntimeError, match=r"install Node\.js, or .*\[report\]"):
        get_viewer()


def test_what_npm_says_when_it_fails_is_passed_on(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no such package >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(RuntimeError, match="no such package"):
        get_viewer()
    assert not viewer_path().exists()


def test_it_runs_as_a_script_of_its_own_when_the_environment_is_made():
    runpy.run_path(str(viewer.__file__), run_name="viewer")
