import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from toys import colours
from typer.testing import CliRunner

from promptprism import PromptPrism, adapter
from promptprism.backbones import load_backbone
from promptprism.cli import app
from promptprism.data.miniworld import load, render
from promptprism.data.views import make_views
from promptprism.errors import PromptPrismError
from promptprism.inference.explain import nearest_words, relevance_maps
from promptprism.methods import ZeroShot
from promptprism.prompts import vision
from promptprism.reports.explanation import draw_explanation

DATA = colours(classes=4, train=1)
IMAGE = DATA.test[5].source


def fitted(backbone, method="cdc", **settings):
    """A model with random prompts: nothing is trained."""
    if method != "zero-shot":
        settings = {"epochs": 0} | settings
    model = PromptPrism(method, backbone, **settings).fit(DATA)
    for value in model.method_.parameters():
        value.data += 0.2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    return model.with_classes(DATA.class_names)


def test_it_says_what_the_opinions_say(tiny):
    model = fitted(tiny, templates=3, depth=2)
    fused, each = model.opinions([IMAGE])
    told = model.explain(IMAGE, "it", top=4)
    assert (told.image, told.method, told.phrase) == ("it", "cdc", "a photo of a {}.")
    assert told.uncertainty == pytest.approx(fused.uncertainty.item())
    assert [a.name for a in told.top] == [
        DATA.class_names[k] for k in fused.probability[0].argsort(descending=True)
    ]
    assert [a.belief for a in told.top] == pytest.approx(
        fused.belief[0].sort(descending=True).values.tolist()
    )
    for voice, belief, uncertainty in zip(
        told.templates, each.belief[:, 0], each.uncertainty[:, 0], strict=True
    ):
        assert voice.uncertainty == pytest.approx(uncertainty.item())
        assert [a.belief for a in voice.top] == pytest.approx(belief.sort(descending=True).values.tolist())
        assert [len(words) for words in voice.words] == [4, 4]


@pytest.mark.parametrize("fusion", ["dempster", "tempered", "averaging", "pooling", "cautious"])
def test_contributions_add_up_where_fusion_is_a_sum(tiny, fusion):
    model = fitted(tiny, templates=3, depth=2, fusion=fusion)
    why = model.explain(IMAGE).why
    fused = model.opinions([IMAGE]).fused
    scores = {"averaging": fused.evidence, "pooling": fused.belief}.get(fusion, fused.weight)[0]
    assert list(why.scores) == pytest.approx(scores.topk(2).values.tolist(), rel=1e-5)
    assert (why.rule, why.exact) == (fusion, fusion != "cautious")
    together = np.max if fusion == "cautious" else np.sum
    assert together(why.contributions, axis=0) == pytest.approx(why.scores, rel=1e-4)


def test_of_softmax_heads_the_lead_is_the_log_odds(tiny):
    model = fitted(tiny, head="softmax", templates=2, depth=2)
    told = model.explain(IMAGE)
    assert told.uncertainty is None and told.top[0].belief is None
    odds = np.log(told.top[0].probability / told.top[1].probability)
    assert told.why.scores[0] - told.why.scores[1] == pytest.approx(odds, rel=1e-3)
    assert np.sum(told.why.contributions, axis=0) == pytest.approx(told.why.scores, rel=1e-4)


@pytest.mark.parametrize("method", ["zero-shot", "coop", "cocoop", "maple"])
def test_methods_without_opinions_are_explained_and_drawn(tiny, method):
    told = fitted(tiny, method).explain(IMAGE)
    assert len(told.templates) == 1 and told.templates[0].top == told.top
    assert len(told.templates[0].words) == {"zero-shot": 0, "maple": 2}.get(method, 4)
    assert np.shape(told.templates[0].map) == (4, 4)
    draw_explanation(told)


