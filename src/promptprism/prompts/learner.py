"""What prompt methods learn: context tokens, and their maps into the vision tower."""

import math
import random

import torch
from torch import Tensor, nn

from promptprism.backbones import Backbone
from promptprism.errors import PromptPrismError

_DEEP_PROMPT_STD = 0.02


class PromptLearner(nn.Module):
    """M templates of n context tokens for each of J layers, coupled to the vision tower or not.

    One coupled template is MaPLe's learner (Khattak et al., CVPR 2023), one uncoupled template of depth 1 is
    CoOp's (Zhou et al., IJCV 2022). Template m starts from numbers that depend on (seed, m) alone.

    Args:
        backbone: gives all sizes, the device and the embeddings of the phrase; it is not kept.
        templates: M.
        context_length: n.
        depth: J; layer 1 takes the context itself, layers 2..J further prompts that start from N(0, 0.02).
        coupled: learn a linear map per layer from text to vision prompts; those of layers 2..J start equal.
        vision_from: number of vision layers below the first prompts, L0; layers L0 + 1..J get a map.
        vision_tokens: m, vision prompts of each layer that are learned apart, if not coupled; 0 is none.
        vision_depth: layers with such prompts, L0 not counted; None is J.
        learn_text: if False there is no context (J is 0 for the text), only vision prompts are learned.
        phrase: text with {} for the class; its first n tokens become the context and are its start.
        phrase_init: if False the context starts from N(0, 0.02) and stands before the bare class name.
        seed: of the start values.

    Attributes:
        context: [M, J, n, Dt].
        to_vision_weight: [M, J - L0, Dv, Dt] if coupled.
        to_vision_bias: [M, J - L0, Dv] if coupled.
        vision: prompts that are learned apart, [M, layers, m, Dv], if there are.
        phrase: the text to tokenise; its first n tokens are placeholders.

    Raises:
        PromptPrismError: the backbone has fewer than J layers, or the phrase fewer than n tokens before {}.
    """

    context: Tensor
    to_vision_weight: nn.Parameter | None
    to_vision_bias: nn.Parameter | None
    vision: nn.Parameter | None

    def __init__(
        self,
        backbone: Backbone,
        *,
        templates: int = 1,
        context_length: int = 2,
        depth: int = 1,
        coupled: bool = False,
        vision_from: int = 0,
        vision_tokens: int = 0,
        vision_depth: int | None = None,
        learn_text: bool = True,
        phrase: str = "a photo of a {}.",
        phrase_init: bool = True,
        seed: int = 1,
    ) -> None:
        super().__init__()
        if (coupled or vision_tokens) and not backbone.vision_layers:
            raise PromptPrismError(
                f"The image tower of backbone {backbone.name!r} has no tokens that prompts may join: learn "
                "prompts for the texts alone, with coupled=False (coop does)."
            )
        layers = min(backbone.text_layers, backbone.vision_layers) if coupled else backbone.text_layers
        if depth > layers:
            raise PromptPrismError(
                f"Prompt depth {depth} is more than the {layers} layers of backbone {backbone.name!r}: "
                f"set depth to {layers} or less."
            )
        if not 0 <= vision_from < depth:
            raise PromptPrismError(
                f"vision_from={vision_from} leaves no layer with vision prompts at depth {depth}: "
                f"set vision_from to {depth - 1} or less."
            )
        if coupled and vision_tokens:
            raise PromptPrismError(
                f"vision_tokens={vision_tokens} asks for vision prompts that are learned apart, coupled=True "
                "for such as are made of the text's: set coupled=False, or vision_tokens=0."
            )
        vision_depth = depth - vision_from if vision_depth is None else vision_depth
        if vision_tokens and vision_from + vision_depth > backbone.vision_layers:
            raise PromptPrismError(
                f"Vision prompts {vision_depth} layers deep, from layer {vision_from + 1}, are more than the "
                f"{backbone.vision_layers} layers of backbone {backbone.name!r}: set a smaller vision_depth."
            )
        self.vision_from = vision_from
        self.phrase = phrase if phrase_init else " ".join(["X"] * context_length + ["{}."])
        before_class = self.phrase.partition("{}")[0]
        words = backbone.tokenize([before_class])[0, backbone.first_word :]
        if backbone.count_tokens(before_class) < context_length:
            raise PromptPrismError(
                f"The phrase {phrase!r} has fewer than context_length={context_length} tokens before the "
                "class name: set a smaller context_length or phrase_init=False."
            )
        start = backbone.text.token_embedding(words[:context_length]).cpu()
        text_width, vision_width, device = backbone.text_width, backbone.vision_width, backbone.device
        shape = (depth, context_length, text_width)
        contexts, weights, biases, visions = [], [], [], []
        for template in range(templates):
            generator = local_generator(seed, f"prompts of template {template}")
            context = torch.randn(shape, generator=generator) * _DEEP_PROMPT_STD
            if phrase_init:
                context[0] = start
            contexts.append(context)
            if coupled:
                # The first layer has a Linear of its own, the others start as copies of a second one.
                maps = [linear_start(text_width, vision_width, generator) for _ in range(2)]
                copies = [maps[min(layer, 1)] for layer in range(vision_from, depth)]
                weights.append(torch.stack([weight for weight, _ in copies]))
                biases.append(torch.stack([bias for _, bias in copies]))
            if vision_tokens:
                size = (vision_depth, vision_tokens, vision_width)
                visions.append(torch.randn(size, generator=generator) * _DEEP_PROMPT_STD)
        stacked = torch.stack(contexts).to(device)
        if learn_text:
            self.context = nn.Parameter(stacked)
        else:
            self.register_buffer("context", stacked[:, :0], persistent=False)
        self.vision = nn.Parameter(torch.stack(visions).to(device)) if visions else None
        self.to_vision_weight = nn.Parameter(torch.stack(weights).to(device)) if coupled else None
        self.to_vision_bias = nn.Parameter(torch.stack(biases).to(device)) if coupled else None

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """Give text prompts [M, J, n, Dt], and vision prompts [M, layers, n or m, Dv] or None."""
        if self.vision is not None:
            return self.context, self.vision
        if self.to_vision_weight is None or self.to_vision_bias is None:
            return self.context, None
        vision = self.context[:, self.vision_from :] @ self.to_vision_weight.transpose(-1, -2)
        return self.context, vision + self.to_vision_bias.unsqueeze(2)


def local_generator(seed: int, purpose: str, device: str | torch.device = "cpu") -> torch.Generator:
    """Make a generator from (seed, purpose): the same numbers, whatever was drawn before, on like devices."""
    return torch.Generator(device).manual_seed(random.Random(f"{purpose} {seed}").getrandbits(63))


def own_generators(seed: int, purpose: str, templates: int) -> list[torch.Generator]:
    """A generator for each template, by (seed, purpose, template)."""
    return [local_generator(seed, f"{purpose}, template {m}" if m else purpose) for m in range(templates)]


def linear_start(inputs: int, outputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw weight [outputs, inputs] and bias [outputs] as `nn.Linear` does, but from a local generator."""
    bound = 1 / math.sqrt(inputs)
    weight = torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator)
    return weight, torch.empty(outputs).uniform_(-bound, bound, generator=generator)
