"""Hook of `mkdocs.yml`: pages that lie outside of `docs/` are part of the site, and links between all of them hold.

`README.md` is the first page, what lies in `bundles/NAME/docs` is under `bundles/NAME`. Links are written for the
repository, so each is looked up there and rewritten for the site; one to a file that is not there becomes its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Files of the root by their names on the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security_policy.md",  # `security.md` lies in `docs`
    "CITATION.cff": "CITATION.cff",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root and of the bundles, with the pictures and figures that they show."""
    outside = {uri: ROOT / name for name, uri in PAGES.items()}
    for path in sorted(ROOT.glob("bundles/*/docs/*")):
        outside[site_uri(path.relative_to(ROOT).as_posix())] = path
    for name, path in outside.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of a page, as they hold on the site."""
    known = {file.src_uri for file in files}
    place = posixpath.dirname(page.file.src_uri)

    def rewritten(found: re.Match[str]) -> str:
        picture, text, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path, _, anchor = target.partition("#")
        uri = site_uri(posixpath.normpath(posixpath.join(posixpath.dirname(repository_path(page.file.src_uri)), path)))
        if uri not in known and not is_page(uri):
            return text  # code, configs and folders: named, not linked
        return f"{picture}[{text}]({posixpath.relpath(uri, place or '.')}{'#' + anchor if anchor else ''})"

    return LINK.sub(rewritten, markdown)


def is_page(uri: str) -> bool:
    """Whether a missing file should be reported as a broken link."""
    return uri.endswith((".md", ".png", ".jpg"))


def site_uri(path: str) -> str:
    """The site's name of a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    if found := re.fullmatch(r"bundles/([^/]+)/docs/(.+)", path):
        return f"bundles/{found[1]}.md" if found[2] == "README.md" else f"bundles/{found[1]}/{found[2]}"
    if (ROOT / path).is_dir():
        path = f"{path}/index.md"
    return path.removeprefix("docs/")


def repository_path(uri: str) -> str:
    """The file of the repository that the site has under this name."""
    if names := [name for name, page in PAGES.items() if page == uri]:
        return names[0]
    if found := re.fullmatch(r"bundles/([^/]+)(?:\.md|/(.+))", uri):
        return f"bundles/{found[1]}/docs/{found[2] or 'README.md'}"
    return f"docs/{uri}"
