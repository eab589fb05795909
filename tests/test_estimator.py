import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import colours

import promptprism
from promptprism import Opinion, PromptPrism, load_model
from promptprism.data.records import Dataset
from promptprism.errors import NotFittedError, PromptPrismError

DATA = colours()
SOURCES = [record.source for record in DATA.test]
NAMES = [DATA.class_names[record.label] for record in DATA.test]
QUICK = {"epochs": 2, "batch_size": 4, "lr": 0.002}
pytestmark = pytest.mark.filterwarnings("ignore:the run collapsed")  # random weights see little


@pytest.fixture(scope="module")
def model(tiny):
    return PromptPrism("cdc", tiny, templates=2, distance_aware=False, **QUICK).fit(DATA)


@pytest.mark.slow
def test_predictions_are_names_and_the_most_probable(model):
    probabilities = model.predict_proba(SOURCES)
    assert probabilities.shape == (12, 4) and probabilities.dtype == np.float32
    assert probabilities.sum(1) == pytest.approx(np.ones(12), abs=1e-5)
    assert list(model.predict(SOURCES)) == [DATA.class_names[i] for i in probabilities.argmax(1)]
    assert list(model.classes_) == list(DATA.class_names)


def test_opinions_are_consistent_with_the_probabilities(model):
    opinions = model.opinions(SOURCES)
    assert isinstance(opinions.fused, Opinion)
    assert opinions.fused.belief.shape == (12, 4) and opinions.templates.uncertainty.shape == (2, 12)
    assert torch.allclose(opinions.templates.fuse("averaging").weight, opinions.fused.weight)
    assert opinions.fused.probability.numpy() == pytest.approx(model.predict_proba(SOURCES), abs=1e-6)


def test_one_image_is_a_batch_of_one_in_every_form(model, tmp_path):
    array = SOURCES[0]
    Image.fromarray(array).save(tmp_path / "image.png")
    expected = model.predict_proba([array])
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for image in (array, Image.fromarray(array), tensor, tmp_path / "image.png", str(tmp_path / "image.png")):
        assert np.array_equal(model.predict_proba(image), expected)
    assert model.predict(array).shape == (1,)


def test_what_was_learned_from_is_known_again_by_its_bytes(tiny, tmp_path):
    paths = [tmp_path / f"{place}.png" for place in range(6)]
    for path, source in zip(paths, SOURCES, strict=False):
        Image.fromarray(source).save(path)
    (tmp_path / "broken.png").write_bytes(b"")
    model = PromptPrism("coop", tiny, epochs=1).fit(paths[:4], ["a", "b", "a", "b"])
    shutil.copy(paths[0], tmp_path / "copy.png")
    there = [*paths, tmp_path / "copy.png", tmp_path / "broken.png"]
    assert [model.has_seen(path) for path in there] == [True] * 4 + [False] * 2 + [True, False]
    few = PromptPrism("zero-shot", tiny, shots=999).fit(DATA)  # it looks at none
    assert not few.has_seen(SOURCES[0])


def test_score_is_the_share_of_right_names(model):
    right = np.mean([a == b for a, b in zip(model.predict(SOURCES), NAMES, strict=True)])
    assert model.score(SOURCES, NAMES) == model.score(DATA) == pytest.approx(right)
    assert model.score(SOURCES, [record.label for record in DATA.test]) == pytest.approx(right)
    assert model.scores_["colours"]["cls/accuracy"] == pytest.approx(right)


def test_labels_are_matched_by_name_not_by_place(model):
    order = [2, 0, 3, 1]
    names = tuple(DATA.class_names[i].upper() for i in order)
    moved = tuple(type(r)(r.source, order.index(r.label)) for r in DATA.test)
    assert model.score(Dataset("moved", names, test=moved)) == model.score(DATA)


def test_classes_that_the_model_does_not_know_are_named(model):
    with pytest.raises(PromptPrismError, match=r"does not know, first: 'black'.*with_classes"):
        model.evaluate(colours(5))


