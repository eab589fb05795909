import torch

from promptprism import LabelSpace, load_backbone
from promptprism.methods import build_method, make_settings


def test_it_starts_as_zero_shot_clip_and_a_step_lowers_the_loss():
    backbone = load_backbone("mini", precision="float32", device="cpu")
    space = LabelSpace(("cat", "dog", "fish"))
    method = build_method(make_settings("taskres"), backbone)
    method.allot(3, 3)
    texts = method.texts(space)
    assert torch.equal(method.classifier(space).text, texts.zero_shot_features)

    size = backbone.image_size
    views = torch.rand(1, 3, 3, size, size, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3)
    before = method(views, labels, texts, 0)
    before.backward()
    with torch.no_grad():
        method.residual -= 1e-3 * method.residual.grad
    assert method(views, labels, texts, 0) < before


def test_learning_goes_on_where_each_class_stands_now():
    backbone = load_backbone("mini", precision="float32", device="cpu")
    before, after = (build_method(make_settings("taskres"), backbone) for _ in range(2))
    before.allot(2, 2)
    after.allot(3, 3)
    with torch.no_grad():
        before.residual += torch.tensor([[[1.0], [2.0]]])
    after.go_on_from(before, places=(2, 0))
    assert after.residual[0, :, 0].tolist() == [2, 0, 1]


def test_a_class_that_was_not_learned_stays_zero_shot():
    backbone = load_backbone("mini", precision="float32", device="cpu")
    learned, other = LabelSpace(("cat", "dog")), LabelSpace(("dog", "fish"))
    method = build_method(make_settings("taskres"), backbone)
    method.allot(2, 2)
    with torch.no_grad():
        method.residual += 1
    text, plain = method.classifier(other, learned).text, method.texts(other).zero_shot_features
    assert not torch.allclose(text[:, 0], plain[:, 0])
    assert torch.allclose(text[:, 1], plain[:, 1], atol=1e-6)
