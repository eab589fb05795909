"""The teacher of the model for photos: from a text to the place in the common space where its photos lie.

The common space holds the principal directions of the trunk's classifier rows and of photos. Kernel ridge
regression on MiniLM's embeddings learns, from few texts whose place is known, the place of any: names,
synonyms and glosses of the 1,000 ImageNet classes (their rows), the synsets above them (the mean of the rows
below), captions (their photo), and the object names whose embedding by a real CLIP is known (the row that the
same regression gives on those). Linear ridge on the names alone is ten points worse on classes left out.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import photo_ingredients as ingredients
import torch
from open_clip.tokenizer import SimpleTokenizer
from photo_ingredients import WordNet
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

DIM = 320
#: Photos of Flickr8k that nothing is learned from.
HELD_OUT = 400
PHRASE = "a photo of a {}."
_PHYSICAL = "00001930"
Encode = Callable[[Sequence[str]], Tensor]


class Space(NamedTuple):
    """Mean [1280] of pooled features, basis [1280, D] of the space, unit classifier rows [1000, 1280]."""

    mean: Tensor
    basis: Tensor
    rows: Tensor

    def place(self, pooled: Tensor) -> Tensor:
        """Unit vectors [N, D] of pooled features [N, 1280]."""
        return F.normalize((pooled.float() - self.mean) @ self.basis, dim=-1)


def make_space(classifier: Tensor, pooled: Tensor) -> Space:
    """The space of classifier rows [1000, 1280] and of photos' pooled features [N, 1280]."""
    rows = F.normalize(classifier - classifier.mean(0), dim=-1)
    mean = pooled.mean(0)
    both = torch.cat([rows, 0.15 * F.normalize(pooled - mean, dim=-1)])
    _, vectors = torch.linalg.eigh(both.T @ both)
    basis = vectors[:, -DIM:]
    # Turned at random, so that no direction is what layer norms take away.
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(1)))[0]
    return Space(mean, basis @ turn, rows)


class Names(NamedTuple):
    """ImageNet's classes in the order of the rows: WordNet offsets, and the names used with CLIP."""

    offsets: list[str]
    names: list[str]


def imagenet_names(data: Path) -> Names:
    """Read the list of class names."""
    lines = (data / "metadata/splits/imagenet_classnames.txt").read_text().strip().splitlines()
    return Names([line[1:9] for line in lines], [line[10:] for line in lines])


def clip_objects(data: Path) -> tuple[list[list[str]], Tensor]:
    """Object names with their synonyms, and a real CLIP's embeddings [N, 512] of "a NAME", centred."""
    folder = data / "photos/clip-text"
    lvis = json.loads((folder / "lvis.json").read_text())
    names = [[o["name"], *o["synonyms"]] for o in lvis]
    names += [[o] for o in json.loads((folder / "objects365.json").read_text())]
    arrays = [torch.from_numpy(np.load(folder / f"{n}.npy")).float() for n in ("lvis", "objects365")]
    both = torch.cat(arrays)
    return [[n.lower().replace("_", " ") for n in some] for some in names], both - both.mean(0)


def kernel_ridge(x: Tensor, y: Tensor, weights: Tensor, ridge: float = 0.1) -> Callable[[Tensor], Tensor]:
    """Fit y [N, D] on x [N, E] with the kernel exp(3 (cosine - 1)); a sample's noise is ridge / weight."""
    centre = (x * weights[:, None]).sum(0) / weights.sum()
    known = F.normalize(x - centre, dim=-1)

    def kernel(new: Tensor) -> Tensor:
        return (3 * (F.normalize(new - centre, dim=-1) @ known.T - 1)).exp()

    matrix = kernel(x) + ridge * torch.diag(1 / weights)
    factors = torch.cholesky_solve(y, torch.linalg.cholesky(matrix))
    return lambda new: torch.cat([kernel(part) @ factors for part in torch.split(new, 4096)])


