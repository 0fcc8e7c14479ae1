"""`t5-pipeline prompts`: list, inspect, exchange and send prompts.

Their implementations are imported on use, so every command starts at once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from t5_pipeline.artifacts.collection import Collection, read_each
from t5_pipeline.artifacts.kinds import locate_one, named_prompts
from t5_pipeline.config.command_line import add_command, positive
from t5_pipeline.core.checksums import short_digest
from t5_pipeline.core.errors import SOME_FAILED, InputError
from t5_pipeline.core.printable import say, show
from t5_pipeline.core.scores import score_text, scores_text
from t5_pipeline.core.tables import aligned

_PROMPTS = "prompt, prompt_tune stage, or folder of them; a prompt is named after its directory"
_MODEL = "frozen T5: hub name, directory or stage directory"


def add_prompts(commands: Any) -> None:
    """Add the command to the subparsers of `t5-pipeline`."""
    prompts = add_command(commands, "prompts", "inspect, push and pull prompts; import and export PEFT or .npy")
    subcommands = prompts.add_subparsers(required=True, metavar="COMMAND")
    _add_inspection(subcommands)
    _add_exchange(subcommands)
    _add_transfer(subcommands)


def _add_inspection(commands: Any) -> None:
    listed = add_command(commands, "list", "list prompts")
    listed.add_argument("prompts", metavar="DIR", help=_PROMPTS)
    listed.add_argument("--json", action="store_true", help="print JSON")
    listed.set_defaults(command=_list)

    show = add_command(commands, "show", "show the templates, sizes and origin of prompts")
    show.add_argument("prompts", metavar="DIR", help=_PROMPTS)
    show.set_defaults(command=_show)

    verify = add_command(commands, "verify", "check prompts against their checksums")
    verify.add_argument("prompts", metavar="DIR", help=_PROMPTS)
    verify.add_argument("--model", metavar="M", help="also check that the prompts were trained on this T5")
    verify.set_defaults(command=_verify)

    near = add_command(commands, "neighbors", "show the vocabulary tokens nearest to each row")
    near.add_argument("prompts", metavar="DIR", help=_PROMPTS)
    near.add_argument("--model", required=True, metavar="M", help=f"{_MODEL}; must be that of the prompts")
    near.add_argument("--top", type=positive, default=5, metavar="K", help="tokens per row (default: 5)")
    near.add_argument("--json", action="store_true", help="print JSON")
    near.set_defaults(command=_neighbors)


def _add_exchange(commands: Any) -> None:
    export = add_command(commands, "export", "export prompts to PEFT or .npy")
    export.add_argument("prompts", metavar="DIR", help=_PROMPTS)
    export.add_argument("--to", required=True, choices=("peft", "npy"), help="PEFT adapter, or float32 array [P, D]")
    export.add_argument(
        "--output", required=True, metavar="PATH", help="adapter directory or .npy file; folder for several prompts"
    )
    export.add_argument(
        "--model", metavar="M", help="PEFT: name or path of the T5 (default: as recorded in the prompt)"
    )
    export.set_defaults(command=_export)

    load = add_command(commands, "import", "import a prompt from PEFT or .npy")
    load.add_argument("source", metavar="FILE", help="adapter directory or .npy file")
    load.add_argument("--from", dest="form", required=True, choices=("peft", "npy"), help="format of the file")
    load.add_argument("--model", required=True, metavar="M", help=f"{_MODEL}; must be that of the prompt")
    load.add_argument(
        "--task", required=True, metavar="FILE", help="YAML file: name, data, inputs, targets, labels, metrics"
    )
    load.add_argument("--output", required=True, metavar="DIR", help="directory to write the prompt to")
    load.add_argument(
        "--sentinel",
        choices=("none", "targets", "both"),
        help="position of extra_id_0 in training (default: as the model expects)",
    )
    load.add_argument(
        "--max-input-length", type=positive, metavar="N", help="input tokens in training; more are cut (default: 512)"
    )
    load.add_argument(
        "--max-target-length", type=positive, metavar="N", help="maximum target tokens in training (default: 128)"
    )
    load.set_defaults(command=_import)


def _add_transfer(commands: Any) -> None:
    recycle = add_command(commands, "recycle", "map a prompt to another T5 without training")
    recycle.add_argument("prompt", metavar="PROMPT", help="prompt or prompt_tune stage")
    recycle.add_argument("--from-model", required=True, metavar="A", help="T5 that the prompt was trained on")
    recycle.add_argument("--to-model", required=True, metavar="B", help="T5 to map the prompt to")
    recycle.add_argument("--output", required=True, metavar="DIR", help="directory to write the mapped prompt to")
    recycle.add_argument(
        "--map", dest="mapping", choices=("linear", "mlp"), default="linear",
        help="map, fitted on the embeddings of shared vocabulary pieces (default: linear)",
    )  # fmt: skip
    recycle.add_argument(
        "--task", metavar="FILE", help="YAML file of a task; print scores on its validation rows, before and after"
    )
    recycle.set_defaults(command=_recycle)

    push = add_command(commands, "push", "send a prompt as a package to the hub, a URL or a directory")
    push.add_argument("prompt", metavar="PROMPT", help="prompt or prompt_tune stage")
    push.add_argument("to", metavar="TO", help="user/name on the hub, a URL such as s3://bucket/name, or a directory")
    push.set_defaults(command=_push)

    pull = add_command(commands, "pull", "fetch a package, check it, and write it to a directory")
    pull.add_argument("source", metavar="FROM", help="user/name on the hub, a URL, or a directory")
    pull.add_argument("directory", type=Path, metavar="DIR", help="directory to write the prompt to")
    pull.set_defaults(command=_pull)


def _list(given: argparse.Namespace) -> int:
    from t5_pipeline.serving.inspection import summary

    places = named_prompts(given.prompts, "DIR")
    found = read_each(given.prompts, places, summary)
    if given.json:
        rows = [found.sound.get(name) or {"name": name, "error": found.damaged[name]} for name in places]
        show(json.dumps(rows, indent=1, ensure_ascii=False), keep="\n")
    else:
        empty = dict.fromkeys(next(iter(found.sound.values())), "")
        rows = [found.sound.get(name) or empty | {"name": name, "task": "(damaged)"} for name in places]
        show(_table(rows), keep="\n")
    return _report_damaged(found)


def _report_damaged(found: Collection[Any]) -> int:
    """Say which prompts are damaged, and why; the exit code."""
    for name, reason in found.damaged.items():
        say(f"damaged: {name}: {reason}")
    return SOME_FAILED if found.damaged else 0


def _table(rows: list[dict[str, Any]]) -> str:
    """Rows as an aligned text table with a header.

    >>> print(_table([{"name": "rte", "rows": 5, "scores": {}}, {"name": "sst2", "rows": 100, "scores": {"f1": 0.5}}]))
    name  rows  scores
    rte   5
    sst2  100   f1 50.0
    """
    shown = [[scores_text(v) if isinstance(v, dict) else str(v) for v in row.values()] for row in rows]
    return "\n".join(aligned([list(rows[0]), *shown]))


def _show(given: argparse.Namespace) -> int:
    from t5_pipeline.serving.inspection import description

    found = read_each(given.prompts, named_prompts(given.prompts, "DIR"), description)
    show("\n\n".join(found.sound.values()), keep="\n")
    return _report_damaged(found)


def _verify(given: argparse.Namespace) -> int:
    from t5_pipeline.serving.frozen_t5 import FrozenT5
    from t5_pipeline.serving.inspection import problems

    t5 = FrozenT5.find(given.model) if given.model else None
    bad, places = 0, named_prompts(given.prompts, "DIR")
    for name, path in places.items():
        found = list(problems(path, t5))
        bad += bool(found)
        show(f"{name}: {'ok' if not found else found[0]}")
        for problem in found[1:]:
            show(f"  {problem}")
    if bad:
        raise InputError(f"{given.prompts}: {bad} of {len(places)} prompts have problems; see above")
    return 0


def _neighbors(given: argparse.Namespace) -> int:
    from t5_pipeline.serving.inspection import neighbors

    found = neighbors(given.prompts, given.model, given.top)
    if given.json:
        show(json.dumps(found, ensure_ascii=False))
        return 0
    for name, rows in found.items():
        show(f"{name}: nearest tokens of each row, with cosines")
        for number, pieces in enumerate(rows, 1):
            show(f"{number:>5}  " + "  ".join(f"{piece} {cosine:z.3f}" for piece, cosine in pieces))
    return 0


def _export(given: argparse.Namespace) -> int:
    from t5_pipeline.serving.exchange import export_prompts

    for path in export_prompts(given.prompts, given.to, given.output, given.model):
        show(path)
    return 0


def _import(given: argparse.Namespace) -> int:
    from t5_pipeline.serving.exchange import import_prompt

    prompt = import_prompt(
        given.source,
        given.form,
        model=given.model,
        task=given.task,
        output=given.output,
        sentinel=given.sentinel,
        max_input_length=given.max_input_length,
        max_target_length=given.max_target_length,
    )
    show(f"{given.output}: {prompt.info.prompt_length} rows of width {prompt.info.width} for {prompt.info.task.name}")
    return 0


def _recycle(given: argparse.Namespace) -> int:
    from t5_pipeline.serving.recycling import recycle

    found = recycle(given.prompt, given.from_model, given.to_model, given.output, given.mapping, given.task)
    show(f"{given.output}: {given.mapping} map, fitted on {found.shared:,} shared vocabulary pieces")
    if found.scores:
        table = {way: {name: score_text(value) for name, value in of.items()} for way, of in found.scores.items()}
        show(_table([{"prompt": way} | metrics for way, metrics in table.items()]), keep="\n")
    return 0


def _push(given: argparse.Namespace) -> int:
    from t5_pipeline.serving.transfer import push

    digest = push(locate_one("prompt", given.prompt, "PROMPT"), given.to)
    show(f"{given.to}: digest {short_digest(digest)}")
    return 0


def _pull(given: argparse.Namespace) -> int:
    from t5_pipeline.serving.transfer import pull

    digest = pull(given.source, given.directory)
    show(f"{given.directory}: digest {short_digest(digest)}")
    return 0
