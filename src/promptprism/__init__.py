"""Adapt a frozen CLIP to your classes from a few labelled images, and know how sure it is."""

__version__ = "0.1.0"
