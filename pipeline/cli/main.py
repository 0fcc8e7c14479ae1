"""The `t5-pipeline` command: run, plan, status, report and verify; other modules add the rest.

Nothing here imports torch or transformers, so every command starts at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from t5_pipeline import __version__
from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.cli.doctor import add_doctor
from t5_pipeline.cli.export import add_export
from t5_pipeline.cli.predict import add_predict
from t5_pipeline.cli.prompts import add_prompts
from t5_pipeline.cli.serve import add_serve
from t5_pipeline.cli.tune import add_tune
from t5_pipeline.config.command_line import Parser, add_command, add_set
from t5_pipeline.config.recipe import Recipe, load_recipe
from t5_pipeline.core.atomic_files import STDOUT
from t5_pipeline.core.boundary import boundary
from t5_pipeline.core.checksums import short_digest
from t5_pipeline.core.errors import BAD_INPUT, InputError, Terminated
from t5_pipeline.core.paths import inside
from t5_pipeline.core.printable import say, show
from t5_pipeline.core.quick_exit import exit_quickly
from t5_pipeline.execution.openmp import limit_spinning


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code (docs/command_line.md)."""
    exit_quickly()
    limit_spinning()
    try:
        with _sigterm_as_exception(), boundary():
            given = _parser().parse_args(arguments)
            return int(given.command(given))
    except InputError as error:
        say(f"error: {error}")
        return BAD_INPUT
    except Terminated:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 0


@contextlib.contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    """Raise `Terminated` on the first SIGTERM; a second one kills. Stages and the server stop in their own ways."""

    def terminate(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    in_main_thread = threading.current_thread() is threading.main_thread()  # only there Python receives signals
    if not in_main_thread or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _parser() -> Parser:
    parser = Parser(
        prog="t5-pipeline",
        description="LM-adapt a T5, freeze it, and learn each task as a soft prompt (Lester et al. 2021).",
        epilog="Stages can also be run one by one: accelerate launch stages/lm_adapt.py --help",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"t5-pipeline {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_recipe_commands(commands)
    _add_run_dir_commands(commands)
    add_predict(commands)
    add_tune(commands)
    add_prompts(commands)
    add_doctor(commands)
    add_export(commands)
    add_serve(commands)
    return parser


def _add_recipe_commands(commands: Any) -> None:
    run = add_command(commands, "run", "run all stages that are not up to date, then write the report")
    _recipe_arguments(run)
    run.add_argument(
        "--from", dest="first", metavar="STAGE", help="first stage to run; earlier ones must be up to date"
    )
    run.add_argument("--until", dest="last", metavar="STAGE", help="last stage to run")
    run.set_defaults(command=_run)

    plan = add_command(commands, "plan", "show what would run, why, and at what cost, without running it")
    _recipe_arguments(plan)
    plan.add_argument(
        "--rate",
        metavar="FLOP/S",
        help="add remaining hours: sustained FLOP/s of a device (400T), or `measured` to use the stages' logs",
    )
    plan.add_argument(
        "--sizes",
        action="store_true",
        help="show the cost for every size of T5 1.1, Small to XXL, instead of the recipe's",
    )
    plan.add_argument(
        "--memory", metavar="SIZE", help="say whether each stage fits in the memory of one device, such as 80G"
    )
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(command=_plan)


def _add_run_dir_commands(commands: Any) -> None:
    status = add_command(commands, "status", "show the progress of a run")
    status.add_argument("--json", action="store_true", help="print JSON")
    report = add_command(commands, "report", "write the report, one HTML page that works offline")
    report.add_argument(
        "--output", type=Path, metavar="FILE", help="output file, or - for stdout (default: RUN_DIR/report.html)"
    )
    verify = add_command(commands, "verify", "check every published file against its checksums")
    for parser, command in ((status, _status), (report, _report), (verify, _verify)):
        parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run directory, such as runs/demo")
        parser.set_defaults(command=command)


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="recipe, such as recipes/demo.yaml")
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="directory for results (default: runs/NAME, from the recipe)"
    )
    add_set(parser)


def _load(given: argparse.Namespace) -> tuple[Recipe, RunDir]:
    recipe = load_recipe(given.recipe, given.set)
    return recipe, RunDir(given.run_dir or recipe.default_run_dir)


