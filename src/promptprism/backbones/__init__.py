"""Frozen two-tower models behind one protocol."""

from promptprism.backbones.backbone import Backbone, fingerprint_of
from promptprism.backbones.choice import as_backbone, check_trusted
from promptprism.backbones.loading import find_device, load_backbone, sized_backbone
from promptprism.backbones.precision import Precision
from promptprism.backbones.tower import TextTower, Tower, VisionTower

__all__ = [
    "Backbone",
    "Precision",
    "TextTower",
    "Tower",
    "VisionTower",
    "as_backbone",
    "check_trusted",
    "find_device",
    "fingerprint_of",
    "load_backbone",
    "sized_backbone",
]
