"""Command line of a stage: one flag for each of its settings."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from t5_pipeline.config.overrides import Override, parse_override
from t5_pipeline.config.references import load_task
from t5_pipeline.config.stage import StageConfig, check_effects
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.located_yaml import Key, parse_value
from t5_pipeline.core.schema import model_in, properties, types_in, validate
from t5_pipeline.core.suggestions import nearest
from t5_pipeline.data_prep.tasks.config import TaskConfig

C = TypeVar("C", bound=StageConfig)
# Names of paths in the help.
_PLACES = ("DIR", "FILE", "FROM", "M", "PATH", "PROMPT", "RECIPE", "RUN_DIR", "TO", "WHAT")
_TASK_FILE = "; YAML keys: name, data, inputs, targets, labels, metrics"


@dataclass(frozen=True)
class Flags:
    """The parsed command line of a stage.

    Attributes:
        values: the settings that were given, by dotted name.
    """

    recipe: Path | None
    stage: str | None
    run_dir: Path | None
    output_dir: Path | None
    overrides: list[Override]
    overwrite: bool
    resume_from: int | None
    values: dict[str, Any]

    def nested(self) -> dict[str, Any]:
        """`values` as a recipe has them: the sizes of `init` as a mapping."""
        found: dict[str, Any] = {}
        for name, value in self.values.items():
            *outer, last = name.split(".")
            place = found
            for key in outer:
                place = place.setdefault(key, {})
            place[last] = value
        return found

    def overrides_of(self, stage: str) -> list[Override]:
        """`values` as overrides of a recipe's stage."""
        return [Override((stage, *name.split(".")), value, flag(name)) for name, value in self.values.items()]


class Parser(argparse.ArgumentParser):
    """A parser, also for subcommands, whose errors are `InputError`s that suggest what was meant."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message.removeprefix('argument ')}; --help lists the flags")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Report a misspelt flag before what is missing because of it."""
        words = sys.argv[1:] if args is None else list(args)
        for word in words:
            flag_name = word.partition("=")[0]
            if word == "--" or (self._subparsers is not None and not word.startswith("-")):
                break  # what follows belongs to the command
            if re.match("--?[a-zA-Z]", word) and " " not in word and flag_name not in self._option_string_actions:
                hint = nearest(flag_name, self._option_string_actions, "--help lists the flags")
                raise InputError(f"{self.prog}: unknown flag {flag_name}; {hint}")
        return super().parse_known_args(words, namespace)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Refuse an empty path, which would be the current directory."""
        if "" in arg_strings and action.metavar in _PLACES:
            place = "/".join(action.option_strings) or str(action.metavar)
            raise InputError(f"{self.prog}: {place}: is empty; give a path (is a variable of the shell not set?)")
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Check one of several choices, among them the name of a command."""
        if action.choices is not None and value not in action.choices:
            place = "/".join(action.option_strings) or str(action.metavar)
            hint = nearest(str(value), map(str, action.choices))
            several = action.nargs == "*" and "," in str(value)
            hint = "separate several values with spaces" if several else hint
            raise InputError(f"{self.prog}: {place}: there is no `{value}`; {hint}")


def parser(cls: type[StageConfig], program: str) -> Parser:
    """A parser with a flag for every setting of a stage, with its meaning, unit and default."""
    made = Parser(
        prog=program,
        description=f"{cls.summary[0].upper()}{cls.summary[1:]}.",
        epilog="Give --recipe, or the settings and --output-dir. Flags override the recipe's settings.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=110),
    )
    run = made.add_argument_group("execution")
    run.add_argument("--recipe", type=Path, metavar="FILE", help="recipe with the settings")
    run.add_argument("--stage", metavar="NAME", help="stage of the recipe (default: the only one of this kind)")
    run.add_argument("--run-dir", type=Path, metavar="DIR", help="run directory of the recipe (default: runs/RECIPE)")
    add_set(run)
    run.add_argument("--output-dir", type=Path, metavar="DIR", help="results and checkpoints, if there is no recipe")
    run.add_argument("--overwrite", action="store_true", help="move results with other settings out of --output-dir")
    if "steps" in cls.model_fields:
        run.add_argument(
            "--resume-from",
            type=int,
            metavar="STEP",
            help="resume from this step's checkpoint (default: the last)",
        )
    add_settings(made, cls)
    return made


def add_command(commands: Any, name: str, purpose: str, description: str | None = None) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        purpose: its line in the list of commands.
        description: beginning of its own help; by default the purpose as a sentence.
    """
    description = description or f"{purpose[0].upper()}{purpose[1:]}."
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=purpose, description=description, allow_abbrev=False
    )
    return parser


def add_set(group: argparse._ActionsContainer) -> None:
    """Add `--set`, which overrides a setting of the recipe."""
    group.add_argument(
        "--set",
        action="append",
        default=[],
        type=parse_override,
        metavar="STAGE.KEY=VALUE",
        help="override a setting of the recipe; may be repeated",
    )


def add_settings(made: argparse.ArgumentParser, cls: type[StageConfig], but: tuple[str, ...] = ()) -> None:
    """Add a flag for every setting of a stage except those in `but`."""
    settings = made.add_argument_group("settings")
    for name, field in _fields(cls):
        if name not in but:
            _add(settings, name, field)


def above_zero(text: str) -> float:
    """The value of a flag that takes a finite number above 0.

    Raises:
        argparse.ArgumentTypeError: if it is something else.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return number


