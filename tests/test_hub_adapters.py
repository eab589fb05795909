"""Adapters to and from a hub on loopback, whole, in halves and not at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from hub_server import TOKEN, hub
from PIL import Image
from toys import colours, picture
from typer.testing import CliRunner

from promptprism import PromptPrism, load_model
from promptprism.adapter import CARD, TENSORS, note, read_card
from promptprism.cli import app
from promptprism.errors import PromptPrismError
from promptprism.hub import fetch, model_card, push
from promptprism.provenance import Scored

SRC = Path(__file__).parents[1] / "src"
pytestmark = pytest.mark.filterwarnings("ignore:the run collapsed")


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """What was learned of four colours, and scored."""
    folder = tmp_path_factory.mktemp("adapters") / "colours"
    model = PromptPrism("cdc", tiny, epochs=1, templates=2).fit(colours())
    model.save(folder)
    return folder


def point_at(monkeypatch, cache, url):
    """Let the client ask a server, and keep what it fetches in a folder."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between a client's attempts


@pytest.fixture
def server(monkeypatch, tmp_path):
    with hub() as running:
        point_at(monkeypatch, tmp_path / "cache", running.url)
        yield running


def published(server, adapter, repo="me/colours"):
    """A repository with the adapter, and with what else others leave in one."""
    server.repos[repo] = {name: (adapter / name).read_bytes() for name in (CARD, TENSORS)}
    server.repos[repo] |= {"pytorch_model.bin": b"cos\nsystem\n", "README.md": b"# Mine"}
    return f"hf:{repo}"


def files_of(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_hub_gets_what_was_saved_and_gives_it_back(server, tiny, adapter):
    assert push(adapter, "me/colours", license="mit", token=TOKEN) == f"{server.url}/me/colours"
    there = server.repos["me/colours"]
    assert sorted(there) == ["README.md", TENSORS, CARD]
    assert all(there[name] == (adapter / name).read_bytes() for name in (TENSORS, CARD))
    model = PromptPrism.from_pretrained("hf:me/colours", backbone=tiny)
    images = [picture("red", 9), picture("blue", 9)]
    own = load_model(adapter, backbone=tiny)
    assert (model.predict_proba(images) == own.predict_proba(images)).all()
    # What an estimator pushes is what it saves.
    model.push_to_hub("me/again", private=True, token=TOKEN)
    assert server.repos["me/again"][TENSORS] == there[TENSORS] and server.private == {"me/again"}


def test_hub_is_asked_for_two_files_of_one_commit_and_once(server, adapter):
    name = published(server, adapter)
    folder = fetch(name)
    commit = server.commit("me/colours")
    assert folder.name == commit and files_of(folder) == [TENSORS, CARD]
    assert {path for _, path in server.asked} == {
        f"me/colours/resolve/main/{CARD}",
        f"me/colours/resolve/{commit}/{TENSORS}",
    }
    server.asked.clear()
    assert fetch(f"{name}@v1") == folder and fetch(f"{name}@{commit}") == folder
    assert server.asked == [("HEAD", f"me/colours/resolve/v1/{CARD}")]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:me/none", "hf:me/none': there is no such repository, or it is private.* `hf auth login`"),
        ("hf:me/colours@v2", "no such revision: give a branch, a tag or a commit"),
        ("hf:me/other", f"it is no adapter, for it lacks {CARD}"),
        ("hf:colours", "write owner/name"),
        ("hf:a/b/c", "write owner/name"),
        ("hf:../../etc", "write owner/name"),
    ],
)  # fmt: skip
def test_hub_without_such_an_adapter(server, adapter, name, said):
    published(server, adapter)
    server.repos["me/other"] = {"config.json": b"{}", "pytorch_model.bin": b"cos"}
    with pytest.raises(PromptPrismError, match=said):
        load_model(name)
    assert not any("bin" in path for _, path in server.asked)


def test_private_adapter_takes_a_token(server, adapter, monkeypatch):
    name = published(server, adapter)
    server.private.add("me/colours")
    with pytest.raises(PromptPrismError, match=r"or it is private: .* set HF_TOKEN"):
        fetch(name)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read_card(fetch(name)) == read_card(adapter)


@pytest.mark.parametrize("file", [CARD, TENSORS])
@pytest.mark.parametrize("how", ["cut", "short"])
def test_hub_that_answers_half_leaves_nothing_that_is_used(server, adapter, tmp_path, file, how):
    name = published(server, adapter)
    server.half[file] = how
    said = r"'hf:me/colours'.* (try again later|fetch it again, then ask its owner)"
    with pytest.raises(PromptPrismError, match=said):
        fetch(name)
    snapshots = tmp_path / "cache" / "models--me--colours" / "snapshots"
    assert file not in files_of(snapshots)
    server.half.clear()
    assert read_card(fetch(name)) == read_card(adapter)


@pytest.mark.slow
def test_hub_that_is_away_is_answered_by_the_cache_or_said(server, adapter, monkeypatch, tmp_path):
    folder = fetch(published(server, adapter))
    point_at(monkeypatch, tmp_path / "cache", "http://127.0.0.1:9")
    assert fetch("hf:me/colours") == folder
    with pytest.raises(
        PromptPrismError, match=r"127.0.0.1:9 does not answer, and there is no copy in the cache"
    ):
        fetch("hf:me/never")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch("hf:me/colours") == folder
    with pytest.raises(PromptPrismError, match=r"does not answer.*copy the adapter's folder here"):
        fetch("hf:me/never")


