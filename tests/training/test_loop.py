import json
import math
import subprocess
from dataclasses import replace

import pytest
import torch
from toys import colours, quick

from promptprism import provenance
from promptprism.data.names import LabelSpace
from promptprism.data.records import Record
from promptprism.data.registry import load_data
from promptprism.data.splits import few_shot
from promptprism.errors import PromptPrismError
from promptprism.inference.predictor import Predictor
from promptprism.methods import METHODS, build_method, make_settings
from promptprism.provenance import Meter
from promptprism.training import loop
from promptprism.training.checkpoint import Run, save_checkpoint
from promptprism.training.loop import learn
from promptprism.training.schedule import learning_rate

DATA = colours()
SHORT = {"epochs": 3, "batch_size": 4}


def of(name="maple", **settings):
    return make_settings(name, **quick(name, **SHORT | settings))


def train(backbone, settings, records=DATA.train, space=DATA.label_space, **options):
    return learn(settings, backbone, space, records, **options)


def learned(method):
    return {name: value.detach().clone() for name, value in method.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coop", "cocoop", "maple", "cdc"])
def test_every_method_lowers_its_loss(tiny, name):
    settings = of(name, epochs=6, lr=0.002)
    before = learned(build_method(settings, tiny))
    trained = train(tiny, settings)
    after, result = learned(trained.method), trained.training
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert result.history[-1].loss < result.history[0].loss
    assert (result.collapsed is None) == (result.accuracy > 0.25)
    assert result.trainable == sum(value.numel() for value in after.values())
    assert (result.steps, result.images, len(result.history)) == (24, 16, 6)
    assert result.cost.peak_memory_mb > 10 and result.seconds_per_step > 0


def test_zero_shot_trains_in_no_epochs(tiny):
    result = train(tiny, of("zero-shot"), ()).training
    assert (result.steps, result.trainable, result.history) == (0, 0, ())
    assert result.accuracy is None and result.collapsed is None and result.seconds_per_step is None


@pytest.mark.slow
def test_rates_follow_the_schedule_and_the_logit_scale(tiny):
    result = train(tiny, of("coop", epochs=5, lr=0.0035)).training
    factor = (100 / tiny.logit_scale) ** 2
    expected = [factor * learning_rate(epoch, 5, 0.0035, 1e-5) for epoch in range(5)]
    assert [epoch.rate for epoch in result.history] == pytest.approx(expected)


@pytest.mark.slow
def test_same_seed_same_numbers_whatever_the_global_generators(tiny):
    results = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        results.append(learned(train(tiny, of("cdc", templates=2), seed=0).method))
    for name in results[0]:
        assert torch.equal(results[0][name], results[1][name])
    other = learned(train(tiny, of("cdc", templates=2), seed=1).method)
    assert any(not torch.equal(results[0][name], value) for name, value in other.items())


class Stop:
    """Raises once, at a step of an epoch, in the middle of training."""

    def __init__(self, monkeypatch, epoch, error):
        self.calls, real = 0, METHODS["cdc"].forward

        def loss(method, views, labels, texts, now):
            self.calls += now == epoch
            if self.calls == 2:
                raise error
            return real(method, views, labels, texts, now)

        monkeypatch.setattr(METHODS["cdc"], "forward", loss)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tiny, tmp_path, monkeypatch):
    settings = of("cdc", templates=2)
    whole = train(tiny, settings, seed=3)
    file = tmp_path / "run" / "checkpoint.safetensors"
    Stop(monkeypatch, epoch=2, error=KeyboardInterrupt)
    with pytest.raises(
        KeyboardInterrupt, match=r"epoch 3 of 3.*first 2 are kept in .*checkpoint\.safetensors"
    ):
        train(tiny, settings, seed=3, checkpoint=file)
    resumed = train(tiny, settings, seed=3, checkpoint=file)
    for name, value in learned(whole.method).items():
        assert torch.equal(value, learned(resumed.method)[name])
    result, expected = resumed.training, whole.training
    assert [epoch.loss for epoch in result.history] == [epoch.loss for epoch in expected.history]
    assert result.steps == expected.steps and result.accuracy == expected.accuracy
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # no temporary file stays
    # Once more: all is done already.
    again = train(tiny, settings, seed=3, checkpoint=file)
    assert again.training.history == result.history
    found = learned(again.method)
    assert all(torch.equal(value, found[name]) for name, value in learned(whole.method).items())