def positive(text: str) -> int:
    """The value of a flag that counts something.

    Raises:
        argparse.ArgumentTypeError: if it is not an integer from 1 to 999,999,999, which every library accepts.
    """
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer from 1 to 999,999,999, not {text[:20]!r}")
    return int(text)


def parse(cls: type[StageConfig], program: str, arguments: list[str]) -> Flags:
    """Read the command line of a stage.

    Raises:
        InputError: if a flag is unknown, or flags exclude each other.
        SystemExit: after --help.
    """
    given = vars(parser(cls, program).parse_args(arguments))
    values = {name: _read_tasks(cls, name, given[name]) for name, _ in _fields(cls) if given[name] is not None}
    recipe, output = given["recipe"], given["output_dir"]
    if (recipe is None) == (output is None):
        raise InputError(f"{program}: give either --recipe FILE, or the stage's settings and --output-dir DIR")
    if recipe is None and (given["stage"] or given["run_dir"] or given["set"]):
        raise InputError(f"{program}: --stage, --run-dir and --set need --recipe; add it")
    return Flags(
        recipe=recipe,
        stage=given["stage"],
        run_dir=given["run_dir"],
        output_dir=output,
        overrides=given["set"],
        overwrite=given["overwrite"],
        resume_from=given.get("resume_from"),
        values=values,
    )


def flag(name: str) -> str:
    """`segment_length` → `--segment-length`."""
    return "--" + name.replace("_", "-")


def setting_at(cls: type[BaseModel], key: Key) -> str:
    """The setting with a flag of its own that contains a key; an unknown key stays as it is.

    >>> from t5_pipeline.config.adaptation import SpanCorruptConfig
    >>> setting_at(SpanCorruptConfig, ("keep_steps", 1)), setting_at(SpanCorruptConfig, ("init", "d_model"))
    ('keep_steps', 'init.d_model')
    """
    names, path = {name for name, _ in _fields(cls)}, list(map(str, key))
    lengths = [length for length in range(len(path), 0, -1) if ".".join(path[:length]) in names]
    return ".".join(path[: lengths[0]] if lengths else path)


def validate_flags(cls: type[C], values: Mapping[str, Any], program: str, named: Callable[[str], str] = flag) -> C:
    """Validate settings that were given by flags.

    Args:
        program: the command, for errors that no single flag causes.
        named: the name of a setting in errors.

    Raises:
        InputError: if a value is wrong; names the flags instead of the keys of a recipe.
    """
    try:
        made = validate(cls, values, lambda key: named(setting_at(cls, key)) if key else program)
        check_effects([made])
    except InputError as error:
        names = "|".join(name for name, _ in _fields(cls) if "." not in name)
        text = re.sub(
            f"`({names})(?:: ([^`]*))?`",
            lambda found: f"`{named(found[1])}{'' if found[2] is None else f' {found[2]}'}`",
            str(error),
        )
        raise InputError(text) from None
    return made


def _fields(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted name of every setting: the sizes of `init` one by one, a task or a list as a whole."""
    for name, field in cls.model_fields.items():
        inner = model_in(field.annotation)
        many = any(get_origin(part) is list for part in types_in(field.annotation))
        if inner is None or many or issubclass(inner, TaskConfig):
            yield prefix + name, field
        else:
            yield from _fields(inner, f"{prefix}{name}.")


def _add(group: Any, name: str, field: FieldInfo) -> None:
    types = list(types_in(field.annotation))
    extra = properties(field)
    only = f" ({extra['only']})" if ":" in extra["only"] else ""
    unit = f" [{extra['unit']}]" if extra["unit"] else ""
    if field.is_required():
        default = "required"
    else:
        value = field.get_default(call_default_factory=True)
        shown = "none" if value in (None, [], {}) else repr(value) if str(value).isspace() else value
        default = f"default: {shown}"
    description = (field.description or "") + (_TASK_FILE if TaskConfig in types else "")
    text = f"{description}{only}{unit} ({default})".replace("%", "%%")
    choices = [choice for t in types if get_origin(t) is Literal for choice in get_args(t)]
    if bool in types:
        group.add_argument(flag(name), dest=name, action=argparse.BooleanOptionalAction, default=None, help=text)
    elif Any in types:  # a mapping with values of any type
        group.add_argument(
            flag(name), dest=name, metavar="YAML", type=lambda given: parse_value(given, flag(name)), help=text
        )
    elif any(get_origin(t) is list for t in types):
        group.add_argument(
            flag(name), dest=name, nargs="*", metavar=_metavar(types), choices=choices or None, help=text
        )
    else:
        metavar = None if choices else _metavar(types)
        group.add_argument(flag(name), dest=name, metavar=metavar, choices=choices or None, help=text)


def _metavar(types: list[Any]) -> str:
    if TaskConfig in types:
        return "FILE"
    return "N" if int in types else "X" if float in types else "TEXT"


def _read_tasks(cls: type[BaseModel], name: str, value: Any) -> Any:
    field = cls.model_fields.get(name)
    if field is None or TaskConfig not in types_in(field.annotation):
        return value
    return [load_task(Path(v)) for v in value] if isinstance(value, list) else load_task(Path(value))
