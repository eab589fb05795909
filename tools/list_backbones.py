"""Measure all backbones that can be used, for `promptprism backbones`; takes a minute, needs transformers."""

from promptprism.backbones.catalog import write_catalog

if __name__ == "__main__":
    write_catalog()
