"""`t5-pipeline predict`: answers to rows of many tasks.

The implementation is imported on use, so every command starts at once.
"""

from __future__ import annotations

import argparse
from typing import Any

from t5_pipeline.config.command_line import above_zero, add_command, positive
from t5_pipeline.core.atomic_files import STDOUT, check_output
from t5_pipeline.core.errors import SOME_FAILED, InputError
from t5_pipeline.core.printable import say


def add_predict(commands: Any) -> None:
    """Add the command to the subparsers of `t5-pipeline`."""
    predict = add_command(
        commands,
        "predict",
        "answer rows of many tasks with prompts on one frozen T5",
        'Read one JSON object per line: "prompt" (its name; optional if there is only one) and the fields of its task,'
        ' or "input" with the finished text. Write one JSON line for each, in order: "output", and for classification'
        ' "scores", the log-likelihood of each label; or "line" and "error" for a row that cannot be answered.',
    )
    predict.add_argument(
        "--model", metavar="M", help="frozen T5: hub name, directory or stage directory; not needed for fine-tuned T5s"
    )
    predict.add_argument(
        "--prompts",
        required=True,
        metavar="DIR",
        help="prompt, mixture, text prompt, adapter or fine-tuned T5; or a stage or folder of them",
    )
    predict.add_argument(
        "--input", default="-", metavar="FILE", help="input file, or a FIFO of JSON lines (default: -, standard input)"
    )
    predict.add_argument("--output", default="-", metavar="FILE", help="output file (default: -, standard output)")
    predict.add_argument(
        "--batch-size", type=positive, default=64, metavar="N", help="examples per batch (default: 64)"
    )
    predict.add_argument(
        "--precision", choices=("fp32", "bf16"), default="bf16", help="precision of matrix products (default: bf16)"
    )
    predict.add_argument("--threads", type=positive, default=0, metavar="N", help="CPU threads (default: all cores)")
    predict.add_argument(
        "--compile",
        action="store_true",
        help="compile the T5 with torch.compile; faster for large inputs (default: off)",
    )
    _add_free_text(predict.add_argument_group("free text (default: greedy decoding)"))
    predict.set_defaults(command=_predict)


def _add_free_text(text: argparse._ArgumentGroup) -> None:
    text.add_argument(
        "--max-output-length", type=positive, default=0, metavar="N",
        help="maximum tokens of an answer (default: target length in training)",
    )  # fmt: skip
    text.add_argument("--beams", type=positive, default=1, metavar="N", help="beam search with N beams")
    text.add_argument(
        "--length-penalty", type=float, metavar="X",
        help="beams: divide log p by the number of tokens to the power of X (default: 1)",
    )  # fmt: skip
    text.add_argument(
        "--temperature", type=above_zero, metavar="X", help="sample at this temperature (default with --top-p: 1)"
    )
    text.add_argument(
        "--top-p", type=_probability, metavar="P", help="sample from the likeliest tokens with this total probability"
    )
    text.add_argument(
        "--seed", type=int, metavar="N", help="seed of the samples; each row has its own draws (default: 0)"
    )


def _predict(given: argparse.Namespace) -> int:
    sampling = given.temperature is not None or given.top_p is not None
    if sampling and given.beams > 1:
        raise InputError("--beams: cannot be combined with --temperature or --top-p; choose beam search or sampling")
    if given.seed is not None and not sampling:
        raise InputError("--seed: nothing is drawn without --temperature or --top-p; remove it, or give one of them")
    if given.length_penalty is not None and given.beams == 1:
        raise InputError("--length-penalty: has no effect without beam search; remove it, or give --beams")

    from t5_pipeline.config.launch import LaunchContext
    from t5_pipeline.evaluation.decoding import Decoding
    from t5_pipeline.execution.devices import set_threads
    from t5_pipeline.serving.engine import Engine
    from t5_pipeline.serving.predict import Predict

    check_output(given.output)
    set_threads(given.threads, LaunchContext())
    temperature = (given.temperature or 1.0) if sampling else 0.0
    penalty = 1.0 if given.length_penalty is None else given.length_penalty
    decoding = Decoding(given.beams, penalty, temperature, given.top_p or 1.0, given.seed or 0)
    predict = Predict(given.batch_size, given.max_output_length, decoding)
    engine = Engine.load(given.model, given.prompts, precision=given.precision, compiled=given.compile)
    counts = predict(engine, given.input, given.output)
    if given.output != STDOUT:
        say(f"✓ wrote {counts.rows - counts.bad:,} answers to {given.output}")
    if counts.bad:
        say(f'{counts.bad:,} of {counts.rows:,} rows have no answer; their output lines contain "line" and "error"')
    return SOME_FAILED if counts.bad else 0


def _probability(text: str) -> float:
    number = above_zero(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, not {text!r}")
    return number
