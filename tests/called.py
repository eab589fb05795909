"""The command line as users call it, and what its documentation says of the JSON."""

import re
from pathlib import Path

from typer.testing import CliRunner

from promptprism.cli import app

HEAD = {"schema", "schema_version", "promptprism"}
DOCUMENTED = Path(__file__).parents[1] / "docs" / "reference" / "cli-json.md"


def run(*arguments, code=0, **options):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
    assert result.exit_code == code, result.output + result.stderr + repr(result.exception)
    return result


def documented(command, table=0):
    """Names in the first column of a table of a command's section."""
    section = DOCUMENTED.read_text().split(f"\n## {command}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", section.split("|---|---|\n")[table + 1], re.MULTILINE))
