"""Suites as an array job of Slurm: its script is run as Slurm would, a process for each number."""

import os
import shlex
import subprocess
import sys

import pytest
import yaml
from toys import colour_folder
from typer.testing import CliRunner

import promptprism
from promptprism.cli import app
from promptprism.evaluation.store import read_results

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Slurm's scripts are of a shell")


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A suite of five cells, by the place it has from here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    colour_folder(tmp_path / "four colours")
    content = {
        "protocol": "few-shot",
        "methods": {"zero-shot": {}, "low": {"method": "coop", "epochs": 1, "batch_size": 4}},
        "datasets": ["four colours"],
        "shots": [1, 2],
        "seeds": [1, 2],
    }
    (tmp_path / "my suite.yaml").write_text(yaml.safe_dump(content))
    return "my suite.yaml"


def write(suite, *more):
    return CliRunner().invoke(app, ["suite", suite, "--out", "R", "--engine", "slurm", *more])


def task(script, number, **variables):
    env = os.environ | {"SLURM_ARRAY_TASK_ID": str(number), **variables}
    return subprocess.run(["sh", script], cwd="/", env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_a_distributed_array_job_runs_the_cells_that_are_left(suite, tmp_path):
    done = CliRunner().invoke(
        app, ["suite", suite, "--out", "R", "--methods", "zero-shot", "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
    made = write(suite, "--cpus-per-cell", "2", "--gpus-per-cell", "1", "--device", "cpu")
    assert made.exit_code == 0 and "4 cells are left" in made.output
    script = tmp_path / "R" / "slurm" / "my-suite.sh"
    text = script.read_text()
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert directives[:4] == [
        "#SBATCH --job-name=my-suite",
        "#SBATCH --array=0-3",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --gpus-per-task=1",
    ]
    cells = [line.partition(") cell ")[2] for line in text.splitlines() if ") cell " in line]
    assert shlex.split(cells[2].rstrip(" ;")) == [
        *("--methods", "low", "--datasets", "four colours", "--shots", "2", "--seeds", "1")
    ]  # fmt: skip
    ran = task(script, 2)
    assert ran.returncode == 0, ran.stderr
    assert sorted(
        (one.cell.method, one.cell.shots, one.cell.seed) for one in read_results(tmp_path / "R")
    ) == [("coop", 2, 1), ("zero-shot", 1, 1)]
    assert "3 cells are left" in write(suite, "--device", "cpu").output
    beyond = task(script, 7)
    assert beyond.returncode == 1 and "SLURM_ARRAY_TASK_ID is '7', not 0 to 2" in beyond.stderr


@pytest.mark.slow
def test_a_distributed_array_job_says_what_a_node_lacks(suite, tmp_path):
    assert write(suite, "--methods", "zero-shot").exit_code == 0
    script = tmp_path / "R" / "slurm" / "my-suite.sh"
    alone = tmp_path / "alone.sh"
    alone.write_text(script.read_text())
    node = os.uname().nodename
    old = tmp_path / "old"
    (old / "promptprism").mkdir(parents=True)
    (old / "promptprism" / "__init__.py").touch()
    (old / "promptprism" / "__main__.py").write_text("print('0.0.1')")
    ran = task(script, 0, PYTHONPATH=str(old))
    version = promptprism.__version__
    assert ran.returncode == 1
    assert f"node {node} has not promptprism {version}: pip install" in ran.stderr
    script.unlink()
    ran = task(alone, 0)
    assert ran.returncode == 1 and f"node {node} does not see {tmp_path / 'R'}" in ran.stderr
    assert not list((tmp_path / "R" / "results").iterdir())


@pytest.mark.slow
def test_a_distributed_array_job_is_submitted_on_request(suite, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    refused = write(suite, "--submit")
    assert refused.exit_code == 2 and "there is no sbatch here: leave out --submit" in refused.output
    assert not (tmp_path / "R").exists()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f"#!/bin/sh\necho \"$@\" > {shlex.quote(str(tmp_path / 'asked'))}\necho '77;here'\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")
    done = write(suite, "--submit", "--json", "job.json")
    assert done.exit_code == 0 and "submitted as job 77" in done.output
    assert (tmp_path / "asked").read_text() == f"--parsable {tmp_path}/R/slurm/my-suite.sh\n"
    job = yaml.safe_load((tmp_path / "job.json").read_text())
    assert (job["suite"], job["job"], job["left"], job["failures"]) == (suite, "77", 5, [])
    sbatch.write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
    done = write(suite, "--submit")
    assert done.exit_code == 2 and "sbatch refuses" in done.output and "invalid partition" in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "rocket"], "no engine 'rocket': give local, slurm, ray or ray://HOST:PORT"),
        (["--gpus-per-cell", "0.5"], "--cpus-per-cell and --gpus-per-cell are of an engine that gives out"),
        (["--submit"], "--submit is of an engine"),
        (["--engine", "ray", "--submit"], "--submit is of an engine"),
        (["--engine", "ray", "--cpus-per-cell", "nan"], "--cpus-per-cell"),  # Typer's words, or ours
        (["--engine", "ray", "--gpus-per-cell", "1.5"], "--gpus-per-cell 1.5: Ray gives a part of one, or"),
        (["--shots", "0"], "shot '0' is no whole number from 1: write --shots 1,2,3"),
        (["--engine", "slurm", "--gpus-per-cell", "0.5"], "--gpus-per-cell 0.5: Slurm gives whole ones only"),
    ],
)
def test_engines_of_distributed_suites_are_refused_before_they_start(suite, tmp_path, options, said):
    done = CliRunner().invoke(app, ["suite", suite, "--out", "R", *options])
    assert done.exit_code == 2 and said in " ".join(done.output.split())
    assert not list(tmp_path.rglob("*.sh")) and not list(tmp_path.rglob("R/results/*"))
