"""Section on reproducing the run: commands, recipe, hardware, versions, commit, digests."""

from __future__ import annotations

from t5_pipeline.core.counts import plural
from t5_pipeline.report import format as fmt
from t5_pipeline.report.collect import Run
from t5_pipeline.report.html import Markup, join, tag
from t5_pipeline.report.layout import Section, section
from t5_pipeline.report.tables import Sheet, Value, download_link, plain_table


def reproduce_section(run: Run) -> Section:
    """Everything needed to run it again, and the digests that show whether the result is the same."""
    save = download_link("recipe.yaml", "application/yaml", run.recipe_text, "recipe.yaml")
    return section(
        "reproduce",
        "Reproduce",
        tag("p", "Save the recipe of this run as ", save, ", then run:", class_="note"),
        tag("pre", "t5-pipeline run recipe.yaml"),
        *_machines(run),
        _versions(run),
        tag("details", tag("summary", "Recipe"), tag("pre", run.recipe_text)),
        _commands(run),
        _digests(run),
    )


def _machines(run: Run) -> list[Markup]:
    """A list of facts for each machine and commit, with the stages that ran there."""
    stages: dict[tuple[tuple[str, str], ...], dict[str, None]] = {}
    for manifest in run.manifests():
        facts = tuple((k, v) for k, v in manifest.environment.items() if k != "command")
        if facts:
            stages.setdefault(facts, {})[manifest.stage] = None
    found = []
    for facts, names in stages.items():
        pairs = [*(("stages", ", ".join(names)) for _ in stages if len(stages) > 1), *facts]
        rows = [tag("div", tag("dt", fmt.sentence_case(k)), tag("dd", v)) for k, v in dict(pairs).items()]
        found.append(tag("dl", *rows, class_="pairs machine"))
    return found


def _versions(run: Run) -> Markup | None:
    versions: dict[str, dict[str, None]] = {}
    for manifest in run.manifests():
        for package, version in manifest.versions.items():
            versions.setdefault(package, {})[version] = None
    made_with = " · ".join(f"{package} {' and '.join(found)}" for package, found in versions.items())
    return tag("p", "Made with ", made_with, ".", class_="note") if made_with else None


def _commands(run: Run) -> Markup | None:
    """The command of each process, as it was given."""
    commands = dict.fromkeys(m.environment["command"] for m in run.manifests() if "command" in m.environment)
    if not commands:
        return None
    return tag("details", tag("summary", "Commands of the stages"), tag("pre", "\n".join(commands)))


def _digests(run: Run) -> Markup | None:
    """Digests of everything that was published."""
    rows: list[list[Value]] = []
    for manifest in run.manifests():
        name = manifest.stage + (f" {fmt.axes([manifest.cell])}" if manifest.cell else "")
        kept = {f"model @{step:,}": record for step, record in manifest.steps_published.items()}
        rows += [[name, output, record.digest] for output, record in {**kept, **manifest.outputs}.items()]
    if not rows:
        return None
    caption = "Equal digests mean equal tensors, however they are stored in files."
    sheet = Sheet("digests", ["Stage", "Output", "SHA-256 of its contents"], rows)
    shown = plain_table(caption, sheet, [[str(value) for value in row] for row in rows], class_="digests")
    return tag("details", tag("summary", join([plural(len(rows), "digest")])), shown)
