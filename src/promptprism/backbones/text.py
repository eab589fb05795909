"""Text towers: open_clip's transformer in all its forms, and those of Hugging Face."""

import threading
from functools import partial
from typing import Any, cast

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from promptprism.backbones.tower import Reads, TextTower, put

_READS: dict[str, Reads] = {
    "argmax": "end of text",
    "eos": "end of text",
    "last": "position",
    "first": "position",
}


def text_tower(model: nn.Module, context_length: int | None = None) -> TextTower | str:
    """The text tower of a model, or why it cannot be used.

    Args:
        model: with a text tower as `text`, or open_clip's `CLIP`, which holds the parts itself.
        context_length: of the tokenizer, where the tower does not say.
    """
    text = getattr(model, "text", model)
    if isinstance(text, HFTextEncoder):
        return HuggingFaceText(text, context_length or open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    if not isinstance(text, open_clip.CLIP | TextTransformer):
        return f"its text tower is a {type(text).__name__}, which is not known"
    if _pool_type(text) not in _READS:
        return f"its text feature is read by {_pool_type(text)!r} pooling"
    return OpenClipText(text)


class OpenClipText(TextTower):
    """open_clip's text transformer: causal or not, read at the end of text, at a position, or a class token.

    Args:
        text: a `TextTransformer`, or the `CLIP` that holds its parts.
    """

    def __init__(self, text: Any) -> None:
        self._text = text
        self.blocks = text.transformer.resblocks
        self.width = text.transformer.width
        self.heads = self.blocks[0].attn.num_heads
        self.context_length = text.context_length
        self.token_embedding = text.token_embedding
        self._class_token = getattr(text, "cls_emb", None) is not None
        self._pool = _pool_type(text)
        self.reads = "class token" if self._class_token else _READS[self._pool]
        self.causal = self.plain and text.attn_mask is not None and self.reads == "end of text"
        projection = text.text_projection
        if projection is None:
            self.embed_dim = self.width
        else:
            linear = isinstance(projection, nn.Linear)
            self.embed_dim = projection.out_features if linear else projection.shape[1]

    def cast(self, dtype: torch.dtype) -> None:
        """Run the matrix products in this precision."""
        self.dtype = dtype
        if dtype != torch.float32:
            if self.plain:
                open_clip.convert_weights_to_lp(self._text.transformer, dtype)
            projection = self._text.text_projection
            if projection is not None:
                for value in (
                    [projection] if isinstance(projection, nn.Parameter) else projection.parameters()
                ):
                    value.data = value.data.to(dtype)

    def run(self, tokens: Tensor, prompts: Tensor | None, first: int) -> Tensor:
        """Features [N, D] of tokens [N, L]."""
        text = self._text
        x = put(self.token_embedding(tokens), prompts, 0, first)
        if self._class_token:
            x = torch.cat([x, text.cls_emb.expand(len(x), 1, -1)], dim=1)
        x = x + text.positional_embedding[: x.shape[1]]
        mask = self._mask(tokens, x.shape[1])
        for layer in range(self.layers):
            if layer:
                x = put(x, prompts, layer, first)
            x = self.run_block(layer, x.unsqueeze(0), mask)[0]
        if self._class_token or self._pool == "last":
            x = x[:, -1]
        elif self._pool == "first":
            x = x[:, 0]
        else:
            x = x[torch.arange(len(x), device=x.device), self._end_of_text(tokens)]
        return self.read(x)

    def end(self, tokens: Tensor) -> Tensor:
        """Position of the last token that the feature depends on, [N] of tokens [N, L]."""
        return self._end_of_text(tokens) if self.causal else super().end(tokens)

    def positions(self, start: int, stop: int) -> Tensor:
        """Position embeddings [stop - start, D]."""
        return cast(Tensor, self._text.positional_embedding[start:stop])

    def read(self, x: Tensor) -> Tensor:
        """Features [.., D] of the states that are read, [.., Dt]."""
        x = cast(Tensor, self._text.ln_final(x))
        projection: nn.Parameter | nn.Linear | None = self._text.text_projection
        if projection is None:
            return x
        x = x.to(self.dtype)
        projected: Tensor = projection(x) if isinstance(projection, nn.Linear) else x @ projection
        return projected.float()

    def _end_of_text(self, tokens: Tensor) -> Tensor:
        if self._pool == "argmax":
            return tokens.argmax(dim=-1)
        text = self._text
        end = text.text_eos_id if hasattr(text, "text_eos_id") else text.eos_id
        return cast(Tensor, (tokens == end).int().argmax(dim=-1))

    def _mask(self, tokens: Tensor, length: int) -> Tensor | None:
        text = self._text
        mask = None if text.attn_mask is None else text.attn_mask[:length, :length]
        if self._class_token or getattr(text, "use_pad_mask", False):
            padding = text._build_additive_mask(tokens, length, torch.float32)[:: self.heads]
            mask = padding if mask is None else mask + padding
        if mask is not None and not self.plain and mask.ndim == 3:
            mask = mask.repeat_interleave(self.heads, 0)
        return None if mask is None else mask.to(self.dtype if self.plain else torch.float32)


class HuggingFaceText(TextTower):
    """A text encoder of Hugging Face, run by its own code: prompts are put into what passes between modules.

    Args:
        text: open_clip's wrapper.
        context_length: what the tokenizer cuts texts to.
    """

    causal = False

    def __init__(self, text: HFTextEncoder, context_length: int) -> None:
        self._text: Any = text
        encoder = text.transformer
        self.token_embedding = encoder.get_input_embeddings()
        # The first list of modules that is met is the outermost one: the layers.
        self.blocks = next(list(each) for each in encoder.modules() if isinstance(each, nn.ModuleList))
        config = text.config
        self.width = encoder.get_input_embeddings().embedding_dim
        self.heads = config.num_attention_heads
        self.context_length = context_length
        self.embed_dim = text.output_dim
        self.reads = "class token" if type(text.pooler).__name__.startswith("Cls") else "mean"
        self._lock = threading.RLock()

    def run(self, tokens: Tensor, prompts: Tensor | None, first: int) -> Tensor:
        """Features [N, D] of tokens [N, L]."""

        def embed(_module: nn.Module, _inputs: Any, x: Tensor) -> Tensor:
            return put(x, prompts, 0, first)

        def enter(layer: int, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return put(inputs[0], prompts, layer, first), *inputs[1:]

        deep = 0 if prompts is None else min(prompts.shape[1], self.layers)
        with self._lock:  # hooks are seen by all threads
            handles = [self.token_embedding.register_forward_hook(embed)]
            for layer in range(1, deep):
                handles.append(self.blocks[layer].register_forward_pre_hook(partial(enter, layer)))
            try:
                with self.autocast(tokens.device):
                    feature = self._text(tokens)
            finally:
                for handle in handles:
                    handle.remove()
        return cast(Tensor, feature[0] if isinstance(feature, tuple) else feature).float()


def _pool_type(text: Any) -> str:
    return cast(str, text.text_pool_type if hasattr(text, "text_pool_type") else text.pool_type)
