"""Render the MiniWorld sprites from openly licensed emoji sets.

    npm install @iconify-json/{noto,noto-v1,twemoji,emojione,emojione-monotone,fluent-emoji,\
fluent-emoji-flat,fluent-emoji-high-contrast,fxemoji,streamline-emojis} emojibase-data
    python tools/make_sprites.py node_modules

Writes one zip archive with a lossless WebP per (artist, concept), ``concepts.json`` (what each is called, its
topic group) and ``ATTRIBUTION.md``. Needs the ``assets`` extra. A quarter of an hour, most of it for one set
that is drawn with filters.
"""

import argparse
import io
import json
import re
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image

SIZE = 64
# Share-alike sets are left out: what is drawn with the sprites may be used as freely as the project itself.
ARTISTS = (
    "noto",
    "noto-v1",
    "twemoji",
    "fluent-emoji-flat",
    "fxemoji",
    "fluent-emoji",
    "emojione",
    "streamline-emojis",
    "fluent-emoji-high-contrast",
    "emojione-monotone",
)
MIN_ARTISTS = 6
# People, flags, signs and keycaps differ by skin tone, letters or nothing that a small image can show.
GROUPS = {"smileys-emotion", "animals-nature", "food-drink", "travel-places", "activities", "objects"}
SKIPPED_SUBGROUPS = {"time", "hotel", "place-map", "arrow"}
KEPT_PEOPLE = {"body-parts", "person-fantasy", "hand-fingers-closed", "hands", "hand-prop"}
OUT = Path(__file__).parents[1] / "src/promptprism/data/miniworld/sprites.zip"


def slug(name: str) -> str:
    """Turn a label into the form of an icon name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("’", "").replace("'", "")).strip("-")


def read_json(path: Path) -> Any:
    """Read one JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def concepts(packages: Path) -> Iterator[dict[str, str]]:
    """Yield the emoji that name a thing one can draw: hexcode, name and subgroup."""
    meta = read_json(packages / "emojibase-data/meta/groups.json")
    for emoji in read_json(packages / "emojibase-data/en/data.json"):
        if "group" not in emoji:
            continue
        group, subgroup = meta["groups"][str(emoji["group"])], meta["subgroups"][str(emoji["subgroup"])]
        if (group in GROUPS and subgroup not in SKIPPED_SUBGROUPS) or subgroup in KEPT_PEOPLE:
            yield {
                "hexcode": emoji["hexcode"].replace("-FE0F", ""),
                "name": emoji["label"],
                "group": subgroup,
            }


class IconSet:
    """One artist's icons, found by the names that a concept goes by."""

    def __init__(self, packages: Path, artist: str) -> None:
        folder = packages / "@iconify-json" / artist
        self.data = read_json(folder / "icons.json")
        self.info = read_json(folder / "info.json")
        self.version = read_json(folder / "package.json")["version"]
        self.artist = artist
        self.by_character = {
            code.upper().replace("-FE0F", ""): name for code, name in read_json(folder / "chars.json").items()
        }

    def find(self, names: list[str]) -> str | None:
        """Return the icon that bears the first of the names, if any."""
        if self.artist == "fxemoji":
            names = [name.replace("-", "") for name in names]
        if self.artist == "streamline-emojis":
            names = [name + end for name in names for end in ("", "-1", "-2")]
        return next((n for n in names if n in self.data["icons"] or n in self.data.get("aliases", {})), None)

    def svg(self, name: str) -> str:
        """Return the icon as an SVG document, aliases resolved."""
        aliases = self.data.get("aliases", {})
        while name not in self.data["icons"]:
            name = aliases[name]["parent"]
        icon = self.data["icons"][name]
        width = icon.get("width", self.data.get("width", 16))
        height = icon.get("height", self.data.get("height", 16))
        body = icon["body"].replace("currentColor", "#000000")
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'<svg {spaces} viewBox="{box}">{body}</svg>'


def render(svg: str) -> Image.Image:
    """Draw an SVG as a square RGBA image of SIZE pixels, cropped to what it shows."""
    data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIZE, height=2 * SIZE))
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()
    if box is None:
        raise ValueError("the icon shows nothing")
    image = image.crop(box)
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIZE, SIZE))
    square.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    # Five bits a colour halve the archive and cannot be told from eight at the size of a scene.
    channels = [c.point([round(round(v / 255 * 31) * 255 / 31) for v in range(256)]) for c in square.split()]
    quantised = Image.merge("RGBA", channels)
    return Image.composite(
        quantised, Image.new("RGBA", (SIZE, SIZE)), channels[3].point(lambda a: 255 if a else 0)
    )


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", type=Path, help="the node_modules folder")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    sets = [IconSet(arguments.packages, artist) for artist in ARTISTS]
    kept: list[dict[str, Any]] = []
    used: set[tuple[str, str]] = set()
    temporary = arguments.out.with_suffix(".partial")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:

        def write(name: str, data: bytes, compression: int = zipfile.ZIP_STORED) -> None:
            # A fixed date keeps the archive equal from run to run.
            entry = zipfile.ZipInfo(name, date_time=(2026, 1, 1, 0, 0, 0))
            entry.compress_type = compression
            archive.writestr(entry, data)

        for concept in concepts(arguments.packages):
            code = concept["hexcode"]
            names = [slug(concept["name"])]
            names += [s.by_character[code] for s in sets if code in s.by_character]
            if "-" not in code:
                names.append(slug(unicodedata.name(chr(int(code, 16)), "")))
            found: dict[str, str] = {}
            for icons in sets:
                icon = icons.by_character.get(code) or icons.find(names)
                if icon is not None and (icons.artist, icon) not in used:
                    found[icons.artist] = icon
            if len(found) < MIN_ARTISTS:
                continue
            for icons in sets:
                if icons.artist in found:
                    used.add((icons.artist, found[icons.artist]))
                    buffer = io.BytesIO()
                    render(icons.svg(found[icons.artist])).save(
                        buffer, "WEBP", lossless=True, quality=100, method=6
                    )
                    write(f"{icons.artist}/{code}.webp", buffer.getvalue())
            kept.append({**concept, "artists": list(found)})
        write("concepts.json", json.dumps(kept, ensure_ascii=False, indent=0).encode(), zipfile.ZIP_DEFLATED)
        lines = [
            f"- {s.artist} {s.version}: {s.info['name']}, by {s.info['author']['name']} "
            f"({s.info['author'].get('url', '')}), {s.info['license']['title']} ({s.info['license']['url']})"
            for s in sets
        ]
        text = (
            "# Attribution\n\nThe sprites are renderings (64 px, cropped, five bits a colour) of these emoji "
            "sets:\n\n"
            + "\n".join(lines)
            + "\n\nNames and groups: emojibase-data (MIT), from Unicode CLDR.\n"
        )
        write("ATTRIBUTION.md", text.encode())
    temporary.replace(arguments.out)
    size = arguments.out.stat().st_size / 1e6
    print(f"{len(kept)} concepts, {len(used)} sprites, {size:.1f} MB: {arguments.out}")


if __name__ == "__main__":
    main()