def test_with_classes_shares_what_was_learned_and_leaves_the_model(model):
    before = model.predict_proba(SOURCES)
    other = model.with_classes(["black", "white", "red"])
    assert list(other.classes_) == ["black", "white", "red"]
    assert other.predict_proba(SOURCES).shape == (12, 3)
    assert list(model.classes_) == list(DATA.class_names)
    assert np.array_equal(model.predict_proba(SOURCES), before)
    pairs = zip(model.method_.parameters(), other.method_.parameters(), strict=True)
    assert all(a is b for a, b in pairs) and model.backbone_ is other.backbone_
    assert np.array_equal(other.with_classes(DATA.class_names).predict_proba(SOURCES), before)
    with pytest.raises(PromptPrismError, match="red"):
        model.with_classes(["red", "Red"])


@pytest.mark.slow
def test_fit_of_images_and_labels_equals_fit_of_the_data(tiny, model):
    images = [record.source for record in DATA.train]
    by_index = PromptPrism("cdc", tiny, templates=2, **QUICK).fit(
        images, [record.label for record in DATA.train], DATA.class_names
    )
    assert np.array_equal(by_index.predict_proba(SOURCES), model.predict_proba(SOURCES))
    by_name = PromptPrism("coop", tiny, **QUICK).fit(images, [DATA.class_names[r.label] for r in DATA.train])
    assert list(by_name.classes_) == sorted(DATA.class_names)


@pytest.mark.slow
def test_fit_reads_folders_and_draws_shots(tiny, tmp_path):
    for number, record in enumerate(DATA.train):
        file = tmp_path / DATA.class_names[record.label] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(record.source).save(file)
    model = PromptPrism("coop", tiny, shots=2, **QUICK).fit(tmp_path)
    assert model.training_.images == 8 and model.data_.images == dict.fromkeys(sorted(DATA.class_names), 2)
    with pytest.raises(PromptPrismError, match="too few images for 9 shots"):
        model.set_params(shots=9).fit(tmp_path)
    assert model.set_params(allow_fewer=True).fit(tmp_path).training_.images == 16


def test_zero_shot_needs_no_image(tiny):
    model = PromptPrism("zero-shot", tiny).fit([], [], class_names=["red", "green"])
    assert model.predict(SOURCES).shape == (12,) and model.data_ is None
    with pytest.raises(PromptPrismError, match="'zero-shot' has no opinions"):
        model.opinions(SOURCES)
    with pytest.raises(PromptPrismError, match="no image to look at"):
        model.predict([])


def test_parameters_follow_scikit_learn(tiny):
    model = PromptPrism("maple", tiny, seed=3, epochs=7)
    params = model.get_params()
    assert params["method"] == "maple" and params["seed"] == 3 and params["epochs"] == 7
    assert PromptPrism(**params).get_params() == params
    assert model.set_params(seed=4, lr=0.1) is model
    assert model.get_params()["seed"] == 4 and model.get_params()["lr"] == 0.1
    assert "epochs=7" in repr(model) and f"backbone=<backbone 'tiny', {tiny.fingerprint}>, " in repr(model)


def test_settings_are_those_of_the_method_or_nothing_changes(tiny):
    model = PromptPrism("cdc", tiny, epochs=7)
    params = model.get_params()
    for wrong, words in (
        ({"epohcs": 3}, "'cdc' has no setting 'epohcs'. Did you mean epochs"),
        ({"shot": 3}, "'cdc' has no setting 'shot'. Did you mean shots"),
        ({"seed": 9, "lr": -1.0}, "lr=-1.0 of method 'cdc' is refused"),
        ({"method": "coop", "templates": 2}, "templates=2 of method 'coop' is refused"),
        ({"method": "maple", "evidence": "exp"}, "'maple' has no setting 'evidence'"),
        ({"method": "cdcc"}, "Unknown method 'cdcc'"),
    ):
        with pytest.raises(PromptPrismError, match=words):
            model.set_params(**wrong)
        with pytest.raises(PromptPrismError, match=words):
            PromptPrism(**params | wrong)
        assert model.get_params() == params
    assert (
        PromptPrism("coop", tiny).set_params(evidence="exp", method="cdc").get_params()["evidence"] == "exp"
    )


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m.predict(SOURCES),
        lambda m: m.score(DATA),
        lambda m: m.save("x"),
        lambda m: m.with_classes("x"),
    ],
)
def test_use_before_fit_is_said(use):
    with pytest.raises(NotFittedError, match="call fit, or load_model"):
        use(PromptPrism())
    assert not hasattr(PromptPrism(), "classes_")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"templtes": 3}, "templates"),
        ({"templates": 0}, "templates=0"),
        ({"method": "cdcc"}, r"'cdcc'.*cdc"),
        ({"backbone": "minni"}, "mini"),
        ({"phrase": "a photo"}, "{}"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": "1"}, "seed is '1': give a whole number"),
        ({"shots": 2.5}, "shots is 2.5"),
        ({"backbone": None}, "backbone is None: give a name"),
    ],
)
def test_bad_arguments_are_named_before_any_work(tiny, arguments, word):
    with pytest.raises(PromptPrismError, match=word):
        PromptPrism(**({"backbone": tiny} | arguments)).fit(DATA)


