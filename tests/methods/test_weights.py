"""Images that count unequally: a weight of 2 is the image twice, in every loss, mean, cache and solution."""

from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from toys import colours, quick

from promptprism.adapter import Card, load_adapter, save_adapter
from promptprism.errors import PromptPrismError
from promptprism.methods import METHODS, CoOp, build_method, make_settings
from promptprism.methods.cdc_settings import LEARNERS
from promptprism.methods.linear_probe import solve
from promptprism.training.loop import learn

DATA = colours()
SPACE = DATA.label_space
LEARNING = [name for name in METHODS if quick(name, epochs=1)]
#: What is left out of an update depends on how many images there are.
OFF = {learner: {"dropout": 0.0} if learner == "lora" else {} for learner in LEARNERS}
CASES = [
    *((name, OFF["lora"] if name == "clip-lora" else {}) for name in LEARNING),
    ("cdc", {"head": "softmax", "consistency_form": "kl"}),
    ("cdc", {"diversity_level": "image", "kl_weight": 0.25, "loss_on": "templates"}),
    ("cdc", {"diversity_form": "hinge", "diversity_level": "image", "diversity_margin": -1.0}),
    ("maple", {"class_offsets": True}),
    *(("cdc", {"learner": learner, "decoupling": "correlation", **OFF[learner]}) for learner in LEARNERS),
    *(
        ("cdc", {"learner": learner, "decoupling": "patches", "head": "softmax"})
        for learner in ("coop", "mmrl")
    ),
]


def step(backbone, name, settings, records, weights=None):
    """The loss of one step on all records, and its gradients."""
    method = build_method(make_settings(name, **settings), backbone)
    method.allot(len(SPACE), len(records))
    texts = method.texts(SPACE)
    method.prepare(texts, records)
    pixels = torch.stack([torch.as_tensor(r.source[:32, :32]).movedim(-1, 0) / 64 - 2 for r in records])
    views = pixels.expand(len(method.views), *pixels.shape)
    labels = torch.tensor([record.label for record in records])
    loss = method(views, labels, texts, 1, *(() if weights is None else (weights,)))
    loss.backward()
    return loss.item(), {key: value.grad for key, value in method.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_an_image_of_weight_2_is_there_twice_in_the_loss_and_its_gradient(tiny, name, settings):
    if name.startswith("tip-adapter"):
        settings = {"passes": 1, "views": "flip"} | settings
    one = DATA.train[2::4]
    twice, weights = (*one, one[1]), torch.tensor([1.0, 2.0, 1.0, 1.0])
    loss, gradients = step(tiny, name, settings, one, weights / weights.mean())
    expected, theirs = step(tiny, name, settings, twice)
    unweighted, _ = step(tiny, name, settings, one)
    if name != "tip-adapter-f":  # whose cache has weights too, see below
        assert loss == pytest.approx(expected, rel=1e-5)
        assert all(torch.allclose(gradients[key], theirs[key], rtol=1e-3, atol=1e-6) for key in theirs)
    assert abs(loss - unweighted) > 1e-4
    equal, _ = step(tiny, name, settings, one, torch.ones(4))
    assert equal == pytest.approx(unweighted, rel=1e-6)


def test_offsets_start_at_the_weighted_mean_of_a_class(tiny):
    def offsets(records):
        method = build_method(make_settings("coop", class_offsets=True), tiny)
        method.allot(len(SPACE), len(records))
        method.prepare(method.texts(SPACE), records)
        return method.offsets.detach()

    heavy = (replace(DATA.train[0], weight=2.0), *DATA.train[1:])
    torch.testing.assert_close(offsets(heavy), offsets((DATA.train[0], *DATA.train)))
    assert not torch.allclose(offsets(heavy), offsets(DATA.train))


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [None, 1])
def test_an_image_of_weight_2_has_two_votes_in_a_cache_and_keeps_them(tiny, tmp_path, epochs):
    name, more = ("tip-adapter", {}) if epochs is None else ("tip-adapter-f", {"epochs": epochs, "lr": 1e-9})
    settings = make_settings(name, passes=1, **more)  # at such a rate the keys stay where they are

    def fit(records):
        return learn(settings, tiny, SPACE, records, validation=DATA.train)

    # Augmented views depend on an image's place: the one that is repeated comes last.
    heavy = fit((*DATA.train[:-1], replace(DATA.train[-1], weight=2.0)))
    assert heavy.training.weighted and not fit(DATA.train).training.weighted
    assert heavy.method.state_dict()["weights"].tolist() == [1.0] * 15 + [2.0]
    views = torch.randn(1, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    classifier = heavy.classifier()
    halves = torch.cat([classifier.values, classifier.values[-1:]])
    halves[-2:] /= 2
    twice = replace(classifier, keys=torch.cat([classifier.keys, classifier.keys[-1:]]), values=halves)
    torch.testing.assert_close(classifier.logits(views), twice.logits(views))
    assert halves[-2:].sum().item() == 2
    save_adapter(tmp_path / "a", heavy.method, Card.of(heavy, SPACE, None))
    loaded, card = load_adapter(tmp_path / "a", backbone=tiny)
    assert card.training.weighted and loaded.classifier().logits(views).equal(classifier.logits(views))


def test_the_probe_is_scikit_learns_logistic_regression_with_the_same_weights():
    generator = torch.Generator().manual_seed(1)
    features, labels = torch.randn(40, 7, generator=generator), torch.arange(40) % 3
    weights = torch.rand(40, generator=generator) * 3
    weight, bias = solve(features, labels, 3, 0.5, weights)
    theirs = LogisticRegression(C=0.5, tol=1e-8, max_iter=1000).fit(features, labels, weights)
    assert weight.numpy() == pytest.approx(theirs.coef_, abs=1e-4)
    # Biases are free up to what they have in common.
    expected = theirs.intercept_ - theirs.intercept_.mean()
    assert (bias - bias.mean()).numpy() == pytest.approx(expected, abs=1e-4)
    twice = solve(torch.cat([features, features[:5]]), torch.cat([labels, labels[:5]]), 3, 0.5)
    once = solve(features, labels, 3, 0.5, torch.tensor([2.0] * 5 + [1.0] * 35))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(once, twice, strict=True))


