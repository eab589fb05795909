"""Image towers: open_clip's ViT, timm's transformers, and convolutional networks."""

import math
from typing import Any, cast

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import EvaBlockPostNorm
from torch import Tensor, nn
from torch.nn import functional as F

from promptprism.backbones.tower import VisionTower


def vision_tower(visual: nn.Module) -> VisionTower | str:
    """The tower of a vision module, or why it cannot be used."""
    height, width = _pair(getattr(visual, "image_size", 0))
    if height != width or not height:
        return f"its images are {height} x {width} pixels; they must be square"
    if getattr(visual, "attn_pool_contrastive", None) is not None:
        return f"its image feature is read by {visual.attn_pool_type!r} attention, unfinished in open_clip"
    if isinstance(visual, VisionTransformer):
        tower: VisionTower = OpenClipVit(visual)
    elif isinstance(visual, TimmModel) and hasattr(visual.trunk, "blocks") and _is_transformer(visual.trunk):
        tower = TimmVit(visual)
    elif all(hasattr(visual, part) for part in ("stem", "blocks", "read")):
        tower = StagedVit(visual)
    else:
        tower = Whole(visual)
    tower.image_size = height
    return tower


class OpenClipVit(VisionTower):
    """open_clip's ViT, read at the class token, as the mean of the patches, or by attention (CoCa)."""

    def __init__(self, visual: Any) -> None:
        self._visual = visual
        self.blocks = visual.transformer.resblocks
        self.width = visual.transformer.width
        self.heads = self.blocks[0].attn.num_heads
        self.grid = visual.grid_size
        self.first_patch = 1
        if visual.attn_pool is not None:
            self.reads = "attention"
            self.door = visual.attn_pool.ln_k
        elif visual.pool_type == "avg":
            self.reads = "mean"
            self.door = nn.Identity() if visual.final_ln_after_pool else visual.ln_post
        else:
            self.reads, self.norm = "class token", visual.ln_post
            self.door = self.blocks[-1].ln_1

    def cast(self, dtype: torch.dtype) -> None:
        """Run the matrix products in this precision."""
        self.dtype = dtype
        if dtype != torch.float32 and self.plain:
            open_clip.convert_weights_to_lp(self._visual, dtype)

    def stem(self, images: Tensor) -> Tensor:
        """States [N, S, D]: class token, then patches."""
        visual = self._visual
        patches = visual.conv1(images.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        # Not len(): a graph that is traced would keep it as a constant.
        class_token = visual.class_embedding.expand(patches.shape[0], 1, -1)
        x = torch.cat([class_token, patches.float()], dim=1) + visual.positional_embedding
        return cast(Tensor, visual.ln_pre(x))

    def enter(self, prompts: Tensor) -> Tensor:
        """The first norm."""
        return cast(Tensor, self._visual.ln_pre(prompts))

    def read(self, x: Tensor) -> Tensor:
        """Features [M, N, D]."""
        visual = self._visual
        if self.reads_one:
            return cast(Tensor, visual.ln_post(x.squeeze(2)).to(self.dtype) @ visual.proj).float()
        if isinstance(self.door, nn.Identity):
            x = self.door(x.flatten(0, 1)).view_as(x)
        with self.autocast(x.device):
            feature = visual._pool(x.flatten(0, 1))[0] @ visual.proj
        return cast(Tensor, feature).float().view(*x.shape[:2], -1)


class StagedVit(VisionTower):
    """A ViT of plain blocks that itself has `stem`, `blocks`, and `read` for the class token's state."""

    reads = "class token"
    first_patch = 1

    def __init__(self, visual: Any) -> None:
        self._visual = visual
        self.blocks = visual.blocks
        self.width = visual.width
        self.heads = visual.heads
        side = math.isqrt(visual.tokens - 1)
        self.grid = (side, side)
        self.norm = getattr(visual, "ln_post", None)
        self.door = self.blocks[-1].ln_1

    def cast(self, dtype: torch.dtype) -> None:
        """Run the matrix products in this precision."""
        self.dtype = dtype
        if dtype != torch.float32:
            open_clip.convert_weights_to_lp(self._visual, dtype)

    def stem(self, images: Tensor) -> Tensor:
        """States [N, S, D]: class token, then patches."""
        return cast(Tensor, self._visual.stem(images))

    def read(self, x: Tensor) -> Tensor:
        """Features [M, N, D]."""
        return cast(Tensor, self._visual.read(x.squeeze(2))).float()


class TimmVit(VisionTower):
    """timm's `VisionTransformer`, `Eva` and `VisionTransformerRelPos`, by their own modules."""

    def __init__(self, visual: Any) -> None:
        self._visual = visual
        self._trunk = trunk = visual.trunk
        self.blocks = trunk.blocks
        self.width = trunk.embed_dim
        self.heads = self.blocks[0].attn.num_heads
        self.grid = tuple(trunk.patch_embed.grid_size)
        self.first_patch = trunk.num_prefix_tokens
        for block in self.blocks:
            if getattr(block.attn, "rel_pos", None) is not None:
                block.attn.rel_pos, block.attn.fused_attn = _Unplaced(block.attn.rel_pos), False
        if getattr(trunk, "attn_pool", None) is not None:
            self.reads = "attention"
        else:
            self.reads = "class token" if trunk.global_pool == "token" else "mean"
        if self.reads != "class token":
            self.door = trunk.norm
        elif isinstance(self.blocks[-1], EvaBlockPostNorm):  # attention reads what comes in, without a norm
            self.door = self.blocks[-2]
        else:
            self.door = self.blocks[-1].norm1

    def stem(self, images: Tensor) -> Tensor:
        """States [N, S, D]: class and register tokens, if any, then patches."""
        trunk = self._trunk
        with self.autocast(images.device):
            x = trunk.patch_embed(images)
            if not hasattr(trunk, "_pos_embed"):  # positions are in the attention
                tokens = [] if trunk.cls_token is None else [trunk.cls_token.expand(x.shape[0], -1, -1)]
                return torch.cat([*tokens, x], dim=1).float()
            x = trunk._pos_embed(x)
            x = x[0] if isinstance(x, tuple) else x
            return cast(Tensor, trunk.norm_pre(x)).float()

    def enter(self, prompts: Tensor) -> Tensor:
        """The first norm."""
        return cast(Tensor, self._trunk.norm_pre(prompts)) if hasattr(self._trunk, "norm_pre") else prompts

    def run(self, layer: int, x: Tensor) -> Tensor:
        """Run a block on states [M, N, S, D]."""
        if getattr(self._trunk, "rope", None) is None:
            return self.run_block(layer, x)
        return self.run_block(layer, x, rope=self._rotation(layer, x.shape[2]))

    def read(self, x: Tensor) -> Tensor:
        """Features [M, N, D]."""
        with self.autocast(x.device):
            feature = self._visual.head(self._trunk.forward_head(self._trunk.norm(x.flatten(0, 1))))
        return cast(Tensor, feature).float().view(*x.shape[:2], -1)

    def _rotation(self, layer: int, tokens: int) -> Tensor:
        """Rotary embedding, sine and cosine, of patches and of prompts behind them: theirs turns nothing."""
        rope = self._trunk.rope
        shape = None if hasattr(rope, "feat_shape") else self.grid
        embedding: Tensor = rope.get_embed() if shape is None else rope.get_embed(shape=shape)
        if getattr(self._trunk, "rope_mixed", False):
            embedding = embedding[layer]
        sine, cosine = embedding.chunk(2, -1)
        behind = (0, 0, 0, tokens - self.tokens)
        return torch.cat([F.pad(sine, behind), F.pad(cosine, behind, value=1.0)], dim=-1)


class _Unplaced(nn.Module):
    """Relative position bias for a window and for tokens behind it that have no place: theirs is 0."""

    def __init__(self, bias: Any) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, scores: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:  # noqa: ARG002
        bias = self.bias.get_bias()
        behind = scores.shape[-1] - bias.shape[-1]
        return scores + F.pad(bias, (0, behind, 0, behind))


class Whole(VisionTower):
    """A tower without tokens that prompts may join: convolutions, or attention in windows. Run as it is."""

    reads = "convolution"
    width, heads, blocks, grid, first_patch, door = 0, 0, (), (0, 0), 0, None

    def __init__(self, visual: nn.Module) -> None:
        self._visual = visual

    def stem(self, images: Tensor) -> Tensor:
        """Features [N, 1, D]."""
        with self.autocast(images.device):
            out = self._visual(images)
        return cast(Tensor, out).float().unsqueeze(1)

    def read(self, x: Tensor) -> Tensor:
        """Features [M, N, D]."""
        return x.squeeze(2)


def _is_transformer(trunk: Any) -> bool:
    """Whether all tokens meet in plain blocks; tokens in windows, or at several sizes, do not."""
    return type(trunk).__name__ in ("VisionTransformer", "Eva", "VisionTransformerRelPos")


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
