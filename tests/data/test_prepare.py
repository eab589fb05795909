import contextlib
import hashlib
import http.server
import io
import json
import threading
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from promptprism.cli import app
from promptprism.data import fetch
from promptprism.data.catalog import ALTERNATIVES, CATALOG
from promptprism.data.fetch import UnreachableError, download
from promptprism.data.prepare import by_hand, prepare
from promptprism.data.published import PublishedDataset
from promptprism.data.sources import MIRROR, REVISION, Archive
from promptprism.errors import PromptPrismError

CONTENT = bytes(range(256)) * 40_000
SHA = hashlib.sha256(CONTENT).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does: a redirect that states the digest, then the bytes, ranges too."""

    def do_GET(self):
        state = self.server
        state.ranges.append(self.headers.get("Range"))
        if self.path.startswith("/cdn"):
            return self.send(state.content)
        if self.path.endswith(state.name):
            self.send_response(302)
            self.send_header("X-Linked-ETag", f'"{state.stated}"')
            self.send_header("Location", "/cdn/x")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        return self.send_error(404)

    def send(self, content):
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if self.server.with_ranges else 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        drop = self.server.drops.pop(0) if self.server.drops else None
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content[start:drop])
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    server.content, server.stated, server.name = CONTENT, SHA, "eurosat.zip"
    server.ranges, server.drops, server.with_ranges = [], [], True
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_download_with_progress_and_the_stated_digest(hub, tmp_path):
    steps = []
    assert download(f"{hub.url}/a/eurosat.zip", tmp_path / "a.zip", step=lambda *x: steps.append(x))
    assert (tmp_path / "a.zip").read_bytes() == CONTENT and [p.name for p in tmp_path.iterdir()] == ["a.zip"]
    assert steps[-1] == (len(CONTENT), len(CONTENT)) and steps == sorted(steps)
    hub.stated = "none"
    assert not download(f"{hub.url}/a/eurosat.zip", tmp_path / "b.zip")
    assert download(f"{hub.url}/a/eurosat.zip", tmp_path / "c.zip", SHA)


def test_download_goes_on_where_it_stopped(hub, tmp_path):
    (tmp_path / "a.zip.partial").write_bytes(CONTENT[:1000])
    assert download(f"{hub.url}/a/eurosat.zip", tmp_path / "a.zip")
    assert set(hub.ranges) == {"bytes=1000-"} and (tmp_path / "a.zip").read_bytes() == CONTENT
    (tmp_path / "b.zip.partial").write_bytes(CONTENT)  # killed before it was renamed
    assert download(f"{hub.url}/a/eurosat.zip", tmp_path / "b.zip")
    hub.with_ranges = False
    (tmp_path / "c.zip.partial").write_bytes(b"other bytes")
    assert download(f"{hub.url}/a/eurosat.zip", tmp_path / "c.zip")


def test_a_connection_that_is_cut_off(hub, tmp_path):
    hub.drops = [3_000_000, 7_000_000]
    assert download(f"{hub.url}/a/eurosat.zip", tmp_path / "a.zip")
    assert hub.ranges[::2] == [None, "bytes=3000000-", "bytes=7000000-"]
    hub.drops = [2_000_000, 2_000_000]  # the second time nothing comes
    with pytest.raises(UnreachableError, match="The 2,000,000 bytes that have come are kept"):
        download(f"{hub.url}/a/eurosat.zip", tmp_path / "b.zip")
    assert (tmp_path / "b.zip.partial").stat().st_size == 2_000_000


def test_a_wrong_file_is_removed(hub, tmp_path):
    hub.stated = "0" * 64
    with pytest.raises(PromptPrismError, match=f"its SHA-256 is {SHA}, not 0000.*It was removed"):
        download(f"{hub.url}/a/eurosat.zip", tmp_path / "a.zip")
    with pytest.raises(PromptPrismError, match="not 1111"):
        download(f"{hub.url}/a/eurosat.zip", tmp_path / "a.zip", "1" * 64)
    assert not list(tmp_path.iterdir())


def test_nothing_there_and_no_room(hub, tmp_path, monkeypatch):
    with pytest.raises(UnreachableError, match=r"cannot fetch .*/none \(Not Found\): there is no"):
        download(f"{hub.url}/none", tmp_path / "a.zip")
    with pytest.raises(PromptPrismError, match=r"cannot write .*check its permissions"):
        (tmp_path / "b.zip.partial").mkdir()
        download(f"{hub.url}/a/eurosat.zip", tmp_path / "b.zip")
    usage = fetch.shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(PromptPrismError, match=r"has 0\.0 GB free, and 0\.0 GB are still to come: make room"):
        download(f"{hub.url}/a/eurosat.zip", tmp_path / "c.zip")


def archive(name="eurosat", above="eurosat/", spare=()) -> bytes:
    """The mirror's archive of a data set, with two images a class, and things that nobody wants."""
    entry, file = CATALOG[name], io.BytesIO()
    lists = {"train": [], "val": [], "test": []}
    for split, rows in lists.items():
        rows += [[f"c{label}/{split}.jpg", label, f"class {label}"] for label in range(entry.classes)]
    image = io.BytesIO()
    Image.new("RGB", (6, 5)).save(image, "JPEG")
    with zipfile.ZipFile(file, "w") as packed:
        for row in (row for rows in lists.values() for row in rows):
            packed.writestr(f"{above}{entry.layout.images}/{row[0]}", image.getvalue())
        packed.writestr(f"{above}{entry.layout.file}", json.dumps(lists))
        for member in ("__MACOSX/x", f"{above}.DS_Store", f"{above}split_fewshot/shot_16-seed_1.pkl", *spare):
            packed.writestr(member, b"x")
    return file.getvalue()


