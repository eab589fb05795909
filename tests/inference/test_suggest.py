"""What to label next, and labels that look wrong, by probabilities whose answer is known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import COLOURS, picture

from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismError
from promptprism.inference import suggest
from promptprism.inference.suggest import label_issues, pool_of, worth_labelling
from promptprism.methods import build_method, make_settings


def test_doubtful_and_unlike_each_other():
    sure, torn = [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]
    probabilities = torch.tensor([sure, torn, torn, torn, sure])
    east, north = [1.0, 0.0], [0.0, 1.0]
    features = torch.tensor([east, east, east, north, north])
    # Of two that are the same point the other is not taken, nor what the classifier is sure of.
    assert {tuple(worth_labelling(probabilities, features, 2, seed)) for seed in range(20)} == {(1, 3)}
    everything = worth_labelling(probabilities, features, 9)
    assert sorted(everything) == [0, 1, 2, 3, 4]


@pytest.mark.slow
@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 5))
def test_each_is_chosen_once_and_the_draw_is_the_seeds(images, count, seed):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(images, 3, generator=generator).softmax(-1)
    features = torch.rand(images, 4, generator=generator)
    chosen = worth_labelling(probabilities, features, count, seed)
    assert len(chosen) == len(set(chosen)) == min(count, images)
    assert chosen == worth_labelling(probabilities, features, count, seed)
    points = (probabilities - torch.eye(3)[probabilities.argmax(-1)])[:, :, None] * features[:, None]
    assert chosen[0] == points.flatten(1).norm(dim=-1).argmax()


def test_confident_learning_by_hand():
    probabilities = torch.tensor(
        [[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7], [0.95, 0.05]]
    )
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    # Usual: (0.9 + 0.8 + 0.1 + 0.4) / 4 = 0.55 of the first, (0.8 + 0.7 + 0.05) / 3 = 0.517 of the second.
    assert label_issues(probabilities, labels) == [6, 2, 3]
    assert label_issues(probabilities[:2], labels[:2]) == []


def test_a_pool_holds_the_most_doubtful_of_all_that_were_looked_at(tiny, monkeypatch):
    method = build_method(make_settings("coop"), tiny)
    classifier = method.classifier(LabelSpace(tuple(COLOURS)[:3]))
    sources = [picture(tuple(COLOURS)[number % 3], number) for number in range(9)]
    whole = pool_of(classifier, [*sources[:4], "missing.jpg", *sources[4:]])
    assert whole.images == 10 and len(whole.sources) == 9 and "missing.jpg" in whole.unread[0]
    pull = whole.probabilities - torch.eye(3)[whole.probabilities.argmax(-1)]
    lengths = pull.norm(dim=-1) * whole.features.norm(dim=-1)
    assert torch.allclose(whole.features.norm(dim=-1), torch.ones(9))
    monkeypatch.setattr(suggest, "_CHUNK", 2)
    pool = pool_of(classifier, iter(sources), most=4)
    best = lengths.topk(4).indices.sort().values
    assert [id(one) for one in pool.sources] == [id(sources[place]) for place in best.tolist()]
    assert torch.allclose(pool.probabilities, whole.probabilities[best], atol=1e-5)
    assert torch.allclose(pool.features, whole.features[best], atol=1e-5)
    with pytest.raises(PromptPrismError, match="none of 2 images can be read"):
        pool_of(classifier, ["missing.jpg", "none.jpg"])
