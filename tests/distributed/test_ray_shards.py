"""Shards named on a Ray cluster of real processes."""

import os
import signal
import sys

import pytest
import torch
from shard_world import classifier, cut, needs_cluster, rows, shards

import promptprism
from promptprism.distributed.cluster import Node
from promptprism.distributed.naming import Failed, Named, Naming, name_shard
from promptprism.distributed.ray_shards import name_by_ray
from promptprism.errors import PromptPrismError

pytest.importorskip("pyarrow")
RUN = "0123456789ab"


@pytest.fixture(autouse=True)
def one_thread():
    """As many as the workers have: sums in another order have other last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_ray_names_what_one_process_names_though_a_worker_is_killed(tiny, tmp_path, monkeypatch):
    needs_cluster()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    one = classifier(tiny)
    shards(tmp_path / "in", 12, 40)
    places = sorted((tmp_path / "in").iterdir())
    for place in places:
        name_shard(one, Naming(str(tmp_path / "alone"), RUN), str(place))
    cut(places[5])
    (tmp_path / "alone" / "answers" / f"{places[5].stem}.parquet").unlink()
    found, killed = [], None
    for result in name_by_ray(one, Naming(str(tmp_path / "out"), RUN), [*map(str, places)], 2, None):
        found.append(result)
        if killed is None and isinstance(result, Named):
            killed = result.process
            assert killed != os.getpid()
            os.kill(killed, signal.SIGKILL)
    (failed,) = [one for one in found if isinstance(one, Failed)]
    assert failed.shard == str(places[5]) and "whole tar file" in failed.reason
    assert len(found) == 12 and killed not in {one.process for one in found[4:] if isinstance(one, Named)}
    assert rows(tmp_path / "out") == rows(tmp_path / "alone")


def test_ray_nodes_say_what_is_wrong_with_them():
    here = promptprism.__version__
    assert Node("a", here, "", True, 0.0).wrong("out") is None
    for node, words in (
        (Node("b", None, "ModuleNotFoundError: No module named 'x'", True, 0.0), "cannot import promptprism"),
        (Node("b", "0.0.1", "", True, 0.0), f"has promptprism 0.0.1, this is {here}: pip install"),
        (Node("b", here, "", False, 0.0), "does not see the folder 'out': name one that all nodes share"),
    ):
        assert str(node.wrong("out")).startswith(f"node 'b' {words}")


def test_ray_that_is_missing_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PromptPrismError, match=r"needs the package ray: pip install 'promptprism\[ray\]'"):
        next(name_by_ray(classifier(tiny), Naming("out", RUN), ["a.tar"], 2, None))
