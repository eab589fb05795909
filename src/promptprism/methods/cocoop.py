"""CoCoOp (Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022)."""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from promptprism.errors import PromptPrismError
from promptprism.methods.base import Method, MethodSettings
from promptprism.methods.templated import softmax_loss
from promptprism.prompts import PromptLearner, encode_image, encode_text
from promptprism.prompts.learner import linear_start, local_generator

#: Texts (images times classes) that go through the text tower at once.
_TEXTS_AT_ONCE = 4096


class CoCoOpSettings(MethodSettings):
    """CoCoOp's settings in the base-to-new protocol."""

    method: ClassVar[str] = "cocoop"

    epochs: int = Field(default=10, ge=0, description="Passes over the training images.")
    batch_size: int = Field(
        default=1, ge=1, description="Images per step; each image has text features of its own."
    )
    lr: float = Field(default=0.002, gt=0, description=MethodSettings.model_fields["lr"].description)
    context_length: int = Field(default=4, ge=1, description="n, context tokens, shared by all classes.")
    initial_phrase: str = Field(
        default="a photo of a {}.",
        description="The context starts as the embeddings of its first n tokens, the rest stays text.",
    )
    reduction: int = Field(
        default=16,
        ge=1,
        description="The meta-net's hidden layer has the image feature's size divided by this.",
    )


class CoCoOp(Method):
    """A context that a small meta-net shifts for every image: the B images take the place of templates."""

    name = CoCoOpSettings.method
    Settings: ClassVar[type[MethodSettings]] = CoCoOpSettings
    settings: CoCoOpSettings
    text_is_fixed = False

    def build(self, seed: int) -> None:
        """Make the context and the meta-net."""
        settings, backbone = self.settings, self.backbone
        self.learner = PromptLearner(
            backbone, context_length=settings.context_length, phrase=settings.initial_phrase, seed=seed
        )
        hidden = max(1, backbone.embed_dim // settings.reduction)
        first, second = nn.Linear(backbone.embed_dim, hidden), nn.Linear(hidden, backbone.text_width)
        generator = local_generator(seed, "meta-net")
        for layer in (first, second):
            weight, bias = linear_start(layer.in_features, layer.out_features, generator)
            layer.load_state_dict({"weight": weight, "bias": bias})
        layers = OrderedDict[str, nn.Module](linear1=first, relu=nn.ReLU(), linear2=second)
        self.meta_net = nn.Sequential(layers).to(backbone.device)

    @property
    def prompt_phrase(self) -> str:
        """The learner's phrase, whose first n tokens are placeholders."""
        return self.learner.phrase

    def text_features(self) -> Tensor:
        """There are none without an image.

        Raises:
            PromptPrismError: always.
        """
        raise PromptPrismError("CoCoOp's text features depend on the image: there are none to compute alone.")

    def forward(self, views: Tensor, text: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Logits [1, B, K] of views [1, B, 3, H, W]; there is no fixed text to give."""
        image = encode_image(self.backbone, views)[0]
        prompts = self.learner.context + self.meta_net(image)[:, None, None]
        size = max(1, _TEXTS_AT_ONCE // len(self.class_names))
        parts = [
            self.logits(images.unsqueeze(1), encode_text(self.backbone, self.tokens, shifted)).squeeze(1)
            for images, shifted in zip(torch.split(image, size), torch.split(prompts, size), strict=True)
        ]
        return torch.cat(parts).unsqueeze(0)

    def loss(self, views: Tensor, labels: Tensor, epoch: int) -> Tensor:  # noqa: ARG002
        """Cross-entropy, averaged over images."""
        return softmax_loss(self(views), labels)
