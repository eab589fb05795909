"""A frozen two-tower model, and what the rest of the package may ask of it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, cast

import open_clip
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from promptprism.backbones.precision import Precision, choose_precision
from promptprism.backbones.ranks import Ranks
from promptprism.backbones.stems import KeptStems
from promptprism.backbones.text import text_tower
from promptprism.backbones.tower import TextTower, VisionTower
from promptprism.backbones.vision import vision_tower
from promptprism.errors import PromptPrismError

Tokenizer = Callable[..., Tensor]


class Backbone(nn.Module):
    """A frozen vision-language model: an image tower, a text tower, and a scale; see `load_backbone`.

    Parameters never require gradients and the model stays in evaluation mode. The matrix products run in
    `dtype`; layer norms, the residual stream and all features are float32.

    Args:
        model: an open_clip model, or another with `visual`, `text` and `logit_scale`; it is frozen and cast
            in place, and its QuickGELU folded into weights.
        tokenizer: called as `tokenizer(texts, context_length=...)`, gives [N, L].
        name: what the backbone is called in messages and saved files.
        pretrained: open_clip's tag or the path of the weights, if any.
        precision: what the matrix products run in; `"auto"` is what is faster on the device, and safe.
        device: where the model goes.
        fingerprint: of the weights; None computes it.

    Attributes:
        name: open_clip's name of the architecture, `"mini"`, `"hf-hub:..."` or `"local-dir:..."`.
        pretrained: open_clip's tag or the path of the weights, None where the name says it all.
        fingerprint: 16 hex digits made from the float32 weights; equal for equal weights at any precision.
        vision: the image tower; `vision.layers` is 0 where there are no tokens that prompts may join.
        text: the text tower.
        image_size: side of the square input image, pixels.
        embed_dim: size of the common space of image and text features, D.
        text_width: width of the text tower, Dt.
        vision_width: width of the vision tower, Dv.
        text_layers: blocks of the text tower.
        vision_layers: blocks of the vision tower that prompts may enter.
        context_length: tokens in one text, start and end included, L.
        mean: mean of each colour channel that images are normalised with.
        std: standard deviation of each colour channel that images are normalised with.
        logit_scale: factor from cosine to logit (100 in CLIP).
        logit_bias: added to all logits; 0 but for models that were trained with a sigmoid loss (SigLIP).
        few_names: whether the text tower was taught so few names that classes had better learn their place.
        dtype: what the matrix products run in.
        activation: `"quick_gelu"` (OpenAI's weights) or `"gelu"`.
        stems: those that are kept, where views repeat; None keeps none.
        ranks: the processes that its work in a training step is split over, if there are several.

    Raises:
        PromptPrismError: the model is of a kind that is not known.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        name: str = "custom",
        pretrained: str | None = None,
        precision: Precision = "float32",
        device: str | torch.device = "cpu",
        fingerprint: str | None = None,
    ) -> None:
        super().__init__()
        if not all(hasattr(model, part) for part in ("visual", "logit_scale")):
            raise PromptPrismError(
                f"Backbone {name!r} cannot be used: {type(model).__name__} is not one of open_clip's CLIP "
                "classes, nor has it a 'visual' and a 'logit_scale'."
            )
        visual = cast(nn.Module, model.visual)
        vision, text = vision_tower(visual), text_tower(model, getattr(tokenizer, "context_length", None))
        for refusal in (vision, text):
            if isinstance(refusal, str):
                raise PromptPrismError(f"Backbone {name!r} cannot be used: {refusal}.")
        self.model = model.float().eval().requires_grad_(False)
        self.vision, self.text = cast(VisionTower, vision), cast(TextTower, text)
        self.tokenizer = tokenizer
        self.name = name
        self.pretrained = pretrained
        self.fingerprint = fingerprint or fingerprint_of(model)
        self.image_size = self.vision.image_size
        self.vision_width, self.vision_layers = self.vision.width, self.vision.layers
        self.text_width, self.text_layers = self.text.width, self.text.layers
        self.embed_dim = self.text.embed_dim
        self.context_length = self.text.context_length
        self.mean, self.std = _colour_statistics(visual)
        self.logit_scale = float(cast(Tensor, model.logit_scale).exp())
        bias = getattr(model, "logit_bias", None)
        self.few_names = bool(getattr(model, "few_names", False))
        self.logit_bias = 0.0 if bias is None else float(bias)
        self.ranks: Ranks | None = None
        self.stems: KeptStems | None = None
        self.activation = "quick_gelu" if _fold_quick_gelu(model) else "gelu"
        # Cast once here, not by autocast in every step: frozen weights need no float32 copy.
        chosen = choose_precision(precision, torch.device(device), self.width)
        self.dtype: torch.dtype = getattr(torch, chosen)
        self.vision.cast(self.dtype)
        self.text.cast(self.dtype)
        self.to(device)

    def __repr__(self) -> str:
        return f"<backbone {self.name!r}, {self.fingerprint}>"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return cast(Tensor, self.model.logit_scale).device

    @property
    def width(self) -> int:
        """Width of the wider tower."""
        return max(self.text_width, self.vision_width)

    @property
    def prompt_layers(self) -> int:
        """Layers that prompts may enter, of both towers where both have tokens."""
        return min(self.text_layers, self.vision_layers or self.text_layers)

    def with_towers(self, text: TextTower, vision: VisionTower) -> Backbone:
        """This backbone with other towers; weights are shared, and this one stays as it is."""
        other = copy.copy(self)
        other.text, other.vision, other.stems = text, vision, None
        return other

    @contextmanager
    def keeping_stems(self) -> Iterator[None]:
        """Keep stems meanwhile: for work that looks at the same views again."""
        before, self.stems = self.stems, self.stems or KeptStems()
        try:
            yield
        finally:
            self.stems = before

    def logits(self, image: Tensor, text: Tensor) -> Tensor:
        """Logits [.., B, K] of normalised image features [.., B, D] and text features [.., K, D].

        For a model that was trained with a sigmoid loss they are its own too, bias included; probabilities
        are the softmax over the label space nevertheless, which the bias does not change.
        """
        return self.logit_scale * (image @ text.transpose(-1, -2)) + self.logit_bias

    def train(self, mode: bool = True) -> Backbone:  # noqa: ARG002
        """Stay in evaluation mode: a frozen model has no other."""
        return super().train(False)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Turn texts into tokens [N, L] on the backbone's device.

        Raises:
            PromptPrismError: a text does not fit into the context.
        """
        length = self.context_length
        # One column more than fits: open_clip's tokenizers cut long texts without a word.
        wide = self.tokenizer([*texts, ""], context_length=length + 1)
        padding = wide[-1, length]
        for text, last in zip(texts, wide[:-1, length], strict=True):
            if last != padding:
                shown = text if len(text) <= 80 else text[:77] + "..."
                raise PromptPrismError(
                    f"Text too long: {shown!r} does not fit into the {length} tokens of backbone "
                    f"{self.name!r}. Shorten the class name or the phrase."
                )
        return wide[:-1, :length].to(self.device)

    @cached_property
    def first_word(self) -> int:
        """Position of the first word's token in a text: 1 behind a start token, 0 where there is none."""
        one, other = self.tokenize(["a", "the"])
        return int((one != other).int().argmax())

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, start and end not counted."""
        rows = self.tokenize([text, ""])
        places = torch.arange(1, rows.shape[1] + 1, device=rows.device)
        length, nothing = ((rows != rows[1, -1]) * places).amax(-1).tolist()
        return int(length) - int(nothing)

    def word(self, token: int) -> str:
        """A token as people write it."""
        tokenizer: Any = self.tokenizer
        decode = tokenizer.decode if hasattr(tokenizer, "decode") else tokenizer.tokenizer.decode
        return str(decode([token])).strip()

    def __sklearn_clone__(self) -> Backbone:
        """It is frozen: clones of an estimator share it."""
        return self

    def extra_repr(self) -> str:
        """One line for people."""
        return f"{self.name}, pretrained={self.pretrained}, {self.activation}, fingerprint={self.fingerprint}"


def fingerprint_of(model: nn.Module) -> str:
    """16 hex digits of the SHA-256 over the sorted (key, shape, float32 bytes) of the weights."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(memoryview(value.detach().cpu().float().contiguous().numpy()).cast("B"))
    return digest.hexdigest()[:16]


def _fold_quick_gelu(model: nn.Module) -> bool:
    """Write x sigmoid(1.702 x) as silu(1.702 x) / 1.702, one kernel, with both factors in frozen weights.

    Returns:
        Whether there was any.
    """
    found = False
    for block in model.modules():
        if isinstance(block, ResidualAttentionBlock) and isinstance(block.mlp.gelu, QuickGELU):
            block.mlp.c_fc.weight.data *= 1.702
            block.mlp.c_fc.bias.data *= 1.702
            block.mlp.c_proj.weight.data /= 1.702
            block.mlp.gelu = nn.SiLU()
            found = True
    return found


def _colour_statistics(visual: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    preprocessing = getattr(visual, "preprocess_cfg", {})
    mean = preprocessing.get("mean", open_clip.OPENAI_DATASET_MEAN)
    std = preprocessing.get("std", open_clip.OPENAI_DATASET_STD)
    return tuple(mean), tuple(std)