def weighted(weight):
    return tuple(replace(record, weight=weight + place % 2) for place, record in enumerate(DATA.train))


@pytest.mark.slow
def test_weights_are_of_a_run_and_a_resumed_one_is_the_same(tiny, tmp_path):
    settings = make_settings("coop", epochs=3, batch_size=4)
    file = tmp_path / "checkpoint"
    whole = learn(settings, tiny, SPACE, weighted(1.0))

    def stop(epoch, _):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(settings, tiny, SPACE, weighted(1.0), checkpoint=file, after_epoch=stop)
    for other in (DATA.train, weighted(2.0)):
        with pytest.raises(PromptPrismError, match="of another run: its weights_digest is"):
            learn(settings, tiny, SPACE, other, checkpoint=file)
    resumed = learn(settings, tiny, SPACE, weighted(1.0), checkpoint=file)
    assert resumed.method.learner.context.equal(whole.method.learner.context)
    assert resumed.training.weighted
    plain = learn(settings, tiny, SPACE, DATA.train)
    assert not plain.method.learner.context.equal(whole.method.learner.context)
    # Of steps only the proportions count.
    scaled = [replace(record, weight=2 * record.weight) for record in weighted(1.0)]
    assert learn(settings, tiny, SPACE, scaled).method.learner.context.equal(whole.method.learner.context)


def test_a_loss_without_weights_and_weights_that_are_none_are_refused(tiny, monkeypatch):
    class Plain(CoOp):
        def forward(self, views, labels, texts, epoch):
            return super().forward(views, labels, texts, epoch)

    assert METHODS["coop"].weighs and not Plain.weighs and not METHODS["zero-shot"].weighs
    monkeypatch.setattr(METHODS, "own", {**METHODS.own, "coop": Plain})
    settings = make_settings("coop", epochs=1)
    with pytest.raises(PromptPrismError, match="'coop' cannot weigh images, its loss takes no weights"):
        learn(settings, tiny, SPACE, weighted(1.0))
    assert not learn(settings, tiny, SPACE, DATA.train).training.weighted
    monkeypatch.undo()
    with pytest.raises(PromptPrismError, match=r"weight of image 0 is 0\.0"):
        learn(settings, tiny, SPACE, weighted(0.0))