def test_ctrl_c_before_the_first_epoch_ends_says_that_nothing_is_kept(tiny, tmp_path, monkeypatch):
    Stop(monkeypatch, epoch=0, error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt, match=r"epoch 1 of 3\. Nothing was kept yet"):
        train(tiny, of("cdc"), checkpoint=tmp_path / "checkpoint.safetensors")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_between_a_checkpoint_and_the_next_epoch_says_that_it_is_kept(tiny, tmp_path, monkeypatch):
    def save(*of_a_run):
        save_checkpoint(*of_a_run)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", save)
    with pytest.raises(KeyboardInterrupt, match=r"epoch 2 of 3\. The first 1 are kept in '.*kept'"):
        train(tiny, of("cdc"), checkpoint=tmp_path / "kept")


def test_drawn_images_and_files_of_the_same_name_are_told_apart(tiny, tmp_path):
    method, space = build_method(of("coop"), tiny), DATA.label_space
    food, other = (few_shot(load_data(f"mini/food{rho}").train, 4, 1) for rho in ("", "@0.9"))
    assert Run.of(method, space, food, 1) == Run.of(method, space, food, 1) != Run.of(method, space, other, 1)
    for place, content in (("data/cat", "cat"), ("data/dog", "dog"), ("elsewhere/x", "dog")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "1.jpg").write_text(content)
    one, two, same = (
        Run.of(method, space, [Record(tmp_path / place / "1.jpg", 0)], 1)
        for place in ("data/cat", "data/dog", "elsewhere/x")
    )
    assert one != two == same  # what they are, wherever they lie


def test_a_peak_is_seen_by_all_who_measure(monkeypatch):
    mark = [0]
    monkeypatch.setattr(provenance, "_peak_bytes", lambda: mark[0] * 2**20)
    monkeypatch.setattr(provenance, "_reset_peak", lambda: mark.__setitem__(0, 10))
    outer = Meter(torch.device("cpu"))
    mark[0] = 300
    inner = Meter(torch.device("cpu"))
    assert (outer.peak_memory_mb, inner.peak_memory_mb) == (300, 10)
    mark[0] = 400
    assert outer.peak_memory_mb == inner.peak_memory_mb == 400


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused(tiny, tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    inverted = tuple(replace(record, source=255 - record.source) for record in DATA.train)
    train(tiny, of("coop"), checkpoint=file)
    for settings, seed, records, word in (
        (of("coop"), 2, DATA.train, "seed is 1, not 2"),
        (of("maple"), 1, DATA.train, "method is 'coop', not 'maple'"),
        (of("coop", epochs=4), 1, DATA.train, r"settings is {'epochs': 3}, not {'epochs': 4}"),
        (of("coop"), 1, DATA.train[1:], "images is 16, not 15"),
        (of("coop"), 1, inverted, "images_digest is"),
    ):
        with pytest.raises(PromptPrismError, match=word):
            train(tiny, settings, records, seed=seed, checkpoint=file)
    for space, word in (
        (LabelSpace(DATA.class_names[::-1]), "class_names is"),
        (LabelSpace(DATA.class_names, "art of a {}."), "phrase is 'a photo of a {}.'"),
    ):
        with pytest.raises(PromptPrismError, match=word):
            train(tiny, of("coop"), space=space, checkpoint=file)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "foreign", "empty"])
def test_a_damaged_checkpoint_is_named(tiny, tmp_path, damage):
    file = tmp_path / "checkpoint.safetensors"
    train(tiny, of("coop"), checkpoint=file)
    content = file.read_bytes()
    foreign = json.dumps({}).encode()
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(
        damage, len(foreign).to_bytes(8, "little") + foreign
    ))  # fmt: skip
    with pytest.raises(PromptPrismError, match=r"checkpoint\.safetensors"):
        train(tiny, of("coop"), checkpoint=file)


