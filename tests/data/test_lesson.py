"""Corrected photos are always learned from, and training goes on from what was learned."""

import json

import pytest
import torch
from PIL import Image
from toys import colours, picture

from promptprism import PromptPrism, PromptPrismError, load_model
from promptprism.data.content import picture_id
from promptprism.data.lesson import make_lesson
from promptprism.data.registry import load_data
from promptprism.errors import DataWarning

QUICK = {"epochs": 2, "batch_size": 4}


@pytest.fixture
def photos(tmp_path):
    """A folder of three classes with four photos each, and two more photos beside it."""
    for colour in ("red", "green", "blue"):
        for number in range(4):
            path = tmp_path / "data" / colour / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(colour, number)).save(path)
    for colour in ("red", "blue"):
        Image.fromarray(picture(colour, 50)).save(tmp_path / f"{colour}.png")
    return tmp_path


def corrections(folder, *lines):
    path = folder / "review.csv"
    path.write_text("\n".join(("path,label,predicted,probability,at", *lines)) + "\n")
    return path


def test_corrections_come_on_top_of_the_same_draw(photos):
    data = load_data(photos / "data")
    file = corrections(photos, "red.png,red,blue,0.4,", "blue.png,blue,blue,0.9,")
    plain, lesson = make_lesson(data, 2, 1), make_lesson(data, 2, 1, corrections=file)
    assert [r.source for r in lesson.records[:-2]] == [r.source for r in plain.records]
    assert [(r.source.name, lesson.class_names[r.label]) for r in lesson.records[-2:]] == [
        ("red.png", "red"),
        ("blue.png", "blue"),
    ]
    assert (plain.corrected, plain.left_out, lesson.corrected, lesson.left_out) == (0, 6, 2, 6)
    assert len(make_lesson(data, None, 1, corrections=file).records) == 14


def test_the_corrected_label_counts_and_a_corrected_photo_is_no_validation_image(photos):
    data = load_data(photos / "data")
    file = corrections(photos, *(f"data/red/{number}.png,green,red,0.5," for number in range(2)))
    with pytest.warns(
        DataWarning, match=r"2 corrected photos are in the data too: .* of 2 another one: .*red/0"
    ):
        lesson = make_lesson(data, None, 1, corrections=file)
    labels = [lesson.class_names[r.label] for r in lesson.records if r.source.parent.name == "red"]
    assert sorted(labels) == ["green", "green", "red", "red"] and lesson.left_out == 0
    blue, green, red = (data.train[at : at + 4] for at in (0, 4, 8))
    held = make_lesson(type(data)("held", data.class_names, blue + green, red), None, 1, corrections=file)
    assert [record.source for record in held.validation] == [record.source for record in red[2:]]
    tested = type(data)("tested", data.class_names, blue + green, test=red)
    with pytest.warns(DataWarning, match=r"2 corrected photos are test images .* \(green, not red\)"):
        make_lesson(tested, None, 1, corrections=file)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["red.png,purple,,,"], r"line 2 .* 'purple', which is none of the 3 classes"),
        (["gone.png,red,,,"], r"gives no photo that is there a label"),
        (["red.png,red,,,", "copy.png,blue,,,"], r"there under two labels"),
    ],
)
@pytest.mark.filterwarnings("ignore::promptprism.errors.DataWarning")
def test_corrections_that_cannot_be_learned_from(photos, lines, says):
    (photos / "copy.png").write_bytes((photos / "red.png").read_bytes())
    with pytest.raises(PromptPrismError, match=says):
        make_lesson(load_data(photos / "data"), 2, 1, corrections=corrections(photos, *lines))


@pytest.mark.slow
def test_training_goes_on_from_what_was_learned(tiny, photos, tmp_path):
    first = PromptPrism("cdc", tiny, templates=2, shots=2, **QUICK).fit(photos / "data")
    file = corrections(photos, "red.png,red,,,", "blue.png,blue,,,")
    still = PromptPrism("cdc", tiny, templates=2, epochs=1, lr=1e-30, warmup_lr=0).fit(
        corrections=file, start=first
    )
    for name, value in first.method_.state_dict().items():
        torch.testing.assert_close(still.method_.state_dict()[name], value, rtol=1e-5, atol=1e-7)
    data = load_model(still.save(tmp_path / "a"), backbone=tiny).data_
    assert data.images == {"blue": 1, "green": 0, "red": 1} and data.corrections == 2 and data.shots is None
    assert data.started_from == first.trained_.fingerprint
    assert (
        picture_id(photos / "red.png") in data.seen and first.data_.seen < data.seen and len(data.seen) == 8
    )


