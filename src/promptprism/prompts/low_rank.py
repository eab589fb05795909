"""Low-rank updates of the attention of a frozen tower (LoRA, Hu et al., ICLR 2022)."""

import copy
import math
from functools import partial
from types import SimpleNamespace
from typing import TypeVar

import torch
from torch import Tensor, nn

from promptprism.backbones import Backbone, Tower
from promptprism.backbones.block import AdaptedBlock
from promptprism.errors import PromptPrismError
from promptprism.prompts.learner import own_generators

_Tower = TypeVar("_Tower", bound=Tower)


class LowRankLearner(nn.Module):
    """M updates B A, times alpha / sqrt(r), of the query, key and value matrices of every block of a tower.

    A starts uniform in ±1 / sqrt(D), B at zero: the start is the frozen tower. A of update m starts from
    numbers that depend on (seed, m) alone.

    Args:
        tower: frozen.
        rank: r.
        alpha: decides the size of the update.
        dropout: share of an update's inputs that is left out in training.
        seed: of the start values.
        purpose: what the tower is called, for the start values.
        templates: M.

    Attributes:
        down: A, [M, layers, 3, r, D].
        up: B, [M, layers, 3, D, r].
    """

    def __init__(
        self,
        tower: Tower,
        rank: int,
        alpha: float,
        dropout: float,
        seed: int,
        purpose: str,
        templates: int = 1,
    ) -> None:
        super().__init__()
        shape, bound = (tower.layers, 3, rank, tower.width), tower.width**-0.5
        starts = own_generators(seed, f"low-rank updates of the {purpose} tower", templates)
        downs = [torch.empty(shape).uniform_(-bound, bound, generator=generator) for generator in starts]
        self.down = nn.Parameter(torch.stack(downs))
        self.up = nn.Parameter(torch.zeros(templates, tower.layers, 3, tower.width, rank))
        self.scaling, self.dropout = alpha / math.sqrt(rank), dropout

    def join(self, tower: _Tower, generator: torch.Generator | None) -> _Tower:
        """The tower with all updates beside its matrices, for training: what goes in for one comes out for M.

        Args:
            tower: the frozen one.
            generator: of what is left out; None leaves nothing out.
        """
        return _with_blocks(
            tower,
            [
                AdaptedBlock(block, block.attn, partial(self._update, layer, generator))
                for layer, block in enumerate(tower.blocks)
            ],
        )

    def merge(self, tower: _Tower, template: int) -> _Tower:
        """The tower with one update in its matrices: to predict with it costs nothing more."""
        blocks = []
        for block, up, down in zip(tower.blocks, self.up[template], self.down[template], strict=True):
            frozen = block.attn
            weight = frozen.in_proj_weight + (self.scaling * (up @ down)).flatten(0, 1)
            attention = SimpleNamespace(
                in_proj_weight=weight.detach().to(frozen.in_proj_weight.dtype),
                in_proj_bias=frozen.in_proj_bias,
                num_heads=frozen.num_heads,
                out_proj=frozen.out_proj,
            )
            blocks.append(AdaptedBlock(block, attention))
        return _with_blocks(tower, blocks)

    def _update(self, layer: int, generator: torch.Generator | None, x: Tensor, thirds: range) -> Tensor:
        down, up = (value[:, layer].to(x.dtype) for value in (self.down, self.up))
        parts = []
        for third in thirds:
            shown = x
            if generator is not None and self.dropout:
                shape = len(down), *x.shape[1:]
                kept = torch.rand(shape, generator=generator, device=x.device) >= self.dropout
                shown = x * kept / (1 - self.dropout)
            parts.append(shown @ down[:, third].mT @ up[:, third].mT)
        return self.scaling * torch.cat(parts, dim=-1)


def check_blocks(backbone: Backbone, label: str) -> None:
    """Raise PromptPrismError unless both towers are made of blocks that a method can change."""
    for tower, called in ((backbone.text, "text"), (backbone.vision, "image")):
        if not (tower.layers and tower.plain):
            raise PromptPrismError(
                f"{label.capitalize()} needs towers of open_clip's own attention blocks, and the {called} "
                f"tower of backbone {backbone.name!r} has others: take a CLIP ViT, or learn prompts (maple, "
                "coop)."
            )


def _with_blocks(tower: _Tower, blocks: list[AdaptedBlock]) -> _Tower:
    other = copy.copy(tower)
    other.blocks, other.plain = blocks, True
    return other