@pytest.fixture
def eurosat(monkeypatch, hub):
    """EuroSAT, of which only the hub knows the digest."""

    def serve(content: bytes, **changes) -> PublishedDataset:
        hub.content, hub.stated = content, hashlib.sha256(content).hexdigest()
        entry = CATALOG["eurosat"]
        changes = {"archive": Archive("eurosat.zip")} | changes
        for field, value in changes.items():
            monkeypatch.setitem(entry.__dict__, field, value)
        return entry

    return serve


def run(*args):
    done = CliRunner().invoke(app, ["data", *map(str, args), "--json", "-"])
    return done, json.loads(done.stdout) if done.stdout else None


@pytest.mark.slow
@pytest.mark.parametrize("above", ["eurosat/", "", "data/EuroSAT/"])
def test_prepare_fetches_unpacks_and_checks(hub, eurosat, tmp_path, above):
    eurosat(archive(above=above, spare=["README.md"]))
    done, report = run("prepare", "eurosat", "--root", tmp_path)
    assert done.exit_code == 0 and report["prepared"] and report["usable"] and not report["faults"]
    assert report["splits"]["test"] == {"listed": 10, "present": 10, "expected": 8100}
    folder = tmp_path / "eurosat"
    assert {path.name for path in folder.iterdir()} - {"README.md"} == {"2750", "split_zhou_EuroSAT.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"eurosat", "eurosat.zip"}
    asked = len(hub.ranges)
    done, report = run("prepare", "eurosat", "--root", tmp_path)
    assert done.exit_code == 0 and report["prepared"] and len(hub.ranges) == asked  # nothing was missing
    (folder / "2750" / "c3" / "val.jpg").unlink()
    kept = (folder / "2750" / "c4" / "val.jpg").stat()
    assert run("prepare", "eurosat", "--root", tmp_path)[1]["prepared"] and len(hub.ranges) == asked
    assert (folder / "2750" / "c4" / "val.jpg").stat().st_mtime_ns == kept.st_mtime_ns


def test_prepare_without_a_network_lists_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done, report = run("prepare", "dtd", "--root", tmp_path)
    assert done.exit_code == 1 and not report["prepared"]
    mirror, images, split = report["by_hand"]
    assert mirror["url"] == f"http://127.0.0.1:9/{MIRROR}/resolve/{REVISION}/dtd.zip"
    assert mirror["file"] == "dtd.zip" and mirror["to_do"].startswith(
        "put in ROOT and run this command again"
    )
    assert (images["file"], images["to_do"]) == ("dtd-r1.0.1.tar.gz", "unpack in ROOT")
    assert split["file"] == "split_zhou_DescribableTextures.json" and split["to_do"] == "put in ROOT/dtd"
    text = CliRunner().invoke(app, ["data", "prepare", "dtd", "--root", str(tmp_path)]).stdout
    assert "cannot fetch" in text and "Connection refused" in text
    assert f"dtd.zip: {mirror['to_do']}\n  {mirror['url']}\n" in text
    done, report = run("prepare", "imagenet", "--root", tmp_path)
    assert done.exit_code == 1 and [row["file"] for row in report["by_hand"]] == [
        "ILSVRC2012_img_train.tar",
        "ILSVRC2012_img_val.tar",
        "classnames.txt",
    ]


def test_every_data_set_says_what_to_fetch_by_hand():
    for name, entry in (CATALOG | ALTERNATIVES).items():
        rows = by_hand(entry)
        assert rows and all(row["url"].startswith("http") and "." in row["file"] for row in rows), name
        assert (entry.archive is None) == (name == "imagenet" or name in ALTERNATIVES)


def test_an_archive_fetched_by_hand_is_unpacked(hub, eurosat, tmp_path):
    content = archive()
    entry = eurosat(content, archive=Archive("eurosat.zip", hashlib.sha256(content).hexdigest()))
    (tmp_path / "eurosat.zip").write_bytes(content)
    steps = []
    prepare(entry, tmp_path, lambda *step: steps.append(step))
    assert not hub.ranges and steps[-1] == ("unpacking", 31, 31) and len(entry.load(tmp_path).test) == 10
    (tmp_path / "eurosat.zip").write_bytes(archive(spare=["more"]))
    with pytest.raises(PromptPrismError, match=r"eurosat\.zip' is not the archive that the mirror has"):
        prepare(entry, tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (archive()[:-300], "is damaged .*: remove it and try again"),
        (archive("caltech101"), "has no 'split_zhou_EuroSAT.json': it is not that of EuroSAT"),
        (archive(spare=["eurosat/../../out.txt"]), r"would write '\.\./\.\./out\.txt', outside of"),
    ],
    ids=["cut", "other", "outside"],
)
def test_archives_that_are_none(eurosat, tmp_path, content, words):
    entry = eurosat(content)
    with pytest.raises(PromptPrismError, match=words):
        prepare(entry, tmp_path / "root" if (tmp_path / "root").mkdir() is None else Path())
    assert not list(tmp_path.rglob("out.txt"))
