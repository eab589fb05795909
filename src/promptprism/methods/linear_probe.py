"""A linear classifier on frozen image features (Radford et al., ICML 2021, appendix A.3)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from promptprism.data.batches import labels_of
from promptprism.data.names import LabelSpace
from promptprism.data.records import Records
from promptprism.errors import warn
from promptprism.methods.base import Method, MethodSettings, Shape
from promptprism.methods.classifier import Classifier, Texts
from promptprism.methods.frozen import frozen_features, weights_of
from promptprism.prompts import encode_image

#: Strengths C that validation images choose among.
STRENGTHS = tuple(10.0**power for power in range(-4, 5))


class LinearProbeSettings(MethodSettings):
    """Settings of the linear probe; it takes no steps, so that those of training mean nothing to it."""

    method: ClassVar[str] = "linear-probe"

    epochs: Literal[0] = Field(default=0, description="A convex problem, solved to its end: no epochs.")
    strength: float | None = Field(
        default=None,
        gt=0,
        description="C of logistic regression, one over the weight of the squared norm; None chooses among "
        "powers of ten by validation images, and takes 0.316, CLIP's own, where there are none.",
    )

    @property
    def learns(self) -> bool:
        """Always: from images, though without epochs."""
        return True


class LinearProbe(Method):
    """Logistic regression on frozen image features; other classes than those learned get zero-shot CLIP."""

    Settings: ClassVar[type[MethodSettings]] = LinearProbeSettings
    settings: LinearProbeSettings
    chooses = True
    weighs = True

    @property
    def shape(self) -> Shape:
        """One look at each training image."""
        return Shape(text_learns=False, looks=1)

    def separable(self, space: LabelSpace, learned: LabelSpace) -> bool:
        """No: a class has a logit of the probe only where all classes were learned."""
        return False

    def allot(self, classes: int, images: int) -> None:
        """Make the weights, at 0."""
        zeros = torch.zeros(classes, self.backbone.embed_dim, device=self.backbone.device)
        self.weight = torch.nn.Parameter(zeros)
        self.bias = torch.nn.Parameter(zeros[:, 0].clone())

    def finish(self, texts: Texts, records: Records, validation: Records) -> None:
        """Solve, for the strength that is best on the validation images."""
        features = frozen_features(self.backbone, records)
        labels, weights = labels_of(records, features.device), weights_of(records)
        classes, strength = len(self.weight), self.settings.strength
        if strength is None and validation:
            shown = frozen_features(self.backbone, validation)
            truth = labels_of(validation, shown.device)
            right = []
            for each in STRENGTHS:
                weight, bias = solve(features, labels, classes, each, weights)
                right.append(int((F.linear(shown, weight, bias).argmax(-1) == truth).sum()))
            strength = STRENGTHS[right.index(max(right))]
        elif strength is None:
            strength = 0.316
            warn(
                "linear-probe has no validation images to choose its strength by: it takes 0.316; give a "
                "validation split, or --set strength=..."
            )
        weight, bias = solve(features, labels, classes, strength, weights)
        with torch.no_grad():
            self.weight.copy_(weight)
            self.bias.copy_(bias)

    def classify(self, texts: Texts, learned: LabelSpace | None) -> Classifier:
        """The probe's classifier if all classes were learned, else zero-shot CLIP's."""
        rows, text = (learned or texts.space).places(texts.space), texts.zero_shot_features
        if not hasattr(self, "weight") or -1 in rows:
            return Classifier(name=self.name, texts=texts, text=text)
        weight, bias = self.weight[rows].clone(), self.bias[rows].clone()
        return ProbeClassifier(name=self.name, texts=texts, text=text, weight=weight, bias=bias)


@dataclass(frozen=True, eq=False, kw_only=True)
class ProbeClassifier(Classifier):
    """A linear map of image features that are not normalised.

    Attributes:
        weight: [K, D].
        bias: [K].
    """

    weight: Tensor
    bias: Tensor

    def logits(self, views: Tensor) -> Tensor:
        """Logits [1, B, K] of views [1, B, 3, H, W]."""
        return F.linear(encode_image(self.backbone, views, normalize=False), self.weight, self.bias)


def solve(
    features: Tensor, labels: Tensor, classes: int, strength: float, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression: least C sum of cross-entropies + half the squared norm of the weights.

    The bias is free, as in scikit-learn; solved by L-BFGS in double precision where the device has it.

    Args:
        features: [N, D].
        labels: [N], in 0..classes-1.
        classes: K.
        strength: C.
        weights: [N], of the cross-entropies; None is 1.

    Returns:
        Weight [K, D] and bias [K], float32.
    """
    kind = torch.float32 if features.device.type == "mps" else torch.float64
    features = features.to(kind)
    weight = torch.zeros(classes, features.shape[1], dtype=kind, device=features.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=kind, device=features.device, requires_grad=True)
    share, total = None, float(len(features))
    if weights is not None:
        total = weights.sum().item()
        share = weights.to(features) / total
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=1000,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(features, weight, bias)
        if share is None:
            loss = F.cross_entropy(logits, labels)
        else:
            loss = share @ F.cross_entropy(logits, labels, reduction="none")
        loss = loss + weight.square().sum() / (2 * strength * total)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(objective)  # type: ignore[no-untyped-call]
    return weight.detach().float(), bias.detach().float()
