import math

import numpy as np
import pytest
import torch
from toys import colours

from benchmarks import contexts
from benchmarks.measure import read_rows
from promptprism import PromptPrism
from promptprism.data.miniworld import worlds

pytestmark = pytest.mark.filterwarnings("ignore:the run collapsed")  # random weights see little


def test_attention_is_that_of_the_blocks(tiny):
    vision, views = tiny.vision, torch.randn(3, 3, tiny.image_size, tiny.image_size)
    x, layers = vision.stem(views), []
    for block in vision.blocks:
        normed = block.ln_1(x)
        layers.append(block.attn(normed, normed, normed, need_weights=True)[1][:, 0, 1:])
        x = block(x)
    assert torch.allclose(contexts.attention(tiny, views), torch.stack(layers).mean(0), atol=1e-5)


def test_a_moved_photo_repeats_its_edge():
    views = torch.arange(24.0).expand(1, 3, 24, 24)
    right, left = (contexts.moved(views, x, 0)[0, 0, 0] for x in (2, -1))
    assert right.tolist() == [0, 0, *range(22)] and left.tolist() == [*range(1, 24), 23]
    down = contexts.moved(views.mT, 0, 1)[0, 0, :, 0]
    assert down.tolist() == [0, *range(23)]


def test_the_patches_least_attended_give_way_and_no_others():
    views, kept = torch.rand(2, 3, 12, 12), torch.full((5, 4, 3 * 4), 7.0)
    seen = torch.stack([torch.arange(36.0), torch.arange(36.0).flip(0)])
    mixed = contexts.cut(contexts.with_patches(views, seen, kept, (6, 6), seed=0), (6, 6))
    new = (mixed == 7).all(-1)
    assert new[0].nonzero().flatten().tolist() == list(range(10))  # 0.3 of 36
    assert new[1].nonzero().flatten().tolist() == list(range(26, 36))
    assert torch.equal(mixed[~new], contexts.cut(views, (6, 6))[~new])


def test_an_object_is_told_from_its_background_by_colour_and_attention():
    blue, red = torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0.9, 0.1, 0.1])
    photo = blue[:, None, None].expand(3, 48, 48).clone()
    photo[:, 12:30, 18:36] = red[:, None, None]
    seen = torch.full((6, 6), 0.01)
    seen[2:4, 2:4] = 0.1
    mask = contexts.opacity(photo[None], seen.flatten()[None], (6, 6))
    assert mask[0, 0, 14:28, 20:34].min() > 0.99 and mask[0, 0, :10].max() < 0.1
    assert mask[0, 0, :, 40:].max() < 0.1
    assert torch.allclose(contexts.background(photo[None], mask)[0], blue, atol=0.01)


def test_what_is_kept_takes_no_more_than_its_room(tiny, monkeypatch):
    sources = [record.source for record in colours().train]
    one = contexts.keep(tiny, sources[:1])
    size = one.patches.nbytes + one.colours.nbytes
    monkeypatch.setattr(contexts, "_ROOM", 5 * size)
    kept = contexts.keep(tiny, sources)
    assert len(kept.patches) == len(kept.colours) == 4  # every fourth of 16; every third were 6
    assert kept.patches.nbytes + kept.colours.nbytes == 4 * size


@pytest.mark.slow
def test_one_look_is_the_plain_prediction_and_each_way_averages_its_looks(tiny):
    data = colours()
    model = PromptPrism("cdc", tiny, templates=2, epochs=1, contexts=8).fit(data)
    plain = PromptPrism("cdc", tiny, templates=2, epochs=1).fit(data)
    sources = [record.source for record in data.test]
    kept = contexts.keep(tiny, [record.source for record in data.train])
    alone = contexts.answers(model.classifier_, sources, kept, 1)
    expected = torch.from_numpy(np.stack([one.predict_proba(sources) for one in (plain, model)])).double()
    assert all(torch.allclose(shares, expected, atol=1e-6) for shares in alone.values())
    three = contexts.answers(model.classifier_, sources, kept, 3)
    assert all(torch.allclose(shares.sum(-1), torch.ones(2, 12).double()) for shares in three.values())
    assert not torch.allclose(three["patches"], expected) and torch.equal(three["plain"], alone["plain"])


def test_accuracy_and_likelihood_by_hand():
    found = contexts.told(torch.tensor([[0.8, 0.2], [0.5, 0.5], [0.9, 0.1]]), torch.tensor([0, 0, 1]))
    assert found == {"accuracy": 0.6667, "nll": round(-math.log(0.8 * 0.5 * 0.1) / 3, 4)}


@pytest.mark.slow
def test_runs_are_measured_once_and_tabled(tiny, monkeypatch, tmp_path, capsys):
    concepts = worlds.classes("mini/clothing")[:3]
    monkeypatch.setattr(worlds, "classes", lambda name: concepts)
    monkeypatch.setattr(contexts, "classes", lambda name: concepts)
    monkeypatch.setattr(contexts, "as_backbone", lambda *_: tiny)
    worlds.load.cache_clear()
    load = contexts.load_data
    monkeypatch.setattr(
        contexts, "load_data", lambda name, root: load(name) if "/" in name else colours(4, 16)
    )
    file = tmp_path / "contexts.csv"
    given = {"rhos": [0.9], "seeds": 2, "passes": 2, "epochs": 1, "images": 8, "csv_file": file}
    for _ in range(2):
        contexts.main(["mini/clothing", "toy"], **given)
    worlds.load.cache_clear()
    rows = read_rows(file)
    assert [(row["data"], row["seed"], row["part"], row["way"], row["adjusted"]) for row in rows] == [
        (data, seed, part, way, adjusted)
        for seed in "12"
        for data, parts, ways in (
            ("mini/clothing", ["all"], contexts.WAYS),
            ("toy", ["base", "new"], contexts.WAYS[:-1]),
        )
        for part in parts
        for way in ways
        for adjusted in ("False", "True")
    ]
    assert all((row["flips"] == "") == (row["data"] == "toy") for row in rows)
    lines = contexts.table(rows).splitlines()
    assert len(lines) == 2 + 5 + 8 and lines[-1].endswith("| – | – | – | – |") and " ± " in lines[2]
    assert capsys.readouterr().out.count("| oracle |") == 2
