"""The HTML page: numbers in their place, self-contained, escaped, deterministic."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from t5_pipeline.artifacts import manifest as manifests
from t5_pipeline.report.collect import collect
from t5_pipeline.report.page import render, write_report

VOID = {"meta", "br", "col", "hr"}


class Page(HTMLParser):
    """Text of table cells by table, ids, attributes; checks that elements are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self._rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        self.text += data
        if "caption" in self.open:
            self._caption += data
        elif self.open and ({"td", "th"} & set(self.open)):
            self._rows[-1][-1] += data

    def table(self, beginning: str) -> list[list[str]]:
        return next(rows for caption, rows in self.tables.items() if caption.startswith(beginning))


@pytest.fixture(scope="module")
def complete(builders, tmp_path_factory: pytest.TempPathFactory):
    """A finished run that no test changes."""
    return builders(tmp_path_factory.mktemp("complete") / "run").all()


@pytest.fixture(scope="module")
def html(complete) -> str:
    return render(collect(complete.run_dir.path))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_no_number_is_negative_zero(builders, tmp_path: Path) -> None:
    """Correlations just below zero, and the contrasts between them, are shown as 0.0."""
    run = builders(tmp_path / "run").all()
    place = run.run_dir.path / "evaluate/scores/scores.json"
    scores = json.loads(place.read_text())
    for number, row in enumerate(scores["rows"]):
        row["metrics"] = {"pearson": -1e-4 * (number % 3), "spearman": 1e-4 * (number % 2)}
        row["by_scoring"] = {"decode": row["metrics"], "likelihood": {"pearson": -2e-4}}
        row["neighbors"] = [[["house", -0.001]]]
    place.write_text(json.dumps(scores))
    page = Page(render(collect(run.run_dir.path)))
    described = [value for name, value in page.attributes if name == "aria-label"]
    assert any("Pearson correlation on package" in text for text in described)
    assert not [text for text in [page.text, *described] if re.search(r"(?<!\w)[-−]0(\.0*)?(?![\w.])", text)]


def test_score_table(page: Page) -> None:
    """Wilson intervals of 200 rows below the accuracies; the made-up confusion matrices do not fit the macro F1."""
    metrics = ["Accuracy\u00a0%", "Macro F1\u00a0%"]
    assert page.table("Test split of package, 200 rows.") == [
        [
            "Frozen T5",
            "Method",
            *metrics,
            "vs majority, points",
            "By label likelihood\u00a0%",
            "Illegal\u00a0%",
            "Seeds",
        ],
        [
            "LM adaptation @20 steps",
            "Prompt tuning",
            "52.0 ± 2.0 45.1 to 58.8",
            "47.0 ± 2.0",
            "+12.0",
            "54.0 ± 3.0",
            "2.0",
            "3",
        ],
        ["No prompt", "10.0 6.6 to 14.9", "3.0", "−30.0", "35.0", "80.0", "–"],
        [
            "LM adaptation @40 steps",
            "Prompt tuning",
            "64.0 ± 4.0 57.2 to 70.3",
            "59.0 ± 4.0",
            "+24.0",
            "66.0 ± 5.0",
            "2.0",
            "3",
        ],
        ["No prompt", "12.5 8.6 to 17.8", "3.0", "−27.5", "35.0", "80.0", "–"],
        ["Span corruption", "Prompt tuning", "40.0 ± 1.0 33.5 to 46.9", "35.0 ± 1.0", "0.0", "42.0 ± 0.0", "2.0", "3"],
        ["No prompt", "0.0 0.0 to 1.9", "3.0", "−40.0", "35.0", "80.0", "–"],
        [
            "Span corruption + sentinel",
            "Prompt tuning",
            "50.0 ± 5.0 43.2 to 56.8",
            "45.0 ± 5.0",
            "+10.0",
            "52.0 ± 6.0",
            "2.0",
            "3",
        ],
        ["No prompt", "5.0 2.7 to 9.0", "3.0", "−35.0", "35.0", "80.0", "–"],
        ["", "Majority class", "40.0", "19.0", "–", "–", "–", "–"],
    ]


