import base64
import io
import json
import threading
import time

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from promptprism.drift import Reference
from promptprism.errors import PromptPrismError
from promptprism.runtime import Answers
from promptprism.serving.app import make_app
from promptprism.serving.limits import Limits

HOST = "http://127.0.0.1"
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Colours:
    """Knows how red, green and blue an image is; and how many it was asked about at once."""

    method, classes, size = "colours", tuple(COLOURS), 8
    reference, temperature = Reference.of("drawn", [0.9] * 30, [0.1] * 30), 1.0

    def __init__(self):
        self.batches, self.gate = [], threading.Event()
        self.gate.set()

    def prepare(self, classes):
        if classes is not None and "nothing" in classes:
            raise PromptPrismError("class 'nothing' is none: give others")
        return classes or self.classes

    def caveat(self, classes):
        return "nobody knows mauve" if "mauve" in (classes or ()) else None

    def answer(self, pixels, classes=None):
        self.gate.wait(10)
        self.batches.append(len(pixels))
        share = pixels.reshape(len(pixels), -1, 3).mean(1).astype(np.float32)
        share = (share / share.sum(-1, keepdims=True))[:, : len(classes or self.classes)]
        each = np.stack([share, share])
        doubt = 1 - share.max(-1)
        return Answers(each, share, share, doubt, each, each, np.stack([doubt, doubt]))


def png(colour, size=(9, 12)):
    file = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(file, "PNG")
    return file.getvalue()


def files(*colours):
    return [("images", (f"{colour}.png", png(colour), "image/png")) for colour in colours]


@pytest.fixture
def engine():
    return Colours()


@pytest.fixture
def serve(engine):
    started = []

    def start(**limits):
        client = TestClient(make_app(engine, Limits(**limits)), base_url=HOST)
        started.append(client)
        return client.__enter__()

    yield start
    engine.gate.set()
    for client in started:
        client.__exit__(None, None, None)


def test_serve_answers_for_files_in_their_order(serve):
    answer = serve().post("/predict", files=files("blue", "red")).json()
    assert [(row["image"], row["class"]) for row in answer["predictions"]] == [
        ("blue.png", "blue"),
        ("red.png", "red"),
    ]
    assert answer["method"] == "colours" and answer["classes"] == 3
    assert answer["unread"] == answer["warnings"] == []
    row = answer["predictions"][0]
    assert row["probability"] == 1 and row["uncertainty"] == 0 and row["belief"] == 1
    assert [one["class"] for one in row["top"]] == ["blue", "red", "green"]


def test_serve_says_why_answers_may_mean_little(serve):
    data = {"classes": ["mauve", "red"]}
    answer = serve().post("/predict", files=files("red"), data=data).json()
    assert answer["warnings"] == ["nobody knows mauve"] and answer["classes"] == 2


def test_serve_answers_for_base64_with_templates(serve):
    body = {"images": [{"base64": base64.b64encode(png("green")).decode()}], "templates": True}
    (row,) = serve().post("/predict", json=body).json()["predictions"]
    assert row["image"] == "image 0" and row["class"] == "green"
    assert [voice["class"] for voice in row["templates"]] == ["green", "green"]


def test_serve_lists_a_bad_image_and_answers_for_the_others(serve):
    sent = [*files("red"), ("images", ("bad.jpg", b"no image", "image/jpeg")), *files("blue")]
    answer = serve().post("/predict", files=sent).json()
    assert [row["class"] for row in answer["predictions"]] == ["red", "blue"]
    ((bad, reason),) = [one.values() for one in answer["unread"]]
    assert bad == "bad.jpg" and "is not an image" in reason


@pytest.mark.parametrize(
    ("status", "told", "request_"),
    [
        (422, "bad.png", {"files": [("images", ("bad.png", b"", "image/png"))]}),
        (422, "there is no image", {"json": {"images": []}}),
        (422, "not base64", {"json": {"images": [{"base64": "a photo"}]}}),
        (422, "'images' is missing", {"json": {}}),
        (422, "'colour' is unknown", {"json": {"images": [], "colour": 1}}),
        (422, "Invalid JSON", {"content": b"{", "headers": {"content-type": "application/json"}}),
        (415, "'text/plain' is not read", {"content": b"x", "headers": {"content-type": "text/plain"}}),
        (413, "send them in several requests", {"files": files("red", "red", "red")}),
        (413, "3 classes", {"files": files("red"), "data": {"classes": ["red", "blue", "pink"]}}),
        (422, "class 'nothing'", {"files": files("red"), "data": {"classes": ["red", "nothing"]}}),
        (413, "larger than 3,000 bytes", {"content": b" " * 3001}),
    ],
)
def test_serve_says_what_is_wrong_with_a_request_and_what_to_do(serve, status, told, request_):
    answer = serve(images=2, classes=2, bytes=3000).post("/predict", **request_)
    assert answer.status_code == status
    assert told in answer.json()["error"] and list(answer.json()) == ["error"]


