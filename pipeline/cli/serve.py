"""The command `t5-pipeline serve`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5_pipeline.config.command_line import Parser, above_zero, add_command, positive
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.printable import say

if TYPE_CHECKING:
    from fastapi import FastAPI

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def add_serve(commands: Any) -> None:
    """Add the command to the subparsers of `t5-pipeline`."""
    serve = add_command(
        commands,
        "serve",
        "serve prompts over HTTP, for OpenAI clients",
        "Serve a frozen T5 with any number of prompts: every prompt is a model of an OpenAI-compatible server. Requests"
        " for different prompts share batches. The page at / tries them out.",
    )
    serve.add_argument("--model", required=True, metavar="M", help="frozen T5: hub name, directory or stage directory")
    serve.add_argument(
        "--prompts", required=True, metavar="DIR",
        help="prompt, prompt_tune stage, folder of prompts, or its URL (s3://, …); changes are served",
    )  # fmt: skip
    serve.add_argument("--name", metavar="NAME", help="name of the T5 without a prompt (default: base)", default="base")
    address = serve.add_argument_group("address and access")
    address.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address (default: 127.0.0.1)")
    address.add_argument("--port", type=_port, default=8000, metavar="N", help="port (default: 8000; 0: any free one)")
    address.add_argument("--keys", type=Path, metavar="FILE", help="file of API keys, one per line (default: no keys)")
    address.add_argument("--allow-changes", action="store_true", help="allow requests that add and remove prompts")
    _add_limits(serve.add_argument_group("limits"))
    _add_execution(serve.add_argument_group("execution"))
    serve.set_defaults(command=_serve)


def _port(text: str) -> int:
    """Read a port. The operating system would silently take a larger number modulo 65,536."""
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 65535, not {text!r}")
    return int(text)


def _add_limits(limits: argparse._ArgumentGroup) -> None:
    limits.add_argument(
        "--max-batch", type=positive, default=32, metavar="N", help="maximum inputs per batch (default: 32)"
    )
    limits.add_argument(
        "--max-waiting", type=positive, default=1024, metavar="N", help="maximum inputs in the queue (default: 1024)"
    )
    limits.add_argument(
        "--max-input-length", type=positive, default=512, metavar="N",
        help="maximum input tokens without a prompt (default: 512)",
    )  # fmt: skip
    limits.add_argument(
        "--max-prompt-input-length", type=positive, default=4096, metavar="N",
        help="maximum input tokens with a prompt whose own maximum is larger (default: 4096)",
    )  # fmt: skip
    limits.add_argument(
        "--max-output-length",
        type=positive,
        default=512,
        metavar="N",
        help="maximum tokens of an answer (default: 512)",
    )
    limits.add_argument(
        "--max-body", type=positive, default=1 << 20, metavar="BYTES", help="maximum size of a request (default: 1 MiB)"
    )
    limits.add_argument(
        "--timeout", type=above_zero, default=60.0, metavar="S", help="maximum seconds for a request (default: 60)"
    )


def _add_execution(execution: argparse._ArgumentGroup) -> None:
    execution.add_argument(
        "--engine", choices=("torch", "ctranslate2"), default="torch",
        help="library that runs the T5 (default: torch); ctranslate2: greedy, needs restarts for changes",
    )  # fmt: skip
    execution.add_argument(
        "--precision", choices=("fp32", "bf16", "int8"), default="fp32",
        help="precision of matrix products (default: fp32); int8 for ctranslate2",
    )  # fmt: skip
    execution.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")
    execution.add_argument(
        "--compile",
        action="store_true",
        help="compile the T5 with torch.compile; the first requests wait for it (default: off)",
    )


def _serve(given: argparse.Namespace) -> int:
    keys = _keys(given.keys)
    if not keys and given.host not in LOOPBACK:
        say(f"warning: everyone who reaches {given.host} can use this server; give --keys FILE")
    with _installed():
        from t5_pipeline.serving.http.run import run
    return run(given, keys)


def application(flags: Sequence[str]) -> FastAPI:
    """The application that `t5-pipeline serve FLAGS` would serve, for another ASGI server than uvicorn."""
    parser = Parser(prog="t5-pipeline", allow_abbrev=False)
    add_serve(parser.add_subparsers())
    given = parser.parse_args(["serve", *flags])
    with _installed():
        from t5_pipeline.serving.http.run import load_app
    return load_app(given, _keys(given.keys))


@contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"serve needs {error.name}, which is not installed; pip install 't5-pipeline[serve]'"
        ) from None


def _keys(path: Path | None) -> frozenset[str]:
    if path is None:
        return frozenset()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--keys: cannot read {path} ({error}); give a text file with one key a line") from None
    keys = set()
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if len(words) > 1:  # each word of a comment would be a key
            raise InputError(f"--keys: {path}:{number}: has a space in it; write one key a line, and nothing else")
        keys.update(words)
    if not keys:
        raise InputError(f"--keys: {path} contains no key; write one key a line")
    return frozenset(keys)
