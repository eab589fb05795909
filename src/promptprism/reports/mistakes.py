"""The worst mistakes of an evaluation as one page that needs nothing else."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image, ImageOps

from promptprism.data.images import ImageSource, load_image
from promptprism.reports.html import page

_SIDE, _MOST = 240, 60  # pixels of a photo, and photos that are shown
_STYLE = """
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1.5rem; }
.mistakes figure { margin: 0; } .mistakes img { width: 100%; border-radius: .3rem; background: none; }
.mistakes figcaption { overflow-wrap: anywhere; }
"""


def mistakes_page(title: str, content: Mapping[str, Any], sources: Sequence[ImageSource]) -> str:
    """Write the page.

    Args:
        title: of the page.
        content: what `promptprism evaluate` found, with ``mistakes``, ``confused`` and ``by_class``.
        sources: the images, by the ``place`` of a mistake.
    """
    mistakes = content["mistakes"]
    figures = "".join(_figure(mistake, sources[mistake["place"]]) for mistake in mistakes[:_MOST])
    pairs = _table(
        ("is", "was taken for", "images"),
        [(pair["truth"], pair["answer"], pair["images"]) for pair in content["confused"][:20]],
    )
    classes = _table(
        ("class", "", "images", "precision %", "recall %"),
        [
            (row["class"], "", row["images"], _percent(row["precision"]), _percent(row["recall"]))
            for row in content["by_class"]
        ],
    )
    return page(
        title,
        f"<p>{len(mistakes)} of {content['images']} images were taken for another class. The surest "
        f"{min(_MOST, len(mistakes))} of these answers are shown. Some may be wrong labels.</p>"
        f'<div class="mistakes">{figures}</div>'
        f"<h2>Most confused</h2>{pairs}<h2>Classes</h2>{classes}",
        _STYLE,
    )


def _figure(mistake: Mapping[str, Any], source: ImageSource) -> str:
    name = source if isinstance(source, str) else getattr(source, "name", "")
    said = f"{mistake['answer']}, {_percent(mistake['probability'])} %"
    return (
        f'<figure><img loading="lazy" src="{_thumbnail(load_image(source, least=_SIDE))}" '
        f'alt="{escape(mistake["truth"])}, taken for {escape(mistake["answer"])}">'
        f"<figcaption><strong>{escape(mistake['truth'])}</strong> ({_percent(mistake['of_truth'])} %), taken "
        f"for <strong>{escape(said)}</strong><br><small>{escape(str(name))}</small></figcaption></figure>"
    )


def _thumbnail(image: Image.Image) -> str:
    content = io.BytesIO()
    ImageOps.contain(image.convert("RGB"), (_SIDE, _SIDE)).save(content, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(value))}</td>' for value in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
