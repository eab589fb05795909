import pytest
import torch
from torch.nn import functional as F
from toys import colours

from promptprism import PromptPrism, load_model
from promptprism.errors import PromptPrismError
from promptprism.methods import contexts
from promptprism.methods.contexts import Contexts


def test_contexts_are_how_far_photos_are_from_their_class(monkeypatch):
    features = torch.tensor([[[1.0, 0], [3, 2], [7, 7], [9, 5]], [[0, 1], [0, 3], [2, 2], [2, 2]]])
    kept = Contexts.of(features, torch.tensor([0, 0, 2, 2]), 9)
    assert kept.residuals[0].tolist() == [[-1, -1], [1, 1], [-1, 1], [1, -1]]
    assert kept.residuals[1].tolist() == [[0, -1], [0, 1], [0, 0], [0, 0]]
    assert kept.mean.tolist() == [[5, 3.5], [1, 2]] and kept.residuals.dtype == torch.float16
    two = Contexts.of(features, torch.tensor([0, 0, 2, 2]), 2)
    assert torch.equal(two.residuals, kept.residuals[:, [0, 3]])
    monkeypatch.setattr(contexts, "ROOM", 3 * 2 * 2 * 2)
    three = Contexts.of(features, torch.tensor([0, 0, 2, 2]), 9)
    assert three.residuals.nbytes == contexts.ROOM == Contexts.empty(2, 9, 2).residuals.nbytes


def test_the_filter_in_closed_form():
    # C = diag(a^2, 0) and t = a^2 / 2: the first axis is kept by 1/3, and all made 3 times as long, by half.
    kept = Contexts(torch.tensor([[0.5, 0.0]]), torch.tensor([[[0.25, 0], [-0.25, 0]]]).half())
    adjust = kept.filter()
    assert torch.allclose(adjust.kept, torch.tensor([[[0.5, 0], [0, 1.5]]]))
    seen = torch.tensor([[[1.0, 0], [0, 1], [0.6, 0.8]]])
    expected = F.normalize(torch.tensor([[1.25, 0], [-0.25, 2.5], [0.65, 2.0]]), dim=-1)
    assert torch.allclose(adjust(seen)[0], expected)
    # Room that was not used changes nothing.
    padded = Contexts(kept.mean, F.pad(kept.residuals, (0, 0, 0, 5)))
    assert torch.allclose(padded.filter().kept, adjust.kept)
    # Contexts that go every way as far take nothing from one of them more than from another.
    even = Contexts(torch.zeros(1, 2), torch.tensor([[[1.0, 0], [0, 1]]]).half()).filter()
    assert torch.allclose(even(seen), seen)


def test_each_template_is_adjusted_by_its_own():
    kept = Contexts(torch.randn(3, 4), torch.randn(3, 9, 4).half())
    seen = F.normalize(torch.randn(3, 5, 4), dim=-1)
    whole = kept.filter()(seen)
    for m in range(3):
        alone = Contexts(kept.mean[m : m + 1], kept.residuals[m : m + 1]).filter()
        assert torch.allclose(kept.filter()(seen[m : m + 1], slice(m, m + 1)), whole[m : m + 1], atol=1e-6)
        assert torch.allclose(alone(seen[m : m + 1]), whole[m : m + 1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the run collapsed")
@pytest.mark.parametrize("learner", ["maple", "coop"])
def test_an_adapter_keeps_its_contexts_and_learns_the_same(tiny, tmp_path, learner):
    data, how = colours(), {"templates": 2, "epochs": 1, "learner": learner}
    plain = PromptPrism("cdc", tiny, **how).fit(data)
    model = PromptPrism("cdc", tiny, contexts=8, **how).fit(data)
    learned, without = model.method_.state_dict(), plain.method_.state_dict()
    assert all(torch.equal(learned[name], value) for name, value in without.items())
    assert learned.keys() - without.keys() == {"context_mean", "context_residuals"}
    sources = [record.source for record in data.test]
    shares = model.predict_proba(sources)
    assert abs(shares - plain.predict_proba(sources)).max() > 1e-4
    again = load_model(model.save(tmp_path / "with"), backbone=tiny)
    assert (again.predict_proba(sources) == shares).all()
    early = again.early_opinions(sources, float("inf")).fused.probability
    assert torch.allclose(early, again.opinions(sources).fused.probability, atol=1e-6)
    plain.save(tmp_path / "without")
    with pytest.raises(PromptPrismError, match=r"'contexts' of adapter .* to 8, it keeps 0: fit anew"):
        load_model(tmp_path / "without", backbone=tiny, contexts=8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the run collapsed")
def test_fewer_contexts_are_used_where_they_are_loaded(tiny, tmp_path):
    data, how = colours(), {"templates": 2, "epochs": 1}
    model = PromptPrism("cdc", tiny, contexts=8, **how).fit(data)
    sources, place = [record.source for record in data.test], model.save(tmp_path / "with")
    plain = PromptPrism("cdc", tiny, **how).fit(data).predict_proba(sources)
    assert (load_model(place, backbone=tiny, contexts=0).predict_proba(sources) == plain).all()
    fewer = load_model(place, backbone=tiny, contexts=3)
    three = Contexts(model.method_.context_mean, model.method_.context_residuals[:, [0, 3, 7]])
    assert torch.equal(fewer.classifier_.adjust.kept, three.filter().kept)
    again = load_model(fewer.save(tmp_path / "fewer"), backbone=tiny)
    assert (again.predict_proba(sources) == fewer.predict_proba(sources)).all()
    none = load_model(load_model(place, backbone=tiny, contexts=0).save(tmp_path / "none"), backbone=tiny)
    assert "context_mean" not in none.method_.state_dict()
    with pytest.raises(PromptPrismError, match=r"'contexts' .* to 9, it keeps 8: .*lowered: contexts"):
        load_model(place, backbone=tiny, contexts=9)


def test_one_photo_of_each_class_has_no_context(tiny):
    with pytest.raises(PromptPrismError, match=r"contexts=8 .* two photos of a class"):
        PromptPrism("cdc", tiny, contexts=8).fit(colours(train=1))
    with pytest.raises(PromptPrismError, match=r"contexts=8 .*learner='mmrl'"):
        PromptPrism("cdc", tiny, contexts=8, learner="mmrl")
