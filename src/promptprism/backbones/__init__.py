"""Frozen CLIP models behind one small interface."""

from promptprism.backbones.backbone import Backbone, Precision
from promptprism.backbones.loading import load_backbone

__all__ = ["Backbone", "Precision", "load_backbone"]
