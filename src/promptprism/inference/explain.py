"""Look inside one prediction: what each template believes and where it looks, and what fusion made of it."""

import threading
from typing import Any

import torch
from PIL import Image
from pydantic import ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from promptprism.backbones import Backbone
from promptprism.data.images import ImageSource
from promptprism.data.views import make_views
from promptprism.errors import PromptPrismError
from promptprism.evidence import FUSIONS
from promptprism.inference.predictor import check_finite
from promptprism.methods import Classifier
from promptprism.provenance import Facts


class Answer(Facts):
    """One class as a template, or all together, see it; belief is None without opinions."""

    name: str = Field(serialization_alias="class")
    probability: float
    belief: float | None


class Word(Facts):
    """A word of the backbone's vocabulary: cosine and Euclidean distance to a context token."""

    word: str
    cosine: float
    distance: float


class Voice(Facts):
    """What one template says.

    Attributes:
        top: its most probable classes.
        uncertainty: of its opinion; None without opinions.
        words: the words nearest to each of its context tokens of the first layer; empty if it learned none.
        map: see `relevance_maps`, rows of patches.
    """

    top: tuple[Answer, ...]
    uncertainty: float | None
    words: tuple[tuple[Word, ...], ...]
    map: tuple[tuple[float, ...], ...]


class Why(Facts):
    """How the two leading classes came by their scores.

    Attributes:
        quantity: what is added: of opinions as `FUSIONS` has it, of softmax heads the "logit" above the mean
            class.
        rule: how templates are combined.
        classes: the leading class and the second.
        contributions: of each template to the scores of both.
        scores: of both classes after the combination.
        exact: whether the contributions add up to the scores; not where fusion takes the largest weight.
    """

    quantity: str
    rule: str
    classes: tuple[str, str]
    contributions: tuple[tuple[float, float], ...]
    scores: tuple[float, float]
    exact: bool


