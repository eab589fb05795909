"""Whatever a file holds, it is read or refused in one line: damaged and foreign inputs, made by hypothesis.

`tests/corpus` keeps inputs that once failed, by what they are; each is tried before anything that is drawn.
"""

import csv
import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_results import result, two
from PIL import Image

from promptprism.adapter import CARD, read_card
from promptprism.data.lists import read_list
from promptprism.data.prepare import _unpack
from promptprism.data.reading import read_names
from promptprism.data.records import Dataset, Record
from promptprism.data.registry import load_data
from promptprism.data.shards import read_shards
from promptprism.errors import PromptPrismError
from promptprism.evaluation.store import read_results
from promptprism.evaluation.suites import NAMED, load_suite
from promptprism.files import read_tensors

pytestmark = pytest.mark.slow

CORPUS = Path(__file__).with_name("corpus")
FORMAT_1 = Path(__file__).with_name("adapters") / "format-1"
quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=8), inside, max_size=3),
    max_leaves=6,
)


def damaged(content):
    """Bytes like these: some are changed, taken out or put in."""

    def edit(edits):
        made = bytearray(content)
        for place, gone, new in edits:
            at = place % (len(made) + 1)
            made[at : at + gone] = new
        return bytes(made)

    edits = st.tuples(st.integers(0, 1 << 20), st.integers(0, 9), st.binary(max_size=6))
    return st.lists(edits, min_size=1, max_size=4).map(edit)


def changed(content):
    """The JSON text of a value in which one field, at any depth, is another value, or one more."""

    def places(value, above=()):
        yield above
        for name, inside in value.items() if isinstance(value, dict) else ():
            yield from places(inside, (*above, name))

    def edit(choice):
        at, new = choice
        made = json.loads(json.dumps(content))
        around = made
        for name in at[:-1]:
            around = around[name]
        if at:
            around[at[-1]] = new
        else:
            made[str(new)[:8]] = new
        return json.dumps(made).encode()

    return st.tuples(st.sampled_from(list(places(content))), json_values).map(edit)


def tried(kind, drawn):
    """Draws, and before them what lies in the corpus."""
    kept = [path.read_bytes() for path in sorted(CORPUS.glob(f"{kind}-*"))]
    return st.one_of(*map(st.just, kept), drawn) if kept else drawn


def read_or_refused(read, place, content):
    place.write_bytes(content)
    try:
        read()
    except PromptPrismError as error:
        said = str(error).partition(" (Python with Dassl):\n\n")[0]  # the recipe for pickles stands below
        assert "\n" not in said and len(str(error)) < 3000


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_fuzz_corpus(tmp_path, path):
    kind, content = path.name.partition("-")[0], path.read_bytes()
    READERS[kind](tmp_path, content)


CARD_TEXT = (FORMAT_1 / CARD).read_bytes()


def card(folder, content):
    read_or_refused(lambda: read_card(folder), folder / CARD, content)


@quick
@given(tried("card", damaged(CARD_TEXT) | changed(json.loads(CARD_TEXT))))
def test_fuzz_cards(tmp_path, content):
    card(tmp_path, content)


TENSORS = (FORMAT_1 / "adapter.safetensors").read_bytes()


def tensors(folder, content):
    read_or_refused(lambda: read_tensors(folder / "t"), folder / "t", content)


@quick
@given(tried("tensors", damaged(TENSORS) | damaged(TENSORS[:80]) | st.binary(max_size=40)))
def test_fuzz_tensors(tmp_path, content):
    tensors(tmp_path, content)


LINE = result("cdc", "a", 1, two(0.8, 0.6), templates=2).model_dump_json().encode()


def results(folder, content):
    read_or_refused(lambda: read_results(folder / "r.jsonl"), folder / "r.jsonl", content)


@quick
@given(tried("results", damaged(LINE) | changed(json.loads(LINE))))
def test_fuzz_results(tmp_path, content):
    results(tmp_path, content)


SUITES = [(NAMED / name).read_bytes() for name in ("mini/ablation.yaml", "paper/templates.yaml")]


def suite(folder, content):
    read_or_refused(lambda: list(load_suite(str(folder / "s.yaml")).cells()), folder / "s.yaml", content)


