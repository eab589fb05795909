"""What MMRL learns: tokens of a space of their own, mapped into both towers (Guo and Gu, CVPR 2025)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptprism.backbones import Backbone
from promptprism.prompts.learner import linear_start, own_generators
from promptprism.prompts.vision import run_layers, start_image

_TOKEN_STD = 0.02


class RepresentationLearner(nn.Module):
    """Of each of M: tokens that all layers share, a linear map of each layer into each tower, a projection.

    Learner m starts from numbers that depend on (seed, m) alone.

    Args:
        backbone: gives the widths and the device; it is not kept.
        tokens: R, their number.
        width: of the space of representations, Dr.
        layers: J, that have maps.
        seed: of the start values.
        templates: M.

    Attributes:
        tokens: [M, R, Dr].
        to_text_weight: [M, J, Dt, Dr]; all layers start equal.
        to_text_bias: [M, J, Dt].
        to_vision_weight: [M, J, Dv, Dr].
        to_vision_bias: [M, J, Dv].
        projection: of the tokens' states behind the last layer to the common space, [M, Dv, D].
    """

    def __init__(
        self, backbone: Backbone, tokens: int, width: int, layers: int, seed: int, templates: int = 1
    ) -> None:
        super().__init__()
        vision, parts = backbone.vision_width, []
        for generator in own_generators(seed, "representations", templates):
            start = [torch.randn(tokens, width, generator=generator) * _TOKEN_STD]
            for outputs in (backbone.text_width, vision):
                weight, bias = linear_start(width, outputs, generator)
                start += [weight.repeat(layers, 1, 1), bias.repeat(layers, 1)]
            start.append(torch.randn(vision, backbone.embed_dim, generator=generator) * vision**-0.5)
            parts.append(start)
        stacked = (nn.Parameter(torch.stack(each).to(backbone.device)) for each in zip(*parts, strict=True))
        self.tokens, self.to_text_weight, self.to_text_bias, *others = stacked
        self.to_vision_weight, self.to_vision_bias, self.projection = others

    def forward(self) -> tuple[Tensor, Tensor]:
        """Give text tokens [M, J, R, Dt] and vision tokens [M, J, R, Dv]."""
        tokens = self.tokens.unsqueeze(1)
        text = tokens @ self.to_text_weight.transpose(-1, -2) + self.to_text_bias.unsqueeze(2)
        vision = tokens @ self.to_vision_weight.transpose(-1, -2) + self.to_vision_bias.unsqueeze(2)
        return text, vision


def both_features(
    backbone: Backbone,
    views: Tensor,
    tokens: Tensor,
    first_layer: int,
    projection: Tensor,
    shown: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Features [M, B, D] of the class token and of the representation tokens, normalised.

    Args:
        backbone: the frozen model.
        views: [M or 1, B, 3, H, W].
        tokens: of the layers from `first_layer` on, [M, J, R, Dv].
        first_layer: from 0.
        projection: of the mean of the tokens' last states, [M, Dv, D].
        shown: see `encode_image`.
    """

    def run(views: Tensor, tokens: Tensor, projection: Tensor) -> Tensor:
        start = start_image(backbone, views, first_layer, shown)
        return torch.cat(finish_both(backbone, start, tokens, first_layer, projection))

    ranks, arguments = backbone.ranks, (views, tokens, projection)
    image, own = (ranks.over_images(run, *arguments) if ranks else run(*arguments)).chunk(2)
    return image, own


def finish_both(
    backbone: Backbone, states: Tensor, tokens: Tensor, first_layer: int, projection: Tensor
) -> tuple[Tensor, Tensor]:
    """`both_features` of what `start_image` gave."""
    assert backbone.vision.norm is not None
    states = run_layers(backbone, states, tokens, first_layer, whole=True)
    own = backbone.vision.norm(states[:, :, -tokens.shape[2] :]).mean(2) @ projection
    return F.normalize(backbone.vision.read(states[:, :, :1]), dim=-1), F.normalize(own, dim=-1)
