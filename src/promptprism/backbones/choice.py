"""Which backbone is meant: by name, by the data, or by a card that somebody else may have written."""

from typing import Any

import open_clip

from promptprism.backbones.backbone import Backbone
from promptprism.backbones.loading import HUB, LOCAL, SHIPPED, load_backbone
from promptprism.backbones.precision import Precision, warn_if_slow
from promptprism.errors import PromptPrismError, warn


def as_backbone(
    chosen: Any, data: str, pretrained: str | None, precision: Precision, device: str
) -> Backbone:
    """The backbone that a user has chosen.

    Args:
        chosen: a backbone, a name for `load_backbone`, or `"auto"`, see `backbone_for`.
        data: name of the data that it will look at.
        pretrained: see `load_backbone`.
        precision: see `load_backbone`; an explicit one that is slow here is warned about.
        device: see `load_backbone`.

    Raises:
        PromptPrismError: it is neither a backbone nor a name, or cannot be loaded.
    """
    if isinstance(chosen, Backbone):
        return chosen
    if not isinstance(chosen, str):
        raise PromptPrismError(f"backbone is {chosen!r}: give a name, or what load_backbone makes")
    suited = backbone_for(data)
    name = suited if chosen == "auto" else chosen
    if name == "mini" != suited:
        warn(f"backbone 'mini' knows MiniWorld's drawings, and '{data}' is none: for photos take '{suited}'")
    backbone = load_backbone(name, pretrained, precision=precision, device=device)
    if precision == "float32":  # `load_backbone` warns about others
        warn_if_slow(precision, backbone.device, backbone.width)
    return backbone


def backbone_for(data: str) -> str:
    """The name of the shipped model for data: `mini` knows MiniWorld's drawings, `photo` everything else."""
    return "photo" if "photo" in SHIPPED and not data.startswith("mini/") else "mini"


def check_trusted(name: str, pretrained: str | None, where: str) -> None:
    """Refuse to open what a file names and its reader has not: a hub, or a place on this disk.

    Args:
        name: of the backbone that the file names.
        pretrained: its weights, if it names them.
        where: what names it, such as "adapter 'x'".

    Raises:
        PromptPrismError: it is neither shipped nor published by a tag that open_clip knows.
    """
    if not name.startswith((LOCAL, HUB)) and (
        pretrained is None or open_clip.get_pretrained_cfg(name, pretrained)
    ):
        return
    place = f"{name} with the weights {pretrained}" if pretrained else name
    raise PromptPrismError(
        f"{where} names a backbone that you did not: {place}. It would be opened, or fetched. If you trust "
        "who made it, say so: trust_backbone=True (--trust-backbone), or name the backbone yourself: "
        "backbone=..., pretrained=... (--backbone, --pretrained)"
    )
