"""Fuzz one reader by coverage, for as long as libFuzzer's options say; new inputs go into a folder of yours.

    pip install atheris
    python tests/fuzz.py suite FOUND tests/corpus -max_total_time=60

An input that fails belongs into tests/corpus, as KIND-WORDS: test_fuzz.py runs all that is there.
"""

import os
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))
with atheris.instrument_imports(include=["promptprism"]):
    from test_fuzz import READERS


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"say which reader: {', '.join(READERS)}")
    read, place = READERS[sys.argv.pop(1)], Path(tempfile.mkdtemp())
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    atheris.Setup(sys.argv, lambda content: read(place, content))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
