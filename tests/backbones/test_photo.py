"""The shipped model for photos: sizes, plain composition, causal text, and answers known from its making."""

import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor

from promptprism.backbones import load_backbone
from promptprism.backbones.photo import (
    FOLDER,
    MEAN,
    STD,
    PhotoVision,
    load_photo,
    photo_config,
    photo_tokenizer,
)
from promptprism.backbones.stems import KeptStems
from promptprism.prompts import encode_image


@pytest.fixture(scope="module")
def model():
    return load_photo()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def text_features(model, texts):
    with torch.no_grad():
        return model.encode_text(photo_tokenizer()(texts), normalize=True)


def test_weights_are_small():
    assert (FOLDER / "model.safetensors").stat().st_size <= 30_000_000


@pytest.mark.slow
def test_forward_is_stem_blocks_read(model, images):
    visual = model.visual
    with torch.no_grad():
        x = visual.stem(images)
        assert x.shape == (2, visual.tokens, visual.width) and x.dtype == torch.float32
        for block in visual.blocks:
            x = block(x)
        torch.testing.assert_close(visual.read(x[:, 0]), visual(images))
        assert visual(images).shape == (2, visual.output_dim)


@pytest.mark.slow
def test_folded_trunk_equals_timms(images):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    ours = PhotoVision(output_dim=32, image_size=224, width=32, layers=1, heads=1, mlp_ratio=1.0).trunk
    pairs = zip(
        (m for m in theirs.modules() if isinstance(m, torch.nn.Conv2d)),
        (m for m in theirs.modules() if isinstance(m, torch.nn.BatchNorm2d)),
        (m for m in ours.modules() if isinstance(m, torch.nn.Conv2d)),
        strict=True,
    )
    with torch.no_grad():
        for convolution, norm, mine in pairs:
            convolution.weight.mul_(1.5)
            norm.running_var.uniform_(0.5, 2.0)
            norm.running_mean.normal_(std=0.1)
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            mine.weight.copy_(convolution.weight * factor[:, None, None, None])
            mine.bias.copy_(norm.bias - norm.running_mean * factor)
        found, expected = (
            ours(images)[1],
            theirs.forward_head(theirs.forward_features(images), pre_logits=True),
        )
    assert F.cosine_similarity(found, expected).min() > 0.9999


def test_text_is_causal_and_read_at_its_end(model):
    tokens = photo_tokenizer()(["a photo of a dog."])
    longer = tokens.clone()
    end = int(tokens.argmax())
    longer[0, end + 1 :] = 5
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(tokens), model.encode_text(longer))


def test_image_size_must_fit_the_stem():
    with pytest.raises(ValueError, match="100"):
        PhotoVision(image_size=100, width=64, layers=1, heads=1, mlp_ratio=2.0, output_dim=64)


def test_names_of_like_things_lie_close(model):
    names = ["golden retriever", "beagle", "sports car", "pickup truck", "banana", "strawberry"]
    text = text_features(model, [f"a photo of a {n}." for n in names])
    nearest = (text @ text.T - 2 * torch.eye(6)).argmax(-1).tolist()
    assert nearest == [1, 0, 3, 2, 5, 4]


def test_phrase_matters_little(model):
    one, other = text_features(model, ["a photo of a bicycle.", "a picture of a bicycle."])
    far = text_features(model, ["a photo of a hamster."])[0]
    assert one @ other > 0.8 > one @ far


def test_drawn_ball_is_no_dog(model):
    side = torch.arange(224) - 112
    disc = (side[:, None] ** 2 + side**2 < 70**2).float()
    # An orange disc on green ground.
    colours = torch.stack([0.2 + 0.75 * disc, 0.5 - 0.05 * disc, 0.2 - 0.1 * disc])
    image = (colours - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    text = text_features(model, ["a photo of an orange.", "a photo of a dog.", "a photo of a castle."])
    with torch.no_grad():
        feature = model.encode_image(image[None], normalize=True)
    assert (feature @ text.T).argmax() == 0


@pytest.mark.slow
def test_stem_in_bfloat16_gives_the_same_tokens(model, images):
    open_clip.convert_weights_to_lp(low := load_photo(), torch.bfloat16)
    with torch.no_grad():
        tokens = low.visual.stem(images)
        assert tokens.dtype == torch.float32
        assert F.cosine_similarity(model.visual.stem(images), tokens, dim=-1).min() > 0.98


@pytest.mark.slow
def test_kept_stems_are_the_same_numbers(images):
    backbone = load_backbone("photo")
    views, prompts = images[None], torch.randn(3, 2, 2, backbone.vision_width)
    with torch.no_grad():
        plain = encode_image(backbone, views, prompts)
        backbone.stems, stem = KeptStems(1), backbone.vision.stem
        assert backbone.vision.stem_flops > 7e8  # asked for once
        asked = []
        backbone.vision.stem = lambda views: (asked.append(len(views)), stem(views))[1]
        assert encode_image(backbone, views, prompts).equal(plain)
        assert encode_image(backbone, views, prompts).equal(plain) and asked == [2]
        one = encode_image(backbone, views[:, 1:], prompts)
        assert asked == [2] and F.cosine_similarity(one, plain[:, 1:], dim=-1).min() > 0.99999
        for _ in range(20):  # 64 KB each, so that the first are forgotten
            encode_image(backbone, torch.randn_like(views), prompts)
        encode_image(backbone, views, prompts)
        assert asked == [2] * 22
    encode_image(backbone, views, prompts)  # with gradients: views of training
    assert asked == [2] * 23
    assert backbone.with_towers(backbone.text, backbone.vision).stems is None


def test_a_patch_embedding_is_not_kept():
    backbone = load_backbone("mini")
    backbone.stems = KeptStems()
    with torch.no_grad():
        encode_image(backbone, torch.zeros(1, 1, 3, backbone.image_size, backbone.image_size))
    assert not backbone.stems._kept


def test_config_names_what_was_built(model):
    config = photo_config()
    assert model.visual.layers == config["vision"]["layers"] == len(model.visual.blocks)
    assert model.text.vocab_size == config["text"]["vocab_size"] == photo_tokenizer().vocab_size
    assert 5 < model.logit_scale.exp() < 100


@pytest.mark.slow
def test_flowers_that_imagenet_knows(model, real_data):
    folder = real_data("flowers12/test/daisy")
    pixels = [pil_to_tensor(Image.open(p).convert("RGB").resize((224, 224))) for p in folder.iterdir()]
    x = torch.stack(pixels).float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    text = text_features(model, [f"a photo of a {n}." for n in ("daisy", "dog", "house", "car")])
    with torch.no_grad():
        right = (model.encode_image(x, normalize=True) @ text.T).argmax(-1) == 0
    assert right.float().mean() > 0.9