def test_serve_holds_a_body_without_length_to_the_limit_too(serve):
    def body():
        for _ in range(50):
            yield b" " * 100

    headers = {"content-type": "application/json"}
    answer = serve(bytes=3000).post("/predict", content=body(), headers=headers)
    assert answer.status_code == 413


def test_serve_reads_no_image_of_more_pixels_than_it_may(serve):
    answer = serve(pixels=100).post("/predict", files=files("red"))
    assert answer.status_code == 422 and "too large (9 x 12 pixels" in answer.json()["error"]


def test_serve_refuses_ten_thousand_classes(serve):
    names = [f"class {number}" for number in range(10_000)]
    answer = serve().post("/classes", json={"classes": names})
    assert answer.status_code == 413 and "10000 classes are more than the 1000" in answer.json()["error"]
    answer = serve().post("/predict", files=files("red"), data={"classes": names})
    assert answer.status_code == 413 and "1001: send them in several" in answer.json()["error"]


def test_serve_chooses_among_other_classes(serve):
    client = serve()
    assert client.get("/classes").json() == {"classes": ["red", "green", "blue"]}
    assert client.post("/classes", json={"classes": ["a", "b"]}).json() == {"classes": ["a", "b"]}
    answer = client.post("/predict", files=files("green"), data={"classes": ["a", "b"]}).json()
    assert answer["predictions"][0]["class"] == "b" and answer["classes"] == 2


def test_serve_puts_requests_of_many_clients_into_batches(serve, engine):
    client, answers = serve(batch=8), []

    def ask(colour):
        answers.append((colour, client.post("/predict", files=files(colour)).json()))

    engine.gate.clear()  # all of them wait for the first
    threads = [threading.Thread(target=ask, args=(colour,)) for colour in [*COLOURS] * 8]
    for thread in threads:
        thread.start()
    wait_for(lambda: client.get("/health").json()["waiting"] == 24)
    engine.gate.set()
    for thread in threads:
        thread.join()
    assert all(answer["predictions"][0]["class"] == colour for colour, answer in answers)
    assert sum(engine.batches) == 24 and max(engine.batches) == 8 and len(engine.batches) <= 6


def test_serve_says_when_to_come_again_if_it_is_full(serve, engine):
    client = serve(room=2)
    engine.gate.clear()
    thread = threading.Thread(target=client.post, args=("/predict",), kwargs={"files": files("red", "red")})
    thread.start()
    wait_for(lambda: client.get("/health").json()["waiting"] == 2)
    refused = client.post("/predict", files=files("blue"))
    engine.gate.set()
    thread.join()
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert "come again" in refused.json()["error"]
    assert client.post("/predict", files=files("blue")).status_code == 200


def test_serve_gives_up_in_time(serve, engine):
    client = serve(seconds=0.2)
    engine.gate.clear()
    late = client.post("/predict", files=files("red"))
    assert late.status_code == 503 and "within 0.2 s" in late.json()["error"]
    assert client.get("/health").json()["waiting"] == 0


def test_serve_measures_itself_and_drift(serve):
    client = serve()
    for _ in range(20):
        client.post("/predict", files=files("red"))
    client.post("/predict", files=[("images", ("bad.jpg", b"", "image/jpeg"))])
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    assert lines["promptprism_images_total"] == "20.0"
    assert lines["promptprism_unread_images_total"] == "1.0"
    assert lines['promptprism_requests_total{path="/predict",status="200"}'] == "20.0"
    assert lines['promptprism_requests_total{path="/predict",status="422"}'] == "1.0"
    assert lines['promptprism_drift_distance{score="probability"}'] == "1.0"
    assert lines['promptprism_drift_effect{score="uncertainty"}'] == "-1.0"


def test_serve_has_a_page_of_its_own_that_asks_no_other_server(serve):
    client = serve()
    page = client.get("/docs").text
    assert "POST /predict" in page and "GET /metrics" in page
    assert "http:" not in page and "https:" not in page and "<script" not in page
    schema = client.get("/openapi.json").json()
    assert {"multipart/form-data", "application/json"} == {
        *schema["paths"]["/predict"]["post"]["requestBody"]["content"]
    }
    assert client.get("/nowhere").json() == {"error": "there is nothing at this address: see /docs"}
    json.dumps(schema, allow_nan=False)


def test_serve_answers_to_the_names_of_this_machine_alone(serve):
    client = serve()
    assert client.get("/health", headers={"host": "elsewhere.example"}).status_code == 400
    assert client.get("/health", headers={"host": "localhost:8000"}).status_code == 200


def test_serve_tells_of_an_answer_that_is_none(serve, engine, monkeypatch):
    broken = np.full((1, 3), np.nan, np.float32)
    monkeypatch.setattr(engine, "answer", lambda pixels, classes: Answers(broken[None], broken))
    answer = serve().post("/predict", files=files("red"))
    assert answer.status_code == 422 and "not finite" in answer.json()["error"]


def wait_for(happened):
    for _ in range(1000):
        if happened():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")