def test_data_that_is_none_is_named(tiny):
    with pytest.raises(PromptPrismError, match="give images and labels"):
        PromptPrism("coop", tiny).fit(SOURCES)
    with pytest.raises(PromptPrismError, match="no data 'nowhere'"):
        PromptPrism("coop", tiny).fit("nowhere")
    with pytest.raises(PromptPrismError, match="class_names go with images and labels"):
        PromptPrism("coop", tiny).fit("mini/food", class_names=["red", "green"])
    with pytest.raises(PromptPrismError, match="one class only"):
        PromptPrism("coop", tiny).fit(SOURCES[:2], ["red", "red"])


@pytest.mark.parametrize("unordered", [set, dict.fromkeys])
def test_what_has_no_order_is_no_list_of_images_or_labels(tiny, unordered):
    with pytest.raises(PromptPrismError, match=r"images are a (set|dict), which has no order"):
        PromptPrism("zero-shot", tiny).fit(unordered(["a.png", "b.png"]), ["red", "green"])
    with pytest.raises(PromptPrismError, match=r"labels are a (set|dict), which has no order"):
        PromptPrism("zero-shot", tiny).fit(SOURCES[:2], unordered(["red", "green"]))


def test_what_to_start_from_is_a_model(tiny):
    with pytest.raises(PromptPrismError, match="start is 'adapter': give a fitted PromptPrism"):
        PromptPrism("coop", tiny).fit(DATA, start="adapter")


def test_photos_learned_before_are_not_held_out(tiny, tmp_path):
    paths = [tmp_path / f"{place}.png" for place in range(44)]
    for place, path in enumerate(paths):
        Image.fromarray(np.full((8, 8, 3), 5 * place, np.uint8)).save(path)
    labels = ["a", "b"] * 22
    first = PromptPrism("coop", tiny, epochs=1).fit(paths[:4], labels[:4])
    second = PromptPrism("coop", tiny, epochs=1, shots=1, seed=3).fit(paths, labels, start=first)
    learned = [*map(second.has_seen, paths)]
    second.save(tmp_path / "adapter")
    assert 5 <= sum(learned) <= 6 and len(second.reference_.probability) == 44 - sum(learned)


def test_a_collapsed_fit_warns(tiny, monkeypatch):
    logits = torch.eye(4)[:1].repeat(16, 1)[None]
    monkeypatch.setattr("promptprism.training.loop.Predictor.logits", lambda *_: iter([logits]))
    with pytest.warns(UserWarning, match="collapsed: every one of 16"):
        model = PromptPrism("coop", tiny, **QUICK).fit(DATA)
    assert model.training_.collapsed


def test_save_and_load_give_the_same_model(model, tiny, tmp_path):
    model.evaluate(DATA)
    loaded = load_model(model.save(tmp_path / "adapter"), backbone=tiny)
    assert np.array_equal(loaded.predict_proba(SOURCES), model.predict_proba(SOURCES))
    assert list(loaded.classes_) == list(model.classes_)
    assert loaded.scores_ == model.scores_ and loaded.training_ == model.training_
    assert loaded.get_params()["templates"] == 2
    assert loaded.with_classes(["black", "white"]).predict(SOURCES).shape == (12,)