def test_confusion_table(page: Page) -> None:
    assert page.table("LM adaptation @40 steps") == [
        ["true ↓", "asyncio", "email", "logging"],
        ["asyncio 80", "62", "25", "12"],
        ["email 60", "17", "67", "17"],
        ["logging 60", "8", "25", "67"],
    ]


def of_labels(finished, number: int) -> Page:
    """The page of a run whose task has this many labels."""
    path = finished.run_dir.path / "evaluate/scores/scores.json"
    labels = [f"label {i}" for i in range(number)]
    counts = [[8 if i == j else int(j == (i + 1) % number) for j in range(number)] for i in range(number)]
    rows = [
        {**row, "labels": labels, "confusion": counts if row["method"] == "prompt tuning" else None}
        for row in finished.score_rows()
    ]
    path.write_text(json.dumps({"rows": rows, "seconds": 0.0}))
    return Page(render(collect(finished.run_dir.path)))


@pytest.mark.parametrize(("number", "wide"), [(4, False), (5, True), (20, True)])
def test_matrices_of_many_labels_take_the_full_width(finished, number: int, wide: bool) -> None:
    page = of_labels(finished, number)
    assert ("class", "matrices wide" if wide else "matrices") in page.attributes
    assert page.table("LM adaptation @40 steps")[1][:3] == ["label 0 9", "89", "11"]


def test_matrices_too_large_to_draw_become_lists(finished) -> None:
    rows = of_labels(finished, 21).table("LM adaptation @40 steps: the 12 most frequent confusions of 21 labels")
    assert rows[:2] == [
        ["True label", "Predicted label", "Rows per seed", "% of the true label"],
        ["label 0", "label 1", "1.0", "11"],
    ]


def test_contents_lists_every_section(html: str) -> None:
    listed = re.findall(r'<li><a href="#([a-z]+)">', html)
    assert listed == re.findall(r'<section id="([a-z]+)"', html)
    assert len(listed) == 10


def test_validation_scores_mark_the_published_steps(finished) -> None:
    for directory in (finished.run_dir.path / "prompt_tune/jobs").iterdir():
        cells = json.loads((directory / "job.json").read_text())["cells"]
        rows = [
            {"step": step, "split": "validation", "scores": {cell: {"accuracy": step / 100} for cell in cells}}
            for step in (10, 20, 30)
        ]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = render(collect(finished.run_dir.path))
    assert "Rings: the published steps (10, 20 and 30)." in html
    (plot,) = re.findall(r'aria-label="Validation scores of prompt_tune on package: ([^"]*)"', html)
    assert "LM adaptation @40 steps 10.00 at step 10 to 30.00 at step 30" in plot


def test_perplexity_is_the_exponential_of_the_first_and_last_held_out_loss(page: Page, complete) -> None:
    rows = [
        json.loads(line) for line in (complete.run_dir.path / "lm_adapt/metrics.jsonl").read_text().splitlines()[:-1]
    ]
    validated = [row for row in rows if row.get("split") == "validation"]
    losses = [row["loss"] for row in validated]
    shown = page.table("Before and after LM adaptation.")[1:]
    assert [row[0] for row in shown] == ["lm_adapt", "lm_adapt"]
    assert [row[4] for row in shown] == ["–", f"{validated[-1]['bits_per_byte']:.3f}"]
    assert [float(row[3].replace(",", "")) for row in shown] == [
        pytest.approx(math.exp(loss), rel=0.01) for loss in (losses[0], losses[-1])
    ]


def test_promptability_is_drawn_against_steps(finished, html: str) -> None:
    """Three prompts of two probes of LM adaptation; without probes there is no such section."""
    path = finished.run_dir.path
    assert "Promptability" not in html
    with (path / "lm_adapt/metrics.jsonl").open("a") as log:
        log.write("}\n")
        for step, base in ((0, 0.2), (40, 0.7)):
            scores = {f"package,seed={n}": {"accuracy": base + n / 10, "macro_f1": base} for n in range(3)}
            row = {"step": step, "split": "probe", "score": base, "spread": 0.1, "scores": scores}
            log.write(json.dumps(row) + "\n")
    html = render(collect(path))
    assert "Promptability during LM adaptation" in html
    assert "Scores of prompts tuned during lm_adapt on package: 25.00 at step 0 to 75.00 at step 40." in html


