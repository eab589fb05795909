"""What losses are made of; among it CDC's two on templates: diversity and consistency.

Diversity pushes templates apart, consistency ties them to the hand-made one. The paper has both; their forms
are not known to us, so each is a choice. Beside them stand other ways to tell templates apart.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

DiversityForm = Literal["squared_cosine", "cosine", "hinge"]
DiversityLevel = Literal["text_centered", "text", "image", "context"]
ConsistencyForm = Literal["cosine", "l1", "l2", "kl"]
Decoupling = Literal["none", "subspaces", "correlation", "patches"]

# Vectors shorter than this have no direction worth pushing; features have length 1. It bounds the gradient
# where a template is still equal to the hand-made one.
_SHORTEST = 1e-2


def image_mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of values [..., B], those of each image times its weight, of weights [B]."""
    return values.mean() if weights is None else (values * weights).mean()


def softmax_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of logits [M, B, K] with labels [B], averaged over templates and images."""
    flat, repeated = logits.flatten(0, 1), labels.repeat(len(logits))
    if weights is None:
        return F.cross_entropy(flat, repeated)
    return image_mean(F.cross_entropy(flat, repeated, reduction="none").reshape(logits.shape[:2]), weights)


def diversity_loss(
    vectors: Tensor,
    form: DiversityForm = "squared_cosine",
    margin: float = 0.5,
    weights: Tensor | None = None,
) -> Tensor:
    """How alike the templates' vectors are: mean over the pairs of templates and over N.

    Args:
        vectors: [M, N, D], for instance text features less those of the hand-made template.
        form: of the cosine c of two templates: c^2, c, or max(0, c - margin).
        margin: of the hinge.
        weights: [N], where the N are images.

    Returns:
        A scalar; 0 for one template.
    """
    templates = len(vectors)
    if templates == 1:
        return vectors.new_zeros(())
    unit = F.normalize(vectors, dim=-1, eps=_SHORTEST).transpose(0, 1)
    first, second = torch.triu_indices(templates, templates, offset=1, device=vectors.device)
    cosines = (unit @ unit.transpose(-1, -2))[:, first, second]
    if form != "cosine":
        cosines = cosines.square() if form == "squared_cosine" else F.relu(cosines - margin)
    return image_mean(cosines, None if weights is None else weights.unsqueeze(-1))


def consistency_loss(
    text: Tensor, anchor: Tensor, form: ConsistencyForm = "cosine", weights: Tensor | None = None
) -> Tensor:
    """How far the templates' text features are from the hand-made one's: mean over templates and classes.

    Args:
        text: [M, K, D], normalised.
        anchor: [1, K, D], normalised.
        form: 1 - cosine, or the L1 or squared L2 distance of the features.
        weights: [K], where the features are those of K images.
    """
    if form == "l1":
        distance = (text - anchor).abs().sum(-1)
    elif form == "l2":
        distance = (text - anchor).square().sum(-1)
    else:
        distance = 1 - (text * anchor).sum(-1)
    return image_mean(distance, weights)


def logit_consistency_loss(logits: Tensor, zero_shot: Tensor, weights: Tensor | None = None) -> Tensor:
    """KL[zero-shot || template] of the class probabilities, mean over templates and images.

    Args:
        logits: [M, B, K].
        zero_shot: [M or 1, B, K], without gradients.
        weights: [B].
    """
    target = zero_shot.log_softmax(-1).expand_as(logits)
    each = F.kl_div(logits.log_softmax(-1), target, reduction="none", log_target=True).sum(-1)
    return image_mean(each, weights)


def subspace_overlap(contexts: Tensor) -> Tensor:
    """How far the templates' contexts lie in each other's subspaces: 0 if these are orthogonal.

    The soft orthogonality of Bansal et al. (Can We Gain More from Orthogonality Regularizations, NeurIPS
    2018) on the blocks of the Gram matrix that two templates share: the squared cosines of a vector with all
    of another template's, added up; the mean over vectors, places and pairs. 1 for equal orthogonal vectors.

    Args:
        contexts: [M, G, n, D], in each of G places n vectors.
    """
    templates, places, count, _ = contexts.shape
    if templates == 1:
        return contexts.new_zeros(())
    unit = F.normalize(contexts, dim=-1).permute(1, 0, 2, 3).flatten(1, 2)
    squares = (unit @ unit.mT).square().view(places, templates, count, templates, count)
    blocks = squares.sum((2, 4)).mean(0)
    return (blocks.sum() - blocks.trace()) / (templates * (templates - 1) * count)


def negative_correlation(probabilities: Tensor, weights: Tensor | None = None) -> Tensor:
    """Whether the templates err alike: (p_m - p) times the sum of all other (p_j - p), p their mean.

    Negative correlation learning (Liu and Yao, Ensemble learning via negative correlation, Neural Networks
    1999): below 0 where they differ. Deviations from a mean add up to 0, so that it is -|p_m - p|^2.

    Args:
        probabilities: [M, B, K].
        weights: [B].

    Returns:
        The sum over classes, averaged over templates and images.
    """
    return -image_mean((probabilities - probabilities.mean(0)).square().sum(-1), weights)


def patch_groups(patches: int, templates: int, generator: torch.Generator) -> Tensor:
    """Places [M, patches // M] of the patches that each template is shown: at random, none to two.

    What is left over is shown to nobody. Templates then answer by different evidence (PatchDropout, Liu et
    al., WACV 2023, drops at random for speed).
    """
    size = patches // templates
    return torch.randperm(patches, generator=generator)[: templates * size].view(templates, size)