class Explanation(Facts):
    """One prediction, looked into.

    Attributes:
        image: what the image is called.
        method: name of the method.
        phrase: the text around a class name; its first tokens stand for the learned ones, if any.
        top: the most probable classes of the final prediction.
        uncertainty: of the fused opinion; None without opinions.
        templates: S1 first.
        why: None if there is only one class.
        picture: the image as the model sees it.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    image: str
    method: str
    phrase: str
    top: tuple[Answer, ...]
    uncertainty: float | None
    templates: tuple[Voice, ...]
    why: Why | None
    picture: Image.Image = Field(exclude=True)


def explain(classifier: Classifier, image: ImageSource, name: str | None = None, top: int = 3) -> Explanation:
    """Look inside the prediction for one image.

    Args:
        classifier: with M templates.
        image: what `load_image` takes.
        name: what to call it; None takes a path as it is.
        top: classes and words to show of each template.

    Raises:
        PromptPrismError: the image cannot be read, the answer is not finite, or top is less than 1.
    """
    if top < 1:
        raise PromptPrismError(f"top is {top}: give 1 or more")
    backbone = classifier.backbone
    views = make_views(("test",), backbone.image_size, backbone.mean, backbone.std)(image, 0, 0, 0)
    logits, maps = relevance_maps(classifier, views.unsqueeze(1).to(backbone.device))
    check_finite(logits, [image])
    final = classifier.probabilities(logits)[0]
    if classifier.evidential:
        opinions, fused = classifier.opinions(logits)
        beliefs, uncertainties = opinions.belief[:, 0], opinions.uncertainty[:, 0].tolist()
        belief, uncertainty = fused.belief[0], fused.uncertainty[0].item()
        probabilities = opinions.probability[:, 0]
    else:
        beliefs, uncertainties = None, [None] * len(logits)
        belief, uncertainty = None, None
        probabilities = logits[:, 0].softmax(-1)
    words = _context_words(classifier, top)
    names = classifier.space.names
    return Explanation(
        image=str(image) if name is None else name,
        method=classifier.name,
        phrase=classifier.texts.phrase,
        top=_answers(names, final, belief, top),
        uncertainty=uncertainty,
        templates=tuple(
            Voice(
                top=_answers(names, probabilities[m], None if beliefs is None else beliefs[m], top),
                uncertainty=uncertainties[m],
                words=words[m] if words else (),
                map=tuple(map(tuple, maps[m].tolist())),
            )
            for m in range(len(logits))
        ),
        why=_why(classifier, logits, final),
        picture=_picture(views[0], backbone),
    )


def relevance_maps(classifier: Classifier, views: Tensor) -> tuple[Tensor, Tensor]:
    """Where the templates find what speaks for the predicted class of one image.

    Gradient times patch token, at the door of the last vision block: how far, to first order, each patch
    raises the predicted class's logit above the mean class's. All that a ViT reads of its patches into the
    class token in the last block passes there (where the feature is read from all tokens, the door is that of
    the pooling); gradients further down are noisier, and attention alone does not tell for from against. The
    sign matters: positive patches speak for the class, negative ones against.

    Args:
        classifier: with M templates.
        views: [1, 1, 3, H, W], the plain image.

    Returns:
        Logits [M, 1, K] without gradients, and maps [M, rows, columns], [M, 0, 0] where there are no patches.
    """
    vision = classifier.backbone.vision
    doors: list[Tensor] = []
    here = threading.get_ident()

    def open_door(_module: Any, _inputs: Any, output: Tensor) -> Tensor | None:
        # The block normalises the class token alone too, to ask with; templates may come in several passes.
        if output.shape[1] == 1 or threading.get_ident() != here:  # another thread asks the same tower
            return None
        doors.append(output.detach().requires_grad_())
        return doors[-1]

    handle = None if vision.door is None else vision.door.register_forward_hook(open_door)
    try:
        with torch.enable_grad():
            logits = classifier.logits(views)
    finally:
        if handle is not None:
            handle.remove()
    best = classifier.probabilities(logits.detach())[0].argmax()
    leads = logits[:, 0, best] - logits[:, 0].mean(-1)
    maps = []
    patches = slice(vision.first_patch, vision.tokens)
    for lead in leads if doors else ():
        gradients = torch.autograd.grad(lead, doors, retain_graph=True, materialize_grads=True)
        # Behind the class token come the patches, then the prompts. Other templates' tokens have gradient 0.
        through = [(g * door.detach()).sum((0, -1)) for g, door in zip(gradients, doors, strict=True)]
        maps.append(torch.stack(through).sum(0)[patches].view(vision.grid))
    return logits.detach(), torch.stack(maps) if maps else logits.new_zeros(len(logits), 0, 0)


def nearest_words(backbone: Backbone, context: Tensor, count: int) -> tuple[Word, ...]:
    """The words, or parts of words, of the vocabulary whose embeddings have the highest cosine to a vector.

    As CoOp's authors found (Zhou et al., IJCV 2022), they seldom mean anything: learned vectors lie between
    the words.

    Args:
        backbone: its tokenizer and token embedding are used.
        context: [Dt].
        count: of words.
    """
    embeddings = backbone.text.vocabulary
    cosines = F.cosine_similarity(context.float(), embeddings, dim=-1)
    found: list[Word] = []
    # Some tokens are single bytes or marks, which say nothing to a reader.
    for index in cosines.argsort(descending=True).tolist():
        word = backbone.word(index)
        if word.isprintable() and any(map(str.isalnum, word)) and "<" not in word:
            distance = (context.float() - embeddings[index]).norm().item()
            found.append(Word(word=word, cosine=cosines[index].item(), distance=distance))
        if len(found) == count:
            break
    return tuple(found)


def _context_words(classifier: Classifier, count: int) -> list[tuple[tuple[Word, ...], ...]]:
    """Nearest words of each context token of each template; nothing for methods without a context."""
    if classifier.context is None:
        return []
    return [
        tuple(nearest_words(classifier.backbone, token, count) for token in one) for one in classifier.context
    ]


def _answers(
    names: tuple[str, ...], probabilities: Tensor, beliefs: Tensor | None, count: int
) -> tuple[Answer, ...]:
    places = probabilities.topk(min(count, len(names))).indices.tolist()
    return tuple(
        Answer(
            name=names[place],
            probability=probabilities[place].item(),
            belief=None if beliefs is None else beliefs[place].item(),
        )
        for place in places
    )


def _why(classifier: Classifier, logits: Tensor, final: Tensor) -> Why | None:
    if len(final) < 2:
        return None
    best, names = final.topk(2).indices, classifier.space.names
    if classifier.fusion is not None:
        opinions, fused = classifier.opinions(logits)
        fusion = FUSIONS[classifier.fusion]
        rule, quantity = str(classifier.fusion), fusion.quantity
        own, scores = fusion.contributions(opinions)[:, 0, best], fusion.measure(fused)[0, best]
    else:
        centred = logits[:, 0] - logits[:, 0].mean(-1, keepdim=True)
        rule, quantity = "mean", "logit"
        own, scores = centred[:, best] / len(centred), centred.mean(0)[best]
    first, second = scores.tolist()
    return Why(
        quantity=quantity,
        rule=rule,
        classes=(names[int(best[0])], names[int(best[1])]),
        contributions=tuple((a, b) for a, b in own.tolist()),
        scores=(first, second),
        exact=torch.allclose(own.sum(0), scores, rtol=1e-4, atol=1e-4 * scores.abs().max().item()),
    )


def _picture(view: Tensor, backbone: Backbone) -> Image.Image:
    """An image [3, H, W] as it was before its colours were normalised."""
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (backbone.mean, backbone.std))
    pixels = (view * std + mean).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
