"""Training over several devices, which on a CPU are real processes that sum by gloo."""

import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed
from toys import colour_folder, colours
from typer.testing import CliRunner

from promptprism.backbones.ranks import Ranks
from promptprism.cli import app
from promptprism.errors import PromptPrismError
from promptprism.evaluation.run_suite import run_suite
from promptprism.evaluation.suites import Suite
from promptprism.methods import build_method, make_settings
from promptprism.training import devices as devices_module
from promptprism.training.loop import learn

DATA = colours(5)  # 2 and 3 processes divide neither the classes nor, 3, the batch and the templates
SHORT = {"epochs": 2, "batch_size": 4}


def train(backbone, method, devices, **options):
    settings = make_settings(method, **SHORT | options.pop("settings", {}))
    return learn(settings, backbone, DATA.label_space, DATA.train, seed=3, devices=devices, **options)


def tensors(trained):
    return trained.method.state_dict()


def farthest(one, other):
    assert one.keys() == other.keys()
    return max((value - other[name]).abs().max().item() for name, value in one.items())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cdc", "maple", "coop", "cocoop", "prograd", "mmrl", "tip-adapter-f"])
def test_any_number_of_devices_learns_the_same_numbers(tiny, method):
    plain, one = train(tiny, method, None), train(tiny, method, 1)
    for count in (2, 3) if method == "cdc" else (3,):
        several = train(tiny, method, count)
        assert farthest(tensors(one), tensors(several)) == 0
        assert [epoch.loss for epoch in several.training.history] == [e.loss for e in one.training.history]
        assert several.training.accuracy == one.training.accuracy
    assert 0 < farthest(tensors(plain), tensors(one)) < 1e-5
    assert one.training.cost.peak_memory_mb > 10 and tiny.ranks is None


def step(rank, size, content, name, place, threads):
    """The gradients of one step in one of so many processes, kept by the last."""
    torch.set_num_threads(threads)  # sums of as many parts as where they are compared
    backbone = pickle.loads(content)
    distributed.init_process_group("gloo", f"file://{place}/meet", rank=rank, world_size=size)
    found = gradients(backbone, name, Ranks(rank, size).of([0, 6, 11, 17]))
    if rank == size - 1:
        torch.save(found, f"{place}/found")


def gradients(backbone, name, ranks):
    method = build_method(make_settings(name), backbone)
    texts, labels = method.texts(DATA.label_space), torch.tensor([0, 1, 2, 4])
    views = torch.randn(len(method.views), 4, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    backbone.ranks = ranks
    own = [[0, 6, 11, 17].index(i) for i in ranks.own([0, 6, 11, 17])] if ranks else range(4)
    try:
        method(views[:, list(own)], labels, texts, 1).backward()
    finally:
        backbone.ranks = None
    return {key: value.grad for key, value in method.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 7])
def test_distributed_gradients_are_those_of_the_whole_step(tiny, tmp_path, size):
    expected = gradients(tiny, "cdc", None)
    torch.multiprocessing.set_forkserver_preload([devices_module.__name__])
    content = pickle.dumps(tiny)  # by value: a process that has learned may not fork
    torch.multiprocessing.start_processes(
        step,
        (size, content, "cdc", tmp_path, torch.get_num_threads()),
        nprocs=size,
        start_method=devices_module.START,
    )
    found = torch.load(tmp_path / "found", weights_only=True)
    scale = max(value.abs().max().item() for value in expected.values())
    assert farthest(expected, found) < 1e-5 * scale
    once = gradients(tiny, "cdc", Ranks(0, 1).of([0, 6, 11, 17]))
    assert farthest(once, found) == 0


def end(number, when):
    """Kill a process that trains as soon as a file is there."""

    def wait():
        while not when.exists():
            time.sleep(0.02)
        children = sorted(multiprocessing.active_children(), key=lambda child: child.pid)
        os.kill(children[number].pid, signal.SIGKILL)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_killed_distributed_process_is_named_and_another_number_goes_on(tiny, tmp_path):
    settings, file = {"epochs": 6, "batch_size": 2}, tmp_path / "checkpoint"
    thread = end(1, file)
    with pytest.raises(PromptPrismError, match=r"device 1 of 2 was ended by SIGKILL: .*resuming, goes on"):
        train(tiny, "cdc", 2, settings=settings, checkpoint=file)
    thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert not multiprocessing.active_children()
    resumed = train(tiny, "cdc", 3, settings=settings, checkpoint=file)
    assert len(resumed.training.history) == 6
    assert farthest(tensors(train(tiny, "cdc", 1, settings=settings)), tensors(resumed)) == 0