def test_damaged_lines_of_logs_are_reported(finished) -> None:
    with (finished.run_dir.path / "lm_adapt/metrics.jsonl").open("a") as file:
        file.write("\n[]\n")
    assert "lm_adapt: 2 lines of metrics.jsonl" in Page(render(collect(finished.run_dir.path))).text


def test_reproduce_shows_machine_commands_and_recipe(finished) -> None:
    directory = finished.run_dir.path / "lm_adapt"
    manifest = manifests.read(directory)
    assert manifest is not None
    environment = {"command": "lm_adapt.py --recipe 'a b.yaml'", "commit": "0123abc", "processor": "One CPU, 2 cores"}
    manifest.model_copy(update={"environment": environment}).save(directory)
    text = Page(render(collect(finished.run_dir.path))).text
    assert "t5-pipeline run recipe.yaml" in text
    assert "Commit0123abcProcessorOne CPU, 2 cores" in text
    assert "lm_adapt.py --recipe 'a b.yaml'" in text
    assert (finished.run_dir.path / "recipe.yaml").read_text() in text


def test_stages_section(page: Page) -> None:
    rows = page.table("Processes in the order of the recipe.")
    assert rows[1] == ["prepare", "–", "45 s", "", "23:51:00", "23:51:45"]
    assert rows[3] == ["lm_adapt", "40", "2 min 15 s", "", "23:53:00", "23:53:45"]
    assert rows[5] == ["prompt_tune model lm_adapt@20, seed 0 · 1 · 2", "60", "3 min 45 s", "", "23:55:00", "23:55:45"]
    assert rows[-1][:3] == ["All", "", "27 min"]
    assert "python 3.11.2 · torch 2.13.0" in page.text
    for pair in ("vocabulary_size100 tokens", "tokens12,345", "droppedkept out 3", "peak memory512.0 MB"):
        assert pair in page.text
    assert "initd_model 8, d_kv 4, d_ff 16, num_layers 2, num_decoder_layers 2, num_heads 2" in page.text
    assert "learning_rate" not in page.text  # it is at its default
    assert "best step10 to 30" in page.text


def test_provenance_lists_every_output_and_kept_step(page: Page) -> None:
    rows = page.table("Equal digests")[1:]
    assert ["lm_adapt", "model @20", "lm_adapt@20"] in rows
    assert ["evaluate", "scores", "evaluate scores"] in rows
    assert len(rows) == 4 + 1 + 12 + 1


def test_sizes_of_prompt_and_model(page: Page, complete) -> None:
    parameters = complete.shape.parameters
    size = next(complete.run_dir.path.glob("prompt_tune/*/prompt/*.safetensors")).stat().st_size
    assert f"A prompt of 4 tokens has 32 parameters ({size} bytes on disk)" in page.text
    assert f"its frozen T5 has {parameters:,} (" in page.text
    assert f"{parameters / 32:,.0f} times as many" in page.text


def test_only_t5s_of_the_run_were_pretrained_here(complete) -> None:
    run = collect(complete.run_dir.path)
    other = replace(run.models["lm_adapt"], model="models/other", parameters=5000)
    shown = Page(render(replace(run, models={**run.models, "models/other": other}))).text
    (own, elsewhere) = re.search(r"Frozen T5([^;]*);([^;]*?)Task", shown).groups()  # type: ignore[union-attr]
    assert own.endswith("layers of width 8, pretrained here")
    assert elsewhere.strip() == "5,000 parameters, 2\u00a0+\u00a02 layers of width 8"


def test_examples_right_and_wrong(page: Page) -> None:
    right = page.text.index("Right with LM adaptation @40 steps, seed 0")
    wrong = page.text.index("Wrong with LM adaptation @40 steps, seed 0")
    assert right < page.text.index("Return the <running> event loop & nothing else.") < wrong
    assert wrong < page.text.index("Parse a header value into its parts.")


