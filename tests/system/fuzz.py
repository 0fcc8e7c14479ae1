"""Seeded attacks on everything that commands read, in this process.

    python -m tests.system.fuzz ATTACKS [FIRST]     print how many attacks of each kind held

Each attack damages or replaces one file of a finished tiny pipeline, or gives hostile flags, and runs a command. It holds if
the exit code is 0, 1, 2, 130 or 143 without a traceback, with at most one line of error, within seconds and little memory,
and if no file changed that the command does not own.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from t5_pipeline.core.boundary import boundary
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.printable import printable
from t5_pipeline.data_prep.shards.reader import TokenShards
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.encode import Task
from tests.system.damage import VALUES, damage, damage_bytes, damage_tree
from tests.tiny_run import Outcome, Tiny, make, stage, t5_pipeline

SECONDS = 60.0  # of one attack, on a busy machine
GROWTH = 2**30  # bytes of memory, over all attacks


class Hang(BaseException):
    """An attack took too long."""


@dataclass(frozen=True)
class World:
    """A directory with a finished pipeline, a model and a prompt from elsewhere, and a directory that must not change."""

    root: Path
    tiny: Tiny

    @classmethod
    def build(cls, root: Path, finished: Tiny) -> World:
        tiny = finished.copy(root)
        shutil.copytree(tiny.run, root / "pristine")
        shutil.copytree(tiny.run / "lm_adapt" / "model", root / "model")
        shutil.copytree(next((tiny.run / "prompt_tune").glob("model=lm_adapt,*")) / "prompt", root / "prompt")
        shutil.copytree(finished.data / "rows", root / "rows")
        (root / "victim").mkdir()
        (root / "victim" / "thesis.txt").write_text("years of work")
        (root / "in.jsonl").write_text('{"text": "open a file"}\n{"text": "add numbers"}\n')
        return cls(root, tiny)

    def file(self, draw: random.Random, *folders: Path) -> Path:
        files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
        return draw.choice([path for path in files if ".state" not in path.parts or path.suffix == ".json"])


Command = Callable[[], Outcome]


def on_recipes(draw: random.Random, world: World) -> tuple[Command, list[Path]]:
    text = world.tiny.recipe.read_bytes()
    recipe = world.root / "attack.yaml"
    if draw.random() < 0.3:
        recipe.write_bytes(damage_bytes(draw, text))
    else:
        tree = yaml.safe_load(text)
        for _ in range(draw.choice([1, 1, 2])):
            tree = damage_tree(draw, tree)
        recipe.write_text(yaml.safe_dump(tree))
    return lambda: t5_pipeline("plan", recipe, "--run-dir", world.tiny.run), [recipe]


def on_runs(draw: random.Random, world: World) -> tuple[Command, list[Path]]:
    run = world.tiny.run
    if draw.random() < 0.15:
        damage(draw, world.file(draw, run / "sentinel"), world.root / "victim")
        arguments = ("--recipe", world.tiny.recipe, "--run-dir", run)
        return lambda: stage("sentinel", *arguments), [run / "sentinel", run / "superseded"]
    path = world.file(draw, run)
    damage(draw, path, world.root / "victim")
    words = draw.choice([
        ("status", run), ("status", run, "--json"), ("verify", run), ("report", run, "--output", "-"),
        ("plan", world.tiny.recipe, "--run-dir", run), ("prompts", "list", run / "prompt_tune"),
        ("prompts", "verify", run / "prompt_tune"),
    ])  # fmt: skip
    return lambda: t5_pipeline(*words), [path]


def on_models(draw: random.Random, world: World) -> tuple[Command, list[Path]]:
    model, out = world.root / "model", world.root / "out"
    path = world.file(draw, model)
    damage(draw, path, world.root / "victim")
    if draw.random() < 0.5:
        return lambda: stage("sentinel", "--model", model, "--threads", 1, "--output-dir", out), [path, out]
    return lambda: t5_pipeline("prompts", "neighbors", world.root / "prompt", "--model", model), [path]


def on_prompts(draw: random.Random, world: World) -> tuple[Command, list[Path]]:
    prompt, out = world.root / "prompt", world.root / "out"
    path = world.file(draw, prompt)
    damage(draw, path, world.root / "victim")
    model = world.tiny.run / "lm_adapt"
    predict = ("predict", "--model", model, "--prompts", prompt, "--input", world.root / "in.jsonl", "--output", "-")
    words: tuple[object, ...] = draw.choice([
        ("prompts", "list", prompt), ("prompts", "show", prompt), ("prompts", "verify", prompt, "--model", model),
        ("prompts", "export", prompt, "--to", "npy", "--output", world.root / "out" / "a.npy"),
        ("prompts", "export", prompt, "--to", "peft", "--output", out), predict,
    ])  # fmt: skip
    return lambda: t5_pipeline(*words), [path, out]


def on_rows(draw: random.Random, world: World) -> tuple[Command, list[Path]]:
    """Rows of a task in every format, the lines of `predict`, and token shards."""
    if draw.random() < 0.2:
        tokens = world.tiny.run / "prepare" / "tokens"
        path = world.file(draw, tokens)
        damage(draw, path, world.root / "victim")
        return lambda: _outcome(lambda: _read_tokens(tokens)), [path]
    rows = [json.loads(line) for line in (world.root / "rows" / "test.jsonl").read_text().splitlines()[:6]]
    suffix = draw.choice([".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".jsonl.zst", ".parquet"])
    path = world.root / f"attack{suffix}"
    if draw.random() < 0.5:
        rows = damage_tree(draw, rows)
    text = json.dumps(rows) if suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows or [])
    if suffix in (".csv", ".tsv"):
        mark = "," if suffix == ".csv" else "\t"
        text = mark.join(["text", "label"]) + "\n" + f'"a ""b"" c"{mark}files\n' * 3
    content = gzip.compress(text.encode(), mtime=0) if suffix.endswith(".gz") else text.encode()
    path.write_bytes(damage_bytes(draw, content) if draw.random() < 0.7 else content)
    task = {"name": "t", "data": str(path), "splits": {"train": path.name}, "inputs": "{text}", "targets": "{label}"}
    return lambda: _outcome(lambda: _read_rows(Task.load(TaskConfig.model_validate(task)))), [path]


def on_flags(draw: random.Random, world: World) -> tuple[Command, list[Path]]:
    run, recipe, out = world.tiny.run, world.tiny.recipe, world.root / "out"
    places = [
        run,
        recipe,
        world.root / "model",
        world.root / "victim",
        "/dev/zero",
        "/nowhere",
        "",
        "-",
        "caf\udce9",
        "a" * 5_000,
    ]
    key = draw.choice(["lm_adapt.steps", "seed", "tasks.about.labels", "prompt_tune.matrix.seed", "x.y", "=", "name"])
    value = draw.choice([*map(str, VALUES), "[" * 2_000, "&a [*a]", "!!python/name:os.system", "9" * 5_000]).replace(
        "\0", ""
    )
    words: list[object] = draw.choice([
        ["plan", recipe, "--run-dir", run, "--set", f"{key}={value}"], ["plan", draw.choice(places)], ["status", draw.choice(places)],
        ["plan", recipe, "--run-dir", draw.choice(places[:4])], ["report", run, "--output", out / "x" / "y"],
        ["plan", recipe, "--run-dir", run, "--rate", value], ["verify", draw.choice(places)], ["prompts", "list", draw.choice(places)],
        ["prompts", "export", draw.choice(places), "--to", "npy", "--output", out], ["run", draw.choice(places[2:])],
        ["predict", "--model", draw.choice(places), "--prompts", draw.choice(places), "--output", "-"],
    ])  # fmt: skip
    if draw.random() < 0.2:
        words.insert(draw.randrange(len(words) + 1), value)
    return lambda: t5_pipeline(*words), [out]


KINDS: dict[str, Callable[[random.Random, World], tuple[Command, list[Path]]]] = {
    "recipes": on_recipes, "runs": on_runs, "models": on_models, "prompts": on_prompts, "rows": on_rows, "flags": on_flags,
}  # fmt: skip


def _read_rows(task: Task) -> None:
    for row in task.rows("train"):
        task.inputs(row), task.targets(row)


def _read_tokens(directory: Path) -> None:
    for split in ("train", "validation"):
        shards = TokenShards.open(directory, split)  # type: ignore[arg-type]
        for i in range(min(len(shards), 200)):
            shards.document(i)
        shards.vocabulary.encode("a")


def _outcome(call: Callable[[], object]) -> Outcome:
    """A function as a command."""
    try:
        with boundary():
            call()
    except InputError as error:
        return Outcome(2, "", f"error: {error}\n")
    return Outcome(0, "", "")


def attack(kind: str, number: int, world: World) -> str | None:
    """Run one attack; returns how it succeeded, or None if it held."""
    draw = random.Random(f"{kind} {number}")
    before, began = _snapshot(world.root), time.monotonic()
    command, own = KINDS[kind](draw, world)
    try:
        with _limited():
            said = command()
    except SystemExit as left:
        said = Outcome(int(left.code or 0), "", "")
    except (Exception, Hang):
        return traceback.format_exc(limit=-6)
    finally:
        changed = _changed(before, _snapshot(world.root), own)
        _restore(world, own)
    if said.code not in (0, 1, 2, 130, 143) or "Traceback" in said.err + said.out:
        return f"exit code {said.code}: {said.err}"
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    if said.code == 2 and (len(errors) != 1 or not said.err.endswith(errors[0] + "\n")):
        return f"not one line of error: {said.err}"
    if printable(said.err + said.out, keep="\n\t") != said.err + said.out:
        return f"control characters: {said.err!r}"
    if changed:
        return f"changed {sorted(changed)[:3]}"
    seconds = time.monotonic() - began
    return f"took {seconds:.0f} s" if seconds > SECONDS else None


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _snapshot(root: Path) -> dict[str, tuple[int, int, int]]:
    """Type, size and modification time of every entry, without locks and caches."""
    found = {}
    for place, folders, files in os.walk(root):
        if ".state" in folders:
            folders.remove(".state")
        for name in (*folders, *files):
            status = os.lstat(path := os.path.join(place, name))
            is_directory = stat.S_ISDIR(status.st_mode)
            found[path] = (
                stat.S_IFMT(status.st_mode),
                *((0, 0) if is_directory else (status.st_size, status.st_mtime_ns)),
            )
    return found


def _changed(before: dict[str, Any], after: dict[str, Any], own: list[Path]) -> set[str]:
    names = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    return {name for name in names if not any(Path(name).is_relative_to(path) for path in own)}


def _restore(world: World, own: list[Path]) -> None:
    sources = {
        world.tiny.run: world.root / "pristine", world.root / "model": world.root / "pristine" / "lm_adapt" / "model",
        world.root / "prompt": next((world.root / "pristine" / "prompt_tune").glob("model=lm_adapt,*")) / "prompt",
    }  # fmt: skip
    for path in own:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        for copy, source in sources.items():
            if path.is_relative_to(copy) and (original := source / path.relative_to(copy)).exists():
                shutil.copytree(original, path) if original.is_dir() else shutil.copy2(original, path)


def attacks(kind: str, numbers: range, world: World) -> dict[int, str]:
    """The attacks of one kind that succeeded, and how."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {number: how for number in numbers if (how := attack(kind, number, world)) is not None}
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return found | ({-1: f"memory grew by {growth:,} bytes"} if growth > GROWTH else {})


def main(count: int, first: int = 0) -> int:
    succeeded = 0
    with tempfile.TemporaryDirectory() as directory:
        world = World.build(_made(Path(directory) / "world"), make(_made(Path(directory) / "tiny")))
        for kind in KINDS:
            began, found = time.monotonic(), attacks(kind, range(first, first + count), world)
            succeeded += len(found)
            sys.stdout.write(f"{kind}: {count - len(found)} of {count} held, {time.monotonic() - began:.0f} s\n")
            for number, how in found.items():
                sys.stdout.write(f"  {kind} {number}: {how}\n")
            sys.stdout.flush()
    return min(succeeded, 1)


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