def _run(given: argparse.Namespace) -> int:
    from t5_pipeline.execution.runner import run

    recipe, run_dir = _load(given)
    page, before = _page(run_dir), _times(run_dir)
    code = run(recipe, run_dir, given.first, given.last)
    if code != 0:
        return code
    from t5_pipeline.report.collect import collect
    from t5_pipeline.report.terminal import results_table

    times = _times(run_dir)
    newest = max(times.values())
    # After a clock was set back, new results may be older than others.
    writes_report = not page.exists() or page.stat().st_mtime_ns != newest or times != before
    results = collect(run_dir.path, answers=writes_report)
    if writes_report:
        from t5_pipeline.report.page import write_report

        write_report(results, page)
        os.utime(page, ns=(newest, newest))
        say(f"✓ report: {page}")
    for line in results_table(results):
        show(line)
    return 0


def _page(run_dir: RunDir) -> Path:
    """The report of a run.

    Raises:
        InputError: if there is a file of that name that is not a report.
    """
    from t5_pipeline.report.signature import is_report

    page = inside(run_dir.path, "report.html", run_dir.path)
    if os.path.lexists(page) and not is_report(page):
        raise InputError(f"{page}: already exists and was not written by this program; move it away")
    return page


def _times(run_dir: RunDir) -> dict[Path, int]:
    """When each cell last finished and the recipe last changed, in nanoseconds.

    The latest is the modification time of the report, too: a stage may finish after the results were collected.
    """
    names = ("recipe.yaml", "*/manifest.json", "*/*/manifest.json")
    return {path: path.stat().st_mtime_ns for name in names for path in run_dir.path.glob(name)}


def _plan(given: argparse.Namespace) -> int:
    from t5_pipeline.cost.fits import parse_memory
    from t5_pipeline.cost.plan import Rate, plan
    from t5_pipeline.cost.plan_text import as_json, as_text
    from t5_pipeline.cost.throughput import parse_rate

    rate = None if given.rate is None else Rate(parse_rate(given.rate))
    memory = None if given.memory is None else parse_memory(given.memory)
    recipe, run_dir = _load(given)
    made = plan(recipe, run_dir, rate, sizes=given.sizes, memory=memory)
    show(json.dumps(as_json(made), indent=1, ensure_ascii=False) if given.json else as_text(made, rate), keep="\n")
    return 0


def _existing(path: Path) -> RunDir:
    if not (path / "recipe.yaml").is_file():
        runs = [str(recipe.parent) for recipe in sorted(path.glob("*/recipe.yaml"))][:8]
        fix = f"give a run, such as {', '.join(runs)}" if runs else "create one with `t5-pipeline run RECIPE`"
        raise InputError(f"{path}: is not a run directory (no recipe.yaml); {fix}")
    return RunDir(path)


def _status(given: argparse.Namespace) -> int:
    from t5_pipeline.execution.status import as_text, collect

    run_dir = _existing(given.run_dir)
    rows = collect(load_recipe(run_dir.path / "recipe.yaml"), run_dir)
    show(json.dumps(rows, indent=1, ensure_ascii=False) if given.json else as_text(rows), keep="\n")
    return 0


def _report(given: argparse.Namespace) -> int:
    from t5_pipeline.report.collect import collect
    from t5_pipeline.report.page import write_report

    run_dir = _existing(given.run_dir)
    page, newest = given.output or _page(run_dir), max(_times(run_dir).values())
    write_report(collect(run_dir.path, answers=True), page)
    if given.output is None:
        os.utime(page, ns=(newest, newest))
    if str(page) != STDOUT:
        show(page)
    return 0


def _checked(count: int, found: object) -> str:
    """The number of checked files.

    >>> _checked(3, {}), _checked(3, {"a": "is damaged"}), _checked(0, {})
    ('3 files, all intact', '3 files', '')
    """
    return f"{count} files{'' if found else ', all intact'}" if count else ""


def _verify(given: argparse.Namespace) -> int:
    from t5_pipeline.artifacts.manifest import damaged_files, mark_damaged
    from t5_pipeline.artifacts.working import damaged_unfinished

    run_dir = _existing(given.run_dir)
    damaged = files = 0
    for cell in load_recipe(run_dir.path / "recipe.yaml").cells():
        place, manifest = run_dir.cell(cell), run_dir.manifest(cell)
        if manifest is None:
            found, count, digests = *damaged_unfinished(place), ""
            state = "not finished" + (", " if count else "")
        else:
            found, count, state = damaged_files(place, manifest), len(manifest.files), ""
            digests = "; " + ", ".join(f"{kind} {short_digest(o.digest)}" for kind, o in manifest.outputs.items())
            mark_damaged(place, found)
        damaged, files = damaged + len(found), files + count
        show(f"{cell.label}: {state}{_checked(count, found)}{digests}")
        for name, problem in found.items():
            show(f"  {name} {problem}")
    if damaged:
        raise InputError(
            f"{run_dir.path}: {damaged} of {files} files are damaged; run `t5-pipeline run` to rebuild them"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
