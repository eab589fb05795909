"""``python -m promptprism``."""

from promptprism.cli import app

app()
