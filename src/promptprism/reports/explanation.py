"""One picture of one prediction: image, answer, why; then a row for each template."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from promptprism.inference.explain import Answer, Explanation, Voice, Why
from promptprism.reports.drawing import BLUE, GREEN, GREY, ORANGE, new_figure, styled

_WIDEST_NAME = 24
_LOOK_NOTE = (
    "Where it looks: red patches speak for '{best}', blue ones against it (gradient times patch token before "
    "the last vision block)."
)
_OPINION_NOTE = "Belief and uncertainty add up to 100 %; uncertainty is the share given to no class at all."
_WORDS_NOTE = (
    "Nearest words: those of the vocabulary closest to each learned vector, with cosine. They seldom mean "
    "anything: a learned vector lies between the words, or near the word it started from."
)


def draw_explanation(explanation: Explanation) -> Figure:
    """Draw what `promptprism.inference.explain.explain` found."""
    colours = dict(zip((answer.name for answer in explanation.top), (BLUE, ORANGE, GREEN), strict=False))
    rows = len(explanation.templates)
    best = explanation.top[0].name
    with styled():
        figure = new_figure(13, 5.2 + 2.1 * rows)
        figure.suptitle(_headline(explanation), fontsize=16, fontweight="bold")
        grid = figure.add_gridspec(
            rows + 2, 3, width_ratios=[2.6, 4, 5], height_ratios=[3.2, *[2.1] * rows, 0.75]
        )
        _image(figure.add_subplot(grid[0, 0]), explanation)
        answer = figure.add_subplot(grid[0, 1])
        _bars(answer, explanation.top, explanation.uncertainty, colours)
        kind = "probability" if explanation.uncertainty is None else "belief"
        answer.set_title(f"All templates together: {kind}" if rows > 1 else f"The answer: {kind}")
        _reasons(figure.add_subplot(grid[0, 2]), explanation, colours)
        for row, voice in enumerate(explanation.templates, start=1):
            look = figure.add_subplot(grid[row, 0])
            _look(look, explanation, voice)
            bars = figure.add_subplot(grid[row, 1])
            _bars(bars, voice.top, voice.uncertainty, colours)
            words = figure.add_subplot(grid[row, 2])
            _words(words, voice)
            look.set_ylabel(f"S{row}", rotation=0, labelpad=22, fontsize=16, fontweight="bold", va="center")
            if row == 1:
                look.set_title("Where it looks")
                bars.set_title(
                    "What each template says on its own" if rows > 1 else "The same, by its template"
                )
                words.set_title("Nearest words to what it learned")
        note = figure.add_subplot(grid[-1, :])
        note.axis("off")
        notes = [
            _LOOK_NOTE.format(best=best),
            _OPINION_NOTE if explanation.uncertainty is not None else "",
            _WORDS_NOTE if explanation.templates[0].words else "",
        ]
        _say(note, 1.0, textwrap.fill(" ".join(filter(None, notes)), 140), va="top", color="#444444")
    return figure


def _say(axes: Axes, height: float, text: str, **style: Any) -> None:
    """Write text into axes; the layout does not make room for it."""
    style = {"fontsize": 10.5, "linespacing": 1.4, "transform": axes.transAxes, **style}
    axes.text(0, height, text, **style).set_in_layout(False)


def _headline(explanation: Explanation) -> str:
    best = explanation.top[0]
    if explanation.uncertainty is None:
        return f"{best.name}: probability {_percent(best.probability)}"
    assert best.belief is not None
    return f"{best.name}: belief {_percent(best.belief)}, uncertainty {_percent(explanation.uncertainty)}"


def _percent(share: float) -> str:
    if 0 < share < 0.001:
        return "below 0.1 %"
    return f"{100 * share:.1f} %"


def _number(value: float, signed: bool = False) -> str:
    digits = max(0, 2 - len(f"{abs(value):.0f}")) if abs(value) >= 1 else 2
    return f"{value:{'+' if signed else ''},.{digits}f}"


def _short(text: str, width: int = _WIDEST_NAME) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def _image(axes: Axes, explanation: Explanation) -> None:
    axes.imshow(np.asarray(explanation.picture))
    axes.set_title("What the model sees")
    name = explanation.image
    axes.set_xlabel(name if len(name) <= _WIDEST_NAME else f"…{name[1 - _WIDEST_NAME :]}", fontsize=10)
    _bare(axes)


def _look(axes: Axes, explanation: Explanation, voice: Voice) -> None:
    size = explanation.picture.size[0]
    extent = (0, size, size, 0)
    axes.imshow(np.asarray(explanation.picture.convert("L")), cmap="gray", extent=extent, alpha=0.75)
    if voice.map:  # towers without patches have none
        weights = np.array(voice.map)
        largest = np.abs(weights).max() or 1.0
        style: Any = {"cmap": "bwr", "alpha": 0.5, "interpolation": "bilinear"}
        axes.imshow(weights, vmin=-largest, vmax=largest, extent=extent, **style)
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _bars(axes: Axes, top: Sequence[Answer], uncertainty: float | None, colours: dict[str, str]) -> None:
    """Bars of belief (or probability) of the leading classes, and of uncertainty."""
    rows = [
        (_short(a.name), a.probability if a.belief is None else a.belief, colours.get(a.name, GREY))
        for a in top
    ]
    if uncertainty is not None:
        rows.append(("uncertainty", uncertainty, "white"))
    names, shares, fills = zip(*rows, strict=True)
    places = range(len(rows))
    axes.barh(
        places,
        shares,
        color=fills,
        edgecolor=["#555555" if fill == "white" else fill for fill in fills],
        hatch=["////" if fill == "white" else "" for fill in fills],
        height=0.72,
    )
    for place, share in zip(places, shares, strict=True):
        axes.text(share + 0.015, place, _percent(share), va="center", fontsize=10.5).set_in_layout(False)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _words(axes: Axes, voice: Voice) -> None:
    axes.axis("off")
    if not voice.words:
        _say(axes, 0.5, "none: the text is hand-written", va="center", color="#444444")
        return
    lines = [
        f"v{number}:  " + ",  ".join(f"{w.word} {w.cosine:.2f}" for w in words)
        for number, words in enumerate(voice.words[:5], start=1)
    ]
    if len(voice.words) > 5:
        lines.append(f"… and {len(voice.words) - 5} more vectors")
    _say(axes, 0.5, "\n".join(lines), va="center", family="monospace")


def _reasons(axes: Axes, explanation: Explanation, colours: dict[str, str]) -> None:
    """How the scores of the two leading classes add up over the templates."""
    why = explanation.why
    if why is None:
        axes.axis("off")
        return
    axes.set_title("Why: support of the two leading classes")
    shades = (0.95, 0.65)
    for place, name in enumerate(why.classes):
        bar: Any = {"height": 0.6, "color": colours.get(name, GREY)}
        if not why.exact:
            axes.barh(place, why.scores[place], **bar)
        left = 0.0
        for m, pair in enumerate(why.contributions if why.exact else ()):
            part = pair[place]
            axes.barh(place, part, left=left, alpha=shades[m % 2], edgecolor="white", **bar)
            if abs(part) > 0.08 * max(map(abs, why.scores)):
                middle: Any = {"ha": "center", "va": "center", "color": "white", "fontsize": 10}
                axes.text(left + part / 2, place, f"S{m + 1}", **middle)
            left += part
        total = f" {_number(why.scores[place])}"
        axes.text(why.scores[place], place, total, va="center", fontsize=10.5).set_in_layout(False)
    axes.set_yticks(range(2), [_short(name) for name in why.classes])
    axes.invert_yaxis()
    axes.set_ylim(3.9, -0.6)
    axes.set_xlim(min(0.0, *why.scores), 1.2 * max(why.scores))
    axes.set_xticks([])
    axes.spines[["bottom", "left"]].set_visible(False)
    _say(axes, 0.0, textwrap.fill(_because(explanation, why), 40), va="bottom")


def _because(explanation: Explanation, why: Why) -> str:
    best, second = (f"'{_short(name)}'" for name in why.classes)
    leads = [f"S{m} {_number(a - b, signed=True)}" for m, (a, b) in enumerate(why.contributions, start=1)]
    lead = why.scores[0] - why.scores[1]
    if len(leads) == 1:
        return f"{best} is ahead of {second} by {_number(lead)} ({why.quantity})."
    voices = explanation.templates
    others = [
        f"S{m} says '{_short(v.top[0].name)}'"
        for m, v in enumerate(voices, 1)
        if v.top[0].name != why.classes[0]
    ]
    agreed = f"{len(voices) - len(others)} of {len(voices)} templates say {best}"
    agreed += f"; {', '.join(others)}. " if others else ". "
    ahead, each = _number(lead), ", ".join(leads)
    if not why.exact:
        return f"{agreed}By {why.rule} fusion {best} leads {second} by {ahead}. On its own, {each}."
    total = f"The lead over {second} is {ahead} = {each}, each adding its share of {why.quantity}."
    return agreed + total