@quick
@given(
    tried(
        "suite", st.sampled_from(SUITES).flatmap(damaged) | json_values.map(lambda v: json.dumps(v).encode())
    )
)
def test_fuzz_suites(tmp_path, content):
    suite(tmp_path, content)


def table(folder, content):
    if not (folder / "0.png").exists():
        for number in range(3):
            Image.new("RGB", (3, 3), (number, 0, 0)).save(folder / f"{number}.png")
    read_or_refused(lambda: load_data(str(folder / "list.csv")), folder / "list.csv", content)


def written(rows):
    out = io.StringIO()
    csv.writer(out).writerows([["path", "label", "split"], *rows])
    return out.getvalue().encode(errors="surrogatepass")


ROW = st.tuples(st.sampled_from(["0.png", "1.png", "2.png"]) | st.text(max_size=6), st.text(max_size=6),
                st.sampled_from(["train", "test"]) | st.text(max_size=6))  # fmt: skip
WHOLE = written([("0.png", "cat", "train"), ("1.png", "dog", "train"), ("2.png", "cat", "test")])


@quick
@pytest.mark.filterwarnings("ignore")
@given(tried("table", damaged(WHOLE) | st.lists(ROW, max_size=4).map(written)))
def test_fuzz_tables(tmp_path, content):
    table(tmp_path, content)


def names(folder, content):
    read_or_refused(lambda: read_names(folder / "names.txt"), folder / "names.txt", content)


@quick
@given(tried("names", st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode())
             | damaged(b"n01440764 tench\nn03773504,missile\n")))  # fmt: skip
def test_fuzz_names(tmp_path, content):
    names(tmp_path, content)


def shots(folder, content):
    pool = tuple(Record(str(folder / f"{number}.png"), 0) for number in range(3))
    dataset = Dataset("d", ("cat",), train=pool, folder=folder)
    read_or_refused(lambda: read_list(folder / "list.jsonl", dataset), folder / "list.jsonl", content)


SHOTS = b'{"path": "0.png", "label": 0, "classname": "cat"}\n["1.png", 0, "cat"]\n2\n'


@quick
@given(tried("shots", damaged(SHOTS) | json_values.map(lambda value: json.dumps(value).encode())))
def test_fuzz_lists(tmp_path, content):
    shots(tmp_path, content)


def shard_bytes():
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as packed:
        for name, content in (("a.jpg", b"picture"), ("a.cls", b"cat"), ("b.jpg", b"p"), ("b.cls", b"dog")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return out.getvalue()


def shard(folder, content):
    read_or_refused(lambda: read_shards(str(folder / "s.tar")), folder / "s.tar", content)


@quick
@given(tried("shard", damaged(shard_bytes())))
def test_fuzz_shards(tmp_path, content):
    shard(tmp_path, content)


def zip_bytes():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("above/split.json", "{}" * 40)
        packed.writestr("above/images/a.jpg", bytes(400))
    return out.getvalue()


def archive(folder, content):
    dataset = SimpleNamespace(layout=SimpleNamespace(needs=("split.json",)), folder="d", title="a set")
    unpacked = folder / "root"
    read_or_refused(
        lambda: _unpack(folder / "a.zip", dataset, unpacked, lambda *_: None), folder / "a.zip", content
    )
    assert {path.name for path in folder.iterdir()} <= {"a.zip", "root"}
    assert not unpacked.exists() or [path.name for path in unpacked.iterdir()] == ["d"]


@quick
@given(tried("archive", damaged(zip_bytes())))
def test_fuzz_archives(tmp_path, content):
    archive(tmp_path, content)


@pytest.mark.parametrize(
    "name", ["../out.jpg", "/out.jpg", "C:\\out.jpg", "C:/out.jpg", "a\\..\\..\\out.jpg"]
)
def test_hostile_names_in_archives_write_nothing_outside(tmp_path, name):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.writestr("split.json", "{}")
        packed.writestr(name, "picture")
    archive(tmp_path, out.getvalue())
    assert not [path for path in tmp_path.rglob("*out.jpg") if path.parent != tmp_path / "root" / "d"]


READERS = {
    "card": card, "tensors": tensors, "results": results, "suite": suite, "table": table, "names": names,
    "shots": shots, "shard": shard, "archive": archive,
}  # fmt: skip
