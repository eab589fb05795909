import itertools

import pytest
import torch
from pydantic import model_validator
from torch.nn import functional as F
from toys import quick

from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismError
from promptprism.evidence import Opinion, distance_factors, to_evidence, trusted_cross_entropy
from promptprism.methods import METHODS, CdcSettings, CoOp, Maple, build_method, make_settings
from promptprism.methods.zero_shot import ENSEMBLE_PHRASES
from promptprism.prompts import encode_image, encode_text

NAMES = ["cat", "red_fox", "lemon", "日本語", "🦊"]
SPACE = LabelSpace(NAMES)
LEARNING = [name for name in METHODS if quick(name, epochs=1)]


def pixels(views=1, images=3):
    return torch.randn(views, images, 3, 32, 32, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([0, 3, 1])


def make(name, backbone, seed=1, **settings):
    method = build_method(make_settings(name, **settings), backbone, seed)
    method.allot(len(NAMES), 6)
    return method


def logits_of(method, space=SPACE, views=None):
    with torch.no_grad():
        return method.classifier(space).logits(pixels() if views is None else views)


def loss_of(method, views, epoch=0, space=SPACE):
    return method(views, LABELS, method.texts(space), epoch)


@pytest.mark.parametrize("name", METHODS)
def test_shapes_probabilities_and_only_what_is_learned(tiny, name):
    # The meta-net's hidden layer would be a single, possibly dead, unit on so small a model.
    method = make(name, tiny, **({"reduction": 2} if name == "cocoop" else {}))
    classifier, logits = method.classifier(SPACE), logits_of(method)
    templates = 4 if name == "cdc" else 1
    assert logits.shape == (templates, 3, 5) and logits.dtype == torch.float32
    assert method.shape.templates == templates and classifier.space == SPACE
    probabilities = classifier.probabilities(logits)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3))
    assert len(method.views) == templates
    learned = dict(method.named_parameters())
    kept = {"tip-adapter": {"keys", "labels", "alpha_beta"}, "tip-adapter-f": {"labels", "alpha_beta"}}
    assert set(method.state_dict()) == set(learned) | kept.get(name, set())
    assert all(value.requires_grad for value in learned.values())
    if name in LEARNING:
        loss_of(method, pixels(), 0).backward()
        for key, value in learned.items():
            assert value.grad.isfinite().all() and value.grad.any() != key.endswith("down"), key  # B is 0 yet


@pytest.mark.parametrize("name", METHODS)
def test_a_classifier_is_what_the_method_was_when_it_was_made(tiny, name):
    method = make(name, tiny)
    classifier = method.classifier(SPACE)
    before = classifier.logits(pixels())
    assert before.equal(logits_of(method)) and not before.requires_grad
    with torch.no_grad():
        for value in method.parameters():
            value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(2))
    assert classifier.logits(pixels()).equal(before)
    assert logits_of(method).equal(before) == (not list(method.parameters()))


def test_start_values_come_from_the_seed_alone(tiny):
    for name in LEARNING:
        first = make(name, tiny, seed=3).state_dict()
        torch.rand(5)
        second = make(name, tiny, seed=3).state_dict()
        assert all(first[key].equal(second[key]) for key in first)


