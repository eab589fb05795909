"""A frozen open_clip model, and what the rest of the package may ask of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import open_clip
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn

from promptprism.errors import PromptPrismError

Precision = Literal["float32", "bfloat16"]
Tokenizer = Callable[..., Tensor]


class Backbone(nn.Module):
    """A frozen CLIP with two plain transformer towers, around any open_clip model; see `load_backbone`.

    Parameters never require gradients and the model stays in evaluation mode. The matrix products run in
    `dtype`; layer norms, the residual stream and all features are float32.

    Args:
        model: an open_clip `CLIP` or `CustomTextCLIP`; it is frozen and cast in place,
            and its QuickGELU folded into weights.
        tokenizer: called as `tokenizer(texts, context_length=...)`, gives [N, L].
        name: what the backbone is called in messages and saved files.
        pretrained: open_clip's tag or the path of the weights, if any.
        precision: what the matrix products run in.
        device: where the model goes.

    Attributes:
        name: open_clip's name of the architecture, `"mini"`, `"hf-hub:..."` or `"local-dir:..."`.
        pretrained: open_clip's tag or the path of the weights, None where the name says it all.
        fingerprint: 16 hex digits made from the float32 weights; equal for equal weights at any precision.
        image_size: side of the square input image, pixels.
        embed_dim: size of the common space of image and text features, D.
        text_width: width of the text tower, Dt.
        vision_width: width of the vision tower, Dv.
        text_layers: blocks of the text tower.
        vision_layers: blocks of the vision tower.
        context_length: tokens in one text, [SOS] and [EOT] included, L.
        mean: mean of each colour channel that images are normalised with.
        std: standard deviation of each colour channel that images are normalised with.
        logit_scale: factor from cosine to logit (100 in CLIP).
        activation: `"quick_gelu"` (OpenAI's weights) or `"gelu"`.
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
    ) -> None:
        super().__init__()
        if reason := refusal(model):
            raise PromptPrismError(f"Backbone {name!r} cannot be used: {reason}.")
        if precision not in ("float32", "bfloat16"):
            raise PromptPrismError(f"Unknown precision {precision!r}: use 'float32' or 'bfloat16'.")
        self.model = model.float().eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.pretrained = pretrained
        self.fingerprint = fingerprint(model)
        self.image_size: int = self.visual.image_size[0]
        self.vision_width: int = self.visual.transformer.width
        self.vision_layers: int = self.visual.transformer.layers
        self.embed_dim: int = self.visual.output_dim
        self.text_width: int = self.text.transformer.width
        self.text_layers: int = self.text.transformer.layers
        self.context_length: int = self.text.context_length
        self.mean, self.std = _colour_statistics(self.visual)
        self.logit_scale = float(cast(Tensor, model.logit_scale).exp())
        quick = isinstance(self.visual.transformer.resblocks[0].mlp.gelu, QuickGELU)
        self.activation = "quick_gelu" if quick else "gelu"
        _fold_quick_gelu(model)
        # Cast once here, not by autocast in every step: frozen weights need no float32 copy.
        self._dtype = getattr(torch, precision)
        if self._dtype != torch.float32:
            open_clip.convert_weights_to_lp(model, self._dtype)
        self.to(device)

    @property
    def visual(self) -> Any:
        """The vision tower, an open_clip `VisionTransformer`."""
        return self.model.visual

    @property
    def text(self) -> Any:
        """The module that holds the text tower's parts (of `CLIP` that is the model itself)."""
        return getattr(self.model, "text", self.model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return cast(torch.device, self.text.positional_embedding.device)

    @property
    def dtype(self) -> torch.dtype:
        """What the matrix products run in."""
        return cast(torch.dtype, self._dtype)

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

    def end_positions(self, tokens: Tensor) -> Tensor:
        """Position of [EOT], where the text feature is read: [N] from tokens [N, L]."""
        if _pool_type(self.text) == "argmax":
            return tokens.argmax(dim=-1)
        return (tokens == _end_token(self.text)).int().argmax(dim=-1)

    def extra_repr(self) -> str:
        """One line for people."""
        return f"{self.name}, pretrained={self.pretrained}, {self.activation}, fingerprint={self.fingerprint}"


def fingerprint(model: nn.Module) -> str:
    """16 hex digits of the SHA-256 over the sorted (key, shape, float32 bytes) of the weights."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(memoryview(value.detach().cpu().float().contiguous().numpy()).cast("B"))
    return digest.hexdigest()[:16]


def _fold_quick_gelu(model: nn.Module) -> None:
    """Write x sigmoid(1.702 x) as silu(1.702 x) / 1.702, one kernel, with both factors in frozen weights."""
    for block in model.modules():
        if isinstance(block, ResidualAttentionBlock) and isinstance(block.mlp.gelu, QuickGELU):
            block.mlp.c_fc.weight.data *= 1.702
            block.mlp.c_fc.bias.data *= 1.702
            block.mlp.c_proj.weight.data /= 1.702
            block.mlp.gelu = nn.SiLU()


def refusal(model: nn.Module) -> str | None:
    """Why a model cannot carry prompts, or None if it can."""
    if not isinstance(model, open_clip.CLIP | open_clip.CustomTextCLIP) or isinstance(model, open_clip.CoCa):
        return f"{type(model).__name__} is not one of open_clip's CLIP classes"
    visual, text = model.visual, getattr(model, "text", model)
    if not isinstance(visual, VisionTransformer):
        return f"its vision tower is a {type(visual).__name__}; prompts need open_clip's plain ViT"
    if text is not model and not isinstance(text, TextTransformer):
        return f"its text tower is a {type(text).__name__}; prompts need open_clip's plain text transformer"
    if visual.attn_pool is not None or visual.pool_type != "tok":
        return "its image feature is not read at the class token"
    if text.attn_mask is None or getattr(text, "cls_emb", None) is not None:
        return "its text tower is not causal, so class names cannot share the states of the prompts"
    if _pool_type(text) not in ("argmax", "eos"):
        return f"its text feature is read by {_pool_type(text)!r} pooling instead of at [EOT]"
    if isinstance(text.text_projection, nn.Linear):
        return "its text projection has a bias"
    if model.logit_bias is not None:
        return "it was trained with a sigmoid loss (SigLIP); its logits are no softmax logits"
    blocks = [*visual.transformer.resblocks, *text.transformer.resblocks]
    if any(type(block) is not ResidualAttentionBlock for block in blocks):
        return "its transformer blocks are not open_clip's plain ResidualAttentionBlock"
    return None


def _pool_type(text: Any) -> str:
    return cast(str, text.text_pool_type if hasattr(text, "text_pool_type") else text.pool_type)


def _end_token(text: Any) -> int:
    return cast(int, text.text_eos_id if hasattr(text, "text_eos_id") else text.eos_id)


def _colour_statistics(visual: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    preprocessing = getattr(visual, "preprocess_cfg", {})
    mean = preprocessing.get("mean", open_clip.OPENAI_DATASET_MEAN)
    std = preprocessing.get("std", open_clip.OPENAI_DATASET_STD)
    return tuple(mean), tuple(std)
