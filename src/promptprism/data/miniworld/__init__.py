"""MiniWorld: a small world of scenes made of emoji, whose factors are known and can be intervened on."""

from promptprism.data.miniworld.scenes import Scene, render
from promptprism.data.miniworld.worlds import DEVELOPMENT, ELEVEN, NAMES, REPORTED, SHIFTS, load, scenes

__all__ = ["DEVELOPMENT", "ELEVEN", "NAMES", "REPORTED", "SHIFTS", "Scene", "load", "render", "scenes"]
