"""The review: what is served, to whom, and the page in a real browser."""

import shutil
import threading
import time

import pytest
from PIL import Image
from toys import COLOURS, picture

pytest.importorskip("fastapi")
import uvicorn
from fastapi.testclient import TestClient

from promptprism import PromptPrism
from promptprism.data.corrections import read_corrections
from promptprism.errors import DataWarning, PromptPrismError
from promptprism.serving.guard import LOOPBACK
from promptprism.serving.review import Review, review_app

CLASSES = ["red", "blue", "green"]
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"


@pytest.fixture(scope="module")
def model(tiny):
    images = [picture(name, 0) for name in CLASSES]
    settings = {"templates": 2, "depth": 1, "epochs": 1}
    return PromptPrism("cdc", tiny, **settings).fit(images, CLASSES, CLASSES)


@pytest.fixture
def folder(tmp_path):
    for number in range(6):
        path = tmp_path / "photos" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture([*COLOURS][number % 3], number)).resize((160, 120)).save(path)
    (tmp_path / "photos" / "bad.png").write_bytes(b"GIF89a")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "photos" / "out.png").symlink_to(tmp_path / "secret.png")
    return tmp_path / "photos"


@pytest.fixture
def review(model, folder):
    made = Review(model, folder, folder.parent / "review.csv")
    made.answer()
    return made


@pytest.fixture
def client(review):
    app = review_app(review, "secret", LOOPBACK)
    return TestClient(app, base_url="http://localhost", headers={"X-Token": "secret"})


@pytest.mark.slow
def test_labels_are_on_the_disk_at_once_and_can_be_taken_back(client, review, model, folder):
    state = client.get("/api/state").json()
    assert len(state["photos"]) == 7 == state["found"] and not state["busy"]
    assert "out.png" not in {photo["name"] for photo in state["photos"]}
    (bad,) = (photo for photo in state["photos"] if "reason" in photo)
    assert bad["name"] == "bad.png"
    first = next(photo for photo in state["photos"] if photo["name"] == "0/0.png")
    answer = client.get(f"/api/answer/{first['id']}").json()
    assert len(answer["templates"]) == 2 and answer["class"] == first["class"] == answer["top"][0]["class"]
    assert 0 <= first["disagreement"] <= 1 and "templates" not in first
    since = state["version"]
    state = client.post("/api/label", json={"number": first["id"], "label": "blue", "since": since}).json()
    assert [photo["label"] for photo in state["photos"]] == ["blue"]
    assert read_corrections(review.corrections, CLASSES) == {folder / "0/0.png": "blue"}
    again = Review(model, folder, review.corrections)  # the server was killed
    again.answer()
    assert [photo["label"] for photo in again.photos if photo["label"]] == ["blue"]
    assert client.post("/api/undo", json={}).json()["undone"] == first["id"]
    assert (
        read_corrections(review.corrections) == {}
        and client.post("/api/undo", json={}).json()["undone"] is None
    )
    assert client.post("/api/label", json={"number": first["id"], "label": "cat"}).status_code == 409
    unreadable = client.post("/api/label", json={"number": bad["id"], "label": "red"})
    assert unreadable.status_code == 409 and "cannot be read" in unreadable.text
    assert client.post("/api/label", json={"number": 99, "label": "red"}).status_code == 409
    assert client.get(f"/api/photo/{first['id']}").content[:3] == b"\xff\xd8\xff"
    assert client.get(f"/api/explain/{first['id']}").content[:4] == b"\x89PNG"


def test_corrections_that_cannot_be_added_to_are_refused_at_once(model, folder):
    corrections = folder.parent / "odd.csv"
    for content, words in (
        ("path,label\nphotos/0/0.png,red\n".encode("utf-16"), "save it as UTF-8"),
        (b"path,label\nphotos/0/0.png,cat\n", "'cat', which is none of the 3 classes"),
        (b"file,label\n", "must name the columns path and label"),
    ):
        corrections.write_bytes(content)
        with pytest.raises(PromptPrismError, match=words):
            Review(model, folder, corrections)
        assert corrections.read_bytes() == content
    with pytest.raises(PromptPrismError, match="it is a folder"):
        Review(model, folder, folder)