def test_zero_shot_is_clip(tiny):
    method = make("zero-shot", tiny)
    tokens = tiny.tokenize(
        ["cat texture.", "red fox texture.", "lemon texture.", "日本語 texture.", "🦊 texture."]
    )
    image = tiny.model.encode_image(pixels()[0], normalize=True)
    expected = 30 * image @ tiny.model.encode_text(tokens, normalize=True).T
    found = logits_of(method, LabelSpace(NAMES, "{} texture."))[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert method.settings.epochs == 0 and not list(method.parameters())
    with pytest.raises(PromptPrismError, match="learns nothing"):
        loss_of(method, pixels(), 0)


def test_ensemble_averages_features_and_normalises(tiny):
    method = make("zero-shot", tiny, ensemble=True)
    phrases = ("a photo of a {}.", *ENSEMBLE_PHRASES)
    spoken = [name.replace("_", " ") for name in NAMES]
    each = [encode_text(tiny, tiny.tokenize([p.replace("{}", name) for name in spoken])) for p in phrases]
    torch.testing.assert_close(method.classifier(SPACE).text, F.normalize(sum(each) / 8, dim=-1))


def test_a_new_label_space_is_another_classifier_of_what_was_learned(tiny):
    method, other = make("cdc", tiny, templates=2, class_offsets=False), LabelSpace(("dog", "cat"))
    before = {key: value.clone() for key, value in method.state_dict().items()}
    first = method.classifier(SPACE)
    logits = first.logits(pixels())
    second = method.classifier(other)
    assert second.space == other and logits_of(method, other).shape == (2, 3, 2)
    assert first.space == SPACE and first.logits(pixels()).equal(logits)
    assert all(before[key].equal(value) for key, value in method.state_dict().items())
    fresh = make("cdc", tiny, templates=2, class_offsets=False).classifier(other)
    assert second.zero_shot_features.equal(fresh.zero_shot_features)
    assert second.logits(pixels()).equal(fresh.logits(pixels()))


def test_names_that_do_not_fit_are_refused(tiny):
    method = make("maple", tiny)
    for space in (LabelSpace(("word " * 200, "cat")), LabelSpace(("cat",), "word " * 200 + "{}")):
        with pytest.raises(PromptPrismError, match=r"'(a photo of a )?word word .*40 tokens"):
            method.classifier(space)


def test_what_was_first_made_in_inference_mode_still_trains_and_explains(tiny):
    method = make("cdc", tiny)
    texts = method.texts(SPACE)
    with torch.inference_mode():
        _ = texts.zero_shot_features
        classifier = method.classifier(SPACE)
    method(pixels(4), LABELS, texts, 0).backward()
    views = pixels().requires_grad_()
    classifier.logits(views).sum().backward()
    assert views.grad.any()


def test_cdc_with_one_template_and_softmax_is_maple(tiny):
    maple = make("maple", tiny, seed=7)
    off = {"head": "softmax", "diversity_weight": 0, "consistency_weight": 0, "views": "maple"}
    cdc = make("cdc", tiny, seed=7, templates=1, preset="paper", **off)
    assert maple.views == cdc.views
    assert all(a.equal(b) for a, b in zip(maple.parameters(), cdc.parameters(), strict=True))
    assert logits_of(maple).equal(logits_of(cdc))
    losses = [loss_of(method, pixels(), 2) for method in (maple, cdc)]
    assert losses[0].equal(losses[1])
    gradients = [
        torch.autograd.grad(loss, m.parameters()) for loss, m in zip(losses, (maple, cdc), strict=True)
    ]
    assert all(a.equal(b) for a, b in zip(*gradients, strict=True))
    first, second = (method.classifier(SPACE) for method in (maple, cdc))
    assert first.probabilities(logits_of(maple)).equal(second.probabilities(logits_of(cdc)))


def test_coop_leaves_the_vision_tower_alone_and_its_16_token_form(tiny):
    coop = make("coop", tiny, context_length=16, phrase_init=False)
    assert [name for name, _ in coop.named_parameters()] == ["learner.context"]
    image = encode_image(tiny, pixels())
    text = encode_text(
        tiny, tiny.tokenize(["X " * 16 + n.replace("_", " ") + "." for n in NAMES]), coop.learner.context
    )
    torch.testing.assert_close(logits_of(coop), 30 * image @ text.mT)


def test_cocoop_shifts_its_context_by_each_image(tiny, monkeypatch):
    method = make("cocoop", tiny)
    logits = logits_of(method)
    alone = torch.cat([logits_of(method, views=pixels()[:, i : i + 1]) for i in range(3)], dim=1)
    torch.testing.assert_close(logits, alone, atol=1e-4, rtol=0)
    monkeypatch.setattr("promptprism.methods.cocoop._TEXTS_AT_ONCE", 5)
    torch.testing.assert_close(logits_of(method), logits, atol=1e-4, rtol=0)
    assert method.shape.texts_per_image and method.classifier(SPACE).text is None


@pytest.mark.parametrize("rule", ["dempster", "averaging"])
def test_cdc_loss_is_the_sum_of_its_parts(tiny, rule):
    weights = {"kl_weight": 0.2, "anneal": 4, "diversity_weight": 0.3, "consistency_weight": 0.7}
    method = make("cdc", tiny, fusion=rule, **weights)
    views = pixels(4)
    with torch.no_grad():
        opinions = Opinion.from_evidence(to_evidence(logits_of(method, views=views)))
        text, anchor = method.classifier(SPACE).text, method.texts(SPACE).zero_shot_features
        both = (opinions, opinions.fuse(rule))
        trusted = [trusted_cross_entropy(o, LABELS, 0.2 * 2 / 4).mean() for o in both]
        unit = F.normalize(text - anchor, dim=-1)
        pairs = [(unit[i] * unit[j]).sum(-1).square() for i, j in itertools.combinations(range(4), 2)]
        consistency = 1 - (text * anchor).sum(-1)
        expected = sum(trusted) + 0.3 * torch.stack(pairs).mean() + 0.7 * consistency.mean()
        torch.testing.assert_close(loss_of(method, views, 1), expected)


@pytest.mark.parametrize(
    "settings",
    [
        *(
            {"diversity_level": level, "diversity_form": "hinge"}
            for level in ("text_centered", "text", "image")
        ),
        {"diversity_level": "context", "diversity_form": "cosine"},
        *({"consistency_form": form} for form in ("l1", "l2", "kl")),
        *({"evidence": kind} for kind in ("exp", "softplus", "relu", "exp_tanh")),
        *({"loss_on": which} for which in ("templates", "fused")),
        {"head": "softmax"},
        {"coupled": False, "depth": 1, "views": "set2"},
        {"temperature": 5.0, "kl_weight": 1.0, "templates": 6},
    ],
    ids=str,
)
def test_every_setting_of_cdc_changes_the_loss_and_trains(tiny, settings):
    method = make("cdc", tiny, **settings)
    views = pixels(len(method.views))
    with torch.no_grad():  # leave the common start, where all templates are alike
        for value in method.parameters():
            value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(2))
    loss = loss_of(method, views, 1)
    gradients = torch.autograd.grad(loss, list(method.parameters()))
    assert loss.isfinite() and all(g.isfinite().all() and g.any() for g in gradients)
    usual = make("cdc", tiny, templates=len(method.views))
    if method.state_dict().keys() == usual.state_dict().keys():
        usual.load_state_dict(method.state_dict())
        assert loss_of(usual, views, 1).item() != pytest.approx(loss.item(), rel=1e-6)


