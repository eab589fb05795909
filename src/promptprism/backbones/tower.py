"""What a backbone must say of its two towers, so that prompts can enter them and nothing else need know them.

A tower is read from a frozen model and holds no weights of its own. Prompts stand *behind* an image's tokens,
and *in place of* the first words of a text (MaPLe, Khattak et al., CVPR 2023).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, cast

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from promptprism.backbones.block import run_block

Reads = Literal["class token", "end of text", "position", "mean", "attention", "convolution"]


class Tower(ABC):
    """What both towers say.

    Attributes:
        width: of a token's state, D; 0 where there are no tokens.
        heads: of attention.
        blocks: the transformer blocks, in their order; none where prompts have no place.
        reads: where the feature is read.
        dtype: what the matrix products run in.
    """

    width: int
    heads: int
    blocks: Sequence[Any]
    reads: Reads
    dtype = torch.float32

    @property
    def layers(self) -> int:
        """Number of blocks; prompts may enter before each."""
        return len(self.blocks)

    @cached_property
    def plain(self) -> bool:
        """Whether all blocks are open_clip's `ResidualAttentionBlock`, which `run_block` computes."""
        return all(type(block) is ResidualAttentionBlock for block in self.blocks)

    @cached_property
    def block_weights(self) -> int:
        """Numbers in the matrices of one block: half the operations that a token takes there."""
        parameters = self.blocks[0].parameters() if self.blocks else ()
        return sum(value.numel() for value in parameters if value.ndim > 1)

    def cast(self, dtype: torch.dtype) -> None:
        """Run the matrix products in this precision from now on; norms and states stay float32."""
        self.dtype = dtype

    def autocast(self, device: torch.device) -> torch.autocast:
        """Where a model's own modules run in the tower's precision, with weights that are float32."""
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)

    def run_block(self, layer: int, x: Tensor, mask: Tensor | None = None, **context: Any) -> Tensor:
        """Run a block on states [M, N, S, D], float32 in and out; other than plain blocks by their own code.

        Args:
            layer: from 0.
            x: the states.
            mask: added to the attention scores, [S, S] or [N, S, S].
            context: what else the block's own code takes.
        """
        if self.plain:
            return run_block(self.blocks[layer], x, mask=mask)[0]
        if mask is not None:
            context["attn_mask"] = mask
        with self.autocast(x.device):
            out: Tensor = self.blocks[layer](x.flatten(0, 1), **context)
        return out.float().view_as(x)


class VisionTower(Tower):
    """A frozen image tower.

    Attributes:
        image_size: side of the square input, pixels.
        grid: rows and columns of patches; (0, 0) where there are no tokens that prompts may join.
        first_patch: number of tokens that stand before the patches.
        norm: what the class token's state passes before its projection; None where the feature is another.
        door: the module whose output, [N, S, D], all passes through that the feature takes of the patches;
            None without patches.
    """

    image_size: int
    grid: tuple[int, int]
    first_patch: int
    norm: nn.Module | None = None
    door: nn.Module | None

    @property
    def tokens(self) -> int:
        """Number of tokens of one image, S, prompts not counted."""
        return self.first_patch + self.grid[0] * self.grid[1]

    @property
    def reads_one(self) -> bool:
        """Whether plain blocks need give nothing but the class token, the first."""
        return self.plain and self.reads == "class token"

    def plain_patches(self, count: int) -> bool:
        """Whether there are so many patches, and a plain block takes any of them, in any number."""
        return self.plain and self.tokens - self.first_patch >= count

    @abstractmethod
    def stem(self, images: Tensor) -> Tensor:
        """States [N, S, D] of images [N, 3, H, W] before the first block, or before `read` without blocks."""

    def enter(self, prompts: Tensor) -> Tensor:
        """What happens to a token between its position and the first block, such as a first norm."""
        return prompts

    def run(self, layer: int, x: Tensor) -> Tensor:
        """Run a block on states [M, N, S, D]; the last one at the class token only, where `reads_one`."""
        if self.reads_one and layer == self.layers - 1:
            return run_block(self.blocks[layer], x, queries=x[:, :, :1])[0]
        return self.run_block(layer, x)

    @abstractmethod
    def read(self, x: Tensor) -> Tensor:
        """Features [M, N, D] of what the last block gave, float32, not normalised."""

    @cached_property
    def stem_flops(self) -> float:
        """Floating-point operations of the stem, and without blocks of the whole tower, for one image."""
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.utils.flop_counter import FlopCounterMode

        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
            self.stem(torch.zeros(1, 3, self.image_size, self.image_size))
        return float(counter.get_total_flops())


class TextTower(Tower):
    """A frozen text tower.

    Attributes:
        context_length: tokens in one text, L.
        embed_dim: size of the feature.
        token_embedding: from tokens to vectors [.., D], positions not in them.
        causal: whether a token sees those before it only, and the feature is read at an end-of-text token, on
            plain blocks: the shortcuts of `prompts.text` are exact then, and only then.
    """

    context_length: int
    embed_dim: int
    token_embedding: nn.Module
    causal: bool

    @property
    def vocabulary(self) -> Tensor:
        """The embeddings of all tokens, [V, D], as `token_embedding` gives them."""
        weight = cast(Tensor, self.token_embedding.weight)
        with torch.no_grad():
            return cast(Tensor, self.token_embedding(torch.arange(len(weight), device=weight.device))).float()

    @abstractmethod
    def run(self, tokens: Tensor, prompts: Tensor | None, first: int) -> Tensor:
        """The plain forward: features [N, D] of tokens [N, L], not normalised.

        Args:
            tokens: of whole contexts.
            prompts: [N, J, n, Dt]: the first of the J stand in place of the token embeddings at n positions,
                the others in place of the states there before the layers 2..J.
            first: the first of the positions.
        """

    def end(self, tokens: Tensor) -> Tensor:
        """Position of the last token that the feature depends on, [N] of tokens [N, L]."""
        return torch.full_like(tokens[:, 0], tokens.shape[1] - 1)

    def positions(self, start: int, stop: int) -> Tensor:
        """Position embeddings [stop - start, D], added to the token embeddings; of causal towers only."""
        raise NotImplementedError

    def read(self, x: Tensor) -> Tensor:
        """Features [.., D] of states at the end of text [.., Dt], float32; of causal towers only."""
        raise NotImplementedError


def put(x: Tensor, prompts: Tensor | None, layer: int, first: int) -> Tensor:
    """States [N, S, D] with the prompts of a layer, of [N, J, n, D], in place of those from `first` on."""
    if prompts is None or layer >= prompts.shape[1]:
        return x
    behind = x[:, first + prompts.shape[2] :]
    return torch.cat([x[:, :first], prompts[:, layer].to(x.dtype), behind], dim=1)
