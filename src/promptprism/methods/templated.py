"""Methods whose prompts do not depend on the image: M templates, softmax cross-entropy."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismError, warn
from promptprism.methods.base import MethodSettings, Shape
from promptprism.methods.classifier import Classifier, Texts
from promptprism.methods.learner import LearnerMethod
from promptprism.prompts import PromptLearner, encode_image, encode_text
from promptprism.prompts.text import TEXT_MEMORY_MB

#: MaPLe's depth in the base-to-new protocol.
_USUAL_DEPTH = 9


InitialPhrase = Annotated[
    str, Field(description="The context starts as the embeddings of its first n tokens, the rest stays text.")
]
Offsets = Annotated[
    bool | None,
    Field(
        description="Learn for each class and template a vector that is added to its text feature (TaskRes, "
        "Yu et al., CVPR 2023); it starts so that the class is at the mean of its plain training images. "
        "None is true for a backbone that knows few names, such as photo. Classes that were not learned go "
        "without; where they stand beside learned ones, theirs is predicted from these by the names."
    ),
]
NoOffsets = Annotated[
    Literal[False], Field(description="What is learned is held to the frozen text features.")
]


class TemplateSettings(MethodSettings):
    """Where the prompts of M templates enter the towers, and how they start."""

    templates: int = Field(default=1, ge=1, description="M, the number of templates.")
    depth: int | None = Field(
        default=None,
        ge=1,
        description="J, the number of layers with prompts of their own; None is 9, or all layers of a "
        "smaller backbone. MaPLe uses 3 when trained on ImageNet and tested elsewhere.",
    )
    coupled: bool = Field(default=True, description="Map the text prompts of each layer to vision prompts.")
    vision_tokens: int = Field(
        default=0,
        ge=0,
        description="m, vision prompts of each layer that are learned apart from the text's; with "
        "coupled=false only.",
    )
    vision_depth: int | None = Field(
        default=None, ge=1, description="Layers with such vision prompts; None is as deep as the text's."
    )
    learn_text: bool = Field(
        default=True, description="If false, the texts stay the phrase: only vision prompts are learned."
    )
    context_length: int = Field(default=2, ge=1, description="n, context tokens per layer.")
    initial_phrase: InitialPhrase = "a photo of a {}."
    phrase_init: bool = Field(
        default=True,
        description="If false, the context starts from N(0, 0.02) and stands before the bare class name.",
    )
    vision_from: int = Field(
        default=0,
        ge=0,
        description="L0, vision layers below the first vision prompts: cheaper to train and, the templates "
        "sharing them, to predict with. 0 is MaPLe.",
    )
    pool_prompts: bool = Field(
        default=False,
        description="Where a backbone reads its image feature from all tokens, as their mean or by "
        "attention: read it from the vision prompts too.",
    )
    class_offsets: Offsets = None
    text_memory_mb: float = Field(
        default=TEXT_MEMORY_MB,
        ge=0,
        description="MiB that the text tower may keep for the backward pass; classes beyond it are computed "
        "twice instead. Changes the last digits at most.",
    )


class TemplateMethod(LearnerMethod):
    """M templates of learned prompts on a frozen CLIP, one classifier each."""

    Settings: ClassVar[type[MethodSettings]] = TemplateSettings
    settings: TemplateSettings
    splits = True
    needs_vision_prompts: ClassVar[bool] = False
    """Whether the method is none without vision prompts, rather than one with its templates in the text."""

    @classmethod
    def axes(cls, settings: Any, images: int) -> dict[str, tuple[int | None, ...]]:  # noqa: ARG003
        """What is learned of each template, of which there is one thing at least."""
        count = settings.templates
        found: dict[str, tuple[int | None, ...]] = {}
        if settings.learn_text:
            found["learner.context"] = (count, settings.depth, settings.context_length, None)
        if settings.vision_tokens:
            found["learner.vision"] = (count, settings.vision_depth, settings.vision_tokens, None)
        last = "learner.to_vision_bias" if settings.coupled else "offsets"
        return found or {last: (count, None, None)}

    def build(self, seed: int) -> None:
        """Make the learner."""
        super().build(seed)
        settings, backbone = self.settings, self.backbone
        coupled = settings.coupled
        if coupled and not backbone.vision_layers and not self.needs_vision_prompts:
            coupled = False
            warn(
                f"the image tower of backbone {backbone.name!r} has no tokens that prompts may join: the "
                f"templates of {self.name!r} live in the text alone, as with coupled=False"
            )
        if settings.vision_tokens and not backbone.vision_layers:
            raise PromptPrismError(
                f"{self.label.capitalize()} needs an image tower with tokens that prompts may join, and "
                f"backbone {backbone.name!r} has none: take a ViT, or prompts for the texts alone (coop)."
            )
        self.learner = PromptLearner(
            backbone,
            templates=settings.templates,
            context_length=settings.context_length,
            depth=min(_USUAL_DEPTH, backbone.prompt_layers) if settings.depth is None else settings.depth,
            coupled=coupled,
            vision_from=settings.vision_from,
            vision_tokens=settings.vision_tokens,
            vision_depth=settings.vision_depth,
            learn_text=settings.learn_text,
            phrase=settings.initial_phrase,
            phrase_init=settings.phrase_init,
            seed=seed,
        )

    @property
    def shape(self) -> Shape:
        """M templates with prompts in both towers, or in the text tower alone."""
        settings, n = self.settings, self.settings.context_length
        coupled = self.learner.to_vision_weight is not None
        tokens = n if coupled else settings.vision_tokens
        return Shape(
            templates=settings.templates,
            text_prompts=n if settings.learn_text else 0,
            vision_prompts=tokens,
            vision_from=settings.vision_from if tokens else 0,
            text_memory_mb=settings.text_memory_mb,
            text_learns=settings.learn_text,
            looks=int(self.has_offsets),
        )

    def prompt_phrase(self, space: LabelSpace) -> str:
        """The learner's phrase, whose first n tokens are placeholders; without text prompts the data's."""
        return self.learner.phrase if self.settings.learn_text else space.phrase

    def text_features(self, texts: Texts) -> Tensor:
        """Text features [M, K, D] under the templates, without offsets."""
        settings = self.settings
        if not settings.learn_text:
            return texts.zero_shot_features.expand(settings.templates, -1, -1)
        return encode_text(self.backbone, texts.tokens, self.learner.context, settings.text_memory_mb)

    def image_features(self, views: Tensor, shown: Tensor | None = None) -> Tensor:
        """Image features [M, B, D] of views [M or 1, B, 3, H, W]; uncoupled, as many as there are views."""
        (_, prompts), settings = self.learner(), self.settings
        first, pool = settings.vision_from, settings.pool_prompts
        return encode_image(self.backbone, views, prompts, first, pool, shown=shown)

    def contexts(self) -> Tensor:
        """The prompts of each layer, [M, J, n, Dt]; of the image tower where the text has none."""
        vision = self.learner.vision
        return self.learner.context if self.settings.learn_text or vision is None else vision

    def classify(self, texts: Texts, learned: LabelSpace | None) -> Classifier:
        """M text classifiers on image features under the M templates, softmax head."""
        settings, (context, vision_prompts) = self.settings, self.learner()
        return Classifier(
            name=self.name,
            texts=texts,
            text=self.with_offsets(self.text_features(texts), texts.space, learned),
            context=context[:, 0].clone() if settings.learn_text else None,
            vision_prompts=None if vision_prompts is None else vision_prompts.clone(),
            first_layer=settings.vision_from,
            pool_prompts=settings.pool_prompts,
        )
