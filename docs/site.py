"""Hooks of mkdocs: the Markdown files at the top of the repository become pages, and links to code become text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages at the top; docs/README.md is the index for readers of the repository."""
    for source, page in PAGES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=content))
    readme = files.get_file_from_path("README.md")
    if readme is not None:
        files.remove(readme)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links to the pages of the site; links to files that are not on it become plain text."""
    folder = ROOT if page.file.src_uri in PAGES.values() else ROOT / "docs"

    def replaced(match: re.Match[str]) -> str:
        image, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        path = (folder / target).resolve()
        if not path.exists():
            return match[0]  # mkdocs reports it
        inside = path.relative_to(ROOT).as_posix()
        if inside == "docs/README.md":
            return f"{image}[{text}](index.md{anchor})"
        if inside in PAGES:
            return f"{image}[{text}]({PAGES[inside]}{anchor})"
        if inside.startswith("docs/") and path.is_file() and files.get_file_from_path(inside[5:]) is not None:
            return f"{image}[{text}]({inside[5:]}{anchor})"
        return text

    return LINK.sub(replaced, markdown)