def test_only_who_has_the_token_gets_in_and_from_no_other_page(client):
    answer = client.get("/")
    assert answer.status_code == 200 and "default-src 'none'" in answer.headers["content-security-policy"]
    for headers, code in (
        ({"X-Token": "wrong"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Host": "evil.example"}, 421),
    ):
        assert client.get("/api/state", headers=headers).status_code == code
    assert client.get("/api/state", headers={"Origin": "http://localhost"}).status_code == 200
    big = client.post("/api/undo", content=b"x" * (1 << 21))
    assert big.status_code == 413
    assert client.get("/api/photo/..%2f..%2fsecret.png").status_code in (404, 422)


def test_a_folder_grows_and_vanishes(review, folder):
    Image.fromarray(picture("red", 7)).save(folder / "new.png")
    review.answer()
    assert len(review.photos) == 8
    shutil.rmtree(folder)
    review.answer()
    assert "is gone" in review.state(0)["problem"]
    review.label(1, "red")
    with pytest.warns(DataWarning, match="are not there"):
        assert len(read_corrections(review.corrections)) == 1
    with pytest.raises(PromptPrismError, match="no such folder"):
        Review(review.model, folder, review.corrections)


def test_a_page_is_told_of_many_photos_in_pieces(review, monkeypatch):
    monkeypatch.setattr("promptprism.serving.review._PIECE", 3)
    review.label(1, "red")  # is told of last
    told, since, more = [], 0, True
    while more:
        state = review.state(since)
        told += [photo["id"] for photo in state["photos"]]
        since, more = state["version"], state["more"]
    assert told == [0, 2, 3, 4, 5, 6, 1] and since == review.version
    assert review.state(since)["photos"] == [] and len(review.state(since + 9)["photos"]) == 3


class Served:
    """A review at an address, in a thread."""

    def __init__(self, review):
        self.review = review
        config = uvicorn.Config(review_app(review, "secret", LOOPBACK), port=0, log_level="error")
        self.server = uvicorn.Server(config)
        threading.Thread(target=self.server.run, daemon=True).start()
        while not self.server.started:
            time.sleep(0.05)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/?token=secret"


@pytest.fixture
def served(review):
    made = Served(review)
    yield made
    made.server.should_exit = True


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium")
    if not found:
        pytest.skip("needs chromium")
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright().start()
    browser = playwright.chromium.launch(executable_path=found, args=FLAGS.split())
    yield browser
    browser.close()
    playwright.stop()


def opened(chromium, address, **options):
    page = chromium.new_page(**options)
    page.goto(address)
    page.wait_for_selector("#list button")
    return page


def labels(review):
    return read_corrections(review.corrections) if review.corrections.exists() else {}


def waits(condition):
    until = time.time() + 20
    while not condition():
        assert time.time() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_browser_accepts_corrects_and_undoes_by_keys(chromium, served):
    page, review = opened(chromium, served.address), served.review
    page.keyboard.press("Enter")
    waits(lambda: len(labels(review)) == 1)
    page.get_by_text("1 of 7 labelled").wait_for()
    page.keyboard.press("c")
    page.keyboard.type("x")
    page.keyboard.press("Enter")
    page.get_by_text("No class begins with that").wait_for()
    page.wait_for_timeout(1500)  # the page has asked for news meanwhile
    assert page.locator("#hint").is_visible()
    page.keyboard.press("Backspace")
    page.keyboard.type("gre")
    page.keyboard.press("Enter")
    waits(lambda: "green" in labels(review).values() and len(labels(review)) == 2)
    page.get_by_text("2 of 7 labelled").wait_for()
    page.keyboard.press("u")
    waits(lambda: len(labels(review)) == 1)
    page.close()


@pytest.mark.slow
def test_browser_explains_on_demand(chromium, served):
    page = opened(chromium, served.address)
    page.wait_for_selector("#templates .bar")
    assert page.locator("#templates .bar").count() == 2
    page.keyboard.press("e")
    waits(lambda: page.evaluate("document.getElementById('why').naturalWidth > 100"))
    waits(lambda: page.locator("#waiting").text_content() == "")
    page.keyboard.press("Escape")
    page.wait_for_selector("#dialog", state="hidden")
    page.close()


@pytest.mark.slow
def test_browser_offers_no_label_for_what_cannot_be_read(chromium, served):
    page = opened(chromium, served.address)
    page.get_by_label("bad.png").click()
    page.get_by_text("Cannot be read").first.wait_for()
    assert page.locator("#accept").is_disabled() and page.locator("#correct").is_disabled()
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_browser_fits_every_width_and_names_every_control(chromium, served, scheme, width, tmp_path):
    page = opened(chromium, served.address, color_scheme=scheme, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert dark == (scheme == "dark")
    for control in page.query_selector_all("button, input, select, progress"):
        name = control.evaluate(
            "e => e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent"
        )
        assert name.strip(), control.get_attribute("id")
    if width == 360:  # the photo and what to do with it fit on a phone
        page.wait_for_selector("#templates .bar")
        accept = page.locator("#accept").bounding_box()
        assert accept["y"] + accept["height"] < 740
    page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
    page.close()


@pytest.mark.slow
def test_browser_shows_the_same_in_two_pages(chromium, served):
    first, second = opened(chromium, served.address), opened(chromium, served.address)
    first.keyboard.press("Enter")
    second.get_by_text("1 of 7 labelled").wait_for()
    second.keyboard.press("u")
    first.get_by_text("0 of 7 labelled").wait_for()
    assert labels(served.review) == {}
    first.close()
    second.close()


@pytest.mark.slow
def test_browser_keeps_labels_when_the_server_dies(chromium, served, model, folder):
    page = opened(chromium, served.address)
    page.keyboard.press("Enter")
    waits(lambda: len(labels(served.review)) == 1)
    served.server.should_exit = True
    page.wait_for_selector("#problem:not([hidden])")
    again = Review(model, folder, served.review.corrections)
    again.answer()
    other = Served(again)
    new = opened(chromium, other.address)
    new.get_by_text("1 of 7 labelled").wait_for()
    other.server.should_exit = True
    page.close()
    new.close()