def fit_teacher(
    space: Space,
    wordnet: WordNet,
    data: Path,
    encode: Encode,
    captions: Sequence[Sequence[str]],
    photos: Tensor,
) -> Callable[[Tensor], Tensor]:
    """Fit the map from embeddings [N, 384] of texts to unit vectors [N, D].

    Args:
        space: the common space.
        wordnet: the nouns.
        data: folder of the data.
        encode: gives embeddings of texts.
        captions: those of each of N photos to learn from.
        photos: pooled features [N, 1280] of those photos.
    """
    offsets, names = imagenet_names(data)
    rows = F.normalize(space.rows @ space.basis, dim=-1)
    texts, places, weights = list[str](), list[Tensor](), list[float]()

    def add(text: str, place: Tensor, weight: float) -> None:
        texts.append(text)
        places.append(place)
        weights.append(weight)

    below: dict[str, list[int]] = {}
    for label, (offset, name) in enumerate(zip(offsets, names, strict=True)):
        add(PHRASE.format(name), rows[label], 1.0)
        for word in wordnet.words[offset]:
            add(PHRASE.format(word), rows[label], 0.3)
        add(f"{wordnet.words[offset][0]}, {wordnet.gloss[offset]}", rows[label], 0.3)
        for other in wordnet.closure(offset, wordnet.above):
            below.setdefault(other, []).append(label)
    for offset, labels in below.items():
        if offset not in offsets and 1 < len(labels) < 400:
            for word in wordnet.words[offset]:
                place = F.normalize(rows[labels].mean(0), dim=0)
                add(PHRASE.format(word), place, 0.5 / len(wordnet.words[offset]))
    objects, embeddings = clip_objects(data)
    labels_of = {w.lower(): i for i, o in enumerate(offsets) for w in [*wordnet.words[o], names[i]]}
    known = [(n, labels_of[w]) for n, some in enumerate(objects) for w in some if w in labels_of]
    source, target = embeddings[[n for n, _ in known]], rows[[label for _, label in known]]
    guessed = F.normalize(kernel_ridge(source, target, torch.ones(len(known)))(embeddings), dim=-1)
    for words, place in zip(objects, guessed, strict=True):
        add(PHRASE.format(words[0]), place, 0.5)
    several = encode([text for some in captions for text in some]).view(len(captions), -1, 384)
    x = torch.cat([encode(texts), F.normalize(several.mean(1), dim=-1)])
    y = torch.cat([torch.stack(places), space.place(photos)])
    solve = kernel_ridge(x, y, torch.cat([torch.tensor(weights), torch.full((len(photos),), 0.3)]))
    return lambda new: F.normalize(solve(new), dim=-1)


class Corpus(NamedTuple):
    """What the text tower learns from: `names` go into phrases, `sentences` stand as they are."""

    names: list[str]
    sentences: list[str]
    often: list[str]


def make_corpus(wordnet: WordNet, data: Path, captions: Sequence[Sequence[str]]) -> Corpus:
    """Nouns for things one can see and their glosses, captions, and the names that are drawn more often."""
    offsets, names = imagenet_names(data)
    seen = wordnet.closure(_PHYSICAL, wordnet.below)
    nouns = sorted({w for o in seen for w in wordnet.words[o]})
    glosses = [f"{wordnet.words[o][0]}, {wordnet.gloss[o]}" for o in sorted(seen)[::2]]
    often = {*names, *(w for o in offsets for w in wordnet.words[o])}
    often |= {w for some in clip_objects(data)[0] for w in some}
    often |= {w for o in offsets for a in wordnet.closure(o, wordnet.above) for w in wordnet.words[a]}
    sentences = [*glosses, *(text for some in captions for text in some)]
    return Corpus([n for n in nouns if n not in often], sentences, sorted(often))