def test_push_says_what_is_wrong_before_it_makes_anything(server, adapter, tmp_path, monkeypatch):
    with pytest.raises(PromptPrismError, match="cannot push to 'me/x': the hub asks who you are; log in"):
        push(adapter, "me/x")
    with pytest.raises(PromptPrismError, match=r"does not let you \(401\)"):
        push(adapter, "me/x", token="hf_another")
    with pytest.raises(PromptPrismError, match="cannot push to 'x': write owner/name"):
        push(adapter, "x", token=TOKEN)
    with pytest.raises(PromptPrismError, match="does not exist: give the folder that save"):
        push(tmp_path / "gone", "me/x", token=TOKEN)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / CARD).write_bytes((adapter / CARD).read_bytes())
    (damaged / TENSORS).write_bytes((adapter / TENSORS).read_bytes()[:-1])
    with pytest.raises(PromptPrismError, match="its SHA-256 is another"):
        push(damaged, "me/x", token=TOKEN)
    assert not server.repos
    published(server, adapter)
    before = dict(server.repos["me/colours"])
    with pytest.raises(PromptPrismError, match="everybody can see it: make it private"):
        push(adapter, "me/colours", token=TOKEN, private=True)
    assert server.repos["me/colours"] == before


def test_model_card_has_what_the_card_tells(adapter):
    card = read_card(adapter)
    found = Scored(
        data="a|b.csv", split="test", images=12, learned_from=0, accuracy=0.75, ece=0.125, date="2026"
    )
    text = model_card(card.model_copy(update={"evaluations": (found,)}), "me/colours", "mit")
    _, head, body = text.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["library_name"] == "promptprism" and metadata["license"] == "mit"
    assert {"promptprism", "few-shot", "cdc"} <= set(metadata["tags"])
    metrics = metadata["model-index"][0]["results"][0]["metrics"]
    assert {one["type"]: one["value"] for one in metrics} == {"accuracy": 0.75, "ece": 0.125}
    assert 'PromptPrism.from_pretrained("hf:me/colours")' in body
    assert "red, green, blue, yellow" in body and "16 images of colours" in body
    assert r"| a\|b.csv | test | 12 | 75.0% | 12.5% |" in body
    unknown = model_card(card, "me/colours")
    assert (
        "license" not in yaml.safe_load(unknown.split("---\n")[1]) and "Nothing was measured yet." in unknown
    )
    hubs = card.backbone.model_copy(update={"name": "hf-hub:you/clip"})
    names = tuple(f"<b>{number}</b>" for number in range(150))
    other = model_card(card.model_copy(update={"backbone": hubs, "class_names": names}), "me/colours")
    assert "trust_backbone=True" in other and "--trust-backbone" in other
    assert yaml.safe_load(other.split("---\n")[1])["base_model"] == "you/clip"
    assert "and 50 more" in other and r"\<b\>0" in other and "<b>" not in other


def test_what_the_hub_gave_stays_as_it_came(server, adapter):
    folder = fetch(published(server, adapter))
    before = (folder / CARD).read_bytes()
    found = Scored(data="x", split="all", images=1, learned_from=0, accuracy=1, ece=0, date="2026")
    with pytest.raises(PromptPrismError, match="is of the hub's cache and stays as it came: copy it"):
        note(folder, found)
    done = CliRunner().invoke(app, ["calibrate", "hf:me/colours", "mini/food"])
    assert done.exit_code == 2 and "stays as it came" in " ".join(done.stderr.split())
    assert (folder / CARD).read_bytes() == before


def test_adapter_of_the_hub_opens_nothing_that_its_reader_did_not_name(server, adapter):
    # The tests' backbone is no shipped one.
    card = json.loads((adapter / CARD).read_text())
    card["backbone"]["name"], card["checksum"] = "hf-hub:evil/clip", None
    published(server, adapter)
    server.repos["me/colours"][CARD] = json.dumps(card).encode()
    with pytest.raises(PromptPrismError, match="names a backbone that you did not: hf-hub:evil/clip"):
        load_model("hf:me/colours")
    assert not any("evil" in path for _, path in server.asked)


@pytest.mark.slow
def test_hub_in_every_command_as_a_user_has_it(tmp_path):
    PromptPrism("zero-shot", "mini", precision="float32").fit("mini/mammals").save(tmp_path / "A")
    Image.fromarray(picture("red", 1)).save(tmp_path / "photo.png")
    with hub() as server:
        there = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
        there |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(SRC)}

        def promptprism(*words):
            command = [sys.executable, "-m", "promptprism", *words]
            done = subprocess.run(
                command, cwd=tmp_path, env=os.environ | there, capture_output=True, text=True
            )
            return done.returncode, done.stdout

        code, said = promptprism("push", "A", "me/mammals", "--license", "cc0-1.0", "--json", "-")
        assert code == 0 and json.loads(said)["address"] == f"{server.url}/me/mammals"
        code, said = promptprism("predict", "hf:me/mammals@v1", "photo.png", "--json", "-")
        model = load_model(tmp_path / "A")
        (row,) = json.loads(said)["predictions"]
        assert code == 0 and row["class"] == model.predict([tmp_path / "photo.png"])[0]
        asked = {path for _, path in server.asked}
        assert not {path for path in asked if "agent" in path or "telemetry" in path}
