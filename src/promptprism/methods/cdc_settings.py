"""CDC's settings; of what is not known to us of the paper the description says "not known"."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from promptprism.errors import PromptPrismError
from promptprism.evidence import EvidenceKind, FusionRule
from promptprism.methods.base import BatchSize, Epochs, LearningRate, MethodSettings
from promptprism.methods.clip_lora import ClipLora, Dropout, Rank
from promptprism.methods.coop import CoOp
from promptprism.methods.ivlp import Ivlp
from promptprism.methods.learner import LearnerMethod
from promptprism.methods.maple import MapleSettings
from promptprism.methods.mmrl import FirstLayer, Mmrl, Tokens, Width
from promptprism.methods.objectives import ConsistencyForm, Decoupling, DiversityForm, DiversityLevel
from promptprism.methods.templated import Offsets, TemplateMethod, TemplateSettings

#: What a template may be. MaPLe's is any that the settings of prompts make.
LEARNERS: dict[str, type[LearnerMethod]] = {
    "maple": TemplateMethod,
    "ivlp": Ivlp,
    "coop": CoOp,
    "lora": ClipLora,
    "mmrl": Mmrl,
}
#: What CDC sets, whatever it learns with.
_OWN = {*MethodSettings.model_fields, "templates", "class_offsets"}
#: What a learner's own defaults are not taken for.
_OF_CDC = {"templates", "epochs", "batch_size", "views", "class_offsets"}


class CdcSettings(TemplateSettings):
    """CDC's settings; those of training and of each template are MaPLe's, or those of another learner."""

    method: ClassVar[str] = "cdc"
    version: ClassVar[int] = 2
    earlier: ClassVar[Mapping[int, Mapping[str, Any]]] = {
        1: {**MapleSettings.paper, "distance_aware": False, "class_offsets": None}
    }
    paper: ClassVar[Mapping[str, Any]] = {**earlier[1], "class_offsets": False, "fusion": "dempster"}

    epochs: Epochs = 10
    batch_size: BatchSize = 16
    lr: LearningRate = 0.004
    learner: Literal["maple", "ivlp", "coop", "lora", "mmrl"] = Field(
        default="maple",
        description="What each template is: the prompts of maple, of ivlp or of coop, the low-rank updates "
        "of clip-lora, the representation tokens of mmrl. Its settings, rate and optimizer are by default "
        "those of that method.",
    )
    templates: int = Field(default=4, ge=1, description="M, the number of templates.")
    class_offsets: Offsets = True
    rank: Rank = 2
    dropout: Dropout = 0.25
    tokens: Tokens = 5
    width: Width = 512
    first_layer: FirstLayer = None
    alpha: float | None = Field(
        default=None,
        description="With lora, the updates are times alpha / sqrt(r), by default 1; with mmrl, the weight "
        "of the class token's logits beside the representation tokens' own, by default 0.7.",
    )
    views: Literal["maple", "half", "flip", "set1", "set2"] = Field(
        default="set1",
        description="Augmentations of the templates: set1 is another one for each template, set2 adds a "
        "random crop before it (the contents of both are not known); maple is crop and flip for all, half "
        "crops less, flip not at all.",
    )
    head: Literal["evidential", "softmax"] = Field(
        default="evidential",
        description="evidential: fused opinions and the trusted loss (DSTC); softmax: "
        "mean cross-entropy of the templates, logits averaged for the prediction.",
    )
    evidence: EvidenceKind = Field(
        default="exp_centered", description="Map from logits to evidence. Not known."
    )
    temperature: float | None = Field(
        default=None, gt=0, description="Divides the logits before the map; None is the map's own. Not known."
    )
    fusion: FusionRule = Field(
        default="averaging",
        description="How opinions are fused: dempster takes them for independent, and agreeing ones add up; "
        "averaging (Josang, 2016) is the mean of their evidence; cautious (Denoeux, 2008) counts what they "
        "share once; tempered is the mean of their weights, Dempster's rule to the power 1/M; pooling is the "
        "mean of their probabilities. On the development sets averaging is as accurate as dempster, and far "
        "better calibrated.",
    )
    distance_aware: bool = Field(
        default=True,
        description="For classes that were not learned: the further a template has moved its leading class "
        "from those learned, beside zero-shot CLIP, the less evidence it gives (the factor of distance-aware "
        "calibration on its logits). Training does not change. Ours.",
    )
    loss_on: Literal["both", "templates", "fused"] = Field(
        default="both",
        description="Which opinions the trusted loss is on: the templates' (mean) plus the fused one, or "
        "only one of the two. Not known.",
    )
    kl_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the KL term against evidence for wrong classes; if not 0, then 1/K is a "
        "sensible value. Not known.",
    )
    anneal: int = Field(
        default=5, ge=1, description="Epochs until the KL term has its full weight. Not known."
    )
    diversity_weight: float = Field(default=0.1, ge=0, description="beta. Not known.")
    diversity_form: DiversityForm = Field(
        default="squared_cosine",
        description="What is averaged of the cosine c of two templates: c^2, c, or max(0, c - margin). "
        "Not known.",
    )
    diversity_level: DiversityLevel = Field(
        default="text_centered",
        description="The vectors that diversity compares: text features less the hand-made template's, text "
        "features, image features, or context tokens. Not known.",
    )
    diversity_margin: float = Field(default=0.5, ge=-1, le=1, description="Margin of the hinge. Not known.")
    consistency_weight: float = Field(default=1.0, ge=0, description="gamma. Not known.")
    consistency_form: ConsistencyForm = Field(
        default="cosine",
        description="Distance of each template's text features to the hand-made template's: 1 - cosine, L1, "
        "squared L2; or kl of the zero-shot probabilities to the template's. Not known.",
    )
    decoupling: Decoupling = Field(
        default="none",
        description="What else tells templates apart. subspaces: a loss that holds their contexts in "
        "orthogonal ones (soft orthogonality, Bansal et al., NeurIPS 2018); correlation: negative "
        "correlation learning on their class probabilities (Liu and Yao, Neural Networks 1999); patches: in "
        "training each sees a random group of patches that no other sees (PatchDropout, Liu et al., WACV "
        "2023). Ours in CDC.",
    )
    decoupling_weight: float = Field(
        default=0.5, ge=0, description="Weight of the loss of subspaces, or of correlation. Ours."
    )
    contexts: int = Field(
        default=0,
        ge=0,
        description="The adapter keeps what so many training photos show beside their classes, 1 MiB at "
        "most, and predictions are adjusted for it (front door). Training does not change. Ours.",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_the_learner_has_it(cls, given: Any) -> Any:
        learner = str(given.get("learner", "maple")) if isinstance(given, Mapping) else "maple"
        if learner == "maple" or learner not in LEARNERS:
            return given
        kind = LEARNERS[learner].Settings
        names = kind.model_fields.keys() & cls.model_fields.keys() - _OF_CDC
        own = {name: kind.model_fields[name].default for name in names}
        paper = {name: kind.paper[name] for name in names & kind.paper.keys()} if "preset" in given else {}
        return own | paper | dict(given)

    @model_validator(mode="after")
    def _nothing_of_another_learner(self) -> Self:
        if self.contexts and self.learner == "mmrl":
            raise PromptPrismError(
                f"Setting contexts={self.contexts} of method 'cdc' is refused with learner='mmrl': it reads "
                "images in two ways. Leave it out, or choose another learner."
            )
        own = LEARNERS[self.learner].Settings
        foreign = {name for kind in LEARNERS.values() for name in kind.Settings.model_fields} - _OWN
        for name in sorted(foreign & type(self).model_fields.keys()):
            value, why = getattr(self, name), "it has no such setting"
            if name in own.model_fields:
                try:
                    own(**{name: value})
                    continue
                except ValidationError as error:
                    why = error.errors()[0]["msg"]
            elif value == type(self).model_fields[name].default:
                continue
            raise PromptPrismError(
                f"Setting {name}={value!r} of method 'cdc' is refused with learner={self.learner!r}: {why}. "
                "Leave it out, or choose another learner."
            )
        return self
