"""Suites on a Ray cluster of real processes: one node of two cores."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from shard_world import needs_cluster
from toys import colour_folder

from promptprism.distributed import cluster, ray_suite
from promptprism.distributed.cluster import Node, check_nodes, connected, death, looker
from promptprism.distributed.ray_suite import RayEngine
from promptprism.errors import PromptPrismError, PromptPrismWarning
from promptprism.evaluation.run_suite import run_suite
from promptprism.evaluation.store import read_failures
from promptprism.evaluation.suites import Suite

pytestmark = pytest.mark.slow
LONG = {"cdc": {"epochs": 40, "batch_size": 4, "lr": 0.01, "templates": 2}, "zero-shot": {}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colour_folder(tmp_path_factory.mktemp("suite") / "colours")


@pytest.fixture(scope="module")
def ray():
    needs_cluster()
    small = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 100 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected("local", **small) as found:
            yield found


@pytest.fixture
def one_thread():
    """Workers have a core each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(data, methods, **changes):
    fields = {"name": "s", "protocol": "base-to-new", "methods": methods, "datasets": (data,), "shots": (2,)}
    return Suite.model_validate(fields | {"seeds": (1, 2)} | changes)


def figures(outcome):
    return {r.key: {part: one.metrics for part, one in r.scores.items()} for r in outcome.results}


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("results/*.json")}


def test_ray_runs_the_cells_that_run_here(ray, tiny, data, tmp_path, one_thread):
    quick = {"epochs": 2, "batch_size": 4, "lr": 0.02}
    suite = make(data, {"zero-shot": {}, "cdc": {**quick, "templates": 2}, "maple": {**quick, "lr": 1e30}})
    here, shown = run_suite(suite, tmp_path / "here", tiny), []
    there = run_suite(
        suite,
        tmp_path / "there",
        tiny,
        engine=RayEngine(),
        show=lambda state: shown.append((state.done + state.failed, state.running)),
    )
    assert figures(there) == figures(here) and len(figures(here)) == 3
    assert there.ran == here.ran == 3 and shown[-1] == (5, "") and (0, "5 cells") in shown
    name = os.uname().nodename
    assert [(cell, f"{error} (on node '{name}')") for cell, error in here.failures] == sorted(
        there.failures, key=lambda one: one[0].seed
    )
    assert len(read_failures(tmp_path / "there")) == 2
    files = [
        sorted(path.name for path in (tmp_path / way / "results").iterdir()) for way in ("here", "there")
    ]
    assert files[0] == files[1]
    assert not [path for path in (tmp_path / "there" / "locks").iterdir() if path.suffix != ".lock"]