def test_fused_prediction_and_opinions(tiny):
    classifier = make("cdc", tiny).classifier(SPACE)
    logits = classifier.logits(pixels())
    opinions, fused = classifier.opinions(logits)
    assert opinions.belief.shape == (4, 3, 5) and fused.uncertainty.shape == (3,)
    torch.testing.assert_close(fused.evidence, opinions.evidence.mean(0))
    _, dempster = make("cdc", tiny, fusion="dempster").classifier(SPACE).opinions(logits)
    total = torch.log1p(opinions.evidence / 5).sum(0)
    torch.testing.assert_close(torch.log1p(dempster.evidence / 5), total)
    torch.testing.assert_close(classifier.probabilities(logits), fused.probability)
    for other in ("maple", "cdc"):
        softmax = make(other, tiny, **({"head": "softmax"} if other == "cdc" else {})).classifier(SPACE)
        assert not softmax.evidential
        with pytest.raises(PromptPrismError, match=f"'{other}' has no opinions"):
            softmax.opinions(logits)
        torch.testing.assert_close(softmax.probabilities(logits), logits.mean(0).softmax(-1))


def test_views_of_each_template(tiny):
    assert make("cdc", tiny).views == ("set1:0", "set1:1", "set1:2", "set1:3")
    six = make("cdc", tiny, templates=6, views="set2").views
    assert six == ("set2:0", "set2:1", "set2:2", "set2:3", "set2:0", "set2:1")
    assert make("cdc", tiny, templates=2, views="maple").views == ("maple", "maple")


@pytest.mark.slow
def test_paper_hyper_parameters_are_a_preset(tiny_factory):
    deep = tiny_factory(vision_cfg={"layers": 12}, text_cfg={"layers": 12})
    expected = {"coop": (200, 32, 0.002, 1, 4), "maple": (5, 4, 0.0035, 9, 2), "cdc": (5, 4, 0.0035, 9, 2)}
    for name, (epochs, batch, lr, depth, n) in expected.items():
        method = make(name, deep, preset="paper")
        settings = method.settings
        assert (settings.epochs, settings.batch_size, settings.lr) == (epochs, batch, lr)
        assert method.learner.context.shape[1:3] == (depth, n)
    cocoop = METHODS["cocoop"].Settings(preset="paper")
    assert (cocoop.epochs, cocoop.batch_size, cocoop.lr, cocoop.context_length) == (10, 1, 0.002, 4)
    for method in METHODS.values():
        assert all(field.description for field in method.Settings.model_fields.values())
    for name in ("coop", "kgcoop", "prograd", "cocoop", "maple", "cdc"):
        settings = METHODS[name].Settings()
        assert (settings.momentum, settings.weight_decay, settings.warmup_lr) == (0.9, 5e-4, 1e-5)


def test_depth_fits_the_backbone(tiny):
    assert make("maple", tiny).learner.context.shape[1] == 2
    with pytest.raises(PromptPrismError, match="depth 3 is more than the 2 layers"):
        make("maple", tiny, depth=3)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("mapel", {}, "Unknown method 'mapel': choose one of zero-shot, linear-probe, "),
        ("cdc", {"template": 2}, "'cdc' has no setting 'template'. Did you mean templates"),
        ("cdc", {"templates": 0}, "templates=0 of method 'cdc' is refused"),
        ("cdc", {"evidence": "sigmoid"}, "evidence='sigmoid' of method 'cdc' is refused"),
        ("maple", {"templates": 4}, "templates=4 of method 'maple' is refused"),
        ("maple", {"evidence": "exp"}, "'maple' has no setting 'evidence'"),
        ("coop", {"preset": "papers"}, "preset='papers' of method 'coop' is unknown: it is 'paper', the"),
        ("coop", {"preset": [1]}, r"preset=\[1\] of method 'coop' is unknown: .*; 1, the defaults of that"),
        ("cdc", {"preset": True}, "preset=True of method 'cdc' is unknown"),
    ],
)
def test_unknown_methods_and_settings(tiny, name, settings, words):
    with pytest.raises(PromptPrismError, match=words):
        make(name, tiny, **settings)


