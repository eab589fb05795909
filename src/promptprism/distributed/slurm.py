"""Cells of suites as an array job of Slurm: a script that anybody can read, change and submit."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import promptprism
from promptprism.errors import PromptPrismError
from promptprism.evaluation.suites import Cell
from promptprism.files import write_text

#: Slurm takes arrays of so many tasks unless its MaxArraySize says else.
MOST = 1000

_SCRIPT = """\
#!/bin/sh
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --cpus-per-task={cpus}
{gpus}#SBATCH --output={logs}
#SBATCH --requeue
# The cells of suite {name} that were left. What is finished when its turn comes is not run again. More
# options of sbatch: on its command line, or by its variables, such as SBATCH_PARTITION and SBATCH_TIMELIMIT.
cd {here} || exit 1
[ -e {script} ] || {{ echo "error: node $(uname -n) does not see {folder}: it must be shared" >&2; exit 1; }}
promptprism() {{ {python} -m promptprism "$@"; }}
[ "$(promptprism --version)" = {version} ] || {{
  echo "error: node $(uname -n) has not promptprism {version}: pip install 'promptprism=={version}'" >&2
  exit 1
}}
cell() {{ promptprism suite {source} --out {folder}{more} "$@"; }}
case $SLURM_ARRAY_TASK_ID in
{cells}
*) echo "error: SLURM_ARRAY_TASK_ID is '$SLURM_ARRAY_TASK_ID', not 0 to {last}: submit this by sbatch" >&2
   exit 1 ;;
esac
"""


def write_script(
    name: str,
    source: str,
    folder: Path,
    cells: Sequence[tuple[str, Cell]],
    options: Sequence[str] = (),
    cpus: float = 1,
    gpus: float = 0,
) -> Path:
    """Write the script of an array job with a task for each cell, but no more than `MOST`.

    Args:
        name: of the suite.
        source: its YAML file, or what `load_suite` takes.
        folder: of results; all nodes share it.
        cells: row and cell, at least one.
        options: of ``promptprism suite`` for all of them.
        cpus: cores for a cell.
        gpus: for a cell.

    Raises:
        PromptPrismError: parts of cores or GPUs, names that a command line cannot say, or the place cannot be
            written.
    """
    for value, what in ((cpus, "cpus"), (gpus, "gpus")):
        if not float(value).is_integer():
            raise PromptPrismError(
                f"--{what}-per-cell {value:g}: Slurm gives whole ones only; give 1 or 2, or take --engine ray"
            )
    if comma := [text for row, cell in cells for text in (row, cell.data) if "," in text]:
        raise PromptPrismError(f"'{comma[0]}' has a comma, which separates names in the script: rename it")
    folder = folder.absolute()
    name = re.sub(r"[^\w.-]+", "-", Path(name).with_suffix("").as_posix()).strip("-") or "suite"
    script = folder / "slurm" / f"{name}.sh"
    lines = []
    for number, (row, cell) in enumerate(cells[:MOST]):
        chosen = {"methods": row, "datasets": cell.data, "shots": cell.shots, "seeds": cell.seed}
        words = [word for option, value in chosen.items() for word in (f"--{option}", str(value))]
        lines.append(f"{number}) cell {shlex.join(words)} ;;")
    content = _SCRIPT.format(
        name=name,
        last=len(lines) - 1,
        cpus=int(cpus),
        gpus=f"#SBATCH --gpus-per-task={int(gpus)}\n" if gpus else "",
        logs=shlex.quote(f"{script.parent}/%A-%a.log"),
        here=shlex.quote(str(Path.cwd())),
        script=shlex.quote(str(script)),
        folder=shlex.quote(str(folder)),
        python=shlex.quote(sys.executable),
        version=promptprism.__version__,
        source=shlex.quote(source),
        more="".join(f" {shlex.quote(word)}" for word in options),
        cells="\n".join(lines),
    )
    write_text(script, content)
    return script


def check_submit() -> None:
    """Refuse to submit where there is no Slurm.

    Raises:
        PromptPrismError: there is no sbatch.
    """
    if shutil.which("sbatch") is None:
        raise PromptPrismError(
            "there is no sbatch here: leave out --submit, and submit the script where Slurm is"
        )


def submit(script: Path) -> str:
    """Submit a script; the number of the job.

    Raises:
        PromptPrismError: sbatch says why not.
    """
    done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True)
    if done.returncode:
        raise PromptPrismError(f"sbatch refuses '{script}': {' '.join(done.stderr.split())[:300]}")
    return done.stdout.strip().partition(";")[0]
