"""CoCoOp (Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022)."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from promptprism.backbones import Backbone
from promptprism.data.names import LabelSpace
from promptprism.methods.base import Epochs, LearningRate, Method, MethodSettings, Shape
from promptprism.methods.classifier import Classifier, Texts
from promptprism.methods.objectives import softmax_loss
from promptprism.methods.templated import InitialPhrase
from promptprism.prompts import PromptLearner, encode_image, encode_text
from promptprism.prompts.learner import linear_start, local_generator

#: Texts (images times classes) that go through the text tower at once.
_TEXTS_AT_ONCE = 4096


class CoCoOpSettings(MethodSettings):
    """CoCoOp's settings in the base-to-new protocol."""

    method: ClassVar[str] = "cocoop"
    version: ClassVar[int] = 2
    paper: ClassVar[Mapping[str, Any]] = {"epochs": 10, "batch_size": 1, "lr": 0.002}
    earlier: ClassVar[Mapping[int, Mapping[str, Any]]] = {1: paper}

    epochs: Epochs = 4
    batch_size: int = Field(
        default=4, ge=1, description="Images per step; each image has text features of its own."
    )
    lr: LearningRate = 0.004
    context_length: int = Field(default=4, ge=1, description="n, context tokens, shared by all classes.")
    initial_phrase: InitialPhrase = "a photo of a {}."
    reduction: int = Field(
        default=16,
        ge=1,
        description="The meta-net's hidden layer has the image feature's size divided by this.",
    )


class CoCoOp(Method):
    """A context that a small meta-net shifts for every image: the B images take the place of templates."""

    Settings: ClassVar[type[MethodSettings]] = CoCoOpSettings
    settings: CoCoOpSettings
    splits = True

    @classmethod
    def axes(cls, settings: Any, images: int) -> dict[str, tuple[int | None, ...]]:  # noqa: ARG003
        """The context [1, 1, n, Dt]."""
        return {"learner.context": (1, 1, settings.context_length, None)}

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
    def shape(self) -> Shape:
        """Every image has texts of its own."""
        return Shape(text_prompts=self.settings.context_length, texts_per_image=True)

    def prompt_phrase(self, space: LabelSpace) -> str:
        """The learner's phrase, whose first n tokens are placeholders."""
        return self.learner.phrase

    def forward(
        self, views: Tensor, labels: Tensor, texts: Texts, epoch: int, weights: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy, averaged over images."""
        logits = _shifted_logits(self.backbone, views, texts.tokens, self.learner.context, self.meta_net)
        return softmax_loss(logits, labels, weights)

    def classify(self, texts: Texts, learned: LabelSpace | None) -> Classifier:
        """Texts, and what shifts them; text features are made for each image."""
        return CoCoOpClassifier(
            name=self.name,
            texts=texts,
            text=None,
            context=self.learner.context[:, 0].clone(),
            meta_net=copy.deepcopy(self.meta_net).requires_grad_(False),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class CoCoOpClassifier(Classifier):
    """Text features that depend on the image.

    Attributes:
        meta_net: from image features [B, D] to shifts of the context [B, Dt].
    """

    meta_net: nn.Module

    def logits(self, views: Tensor) -> Tensor:
        """Logits [1, B, K] of views [1, B, 3, H, W]."""
        assert self.context is not None
        return _shifted_logits(
            self.backbone, views, self.texts.tokens, self.context.unsqueeze(1), self.meta_net
        )


def _shifted_logits(
    backbone: Backbone, views: Tensor, tokens: Tensor, context: Tensor, meta_net: nn.Module
) -> Tensor:
    """Logits [1, B, K] of views [1, B, 3, H, W]: a context [1, 1, n, Dt] shifted for each image."""
    image = encode_image(backbone, views)[0]
    prompts = context + meta_net(image)[:, None, None]
    size = max(1, _TEXTS_AT_ONCE // len(tokens))
    parts = [
        backbone.logits(images.unsqueeze(1), encode_text(backbone, tokens, shifted)).squeeze(1)
        for images, shifted in zip(torch.split(image, size), torch.split(prompts, size), strict=True)
    ]
    return torch.cat(parts).unsqueeze(0)