def test_settings_of_another_method(tiny):
    with pytest.raises(PromptPrismError, match="'maple' takes MapleSettings, not CdcSettings"):
        Maple(tiny, CdcSettings())


def test_settings_survive_json():
    settings = CdcSettings(templates=3, temperature=2.0)
    assert CdcSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_a_distributed_wrapper_can_hold_a_method(tiny, tmp_path):
    alone, held = (make("cdc", tiny, templates=2) for _ in range(2))
    expected = loss_of(alone, pixels(2), 1)
    expected.backward()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/g", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(held)
        loss = wrapped(pixels(2), LABELS, held.texts(SPACE), 1)
        loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    assert loss.equal(expected)
    gradients = zip(alone.parameters(), held.parameters(), strict=True)
    assert all(torch.allclose(one.grad, other.grad) for one, other in gradients)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_backbone_leaves_everything_learned_in_float32(tiny_factory, name):
    method = make(name, tiny_factory("bfloat16"))
    logits = logits_of(method)
    exact = logits_of(make(name, tiny_factory()))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact, atol=0.5, rtol=0)  # of a logit scale of 30
    if name in LEARNING:
        loss_of(method, pixels(), 0).backward()
        assert all(value.grad.dtype == torch.float32 for value in method.parameters())


def test_late_vision_prompts_train_and_predict_template_by_template(tiny):
    method = make("cdc", tiny, templates=2, depth=2, vision_from=1)
    loss_of(method, pixels(2), 0).backward()
    assert all(value.grad.isfinite().all() and value.grad.any() for value in method.parameters())
    logits = logits_of(method)
    ask, some = method.classifier(SPACE).one_by_one(pixels()), torch.tensor([0, 2])
    for template in range(2):
        torch.testing.assert_close(ask(template, some)[0], logits[template][some], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_evidence_by_distance_scales_what_was_not_learned(tiny):
    how = {"templates": 3, "class_offsets": False}
    plain, aware = (make("cdc", tiny, distance_aware=on, **how) for on in (False, True))
    other = LabelSpace(("dog", "lemon", "truck"), "a drawing of a {}.")

    def move(amount):
        with torch.no_grad():
            for method in (plain, aware):
                noise = torch.randn(3, 2, 2, 48, generator=torch.Generator().manual_seed(2))
                method.learner.context.add_(amount * noise)

    def expected():
        # The hand-made phrase is the other space's for both: another one would look like a distance.
        new, learned = (plain.classifier(space) for space in (other, LabelSpace(NAMES, other.phrase)))
        zero_shot = new.zero_shot_features, learned.zero_shot_features
        factors = distance_factors(new.text, learned.text, *zero_shot).float()
        assert (factors[:, 1] == 1).all() and (factors[:, [0, 2]] != 1).all()
        logits = new.logits(pixels())
        return logits * factors.gather(1, logits.argmax(-1)).unsqueeze(-1)

    move(1.0)
    for learned in (None, SPACE):
        assert aware.classifier(SPACE, learned).logits(pixels()).equal(logits_of(plain))
    assert loss_of(aware, pixels(3)).equal(loss_of(plain, pixels(3)))
    classifier = aware.classifier(other, SPACE)
    first = expected()
    torch.testing.assert_close(classifier.logits(pixels()), first)
    ask, some = classifier.one_by_one(pixels()), torch.tensor([0, 2])
    for template in range(3):
        torch.testing.assert_close(ask(template, some)[0], first[template, some], atol=1e-4, rtol=0)
    move(-2.0)
    second = expected()
    torch.testing.assert_close(aware.classifier(other, SPACE).logits(pixels()), second)
    assert (first - second).abs().max() > 0.1
    torch.testing.assert_close(classifier.logits(pixels()), first)


def test_settings_that_cannot_be_together_are_told_of(monkeypatch):
    class Settings(CoOp.Settings):
        @model_validator(mode="after")
        def _together(self):
            raise ValueError("low is above high")

    monkeypatch.setattr(CoOp, "Settings", Settings)
    with pytest.raises(PromptPrismError, match=r"^Settings of method 'coop' are refused: low is above high"):
        make_settings("coop")