@pytest.mark.slow
def test_classes_are_added_and_offsets_stay_with_their_classes(tiny, photos):
    settings = {"templates": 2, "class_offsets": True}
    first = PromptPrism("cdc", tiny, **settings, **QUICK).fit(photos / "data")
    more = colours(5)  # red, green, blue, yellow, black
    going = PromptPrism("cdc", tiny, **settings, epochs=1, lr=1e-30, warmup_lr=0).fit(more, start=first)
    assert list(going.classes_) == ["blue", "green", "red", "yellow", "black"]
    torch.testing.assert_close(going.method_.offsets[:, :3], first.method_.offsets, rtol=1e-5, atol=1e-6)
    assert going.method_.offsets[:, 3:].abs().min() > 0


@pytest.mark.slow
def test_what_cannot_go_on_is_refused(tiny, photos):
    first = PromptPrism("coop", tiny, **QUICK).fit(photos / "data")
    for method, says in (("cdc", "has method coop, not cdc"), ("zero-shot", "has method coop")):
        with pytest.raises(PromptPrismError, match=says):
            PromptPrism(method, tiny).fit(photos / "data", start=first)
    with pytest.raises(PromptPrismError, match="has another 'learner"):
        PromptPrism("coop", tiny, context_length=3, epochs=1).fit(photos / "data", start=first)
    with pytest.raises(PromptPrismError, match="nothing to learn from"):
        PromptPrism("coop", tiny).fit(start=first)
    probe = PromptPrism("linear-probe", tiny, strength=1.0).fit(photos / "data")
    with pytest.raises(PromptPrismError, match="'linear-probe' cannot start from an adapter"):
        PromptPrism("linear-probe", tiny, strength=1.0).fit(photos / "data", start=probe)


@pytest.mark.slow
def test_a_run_that_goes_on_from_an_adapter_resumes_bit_for_bit(tiny, photos, tmp_path, monkeypatch):
    first = PromptPrism("coop", tiny, **QUICK).fit(photos / "data")
    file = corrections(photos, "red.png,red,,,", "blue.png,blue,,,")

    def model():
        return PromptPrism("coop", tiny, shots=2, epochs=3, batch_size=4)

    whole = model().fit(photos / "data", corrections=file, start=first)
    from promptprism.training import loop

    keep = loop.save_checkpoint

    def stop(path, run, history, *rest):
        keep(path, run, history, *rest)
        if len(history) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", stop)
    place = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        model().fit(photos / "data", corrections=file, start=first, checkpoint=place)
    monkeypatch.setattr(loop, "save_checkpoint", keep)
    with pytest.raises(PromptPrismError, match="is of another run"):
        model().fit(photos / "data", corrections=file, checkpoint=place)
    resumed = model().fit(photos / "data", corrections=file, start=first, checkpoint=place)
    for name, value in whole.method_.state_dict().items():
        assert torch.equal(resumed.method_.state_dict()[name], value)


@pytest.mark.slow
def test_the_command(tiny, photos, monkeypatch):
    """`fit --from ADAPTER --corrections FILE` needs no data."""
    from typer.testing import CliRunner

    from promptprism.cli.main import app

    first = PromptPrism("coop", "mini", shots=2, epochs=1).fit(photos / "data")
    first.save(photos / "a")
    file, runner = corrections(photos, "red.png,red,,,", "blue.png,blue,,,"), CliRunner()
    command = [
        "fit",
        "--from",
        str(photos / "a"),
        "--corrections",
        str(file),
        "--shots",
        "all",
        "--json",
        "-",
    ]
    result = runner.invoke(app, [*command, "--out", str(photos / "b")])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["data"]["corrections"] == 2 and content["settings"] == first.method_.settings.model_dump()
    assert content["class_names"] == ["blue", "green", "red"]
