"""The field's data sets in small: their layouts on disk, with tiny images."""

import io
import json
from pathlib import Path

from PIL import Image

from promptprism.data.catalog import CATALOG

WNIDS = {"n01440764": "tench", "n03773504": "missile", "n04008634": "missile", "n04355933": "sunglasses"}
#: `classnames.txt` of an ImageNet of four classes.
WNID_NAMES = "\n".join(f"{wnid} {name}" for wnid, name in WNIDS.items())

_file = io.BytesIO()
Image.new("RGB", (6, 5)).save(_file, "JPEG")


def put(*paths: Path) -> None:
    """An image at each path."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_file.getvalue())


def miniature(root: Path, name: str) -> dict[str, list]:
    """A data set of split file layout with two images of each class in each split."""
    entry = CATALOG[name]
    lists: dict[str, list] = {"train": [], "val": [], "test": []}
    for split, rows in lists.items():
        for label in range(entry.classes):
            rows += [[f"c{label}/{split}{i}.jpg", label, f"class {label}"] for i in range(2)]
    put(*(entry.image_folder(root) / row[0] for rows in lists.values() for row in rows))
    (root / entry.folder / entry.layout.file).write_text(json.dumps(lists))
    return lists


def small_imagenets(root: Path) -> None:
    """ImageNet of four classes and its shifts."""
    (root / "imagenet").mkdir()
    (root / "imagenet" / "classnames.txt").write_text(WNID_NAMES + "\n")
    for i, wnid in enumerate(WNIDS):
        put(root / f"imagenet/images/train/{wnid}/{wnid}_10026.JPEG")
        put(root / f"imagenet/images/val/{wnid}/ILSVRC2012_val_0000000{i}.JPEG")
        put(root / f"imagenetv2/imagenetv2-matched-frequency-format-val/{i}/a{i}.jpeg")
        put(root / f"imagenet-sketch/images/{wnid}/sketch_{i}.JPEG")
    for name, folder in (("a", "adversarial"), ("r", "rendition")):
        for wnid in list(WNIDS)[1::2]:
            put(root / f"imagenet-{folder}/imagenet-{name}/{wnid}/0.1_{wnid}.jpg")
        (root / f"imagenet-{folder}/imagenet-{name}/README.txt").write_text("no class")