@pytest.mark.parametrize("pass_mb", [0, 24])
def test_relevance_is_the_derivative_of_the_lead_by_each_patch(tiny, pass_mb, monkeypatch):
    monkeypatch.setattr(vision, "_PASS_MB", pass_mb)
    classifier = fitted(tiny, templates=2, depth=2).classifier_
    views = make_views(("test",), 32, tiny.mean, tiny.std)(IMAGE, 0, 0, 0).unsqueeze(1)
    logits, maps = relevance_maps(classifier, views)
    best = classifier.probabilities(logits)[0].argmax()
    block, step = tiny.model.visual.transformer.resblocks[-1], 1e-2

    def leads(patch, factor):
        def scale(_module, _inputs, output):
            if output.shape[1] > 1:  # not the class token alone
                output = output.clone()
                output[:, 1 + patch] *= factor
            return output

        handle = block.ln_1.register_forward_hook(scale)
        with torch.no_grad():
            found = classifier.logits(views)[:, 0]
        handle.remove()
        return found[:, best] - found.mean(-1)

    for patch in (0, 7, 15):
        slope = (leads(patch, 1 + step) - leads(patch, 1 - step)) / (2 * step)
        assert maps[:, patch // 4, patch % 4].tolist() == pytest.approx(slope.tolist(), rel=0.02, abs=1e-4)
    assert not tiny.model.visual.transformer.resblocks[-1].ln_1._forward_hooks


@pytest.mark.slow
def test_the_mini_clip_looks_at_the_object():
    mini = load_backbone("mini")
    data = load("mini/clothing")
    classifier = ZeroShot(mini).classifier(data.label_space)
    make = make_views(("test",), mini.image_size, mini.mean, mini.std)
    rows, columns = np.mgrid[0:48, 0:48]
    on_object, area = [], []
    for record in data.test[::40]:
        scene = record.source.scene
        inside = (columns - scene.x * 48) ** 2 + (rows - scene.y * 48) ** 2 < (scene.scale * 24) ** 2
        share = inside.reshape(6, 8, 6, 8).mean((1, 3))
        _, maps = relevance_maps(classifier, make(render(scene), 0, 0, 0).unsqueeze(1))
        positive = maps[0].clamp(min=0).numpy()
        on_object.append((positive * share).sum() / positive.sum())
        area.append(share.mean())
    assert np.mean(on_object) > 1.7 * np.mean(area)


def test_a_word_is_nearest_to_itself(tiny):
    token = tiny.tokenize(["photo"])[0, 1]
    found = nearest_words(tiny, tiny.text.token_embedding(token), 3)
    assert len(found) == 3 and found[0].word == "photo"
    assert (found[0].cosine, found[0].distance) == (pytest.approx(1), pytest.approx(0, abs=1e-5))
    assert found[1].cosine < 1 and found[1].distance > 0


@pytest.fixture
def saved(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter, "load_backbone", lambda *_, **__: tiny)
    fitted(tiny, templates=2, depth=2).save(tmp_path / "adapter")
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["explain", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.mark.slow
def test_one_class_to_show_is_drawn(tiny):
    explanation = fitted(tiny).explain(IMAGE, top=1)
    assert len(explanation.top) == 1 and len(explanation.why.classes) == 2
    assert draw_explanation(explanation).get_suptitle()


@pytest.mark.slow
def test_the_command_draws_and_tells(saved):
    out = saved / "x.png"
    content = json.loads(run(saved / "adapter", saved / "image.png", "--out", out, "--json", "-").stdout)
    assert content["schema"] == "promptprism/explain" and content["image"] == str(saved / "image.png")
    assert content["top"][0].keys() == {"class", "probability", "belief"}
    assert content["templates"][0]["words"][0][0].keys() == {"word", "cosine", "distance"}
    assert content["why"]["exact"] is True
    assert Image.open(out).size[0] > 1000
    first = out.read_bytes()
    run(saved / "adapter", saved / "image.png", "--out", out)
    assert out.read_bytes() == first


def test_the_command_refuses(saved):
    for arguments, says in (
        (["adapter", "image.png", "x.gif"], r"cannot draw '.*x.gif': its name must end in .png, .svg, .pdf"),
        (["nothing", "image.png", "x.png"], "adapter '.*nothing' does not exist"),
        (["adapter", "nothing.png", "x.png"], "nothing.png"),
    ):
        first, second, out = (saved / name for name in arguments)
        refused = run(first, second, "--out", out, code=2).stderr
        assert re.match(rf"error: .*{says}", refused) and refused.count("\n") == 1
        assert not out.exists()


def test_threads_explain_beside_each_other(tiny):
    model = PromptPrism("coop", tiny, epochs=1).fit(colours())
    sources = [record.source for record in colours().test][:4]
    alone = [model.explain(source).model_dump() for source in sources]
    with ThreadPoolExecutor(4) as pool:
        beside = [one.model_dump() for one in pool.map(model.explain, sources * 8)]
    assert beside == alone * 8
    with pytest.raises(PromptPrismError, match="top is 0: give 1 or more"):
        model.explain(sources[0], top=0)
