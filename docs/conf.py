"""The documentation's site: ``make docs``."""

import re
from pathlib import Path
from typing import Any

import typer
from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.application import Sphinx

import promptprism
from promptprism.cli import app as commands
from promptprism.methods import METHODS

ROOT = Path(__file__).parents[1]
BLOB = "https://github.com/promptprism/promptprism/blob/main/"

project = "PromptPrism"
author = "The PromptPrism authors"
copyright = author
version = release = promptprism.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
highlight_language = "text"
smartquotes = False
myst_enable_extensions = ["dollarmath"]
# What GitHub takes for mathematics.
myst_fence_as_directive = {"math"}
myst_heading_anchors = 4
# Docstrings have names between single backquotes.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_type_aliases = {"Images": "Images", "Labels": "Labels"}
autodoc_default_options = {"members": True}
linkcheck_ignore = [re.escape(BLOB) + ".*", r"https://github\.com/promptprism/.*"]

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"PromptPrism {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#6d28d9", "color-brand-content": "#6d28d9"},
    "dark_css_variables": {"color-brand-primary": "#c4b5fd", "color-brand-content": "#c4b5fd"},
    "source_repository": "https://github.com/promptprism/promptprism/",
    "source_branch": "main",
    "source_directory": "docs/",
}


def _commands() -> str:
    """Every command's help, as Markdown."""
    pages: list[str] = []

    def add(name: str, command: Any, level: int) -> None:
        context = command.make_context(name, [], resilient_parsing=True)
        pages.append(f"{'#' * level} {name.removeprefix('promptprism ')}\n\n{command.help or ''}\n")
        usage = " ".join(command.collect_usage_pieces(context))
        pages.append(f"```sh\n{name} {usage}\n```\n")
        rows = []
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if record and "--help" not in parameter.opts:
                left, right = (" ".join(part.split()).replace("|", r"\|") for part in record)
                rows.append(f"| `{left}` | {right.replace('<', '&lt;')} |")
        if rows:
            pages.append("\n".join(["| | |", "|---|---|", *rows]) + "\n")
        for child, inner in getattr(command, "commands", {}).items():
            add(f"{name} {child}", inner, level + 1)

    whole = typer.main.get_command(commands)
    panels: dict[str, list[str]] = {}
    for name, command in whole.commands.items():
        panels.setdefault(command.rich_help_panel, []).append(name)
    for panel, names in panels.items():
        pages.append(f"## {panel}\n")
        for name in names:
            add(f"promptprism {name}", whole.commands[name], 3)
    return "\n".join(pages)


def _settings() -> str:
    """Every method's settings with their defaults, as Markdown."""
    pages = []
    for name, method in METHODS.items():
        pages.append(f"## {name}\n\n{(method.__doc__ or '').strip().splitlines()[0]}\n")
        paper = method.Settings.paper
        rows = [
            f"| `{setting}` | `{field.default!r}` | {f'`{paper[setting]!r}`' if setting in paper else ''} "
            f"| {(field.description or '').replace('|', chr(92) + '|')} |"
            for setting, field in method.Settings.model_fields.items()
        ]
        pages.append(
            "\n".join(["| setting | default | `preset=paper` | |", "|---|---|---|---|", *rows]) + "\n"
        )
    return "\n".join(pages)


def _python() -> str:
    """What the package offers, from its docstrings."""
    kinds = {True: "autoclass", False: "autofunction"}
    names = [name for name in promptprism.__all__ if name != "__version__"]
    lines = []
    for name in sorted(names, key=lambda name: (name != "PromptPrism", name)):
        found = getattr(promptprism, name)
        kind = "autoexception" if name.endswith("Error") else kinds[isinstance(found, type)]
        whole = "\n   :inherited-members:" if name == "PromptPrism" else ""
        lines += [f"## {name}\n", f"```{{eval-rst}}\n.. {kind}:: promptprism.{name}{whole}\n```\n"]
    return "\n".join(lines)


def _file(name: str) -> str:
    """A file of the repository: Markdown without its title, or code."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if not name.endswith(".md"):
        return f"```python\n{text}```"
    text = text.partition("\n")[2]
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", r"](../../\1)", text)  # from docs/help


#: What a page asks for by a comment, so that GitHub shows the rest of it.
_MADE = {"commands": _commands, "settings": _settings, "python": _python}


def _read(app: Sphinx, name: str, content: list[str]) -> None:
    """Fill in what is made, and send links that leave the documentation to the repository."""
    here = (Path(app.srcdir) / name).parent

    def link(match: re.Match[str]) -> str:
        file, mark, anchor = match[1].partition("#")
        target = (here / file).resolve()
        inside = target.is_relative_to(app.srcdir) or not target.is_relative_to(ROOT)
        return match[0] if inside else f"]({BLOB}{target.relative_to(ROOT)}{mark}{anchor})"

    def made(match: re.Match[str]) -> str:
        return _MADE[match[1]]() if match[1] in _MADE else _file(match[1])

    text = re.sub(r"<!-- made: (\S+) -->", made, content[0])
    content[0] = re.sub(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)", link, text)


def _inline(translator: Any, node: Any) -> None:
    translator.body.append(convert(node.astext()))
    raise SkipNode


def _block(translator: Any, node: Any) -> None:
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


def setup(app: Sphinx) -> None:
    """Hook in what this project does in its own way."""
    app.connect("source-read", _read)
    # Browsers draw MathML themselves; MathJax would have to be fetched from elsewhere.
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