def test_report_loads_nothing_from_elsewhere(html: str) -> None:
    assert not re.search(r"(https?:)?//[a-z]", html)
    assert not re.search(r"<(script|link|img|iframe|object|embed|base)\b|@import|@font-face", html)
    targets = re.findall(r'\b(?:href|src)="([^"]*)"', html)
    assert all(target.startswith(("#", "data:text/", "data:application/yaml")) for target in targets)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in Page(html).attributes


def test_text_is_escaped(html: str) -> None:
    assert "<h1>test &lt;run&gt;</h1>" in html
    assert "<title>test &lt;run&gt;: prompt tuning report</title>" in html
    assert "Return the &lt;running&gt; event loop &amp; nothing else." in html


def test_hostile_names_are_escaped(finished) -> None:
    path = finished.run_dir.path / "evaluate/scores/scores.json"
    nasty = "</text></svg><script>alert('$x_1$')</script>\"&"
    rows = [{**row, "task": nasty, "model": nasty, "labels": [nasty, "b", "c"]} for row in finished.score_rows()]
    path.write_text(json.dumps({"rows": rows, "seconds": 0.0}))
    html = render(collect(finished.run_dir.path))
    assert "<script" not in html
    assert nasty in Page(html).text


def test_report_is_deterministic(complete, html: str, tmp_path: Path) -> None:
    write_report(collect(complete.run_dir.path), tmp_path / "deep" / "b.html")
    assert (tmp_path / "deep" / "b.html").read_text(encoding="utf-8") == html


def test_ids_are_unique_and_references_resolve(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    ids = set(page.ids)
    for name, value in page.attributes:
        if name == "href" or name == "aria-labelledby":
            assert value.startswith("data:") or value.removeprefix("#") in ids
        for target in re.findall(r"url\(#([^)]*)\)", value):
            assert target in ids


def test_plots_have_a_description_and_colors_from_the_page(html: str) -> None:
    plots = re.findall(r'<svg class="plot"[^>]*aria-label="([^"]+)"[^>]*>(.*?)</svg>', html, re.DOTALL)
    assert len(plots) == 1 + 2 + 2 + 1 + 1  # scores, two experiments, two language models, prompts, sizes
    assert (
        "LM adaptation @40 steps 64.0 ± 4.0 (seeds: 60.0, 64.0, 68.0; 95% interval over rows: 57.2 to 70.3)"
        in plots[0][0]
    )
    assert "majority class 40.0" in plots[0][0]
    for _, drawn in plots:
        assert "var(--" in drawn
        assert not re.search(r"(fill|stroke): #", drawn)


@pytest.mark.parametrize("until", range(6))
def test_every_partial_run_has_a_page(builder, until: int) -> None:
    stages = list(builder.recipe.stages)
    for stage in stages[:until]:
        builder.stage(stage)
    page = Page(render(collect(builder.run_dir.path)))
    assert "This run is not complete." in page.text
    assert f"{stages[until]}" in page.text.split("Not started")[1]
    assert "No prompt has been scored yet." in page.text


def test_note_reports_the_progress_of_a_stage(builder) -> None:
    builder.stage("prepare").stage("span_corrupt").begin("lm_adapt", step=20)
    page = Page(render(collect(builder.run_dir.path)))
    assert "Started but not finished: lm_adapt at step 20 of 40" in page.text
    assert "Not started: sentinel, prompt_tune (12 of 12 cells), evaluate" in page.text


def test_finished_run_has_no_note(page: Page) -> None:
    assert "not complete" not in page.text


def test_recipe_with_few_stages(builders, tmp_path: Path) -> None:
    recipe = "name: text only\nstages:\n  prepare: {corpus: stdlib-docs}\n"
    few = builders(tmp_path / "few", recipe).all()
    page = Page(render(collect(few.run_dir.path)))
    assert "text only" in page.text
    assert page.table("Processes")[1][0] == "prepare"


def test_report_needs_no_torch() -> None:
    code = "import sys, t5_pipeline.report.page; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
