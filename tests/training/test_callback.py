"""What is told of every epoch: to a callback, to TensorBoard, and what their failures leave."""

import builtins

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import colours, put
from typer.testing import CliRunner

from promptprism import PromptPrism
from promptprism.adapter import read_card
from promptprism.cli import app
from promptprism.errors import PromptPrismError
from promptprism.methods import make_settings
from promptprism.training.loop import learn
from promptprism.training.progress import tensorboard

DATA = colours()
SETTINGS = make_settings("coop", epochs=4, batch_size=4)


def train(backbone, **options):
    return learn(SETTINGS, backbone, DATA.label_space, DATA.train, **options)


def written(folder):
    """Values by name and epoch, read back from the event files."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


def same(one, other):
    return all(
        torch.equal(value, other.method.state_dict()[name]) for name, value in one.method.state_dict().items()
    )


@pytest.mark.slow
def test_callback_is_told_of_every_epoch_as_the_history_has_it(tiny):
    told = []
    model = PromptPrism("coop", tiny, epochs=4, batch_size=4).fit(DATA, callback=told.append)
    assert tuple(told) == model.training_.history
    assert [event.epoch for event in told] == [0, 1, 2, 3]
    assert all(event.loss > 0 and event.rate > 0 and event.seconds > 0 for event in told)


@pytest.mark.slow
@pytest.mark.parametrize("error", [ValueError("no room"), KeyboardInterrupt()])
def test_callback_that_raises_leaves_a_checkpoint_to_go_on_from(tiny, tmp_path, error):
    place, told = tmp_path / "checkpoint", []

    def fail(event):
        told.append(event.epoch)
        if event.epoch == 1:
            raise error

    with pytest.raises(type(error), match=r"no room|The first 2 are kept"):
        train(tiny, checkpoint=place, callback=fail)
    resumed = train(tiny, checkpoint=place, callback=lambda event: told.append(event.epoch))
    assert told == [0, 1, 2, 3]
    assert same(resumed, train(tiny))


@pytest.mark.slow
def test_callback_with_devices_is_called_here(tiny):
    told = []
    history = train(tiny, devices=2, callback=told.append).training.history
    assert tuple(told) == history and len(told) == 4

    def fail(event):
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        train(tiny, devices=2, callback=fail)


@pytest.mark.slow
def test_tensorboard_has_the_values_of_every_epoch(tiny, tmp_path):
    with tensorboard(tmp_path / "runs") as write:
        history = train(tiny, callback=write).training.history
        # Whoever looks while it runs sees them too.
        assert sorted(written(tmp_path / "runs")["loss"]) == [0, 1, 2, 3]
    found = written(tmp_path / "runs")
    assert sorted(found) == ["loss", "rate", "seconds"]
    for name, values in found.items():
        assert values == pytest.approx({event.epoch: getattr(event, name) for event in history})


def test_tensorboard_that_is_missing_or_cannot_write_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(PromptPrismError, match=r"cannot write '.*file"), tensorboard(tmp_path / "file"):
        pass
    plain = builtins.__import__

    def missing(name, *arguments):
        if name == "torch.utils.tensorboard":
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return plain(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)
    with (
        pytest.raises(PromptPrismError, match=r"pip install 'promptprism\[tensorboard\]'"),
        tensorboard(tmp_path / "runs"),
    ):
        pass
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_fit_writes_for_tensorboard(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, *(f"train/{name}/{number}.png" for name in ("owl", "fox") for number in range(3)))
    fit = ["fit", "train", "--method", "coop", "--set", "epochs=2", "--shots", "all", "--backbone", "mini"]
    done = CliRunner().invoke(app, [*fit, "--tensorboard", "runs", "--out", "A"])
    history = {event.epoch: event.loss for event in read_card(tmp_path / "A").training.history}
    assert done.exit_code == 0 and written(tmp_path / "runs")["loss"] == pytest.approx(history)
