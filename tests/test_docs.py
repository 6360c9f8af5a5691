"""What the documents name exists: files behind links, commands and their options, keys of configs, lines of code."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import json
import re
import shlex
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.datasets import ADAPTERS

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "bundles/*/docs/*.md") for path in REPOSITORY.glob(pattern)
)
BUNDLES = sorted(path.parent for path in REPOSITORY.glob("bundles/*/configs"))
RUN_BY_MONAI = {"logging_file", "config_file", "meta_file", "net_id", "filepath", "ckpt_file"}
EVERYWHERE = {"help"}


def name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def blocks(path: Path, *languages: str) -> list[str]:
    """Code blocks of a document in these languages, all without any; those in lists, too."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(code) for language, code in found if not languages or language in languages]


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE))


def links(path: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8")))


def anchors(path: Path) -> set[str]:
    """Those that a site makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def parameters(package: str) -> dict[str, tuple[set[str], bool]]:
    """Options of each command of a package, and whether it takes any others: read, not imported."""
    main = ast.parse((REPOSITORY / package / "__main__.py").read_text())
    places = {
        alias.asname or alias.name: (REPOSITORY / package / f"{(node.module or '').replace('.', '/')}.py", alias.name)
        for node in main.body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    entries = [
        (key.value, value)
        for table in ast.walk(main)
        if isinstance(table, ast.Dict)
        for key, value in zip(table.keys, table.values, strict=True)
        if isinstance(key, ast.Constant)
    ]
    named = {key: places[value.id] for key, value in entries if isinstance(value, ast.Name)}
    # What is imported only when it runs is named in words.
    named |= {
        key: (REPOSITORY / package / "commands" / f"{key}.py", value.value)
        for key, value in entries
        if isinstance(value, ast.Constant)
    }
    return {command: signature(*place) for command, place in named.items()}


def signature(module: Path, function: str) -> tuple[set[str], bool]:
    (node,) = [
        node
        for node in ast.parse(module.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == function
    ]
    given = node.args
    return {argument.arg for argument in (*given.args, *given.kwonlyargs)}, given.kwarg is not None


COMMANDS = {package: parameters(package) for package in ("common", "benchmarks")}


def keys(*roots: Path) -> set[str]:
    """Top-level keys of all configs of these bundles."""
    files = [path for root in roots for path in (root / "configs").glob("*.json")]
    return {key for path in files for key in json.loads(path.read_text(encoding="utf-8"))}


def commands(path: Path) -> Iterator[list[str]]:
    """Words of each command line in the code blocks, comments left out."""
    for block in blocks(path, "", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            try:
                yield words_of(line)
            except ValueError:  # a text over several lines
                yield line.split()


def words_of(line: str) -> list[str]:
    """As a shell splits a line: `#` begins a comment only where a word begins."""
    return [word.replace("\0", "#") for word in shlex.split(re.sub(r"(?<=\S)#", "\0", line.strip()), comments=True)]


def options(words: list[str]) -> list[str]:
    """Names after `--`; of `--a#b` and `--a=b` it is `a`."""
    return [re.split(r"[#=:]", word[2:])[0].replace("-", "_") for word in words if re.match(r"--[a-z]", word)]


def called(words: list[str], module: str) -> list[str] | None:
    """What follows `-m MODULE`."""
    for i in range(len(words) - 1):
        if words[i : i + 2] == ["-m", module]:
            return words[i + 2 :]
    return None


def bundles_of(path: Path) -> list[Path]:
    """The bundle whose document it is, else all."""
    return [root for root in BUNDLES if root in path.parents or path.stem == root.name] or BUNDLES


def test_there_is_much_to_look_at():
    assert len(DOCUMENTS) > 40
    assert len(BUNDLES) == 4
    assert sum(called(words, "monai.bundle") is not None for path in DOCUMENTS for words in commands(path)) > 30
    assert {"fit", "prepare"} <= COMMANDS["common"].keys()
    assert "output_dir" in COMMANDS["common"]["fit"][0]


def test_links_lead_to_files_and_headings():
    broken = []
    for path in DOCUMENTS:
        for link in links(path):
            target, _, anchor = link.partition("#")
            file = (path.parent / target).resolve() if target else path
            if re.match(r"[a-z]+:", link):
                continue
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append((name(path), link))
    assert broken == []


@pytest.mark.parametrize("package", COMMANDS)
def test_commands_exist_and_have_the_options_that_documents_give_them(package):
    wrong = []
    passed_on = keys(*BUNDLES) | COMMANDS["common"]["crossvalidate"][0]
    for path in DOCUMENTS:
        for words in commands(path):
            rest = called(words, package) or (words[1:] if package == "common" and words[:1] == ["weakseg"] else None)
            if not rest or not re.fullmatch(r"[a-z0-9_]+", rest[0]):
                continue
            known, more = COMMANDS[package].get(rest[0], (set(), False))
            if rest[0] not in COMMANDS[package]:
                wrong.append((name(path), rest[0]))
            wrong += [
                (name(path), rest[0], option)
                for option in options(rest)
                if option not in known | EVERYWHERE and not (more and (option in passed_on or rest[0] == "prepare"))
            ]
    assert wrong == []


def test_adapters_that_write_files_are_told_where_and_so_are_those_that_a_comment_adds():
    lines = [
        line for path in DOCUMENTS for block in blocks(path, "") for line in block.replace("\\\n", "").splitlines()
    ]
    lines = [line for line in lines if "common prepare" in line and "--dataset_dir" not in line]
    assert len(lines) > 10
    writing = {adapter for adapter, row in ADAPTERS.items() if row.converts}
    assert [line for line in lines if writing & {*re.findall(r"\w+", line)}] == []


def test_every_command_is_in_the_table_of_commands():
    table = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+`) \|", table, re.MULTILINE)
    assert {command for row in rows for command in re.findall(r"`(\w+)`", row)} == COMMANDS["common"].keys()


def test_keys_of_runs_exist_in_the_configs_of_the_bundle():
    wrong = []
    for path in DOCUMENTS:
        known = keys(*bundles_of(path)) | RUN_BY_MONAI
        for words in commands(path):
            if (rest := called(words, "monai.bundle")) is not None:
                wrong += [(name(path), option) for option in options(rest) if option not in known]
    assert wrong == []


def test_configs_that_commands_name_exist():
    named = re.compile(r"(?:\$C|configs)/(\w+\.json)")
    missing = [
        (name(path), file)
        for path in DOCUMENTS
        for block in blocks(path)
        for file in named.findall(block)
        if not any((root / "configs" / file).is_file() for root in bundles_of(path))
    ]
    assert missing == []


def test_knobs_in_the_tables_of_the_bundles_are_keys_of_inference():
    unknown = []
    for root in BUNDLES:
        table = (root / "docs" / "README.md").read_text(encoding="utf-8").split("| knob of `inference.json`")[1]
        config = json.loads((root / "configs" / "inference.json").read_text(encoding="utf-8"))
        rows = table.split("\n\n")[0].splitlines()[2:]
        knobs = [knob for row in rows for knob in re.findall(r"`(\w+)`", row.split("|")[1])]
        assert len(knobs) > 5
        unknown += [(root.name, knob) for knob in knobs if knob not in config]
    assert unknown == []


def test_code_in_documents_compiles():
    found = [(path, block) for path in DOCUMENTS for block in blocks(path, "python")]
    assert len(found) > 8
    for path, block in found:
        compile(block, name(path), "exec")


RUN = [path for path in DOCUMENTS if "docs" in path.parts and "bundles" not in path.parts and blocks(path, "python")]


@pytest.mark.parametrize("document", RUN, ids=name)
def test_code_of_the_pages_runs_and_prints(document, capsys):
    for block in blocks(document, "python"):
        exec(compile(block, name(document), "exec"), {})
        assert capsys.readouterr().out.strip()


EXAMPLES = [path for path in DOCUMENTS if blocks(path, "pycon")]


@pytest.mark.parametrize("document", EXAMPLES, ids=name)
def test_examples_of_the_pages_give_what_they_say(document):
    said: list[str] = []
    example = doctest.DocTestParser().get_doctest(
        "\n".join(blocks(document, "pycon")), {"__name__": "example"}, name(document), name(document), 0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert "".join(said) == ""


# What a few lines cannot show: they need a published data set, a download, a DICOM series, npm, or a bundle that runs.
NOT_SHOWN = {
    *("autopet", "bracs", "brats2020", "camelyon16", "cheng", "decathlon", "duke", "half_lungs", "kaggle_3m"),
    *("labeled_table", "mosmed", "learned_lung_mask", "dicom_results", "write_dicom", "get_viewer", "check_settings"),
}


def test_every_public_function_has_an_example_on_its_page():
    lacking = set()
    for page in (path for path in (REPOSITORY / "docs" / "api").glob("*.md") if path.stem != "index"):
        room = importlib.import_module(f"common.{page.stem}")
        public = getattr(room, "__all__", [each for each in vars(room) if not each.startswith("_")])
        functions = [each for each in public if inspect.isfunction(inspect.unwrap(getattr(room, each)))]
        own = [each for each in functions if inspect.unwrap(getattr(room, each)).__module__.startswith(room.__name__)]
        typed = re.findall(r"^(?:>>>|\.\.\.) .*", "\n".join(blocks(page, "pycon")), re.MULTILINE)
        code = "\n".join([*typed, *blocks(page, "python")])
        lacking |= {each for each in own if not re.search(rf"\b{each}\b", code)}
    assert lacking - NOT_SHOWN == set()  # show it in docs/api/<room>.md, as ```pycon
    assert NOT_SHOWN - lacking == set()


def test_code_that_the_pages_of_papers_point_to_is_there():
    pages = {"gp_unet": 0, "ensemble_gradcam": 0, "tonno": 0, "insight": 0}
    for page in pages:
        (root,) = [root for root in BUNDLES if root.name.startswith(page)]
        text = (REPOSITORY / "docs" / "papers" / f"{page}.md").read_text(encoding="utf-8")
        for file, names in re.findall(r"`((?:scripts|common)/[\w/]+\.py)`((?::? ?,? ?`[\w.]+`)*)", text):
            source = (root if file.startswith("scripts") else REPOSITORY) / file
            assert source.is_file(), (page, file)
            for part in re.findall(r"[\w.]+", names):
                for word in part.split("."):
                    assert re.search(rf"^ *(?:def|class) {word}\b", source.read_text(), re.MULTILINE), (
                        page,
                        file,
                        word,
                    )
                    pages[page] += 1
    assert all(count > 8 for count in pages.values())


def test_every_room_with_public_names_has_a_page_and_an_example():
    source = ast.parse((REPOSITORY / "tests" / "test_public_names.py").read_text())
    (rooms,) = [ast.literal_eval(node.value) for node in source.body if isinstance(node, ast.Assign)]
    pages = {path.stem: path.read_text() for path in (REPOSITORY / "docs" / "api").glob("*.md")}
    assert rooms.keys() <= pages.keys()
    assert all(f"\n::: common.{page}\n" in text for page, text in pages.items() if page != "index")
    assert all(f"[`{page}`]({page}.md)" in pages["index"] for page in pages if page != "index")
    assert pages.keys() <= {path.stem for path in RUN if path.parent.name == "api"}


def test_every_page_is_in_the_navigation_of_the_site():
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1]
    pages = [path.relative_to(REPOSITORY / "docs").as_posix() for path in (REPOSITORY / "docs").glob("**/*.md")]
    assert [page for page in pages if not re.search(rf"[ :]{re.escape(page)}$", navigation, re.MULTILINE)] == []


@pytest.mark.parametrize("bundle", ["gp_unet_brats", "ensemble_gradcam_brats", "tonno_mosmed"])
def test_headlines_are_the_figures_of_the_run_that_is_kept(bundle):
    scores = json.loads((REPOSITORY / "bundles" / bundle / "docs" / "test_summary.json").read_text())["dice"]
    mean, low, high, median = (f"{scores[key]:.3f}".lstrip("0") for key in ("mean", "low", "high", "median"))
    for page in (f"bundles/{bundle}/docs/README.md", f"docs/results/{bundle}.md", "docs/results/index.md"):
        assert f"{mean} [{low}, {high}]" in (REPOSITORY / page).read_text(), page
    assert median in (REPOSITORY / "bundles" / bundle / "docs" / "README.md").read_text()
    assert f"**{mean}**" in (REPOSITORY / "README.md").read_text()