@pytest.mark.slow
def test_representation_tokens_of_cdc_on_patches_apart_are_split_too(tiny):
    settings = {"learner": "mmrl", "templates": 2, "width": 8, "decoupling": "patches"}
    one, two = (tensors(train(tiny, "cdc", count, settings=settings)) for count in (1, 2))
    assert one["learner.tokens"].shape == (2, 5, 8) and farthest(one, two) == 0


@pytest.mark.slow
def test_distributed_training_says_why_it_fails(tiny):
    with pytest.raises(PromptPrismError, match=r"^device \d of 2 failed: maple diverged: .*try a smaller lr"):
        train(tiny, "maple", 2, settings={"lr": 1e30})
    assert not multiprocessing.active_children()


def test_distributed_training_is_refused_before_it_starts(tiny, monkeypatch):
    def refused(message, method="coop", devices=2, **settings):
        with pytest.raises(PromptPrismError, match=message):
            train(tiny, method, devices, settings=settings)

    refused("devices is 0: give 1 or more", devices=0)
    refused(r"devices=9999, and this machine has \d+ cores; .*: give \d+ or less", devices=9999)
    refused("steps of method 'clip-lora' cannot be shared", "clip-lora")
    refused("steps of learner 'lora' of method 'cdc' cannot be shared", "cdc", learner="lora")
    cuda = SimpleNamespace(device=torch.device("cuda"))
    method = SimpleNamespace(name="coop", splits=True, settings=make_settings("coop"), backbone=cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(PromptPrismError, match=r"devices=2, and there .* 1 .*'cuda'"):
        devices_module.check_devices(2, method)
    monkeypatch.setattr(devices_module, "find_spec", lambda name: None)
    refused(r"pip install 'promptprism\[distributed\]'")


def test_what_takes_no_steps_needs_no_distributed_processes(tiny):
    assert learn(make_settings("zero-shot"), tiny, DATA.label_space, (), devices=2).training.steps == 0
    probe = learn(make_settings("linear-probe", strength=1.0), tiny, DATA.label_space, DATA.train, devices=2)
    assert probe.training.accuracy is not None


@pytest.mark.slow
def test_distributed_cells_of_suites_are_the_same_cells(tiny, tmp_path):
    fields = {
        "name": "s",
        "protocol": "base-to-new",
        "methods": {"maple": SHORT},
        "shots": (2,),
        "seeds": (1,),
    }
    suite = Suite.model_validate(fields | {"datasets": (colour_folder(tmp_path / "colours"),)})
    one, two = (run_suite(suite, tmp_path / str(n), tiny, devices=n).results[0] for n in (1, 2))
    assert one.key == two.key and one.training.history[-1].loss == two.training.history[-1].loss
    assert all(one.scores[part].metrics == two.scores[part].metrics for part in ("base", "new"))


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_of_distributed_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from promptprism import PromptPrism\n"
        "PromptPrism('coop', 'mini', shots=1, devices=2, epochs=1).fit('mini/clothing')\n"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100)
    assert run.returncode and "if __name__ == '__main__':" in run.stderr.splitlines()[-1]


@pytest.mark.slow
def test_distributed_fit_on_the_command_line(tmp_path):
    for count in ("1", "2"):
        arguments = ["fit", "mini/clothing", "--shots", "1", "--method", "coop", "--set", "epochs=1"]
        done = CliRunner().invoke(app, [*arguments, "--devices", count, "--out", str(tmp_path / count)])
        assert done.exit_code == 0, done.output
        assert re.search(r"backbone +mini \w+ float32", done.output)
    one, two = (load_file(tmp_path / count / "adapter.safetensors") for count in ("1", "2"))
    assert farthest(one, two) == 0
