"""Small inputs that people stumbled over, each with what must come of it.

They are no part of the project: ``PROMPTPRISM_CASES`` names the unpacked folder (``open/NAME/run.sh`` and
``base/``), or the archive. Each runs as a user would, in a process of its own.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

PLACE = os.environ.get("PROMPTPRISM_CASES")
pytestmark = pytest.mark.skipif(not PLACE, reason="PROMPTPRISM_CASES names no cases")

#: By name: the last exit code of its script, and what is to be read.
CASES = {
    "bad-in-batch": (1, r"3\.jpg[\s\S]*2\.jpg' is (truncated|damaged)"),
    "adapter-nan-answer": (2, r"not finite"),
    "adapter-newer": (2, r"written by 0\.9\.0, this is"),
    "class-names-mapping": (1, r"Class names must be a list of at least one name, got \{'red apple': 1"),
    "comma-in-names": (2, r"Classes 'Crane' and 'Crane' read the same"),
    "csv-contradiction": (2, r"lines 6 and 10 of .* two labels, 'banana' and 'red apple'"),
    "csv-ids-no-ending": (2, r"'train/red apple/0\.png' is there: add the endings"),
    "csv-numeric-labels": (0, r"names such as '0', which say nothing .* --names FILE"),
    "csv-tags": (0, r"line 2 .* labels are one per image"),
    "csv-unclosed-quote": (2, r"line 4 of CSV 'list\.csv' has a quote that is not closed"),
    "csv-urls": (2, r"line 2 .* the address 'https://example\.org/p/0\.jpg': download"),
    "csv-utf16": (0, r"banana, red apple"),
    "csv-windows-paths": (0, r"banana, red apple"),
    "dollar-names": (0, r"out"),
    "eleven-bit-grey": (0, r"g11\.(png|tif).* are taken for 11 bits"),
    "fifo-image": (0, r"'f\.png' is a named pipe, not a file[\s\S]*ended with 2"),
    "file-name-cp1252": (0, r"b\\udce4r\.png"),
    "float-reflectance": (0, r"\w+\.tif.* are stretched"),
    "heic-name-jpeg": (0, r"6 images of data"),
    "hf-multilabel": (2, r"column 'labels' .* several labels per image|needs the package datasets"),
    "intel-seg-train": (0, r"forest, glacier"),
    "kaggle-doubly-nested": (2, r"go one folder deeper: give 'chest/chest'"),
    "label-studio-csv": (2, r"no column 'path' .* --path-column NAME"),
    "labels-in-file-names": (2, r"look like splits, not classes: 'test1', 'train'"),
    "leak-train-test": (0, r"8 pictures are in several splits"),
    "names-cp1252": (2, r"folder 'data/caf\\xe9' is no UTF-8"),
    "nfd-names": (0, r"6 images|4 images"),
    "nfd-train-nfc-test": (0, r"accuracy"),
    "notebook-checkpoints": (0, r"8 images of data"),
    "openclip-csv": (2, r"no column 'path' .* --path-column NAME"),
    "roboflow-onehot": (2, r"look like splits, not classes: .*_classes\.csv"),
    "runs-folder-inside": (0, r"no image of its own, only folders: 'runs'"),
    "stdout-cp1252": (0, r""),
    "symlink-self": (2, r"too few images for 8 shots: 'banana' has 3, 'red apple' has 3"),
    "synology-eadir": (2, r"too few images for 8 shots: 'banana' has 4, 'red apple' has 4"),
    "synset-folders": (0, r"names such as 'n01855672', which say nothing"),
    "test-lacks-class": (0, r"accuracy"),
    "tiny-narrow": (0, r"one\.png"),
    "two-labels-one-image": (2, r"both\.png' \(banana\) and '.*both\.png' \(red apple\) hold the same bytes"),
    "wds-dots": (2, r"member 'shelf 2\.0 0\.cls' .* ends a key at the first dot"),
    "wds-minus-one": (2, r"0\.tar: s0+8\.png' has label -1"),
    "wds-templates": (0, r"9 images of wds:set/test, [\s\S]*9 images of wds:set/test/\*\.tar"),
    "yolo-layout": (2, r"laid out as a YOLO data set"),
}  # fmt: skip


@pytest.fixture(scope="session")
def cases(tmp_path_factory):
    root, place = tmp_path_factory.mktemp("cases"), Path(PLACE)
    if place.is_dir() and (place / "open").is_dir():
        shutil.copytree(place, root, symlinks=True, dirs_exist_ok=True)
    else:
        archive = place / "cases.tar.gz" if place.is_dir() else place
        with tarfile.open(archive) as packed:
            packed.extractall(root, filter="fully_trusted")  # names that are no UTF-8, links to parents
    program = root / "promptprism"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m promptprism "$@"\n')
    program.chmod(0o755)
    return root


def test_every_case_is_listed(cases):
    assert {path.name for path in (cases / "open").iterdir()} == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_case(cases, name):
    ends_with, says = CASES[name]
    source = Path(__file__).parents[1] / "src"
    path = os.pathsep.join(filter(None, (str(source), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {
        "PP": str(cases / "promptprism"), "PY": sys.executable, "PYTHONPATH": path, "COLUMNS": "200",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "run.sh"],
        cwd=cases / "open" / name,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    said = done.stdout.decode("utf-8", "backslashreplace")
    # A Python script of the user's shows the error's traceback, and that it is one a user is meant to read.
    assert "Traceback" not in said or re.search(r"^promptprism\.errors\.PromptPrismError", said, re.M), said
    assert re.search(says, said), said
    assert ends_with is None or done.returncode == ends_with, said