def test_a_finished_suite_and_missing_data_need_no_ray(tiny, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    suite = make(data, {"zero-shot": {}})
    with pytest.raises(PromptPrismError, match=r"needs the package ray: pip install 'promptprism\[ray\]'"):
        run_suite(suite, tmp_path, tiny, engine=RayEngine())
    done = run_suite(suite, tmp_path, tiny)
    again = run_suite(suite, tmp_path, tiny, engine=RayEngine())
    assert again.ran == 0 and again.results == done.results
    gone = run_suite(make("mini/nothing", {"zero-shot": {}}), tmp_path, tiny, engine=RayEngine())
    assert "no data 'mini/nothing'" in gone.failures[0][1]


def worker(name):
    """The process of a task of that name, if there is one."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if place.read_bytes().startswith(f"ray::{name}".encode()):
                return int(place.parent.name)
        except OSError:
            continue
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_ray_worker_costs_no_finished_cell(ray, tiny, data, tmp_path, one_thread):
    suite, killed, before = make(data, LONG), [], {}

    def kill():
        while not killed:
            for path in (tmp_path / "out" / "adapters").glob("*.checkpoint"):
                if pid := worker(f"cdc on {data}, 2 shots, seed {path.name.partition('seed-')[2][0]}"):
                    before.update(contents(tmp_path / "out"))
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    outcome = run_suite(suite, tmp_path / "out", tiny, engine=RayEngine())
    thread.join(5)
    assert killed and not outcome.failures and outcome.ran == 3
    assert figures(outcome) == figures(run_suite(suite, tmp_path / "here", tiny))
    after = contents(tmp_path / "out")
    assert all(after[path] == content for path, content in before.items())
    assert not list((tmp_path / "out" / "adapters").glob("*.checkpoint"))


DRIVER = """
import sys
sys.path[:0] = [{tests!r}]
from conftest import make_tiny
from pathlib import Path
from promptprism.distributed.ray_suite import RayEngine
from promptprism.evaluation.run_suite import run_suite
from promptprism.evaluation.suites import load_suite
if __name__ == "__main__":
    show = lambda state: print(state.done, flush=True)
    run_suite(load_suite({suite!r}), Path({out!r}), make_tiny(), show=show, engine=RayEngine())
"""


def test_a_killed_ray_driver_is_started_again_where_it_was(ray, tiny, data, tmp_path, one_thread):
    suite, out = make(data, LONG, seeds=(1, 2, 3)), tmp_path / "out"
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite.model_dump(mode="json")))
    script = tmp_path / "driver.py"
    tests = str(Path(__file__).parents[1])
    script.write_text(DRIVER.format(tests=tests, suite=str(tmp_path / "suite.yaml"), out=str(out)))
    env = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=env)
    for line in driver.stdout:
        if line.startswith("1"):
            break
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    finished = contents(out)
    assert 1 <= len(finished) < 4
    outcome = run_suite(suite, out, tiny, engine=RayEngine())
    after = contents(out)
    assert not outcome.failures and len(outcome.results) == 4 == len(after)
    assert all(after[path] == content for path, content in finished.items())
    assert figures(outcome) == figures(run_suite(suite, tmp_path / "here", tiny))


def test_ray_nodes_that_cannot_do_their_share_are_named(ray, tiny, data, tmp_path, monkeypatch):
    suite, name = make(data, {"zero-shot": {}}), os.uname().nodename

    def refused(words):
        with pytest.raises(PromptPrismError) as error:
            run_suite(suite, tmp_path, tiny, engine=RayEngine())
        assert words in str(error.value) and f"node '{name}'" in str(error.value)
        assert not contents(tmp_path) and not read_failures(tmp_path)

    with monkeypatch.context() as patch:
        patch.setattr(cluster.promptprism, "__version__", "9.9")
        refused(" this is 9.9: pip install 'promptprism[parquet,ray]==")
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "write_bytes", lambda *_: None)
        refused(f"does not see the folder '{tmp_path}': name one that all nodes share")
    with monkeypatch.context() as patch:
        late = SimpleNamespace(time=lambda: time.time() - 3600)
        patch.setattr(cluster, "time", late)
        refused("is 3,600 s away from this one, and results hold times: set it")
    (tmp_path / "promptprism.py").write_text("raise ModuleNotFoundError('it is not here')")
    bare = {"env_vars": {"PYTHONPATH": str(tmp_path)}}
    node = Node(*ray.get(ray.remote(looker()).options(runtime_env=bare, num_cpus=0).remote(None)))
    assert node.wrong("out").startswith(
        f"node '{name}' cannot import promptprism (ModuleNotFoundError: it is not here): pip install"
    )
    assert check_nodes(ray, None, "out", {"CPU": 2}) and not check_nodes(ray, None, "out", {"CPU": 64})


def test_cells_go_round_a_ray_node_that_came_later_and_is_not_fit(ray, tiny, data, tmp_path, monkeypatch):
    first = []

    def passed(*_):
        first.append(True)
        return True

    monkeypatch.setattr(ray_suite, "check_nodes", passed)  # when it was asked this node was not there yet
    monkeypatch.setattr(ray_suite.promptprism, "__version__", "9.9")
    stop = RuntimeError("waits for another node")

    def wait(running):
        if warned:
            raise stop
        return real(running)

    real, warned = ray.wait, []
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(warnings, "warn", lambda text, *_, **__: warned.append(text))
    with pytest.raises(RuntimeError, match="waits for another node"):
        run_suite(make(data, {"zero-shot": {}}), tmp_path, tiny, engine=RayEngine())
    assert first and len(warned) == 1
    assert "this is 9.9" in warned[0] and warned[0].endswith(". Cells go to other nodes")


def test_ray_cells_share_a_gpu_and_wait_for_what_is_not_there(ray, tiny, data, tmp_path, monkeypatch):
    done = run_suite(
        make(data, {"zero-shot": {}}), tmp_path, tiny, engine=RayEngine(cpus=0.5, gpus=0.25, device="cpu")
    )
    assert done.ran == 1 and done.results[0].training.cost.threads == 1

    class Stop(Exception):
        pass

    def stop(*_, **__):
        raise Stop

    monkeypatch.setattr(ray, "wait", stop)
    engine = RayEngine(gpus=4)
    with (
        pytest.warns(PromptPrismWarning, match="no node has 1 CPU and 4 GPU for a cell by now"),
        pytest.raises(Stop),
    ):
        run_suite(make(data, {"zero-shot": {}}, seeds=(3,)), tmp_path / "other", tiny, engine=engine)


def test_ray_that_does_not_answer_is_named(monkeypatch):
    ray = pytest.importorskip("ray")

    def init(address, **_):
        raise ConnectionError(f"nobody at {address}")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    message = "no Ray cluster answers at 'ray://there:10001' (nobody at ray://there:10001): start one"
    with pytest.raises(PromptPrismError) as error, connected("ray://there:10001"):
        pass
    assert str(error.value).startswith(message)


def test_ray_leaves_the_end_by_sigterm_as_it_was(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: signal.signal(signal.SIGTERM, lambda *_: None))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    with connected():
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (
            "OutOfMemoryError",
            "node (IP: 10.0.0.7)",
            "its worker ran out of memory 4 times (node (IP: 10.0.0.7)): ",
        ),
        ("WorkerCrashedError", "The worker died", "its worker died 4 times (The worker died): if nobody "),
        ("KeyError", "1", "KeyError: 1"),
    ],
)
def test_what_ray_workers_die_of_is_said(kind, text, said):
    told = death(type(kind, (Exception,), {})(text), 4, "take less")
    assert told.startswith(said) and told.endswith("take less" if kind != "KeyError" else "1")