class Material(NamedTuple):
    """What both trainings need, made once: see `prepare`."""

    space: Space
    places: dict[str, int]
    vectors: Tensor
    corpus: Corpus
    captions: list[list[str]]
    held_out: list[int]

    def of(self, texts: Sequence[str]) -> Tensor:
        """The teacher's places [N, D] of texts it has been asked about."""
        return self.vectors[[self.places[t] for t in texts]].float()


def words_of(tokenizer: SimpleTokenizer) -> list[str]:
    """What each token spells, without marks; empty for the two special ones."""
    words = [tokenizer.decode([i]).strip() for i in range(tokenizer.vocab_size - 2)]
    return [w if w.isascii() else "" for w in words] + ["", ""]


def prepare(arguments: argparse.Namespace, tokenizer: SimpleTokenizer) -> Material:
    """Make features, embeddings and places, or read those that were made."""
    folder, data = arguments.folder, arguments.data
    wordnet = ingredients.WordNet(arguments.ingredients)
    captions = [c for _, c in ingredients.captions(data)]
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(1)).tolist()
    held_out, learned = sorted(order[:HELD_OUT]), sorted(order[HELD_OUT:])
    corpus = make_corpus(wordnet, data, [captions[i] for i in learned])
    path = folder / "teacher.safetensors"
    if not path.exists():
        trunk, classifier = ingredients.load_trunk(arguments.ingredients)
        if not (folder / "features.done").exists():
            ingredients.extract(trunk, ingredients.photos(data), folder)
            (folder / "features.done").touch()
        pooled = torch.from_numpy(features(folder)[1][: 1000 + len(captions)].astype(np.float32))
        words = {w for w in words_of(tokenizer) if w}
        texts = {PHRASE.format(n) for n in [*corpus.names, *corpus.often, *words]}
        offsets, _ = imagenet_names(data)
        texts |= {t for some in captions for t in some} | set(corpus.sentences)
        texts |= {f"{wordnet.words[o][0]}, {wordnet.gloss[o]}" for o in offsets}
        places = {text: place for place, text in enumerate(sorted(texts))}
        embeddings = embed(arguments, list(places))

        def encode(some: Sequence[str]) -> Tensor:
            return embeddings[[places[t] for t in some]].float()

        train = [1000 + i for i in learned]
        space = make_space(classifier, pooled[[*range(1000), *train]])
        known = [captions[i] for i in learned]
        teacher = fit_teacher(space, wordnet, data, encode, known, pooled[train])
        vectors = teacher(embeddings.float())
        # Of ImageNet's classes the rows themselves are known.
        rows = F.normalize(space.rows @ space.basis, dim=-1)
        names = imagenet_names(data).names
        vectors[[places[PHRASE.format(n)] for n in names]] = rows
        (folder / "texts.json").write_text(json.dumps(list(places)))
        save_file({"vectors": vectors.half(), **space._asdict()}, path)
    tensors = load_file(path)
    texts_in_order = json.loads((folder / "texts.json").read_text())
    space = Space(tensors["mean"], tensors["basis"], tensors["rows"])
    places = {text: place for place, text in enumerate(texts_in_order)}
    return Material(space, places, tensors["vectors"], corpus, captions, held_out)


def embed(arguments: argparse.Namespace, texts: list[str]) -> Tensor:
    """MiniLM's embeddings [N, 384], kept on disk."""
    path = arguments.folder / "embeddings.safetensors"
    if not path.exists():
        save_file({"embeddings": ingredients.MiniLM(arguments.ingredients).encode(texts).half()}, path)
    embeddings: Tensor = load_file(path)["embeddings"]
    return embeddings


def features(folder: Path) -> tuple[Any, Any]:
    """The trunk's maps [N, 49, 320] and pooled features [N, 1280] of all views."""
    pooled = np.memmap(folder / "pool.f16", np.float16, "r").reshape(-1, 1280)
    return np.memmap(folder / "map.f16", np.float16, "r").reshape(len(pooled), 49, 320), pooled
