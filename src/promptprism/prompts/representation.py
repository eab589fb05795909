"""What MMRL learns: tokens of a space of their own, mapped into both towers (Guo and Gu, CVPR 2025)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptprism.backbones import Backbone
from promptprism.prompts.learner import linear_start, local_generator
from promptprism.prompts.vision import run_layers, start_image

_TOKEN_STD = 0.02


class RepresentationLearner(nn.Module):
    """Tokens that all layers share, a linear map of each layer into each tower, and a projection of its own.

    Args:
        backbone: gives the widths and the device; it is not kept.
        tokens: R, their number.
        width: of the space of representations, Dr.
        layers: J, that have maps.
        seed: of the start values.

    Attributes:
        tokens: [R, Dr].
        to_text_weight: [J, Dt, Dr]; all layers start equal.
        to_text_bias: [J, Dt].
        to_vision_weight: [J, Dv, Dr].
        to_vision_bias: [J, Dv].
        projection: of the tokens' states behind the last layer to the common space, [Dv, D].
    """

    def __init__(self, backbone: Backbone, tokens: int, width: int, layers: int, seed: int) -> None:
        super().__init__()
        generator, device = local_generator(seed, "representations"), backbone.device

        def learned(start: Tensor) -> nn.Parameter:
            return nn.Parameter(start.clone().to(device))

        def maps(outputs: int) -> tuple[nn.Parameter, nn.Parameter]:
            weight, bias = linear_start(width, outputs, generator)
            return learned(weight.repeat(layers, 1, 1)), learned(bias.repeat(layers, 1))

        self.tokens = learned(torch.randn(tokens, width, generator=generator) * _TOKEN_STD)
        self.to_text_weight, self.to_text_bias = maps(backbone.text_width)
        self.to_vision_weight, self.to_vision_bias = maps(backbone.vision_width)
        shape = backbone.vision_width, backbone.embed_dim
        self.projection = learned(torch.randn(shape, generator=generator) * backbone.vision_width**-0.5)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Give text tokens [1, J, R, Dt] and vision tokens [1, J, R, Dv]."""
        text = self.tokens @ self.to_text_weight.transpose(-1, -2) + self.to_text_bias.unsqueeze(1)
        vision = self.tokens @ self.to_vision_weight.transpose(-1, -2) + self.to_vision_bias.unsqueeze(1)
        return text.unsqueeze(0), vision.unsqueeze(0)


def both_features(
    backbone: Backbone, views: Tensor, tokens: Tensor, first_layer: int, projection: Tensor
) -> tuple[Tensor, Tensor]:
    """Features [1, B, D] of the class token and of the representation tokens, normalised.

    Args:
        backbone: the frozen model.
        views: [1, B, 3, H, W].
        tokens: of the layers from `first_layer` on, [1, J, R, Dv].
        first_layer: from 0.
        projection: of the mean of the tokens' last states, [Dv, D].
    """

    def run(views: Tensor, tokens: Tensor, projection: Tensor) -> Tensor:
        assert backbone.vision.norm is not None
        start = start_image(backbone, views, first_layer)
        states = run_layers(backbone, start, tokens, first_layer, whole=True)
        mean = backbone.vision.norm(states[:, :, -tokens.shape[2] :]).mean(2)
        return torch.cat([backbone.vision.read(states[:, :, :1]), mean @ projection])

    ranks, arguments = backbone.ranks, (views, tokens, projection)
    both = F.normalize(ranks.over_images(run, *arguments) if ranks else run(*arguments), dim=-1)
    return both[:1], both[1:]