@pytest.mark.parametrize(
    ("loss", "shown"),
    [
        (torch.ones(3, requires_grad=True), r"a tensor \[3\]"),
        (torch.ones(()), r"a tensor \[\]"),
        (0.5, "float"),
    ],
)
def test_a_loss_that_is_no_scalar_with_a_gradient_is_refused(tiny, monkeypatch, loss, shown):
    monkeypatch.setattr(METHODS["coop"], "forward", lambda *_: loss)
    with pytest.raises(PromptPrismError, match=f"method 'coop': forward must give a scalar .*, not {shown}$"):
        train(tiny, of("coop"))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(tiny, tmp_path, monkeypatch):
    real = METHODS["coop"].forward

    def loss(method, views, labels, texts, epoch):
        return real(method, views, labels, texts, epoch) * (math.nan if epoch == 1 else 1)

    monkeypatch.setattr(METHODS["coop"], "forward", loss)
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(
        PromptPrismError, match=r"coop diverged: the loss is nan in epoch 2.*smaller lr.*remove"
    ):
        train(tiny, of("coop"), checkpoint=file)
    monkeypatch.undo()
    result = train(tiny, of("coop"), checkpoint=file).training
    assert len(result.history) == 3 and all(math.isfinite(epoch.loss) for epoch in result.history)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (lambda labels: torch.zeros_like(labels), "taken for 'red'"),
        (lambda labels: (labels + 1) % 4, "not above chance"),
    ],
)
def test_a_collapsed_run_is_said(tiny, monkeypatch, wrong, word):
    labels = torch.tensor([record.label for record in DATA.train])
    logits = torch.nn.functional.one_hot(wrong(labels), 4).float()[None]
    monkeypatch.setattr(loop.Predictor, "logits", lambda *_: iter([logits]))
    assert word in train(tiny, of("coop")).training.collapsed


def test_of_few_images_no_collapse_is_told(tiny, monkeypatch):
    logits = torch.eye(4)[[0] * 15][None]
    monkeypatch.setattr(loop.Predictor, "logits", lambda *_: iter([logits]))
    result = train(tiny, of("coop"), DATA.train[1:]).training
    assert result.accuracy == 3 / 15 and result.collapsed is None


def test_zero_shot_takes_one_class(tiny):
    trained = train(tiny, of("zero-shot"), (), LabelSpace(("red",)))
    assert trained.training.steps == 0 and trained.classifier().space.names == ("red",)


def test_bad_records_are_refused_before_any_work(tiny):
    with pytest.raises(PromptPrismError, match="no image to train on: 'yellow'"):
        train(tiny, of(), DATA.train[:12])
    with pytest.raises(PromptPrismError, match="one class only, 'red'"):
        train(tiny, of("coop"), DATA.train[:4], LabelSpace(("red",)))
    with pytest.raises(PromptPrismError, match=r"label 4 of image 16 .*4 classes"):
        train(tiny, of(), colours(5).train)
    with pytest.raises(PromptPrismError, match="seed is -1"):
        train(tiny, of(), seed=-1)


@pytest.mark.slow
def test_progress_shows_loss_rate_and_memory(tiny, capsys):
    train(tiny, of("coop"), progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    for word in ("coop epoch 3/3", "loss", "images/s", "MiB"):
        assert word in shown.err


def test_text_features_are_made_once_for_each_classifier(tiny, monkeypatch):
    trained = train(tiny, of("coop", epochs=1))
    calls, real = [], type(trained.method).text_features
    monkeypatch.setattr(type(trained.method), "text_features", lambda *args: calls.append(1) or real(*args))
    sources = [record.source for record in DATA.test]

    def logits(predictor):
        return torch.cat(list(predictor.logits(sources, 5)), 1)

    one, two = (Predictor(trained.classifier(space)) for space in (None, LabelSpace(("cat", "dog"))))
    first = logits(one)
    assert torch.equal(logits(one), first) and first.shape == (1, 12, 4)
    assert logits(two).shape == (1, 12, 2) and torch.equal(logits(one), first)
    assert len(calls) == 2


@pytest.mark.parametrize("name", list(METHODS))
def test_predicted_logits_do_not_depend_on_the_batch_size(tiny, name):
    predictor = Predictor(build_method(of(name), tiny).classifier(DATA.label_space))
    sources = [record.source for record in DATA.test]
    one, all_at_once = (torch.cat(list(predictor.logits(sources, size)), 1) for size in (1, 12))
    torch.testing.assert_close(one, all_at_once, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_bfloat16_products_leave_what_is_learned_in_float32(tiny_factory):
    trained = train(tiny_factory("bfloat16"), of("cdc", templates=2))
    assert all(math.isfinite(epoch.loss) for epoch in trained.training.history)
    assert {value.dtype for value in trained.method.parameters()} == {torch.float32}


def test_a_revision_is_never_somebody_elses(tmp_path, monkeypatch):
    assert (
        provenance.revision.__wrapped__() is None or len(provenance.revision.__wrapped__().rstrip("+")) >= 12
    )
    for arguments in (
        ["init"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "-m", "a"],
    ):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "provenance.py").write_text("")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert provenance.revision.__wrapped__() is None
