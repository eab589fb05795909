import functools
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest
import typer
from PIL import Image
from toys import picture
from typer.testing import CliRunner

from benchmarks import beside, conformal, contexts, drift, serving
from benchmarks.measure import read_rows
from promptprism.cli import app
from promptprism.data.registry import load_data
from promptprism.evaluation.store import read_results
from promptprism.evaluation.suites import load_suite
from promptprism.evidence import FUSIONS
from promptprism.methods import METHODS, CdcSettings, make_settings
from promptprism.reports.plots import PLOTS
from promptprism.reports.protocols import base_new_hm, over_data
from promptprism.reports.report import TABLES
from promptprism.reports.results import group
from promptprism.reports.trust import average_metric

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The folder that the README speaks of, and two photos to ask about."""
    monkeypatch.chdir(tmp_path)
    for flower, colour, holiday in (("daisy", "white", 1), ("iris", "blue", 2)):
        for split, numbers in (("train", range(16)), ("test", range(16, 18))):
            folder = tmp_path / "flowers" / split / flower
            folder.mkdir(parents=True)
            for number in numbers:
                Image.fromarray(picture(colour, number)).save(folder / f"{number}.jpg")
        Image.fromarray(picture(colour, 99)).save(tmp_path / f"holiday{holiday}.jpg")


@pytest.mark.slow
def test_the_python_example_of_the_readme_runs_word_for_word(photos, capsys, monkeypatch):
    fewer = functools.partial(make_settings, epochs=1)  # each takes ten seconds
    monkeypatch.setattr("promptprism.estimator.conventions.make_settings", fewer)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    predicted, *_, new = capsys.readouterr().out.splitlines()
    assert predicted == "['daisy' 'iris']"
    assert new in ("['tulip']", "['orchid']")
    opinion = names["opinion"].fused
    assert opinion.belief.shape == (1, 2) and opinion.uncertainty.shape == (1,)
    assert opinion.belief.sum() + opinion.uncertainty.item() == pytest.approx(1)
    both = ["holiday1.jpg", "holiday2.jpg"]
    assert (names["same"].predict_proba(both) == names["model"].predict_proba(both)).all()


def test_the_defaults_in_the_description_of_the_method_are_those_of_the_code():
    rows = re.findall(
        r"^\| `(\w+)` \| `(.+?)` \| (?:K|I|U|ours) \|",
        (ROOT / "docs/reference/cdc-settings.md").read_text(),
        re.M,
    )
    assert {name: json.loads(value) for name, value in rows} == CdcSettings().model_dump(mode="json")


def test_task_misalignment_has_one_figure():
    measured = json.loads((ROOT / "results/task-misalignment.json").read_text())
    scored = json.loads((ROOT / "results/miniworld-zero-shot.json").read_text())["task_misalignment"]
    assert scored == {name: measured[name] for name in scored}
    share = f"{100 * scored['full_is_closer']['object']:.1f} % of"
    for name in ("results/mini-clip", "explanation/causality"):
        page = (ROOT / f"docs/{name}.md").read_text()
        assert share in " ".join(page.split()) and f"{scored['scenes']:,} scenes" in page


def test_the_rules_of_fusion_in_the_description_of_the_method_are_those_of_the_code():
    table = (
        (ROOT / "docs/explanation/fusion.md")
        .read_text()
        .split("| `fusion` | fused weight", 1)[1]
        .split("\n\n")[0]
    )
    assert set(re.findall(r"^\| `(\w+)`", table, re.M)) == set(FUSIONS)
    meaning = CdcSettings.model_fields["fusion"].description
    assert all(rule in meaning for rule in FUSIONS)


def test_the_examples_about_opinions_print_what_they_say(capsys):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/explanation/trust.md").read_text(), re.DOTALL)
    names, run = {}, 0
    for example in examples:
        if "Opinion.from_evidence" in example:
            exec(compile(example, "trust.md", "exec"), names)
            said = re.findall(r"^# (.*)$", example, re.MULTILINE)
            assert capsys.readouterr().out.splitlines() == said
            run += 1
    assert run >= 2


def commands():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text(encoding="utf-8")
        # In the text some are named without what they need; those with an option are whole.
        inline = re.findall(r"`(promptprism [^`]* --[^`]*)`", text)
        yield from (" ".join(command.split()) for command in inline if "..." not in command)
        lines = text.replace("\\\n", " ").splitlines()
        yield from (line.strip() for line in lines if re.match(r"(    )?promptprism ", line))


@pytest.mark.slow
@pytest.mark.parametrize("line", list(commands()))
def test_commands_in_the_documentation_exist_with_their_options(line, monkeypatch):
    monkeypatch.setattr("promptprism.hub.fetch", Path)  # an example's owner is nobody
    _, *words = shlex.split(line, comments=True)
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words)


def below(text, match):
    return ("| " + text[match.end() :].partition("\n| ")[2].partition("\n\n")[0]).splitlines()


def tables():
    """Each command of the pages of results that makes a table, and the rows below it."""
    study = ROOT / "docs/results/settings.md"
    for page in sorted({ROOT / "docs/results.md", *(ROOT / "docs/results").glob("*.md")} - {study}):
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"`promptprism\s+(report\s+results/[^`]*)`", text):
            yield " ".join(match[1].split()), below(text, match)
    text = study.read_text(encoding="utf-8")
    for match in re.finditer(r"^`(mini/\w+)`[:;]", text, re.MULTILINE):
        head, line, *rows = below(text, match)  # without the column that is the same everywhere
        whole = [f"| data {head}", f"| --- {line}", *(f"| average {row}" for row in rows)]
        yield f"report results/study.jsonl --table study --suite {match[1]}", whole


#: A file of results is the same for every table that is made of it.
read_once = cache(read_results)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "table"), list(tables()), ids=[command for command, _ in tables()])
def test_tables_in_the_documentation_come_out_of_the_results(command, table, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("promptprism.evaluation.store.read_results", read_once)
    made = CliRunner().invoke(app, shlex.split(command))
    assert made.exit_code == 0 and len(table) > 4
    assert not set(table) - set(made.stdout.splitlines())


@pytest.mark.parametrize("page", ["README.md", "docs/reference/methods.md"])
def test_no_method_is_left_out_of_a_table(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = {
        name for row in re.findall(r"^\|.*", text, re.MULTILINE) for name in re.findall(r"`([\w-]+)`", row)
    }
    assert not METHODS.own.keys() - named


@pytest.mark.parametrize("suite", ["mini/base-to-new", "photos/base-to-new"])
def test_no_method_is_left_out_of_the_suites_that_compare_all(suite):
    assert METHODS.own.keys() <= load_suite(suite).methods.keys()


def test_the_help_of_report_names_every_table_and_plot():
    told = " ".join(CliRunner().invoke(app, ["report", "--help"]).output.replace("│", " ").split())
    assert not [name for name in (*TABLES, *PLOTS) if name not in told.replace("- ", "-")]


def test_the_short_table_of_photos_is_of_the_results():
    head = "| method | base | new | HM | ECE, base | ECE, new | AUROC, new from base |"
    below = rf"^{re.escape(head)}\n.*\n((?:\|.*\n)+)"
    suite = load_suite("photos/base-to-new").only(["zero-shot", "linear-probe", "coop", "maple", "cdc"])
    results = read_once(ROOT / "results/photos.jsonl")
    runs = group([result for result in results if result.cell.protocol == suite.protocol], suite)

    def figures(row):
        there, _ = over_data(runs, row, runs.datasets)
        own, usual = (average_metric(there, "new", f"ood/auroc_{by}") for by in ("uncertainty", "max_prob"))
        yield row.method
        ece = (average_metric(there, part, "cal/ece") for part in ("base", "new"))
        for figure in (*base_new_hm(there), *ece, own or usual):
            yield f"{100 * figure.mean:.1f}" + (f" ± {100 * figure.std:.1f}" if figure.std else "")

    made = "".join(f"| {' | '.join(figures(row))} |\n" for row in runs.by_row)
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/results.md")]
    tables = [table for page in pages for table in re.findall(below, page, re.MULTILINE)]
    assert tables and all(table == made for table in tables), made


def test_the_table_of_learned_classes_beside_others_is_of_the_results():
    learned, found = set(load_data("mini/general").class_names), {}
    suite = load_suite("mini/cross-dataset").only(seeds=[1])
    rows = {cell: row for row, cell in suite.grid()}
    for result in read_once(ROOT / "results/mini.jsonl"):
        if row := rows.get(result.cell):
            parts = [part.class_accuracy for name, part in result.scores.items() if name != "source"]
            kinds = [
                [a for part in parts for n, a in part.items() if (n in learned) is k] for k in (True, False)
            ]
            found[row] = [f"{100 * fmean(kind):.1f}" for kind in kinds]
            assert list(map(len, kinds)) == [256, 255]
    page = (ROOT / "docs/results/transfer.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| method \| 256 learned \| 255 others \|\n.*\n((?:\|.*\n)+)", page, re.M)
    told = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert len(told) > 3 and all(found[row] == figures for row, *figures in told)


def test_the_table_of_suggested_labels_is_that_of_the_benchmark():
    rows = read_rows(ROOT / "benchmarks/results/suggest.csv")
    told: dict[tuple[str, str], list[str]] = {}
    for row in sorted(rows, key=lambda row: row["chosen"], reverse=True):  # suggest, random
        figure = f"{100 * float(row['accuracy']):.1f} ± {100 * float(row['deviation']):.1f}"
        told.setdefault((row["data"], row["labels"]), []).append(figure)
    page = (ROOT / "docs/how-to/learn-again.md").read_text(encoding="utf-8")
    table = page.partition("<!-- suggest: begin -->")[2].partition("<!-- suggest: end -->")[0]
    lines = [f"| {' | '.join([*place, *figures])} |" for place, figures in told.items()]
    assert table.strip().splitlines()[2:] == lines


def test_the_table_of_conformal_sets_is_that_of_the_benchmark():
    page = (ROOT / "docs/how-to/calibrate.md").read_text(encoding="utf-8")
    told = page.partition("<!-- conformal: begin -->")[2].partition("<!-- conformal: end -->")[0]
    assert told.strip() == conformal.table(read_rows(ROOT / "benchmarks/results/conformal.csv"))


def test_tables_are_whole():
    for page in sorted(
        [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    ):
        lines = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S).splitlines()
        lines = [line.strip() for line in lines]
        for before, line in zip(["", *lines], lines, strict=False):
            if line.startswith("|") and not before.startswith("|"):
                following = lines[lines.index(line) + 1]
                assert re.fullmatch(r"\|(?: *:?-+:? *\|)+", following), f"{page.name}: {line}"
            assert line.startswith("|") or not line.endswith(" |"), f"{page.name}: {line}"


def test_the_table_of_the_two_constants_is_that_of_the_benchmark():
    page = (ROOT / "docs/results/transfer.md").read_text(encoding="utf-8")
    told = page.partition("<!-- beside: begin -->")[2].partition("<!-- beside: end -->")[0]
    assert told.strip() == beside.table(read_rows(ROOT / "benchmarks/results/beside.csv"))


def test_the_table_of_shifts_is_that_of_the_benchmark():
    page = (ROOT / "docs/how-to/serve.md").read_text(encoding="utf-8")
    told = page.partition("<!-- drift: begin -->")[2].partition("<!-- drift: end -->")[0]
    assert told.strip() == drift.table(read_rows(ROOT / "benchmarks/results/drift.csv"))


def test_the_tables_of_interventions_are_those_of_the_results():
    made = [(ROOT / f"results/{name}.md").read_text() for name in ("interventions", "specialise")]
    told = (
        (ROOT / "docs/explanation/causality.md").read_text(encoding="utf-8").partition("## What was found")[2]
    )
    rows = re.findall(
        r"^\| [a-z-]+ \| (?:0\S*|S\d|fused) \|.*$", told.partition("## What a user can have")[0], re.M
    )
    assert len(rows) > 40 and not {*rows} - {*"\n".join(made).splitlines()}


def test_the_table_of_contexts_is_that_of_the_benchmark():
    page = (ROOT / "docs/explanation/causality.md").read_text(encoding="utf-8")
    told = page.partition("<!-- contexts: begin -->")[2].partition("<!-- contexts: end -->")[0]
    assert told.strip() == contexts.table(read_rows(ROOT / "benchmarks/results/contexts.csv"))


def test_the_table_of_servers_is_that_of_the_benchmark():
    page = (ROOT / "docs/how-to/serve.md").read_text(encoding="utf-8")
    told = page.partition("<!-- serving: begin -->")[2].partition("<!-- serving: end -->")[0]
    found = json.loads((ROOT / "benchmarks/results/serving.json").read_text(encoding="utf-8"))
    assert told.strip() == serving.table(found)


def test_the_page_tells_what_the_example_came_to():
    found = json.loads((ROOT / "benchmarks/results/sort_flowers.json").read_text(encoding="utf-8"))
    page = " ".join((ROOT / "docs/how-to/learn-again.md").read_text(encoding="utf-8").split())
    assert f"{found['reviewed']} of {found['photos']} looked at" in page and found["shots"] == 8
    assert f"{100 * found['before']:.1f} % before and {100 * found['after']:.1f} % after" in page


def test_the_tutorial_tells_what_few_photos_gave():
    every = [
        result
        for result in read_results(ROOT / "results/photos.jsonl")
        if (result.cell.protocol, result.cell.data) == ("few-shot", "eurosat")
    ]

    def figures(method, shots):
        runs = [one for one in every if (one.cell.method, one.cell.shots) == (method, shots)]
        right = [100 * run.scores["test"].accuracy for run in runs]
        return fmean(right), fmean(run.training.cost.seconds for run in runs), runs[0].training.images

    text = " ".join((ROOT / "docs/tutorials/own-photos.md").read_text(encoding="utf-8").split())
    one, four, (sixteen, seconds, images) = (figures("cdc", shots) for shots in (1, 4, 16))
    told = f"{one[0]:.1f} % right after one photo of each, {four[0]:.1f} % after four and {sixteen:.1f} %"
    assert told in text and f"{images} photos of EuroSAT took {seconds:.0f} s" in text
    right, seconds, _ = figures("linear-probe", 16)
    assert f"`--method linear-probe` {seconds:.0f} s" in text and f"({right:.1f} %)" in text


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda page: page.name
)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, link


def test_the_suite_of_the_tutorial_has_as_many_cells_as_it_says(tmp_path):
    page = (ROOT / "docs/tutorials/compare-methods.md").read_text()
    (suite,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "compare.yaml").write_text(suite)
    cells = list(load_suite(str(tmp_path / "compare.yaml")).cells())
    assert f"the {len(cells)} cells" in page


def test_the_readme_is_short():
    assert len(README.split()) <= 700  # prose, tables and code: `wc -w`


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("furo")
    words = [
        "-m",
        "sphinx",
        "--fail-on-warning",
        "--keep-going",
        "--quiet",
        str(ROOT / "docs"),
        str(tmp_path),
    ]
    built = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    # What is made of the code is on its pages.
    pages = {page: (tmp_path / f"reference/{page}.html").read_text() for page in ("cli", "settings", "api")}
    assert "--shots" in pages["cli"] and "diversity_weight" in pages["settings"]
    assert "promptprism.PromptPrism.fit" in pages["api"]
    assert "<math" in (tmp_path / "explanation/fusion.html").read_text()


def every_command():
    """Each command of the command line by its whole name, groups too."""

    def walk(name, command):
        yield name, command
        for child, inner in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {child}", inner)

    return list(walk("promptprism", typer.main.get_command(app)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "command"), every_command(), ids=[name for name, _ in every_command()])
def test_help_reads_well_in_80_columns(name, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    shown = CliRunner().invoke(app, [*name.split()[1:], "--help"], prog_name="promptprism")
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any(line.rstrip(" │").endswith("…") for line in lines)  # nothing is cut off
    said = [line.strip() for line in shown.stdout.split("╭")[0].splitlines()]
    # Each line of a paragraph is as long as it can be.
    for line, following in pairwise(said):
        assert not line or not following or len(line) + len(following.split()[0]) >= 77, line
    context = command.make_context(name, [], resilient_parsing=True)
    silent = [parameter.name for parameter in command.get_params(context) if not parameter.help]
    assert not silent and command.help