@pytest.mark.parametrize("method", ["coop", "zero-shot"])
def test_names_that_a_backbone_does_not_know_are_warned_of_beside_learned_ones(tiny, monkeypatch, method):
    model = PromptPrism(method, tiny, **({"epochs": 1} if method == "coop" else {})).fit(DATA)
    learned = list(DATA.class_names)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.with_classes([*learned, "black"])  # tiny knows as many names as any CLIP
        monkeypatch.setattr(tiny, "few_names", True)
        model.with_classes(learned[:2])
        model.with_classes(["black", "white"])
        assert not said
        model.with_classes([learned[0], "black", "white"])
    words = r"2 of 3 classes were not learned, first 'black', .* backbone 'tiny' knows few names"
    assert [bool(re.search(words, str(one.message))) for one in said] == [True] * (method == "coop")


@pytest.mark.slow
def test_what_was_learned_is_known_under_other_classes_and_after_loading(model, tiny, tmp_path):
    aware = PromptPrism("cdc", tiny, templates=2, distance_aware=True, **QUICK).fit(DATA)
    assert np.array_equal(aware.predict_proba(SOURCES), model.predict_proba(SOURCES))
    other = aware.with_classes(["black", "white", "red"])
    found = other.predict_proba(SOURCES)
    assert np.abs(found - model.with_classes(other.classes_).predict_proba(SOURCES)).max() > 1e-4
    loaded = load_model(other.save(tmp_path / "adapter"), backbone=tiny)
    assert loaded.trained_.space.names == DATA.class_names
    assert np.array_equal(loaded.predict_proba(SOURCES), found)
    plain = load_model(tmp_path / "adapter", backbone=tiny, distance_aware=False)
    assert plain.get_params()["distance_aware"] is False
    expected = model.with_classes(other.classes_).predict_proba(SOURCES)
    assert np.array_equal(plain.predict_proba(SOURCES), expected)
    with pytest.raises(PromptPrismError, match=r"setting 'lr' .* learned with.* Can be: distance_aware"):
        load_model(tmp_path / "adapter", backbone=tiny, lr=0.1)
    with pytest.raises(
        PromptPrismError, match=r"preset='paper' says how to learn, and adapter .* has learned"
    ):
        load_model(tmp_path / "adapter", backbone=tiny, preset="paper")


def test_the_preset_of_the_paper_is_known_by_its_name(tiny):
    model = PromptPrism("cdc", tiny, preset="paper", epochs=0, templates=2).fit(DATA)
    assert (model.method_.settings.fusion, model.method_.settings.epochs) == ("dempster", 0)
    assert model.get_params()["preset"] == "paper" and "preset" not in model.method_.settings.model_dump()
    with pytest.raises(PromptPrismError, match=r"no setting 'presett'\. Did you mean preset"):
        model.set_params(presett="paper")


@pytest.mark.slow
def test_the_estimator_imports_little_beside_torch_and_open_clip():
    code = """
import sys, torch, open_clip
there = set(sys.modules)
from promptprism import PromptPrism
late = {"torchmetrics", "scipy", "matplotlib", "sqlite3", "rich", "typer", "datasets", "pandas", "sklearn"}
print(sorted(late & (set(sys.modules) - there)))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_everything_public_is_there_and_documented():
    page = (Path(__file__).parents[1] / "docs" / "reference" / "python.md").read_text()
    listed = re.findall(r"^\| `(\w+)", page, re.MULTILINE)
    assert sorted(listed) == sorted(promptprism.__all__) == sorted(dir(promptprism))
    assert all(getattr(promptprism, name).__doc__ for name in promptprism.__all__)


def test_importing_the_package_does_not_import_torch():
    code = "import sys, promptprism; print(promptprism.__version__, 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == [promptprism.__version__, "False"]
    with pytest.raises(AttributeError, match="no attribute 'Prism'"):
        _ = promptprism.Prism
