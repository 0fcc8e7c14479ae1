"""Commands in the documentation: extracted, run, and their printed answers written back.

A command block is indented and begins with a shell command; the block after it that begins with `{"prompt"` is what it
prints. A server runs until the end of its page. With a finished demo in the current directory:

    python -m tests.documented README.md docs/tutorial.md
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
_PROGRAMS = ("t5-pipeline", "mkdir", "ln", "cat", "echo", "printf", "python -", "grep", "wc", "cp")
_PRINTED = '{"prompt"'
SERVER = "t5-pipeline serve"


@dataclass(frozen=True)
class Block:
    """An indented block of a page."""

    begin: int
    end: int
    text: str

    @property
    def is_command(self) -> bool:
        return self.text.startswith(_PROGRAMS)

    @property
    def is_printed(self) -> bool:
        return self.text.startswith(_PRINTED)


def blocks(page: str, *headings: str) -> Iterator[Block]:
    """The command blocks of a page and the blocks that they print, in order.

    Args:
        headings: only these sections; none for all.
    """
    for match in _BLOCK.finditer(page):
        heading = page.rfind("\n## ", 0, match.start()) + 4
        if not headings or page[heading : page.find("\n", heading)] in headings:
            block = Block(match.start(), match.end(), re.sub(r"^    ", "", match[0], flags=re.MULTILINE))
            if block.is_command or block.is_printed:
                yield block


def shell_commands(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a block, each with its here-document ("" for none)."""
    rows = iter(text.splitlines())
    for row in rows:
        command = row
        while command.endswith(("\\", "|")):
            command = f"{command.removesuffix(chr(92))} {next(rows).strip()}"
        document: list[str] = []
        if found := re.search(r" <<'(\w+)'$", command):
            command = command[: found.start()]
            while (line := next(rows)) != found[1]:
                document.append(line + "\n")
        if command.strip():
            yield command, "".join(document)


def run_in_shell(command: str, document: str, directory: Path) -> str:
    """The standard output of a command; fails if its exit code is not 0."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], input=document, cwd=directory, env=_environment(), text=True,
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    return done.stdout


@contextlib.contextmanager
def serving(command: str, directory: Path) -> Iterator[None]:
    """A server that listens; fails if its exit code after SIGTERM is not 0."""
    shell = ["bash", "-c", f"exec {command}"]
    with subprocess.Popen(shell, cwd=directory, env=_environment(), text=True, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        loading, line = process.stderr.readline(), process.stderr.readline()
        try:
            assert line.startswith("serving "), loading + line + process.stderr.read()
            yield
        finally:
            process.terminate()
            process.wait()
    assert process.returncode == 0


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def rewritten(page: str, directory: Path, *headings: str) -> str:
    """The page with the printed blocks that its commands give in a directory."""
    printed, result, at = "", [], 0
    with contextlib.ExitStack() as servers:
        for block in blocks(page, *headings):
            if block.is_printed:
                result += [page[at : block.begin], re.sub(r"^(?=.)", "    ", printed, flags=re.MULTILINE)]
                at = block.end
                continue
            for command, document in shell_commands(block.text):
                if command.startswith(SERVER):
                    servers.enter_context(serving(command, directory))
                else:
                    printed = run_in_shell(command, document, directory)
    return "".join([*result, page[at:]])


SECTIONS = {"README.md": ("Your own task", "Many tasks, one model")}
"""The sections of a page whose commands run after `make demo` alone; of other pages all commands do."""


def main(pages: list[str]) -> None:
    """Rewrite the printed blocks of pages."""
    for name in pages:
        page = Path(name)
        with tempfile.TemporaryDirectory() as directory:
            shutil.copytree("runs/demo", Path(directory, "runs", "demo"))
            page.write_text(rewritten(page.read_text(), Path(directory), *SECTIONS.get(name, ())))


if __name__ == "__main__":
    main(sys.argv[1:])
