"""The command `t5-pipeline export`."""

from __future__ import annotations

import argparse
from typing import Any

from t5_pipeline.config.command_line import add_command
from t5_pipeline.core.counts import plural
from t5_pipeline.core.printable import say, show

FORMS = ("transformers", "ctranslate2", "onnx")
QUANTIZATIONS = ("int8", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16")


def add_export(commands: Any) -> None:
    """Add the command to the subparsers of `t5-pipeline`."""
    export = add_command(
        commands,
        "export",
        "write a T5 with prompts as vocabulary, for other servers",
        "Write a plain T5 that contains the rows of all prompts as embedding rows of new tokens, and a tokenizer with"
        " an alias for each prompt. Any server that runs a T5 can then serve them: send `<prompt:NAME> text`.",
    )
    export.add_argument("--model", required=True, metavar="M", help="frozen T5: hub name, directory or stage directory")
    export.add_argument(
        "--prompts", required=True, metavar="DIR", help="prompt, prompt_tune stage, or folder of prompts"
    )
    export.add_argument("--to", required=True, choices=FORMS, help="format of the model directory")
    export.add_argument("--output", required=True, metavar="DIR", help="directory to write")
    export.add_argument(
        "--quantization", choices=QUANTIZATIONS, help="type of the weights, for ctranslate2 (default: fp32)"
    )
    export.set_defaults(command=_export)


def _export(given: argparse.Namespace) -> int:
    from t5_pipeline.serving.vocabulary_export import export

    tokens = export(given.model, given.prompts, given.to, given.output, given.quantization)
    for one in tokens.values():
        show(f"{one.alias}  {plural(one.length, 'row')}, ids {one.first} to {one.first + one.length - 1}")
    say(f"✓ wrote {given.output}; prompts.json in it lists templates, labels and lengths")
    return 0
