"""Train the model for photos: its text tower and its vision blocks, each by the teacher's places of texts.

    python tools/pretrain_photo.py --ingredients FOLDER --data DATA --folder photo-run prepare
    python tools/pretrain_photo.py --ingredients FOLDER --data DATA --folder photo-run words
    python tools/pretrain_photo.py --ingredients FOLDER --data DATA --folder photo-run text    # and
    python tools/pretrain_photo.py --ingredients FOLDER --data DATA --folder photo-run vision
    python tools/pretrain_photo.py --ingredients FOLDER --data DATA --folder photo-run export

`photo_ingredients.py` says how the ingredients are fetched, `photo_teacher.py` what a place is. What a batch
holds depends on its number and the seed only; a stage that is stopped goes on where its last checkpoint is.
One thread for each of the two trainings is quickest. The rate is constant and falls over the last third of
`--steps`.
"""

import argparse
import gzip
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import photo_ingredients as ingredients
import torch
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from open_clip.transformer import TextTransformer
from photo_teacher import DIM, PHRASE, Material, Space, features, imagenet_names, prepare, words_of
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from promptprism.backbones import photo
from promptprism.backbones.block import run_block
from promptprism.backbones.photo import PhotoCLIP, PhotoVision, load_photo, photo_tokenizer

MERGES = 12000
CONFIG: dict[str, Any] = {
    "embed_dim": DIM,
    "vision": {"image_size": 224, "width": DIM, "layers": 4, "heads": 5, "mlp_ratio": 2.0},
    "text": {
        "context_length": 32,
        "vocab_size": 512 + MERGES + 2,
        "width": DIM,
        "layers": 4,
        "heads": 5,
        "mlp_ratio": 2.0,
    },
}
PHRASES = (
    PHRASE, PHRASE, PHRASE, PHRASE, "{}", "a {}.", "a photo of the {}.", "a picture of a {}.",
    "a close-up photo of a {}.", "a photo of a {}, a type of thing.", "a bad photo of a {}.",
    "an image of {}.", "X X {}.",
)  # fmt: skip
WORDS_BATCH, TEXT_BATCH, VISION_BATCH = 1024, 256, 256
SCALE = 30.0
STEPS = {"words": 540, "text": 400, "vision": 150}


def write_config(folder: Path) -> None:
    """Write the model's sizes and the first of CLIP's merges."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    with gzip.open(default_bpe()) as file:
        lines = file.read().decode().split("\n")[: MERGES + 1]
    with gzip.GzipFile(folder / "bpe.txt.gz", "wb", mtime=0) as out:
        out.write("\n".join(lines).encode())


def encode_text(text: Any, tokens: Tensor) -> Tensor:
    """Unit features [B, D] of tokens [B, L], cut to the longest."""
    end = tokens.argmax(-1)
    length = int(end.max()) + 1
    x = text.token_embedding(tokens[:, :length]) + text.positional_embedding[:length]
    x = text.transformer(x, attn_mask=text.attn_mask[:length, :length])
    x = text.ln_final(x[torch.arange(len(x)), end]) @ text.text_projection
    return F.normalize(x.float(), dim=-1)


def encode_words(text: Any, tokens: Tensor) -> Tensor:
    """What `encode_text` gives while blocks 2 to 4 attend to nothing, for a ninth of its products.

    Then only the first block looks at the tokens, and only the last token's state is read.
    """
    end = tokens.argmax(-1)
    length = int(end.max()) + 1
    x = text.token_embedding(tokens[:, :length]) + text.positional_embedding[:length]
    unseen = torch.arange(length) > end[:, None]
    mask = torch.zeros(unseen.shape).masked_fill(unseen, float("-inf"))[:, None]
    at_end = x[torch.arange(len(x)), end][None, :, None]
    first, *others = text.transformer.resblocks
    x = run_block(first, x[None], queries=at_end, mask=mask)[0][0, :, 0]
    for block in others:
        x = x + block.mlp(block.ln_2(x))
    return F.normalize((text.ln_final(x) @ text.text_projection).float(), dim=-1)


def start_text(text: Any, tokenizer: SimpleTokenizer, material: Material) -> None:
    """Let the tower start as the mean of its tokens, each that is a word at the teacher's place of it."""
    words = words_of(tokenizer)
    known = [i for i, w in enumerate(words) if w]
    with torch.no_grad():
        text.token_embedding.weight[known] = 0.5 * material.of([PHRASE.format(words[i]) for i in known])
        text.text_projection.copy_(torch.eye(DIM))
        for layer, block in enumerate(text.transformer.resblocks):
            block.mlp.c_proj.weight.zero_()
            block.attn.out_proj.weight.zero_()
            if not layer:
                block.attn.in_proj_weight[: 2 * DIM].mul_(0.5)
                block.attn.in_proj_weight[2 * DIM :].copy_(torch.eye(DIM))
                block.attn.out_proj.weight.copy_(torch.eye(DIM))


def text_batches(
    material: Material, tokenizer: SimpleTokenizer, start: int, seed: str, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens [B, L] and places [B, D]; sixteen batches are drawn at once, each of like lengths."""
    corpus = material.corpus
    count = 16 * size
    for chunk in range(start // 16, 10**9):
        rng = random.Random(f"{seed}/{chunk}")
        names = rng.sample(corpus.names, int(0.5 * count)) + rng.choices(corpus.often, k=int(0.3 * count))
        phrased = [rng.choice(PHRASES).format(n) for n in names]
        sentences = rng.sample(corpus.sentences, count - len(names))
        texts, keys = phrased + sentences, [PHRASE.format(n) for n in names] + sentences
        tokens, places = tokenizer(texts), material.of(keys)
        # A context of 32 cuts few glosses; their places are those of the whole.
        batches = list((tokens.argmax(-1) + torch.rand(count)).argsort().split(size))
        rng.shuffle(batches)
        yield from ((tokens[b], places[b]) for b in batches[start % 16 if chunk == start // 16 else 0 :])


def contrast(one: Tensor, other: Tensor, scale: float = SCALE) -> Tensor:
    """Cross-entropy of matching unit vectors [B, D] within a batch, both ways."""
    logits, target = scale * one @ other.T, torch.arange(len(one))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_text(arguments: argparse.Namespace, material: Material) -> None:
    """Teach the text tower the places of texts: first one block and one state, then all."""
    torch.manual_seed(arguments.seed)
    tokenizer = photo_tokenizer(arguments.out)
    text = TextTransformer(output_dim=DIM, **CONFIG["text"])
    words = arguments.stage == "words"
    if words:
        start_text(text, tokenizer, material)
    else:
        text.load_state_dict(load_file(arguments.folder / "words.safetensors"))
    encode = encode_words if words else encode_text
    names = [PHRASE.format(n) for n in imagenet_names(arguments.data).names]

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        out = encode(text, batch[0])
        return (1 - (out * batch[1]).sum(-1)).mean() + 0.3 * contrast(out, batch[1])

    def score() -> dict[str, float]:
        out = torch.cat([encode(text, tokenizer(some)) for some in (names[:500], names[500:])])
        photos = material.space.place(
            torch.from_numpy(features(arguments.folder)[1][:1000].astype(np.float32))
        )
        right = (photos @ out.T).argmax(-1) == torch.arange(1000)
        ask = [material.captions[i][0] for i in material.held_out]
        cosine = (encode(text, tokenizer(ask)) * material.of(ask)).sum(-1)
        return {"imagenet": right.float().mean().item(), "new captions": cosine.mean().item()}

    def batches(start: int) -> Iterator[tuple[Tensor, Tensor]]:
        seed, size = f"{arguments.seed} {arguments.stage}", WORDS_BATCH if words else TEXT_BATCH
        return text_batches(material, tokenizer, start, seed, size)

    fit(arguments.stage, text, batches, loss, score, 1.5e-3 if words else 1e-3, arguments)


class Views(NamedTuple):
    """A batch of the vision tower: maps, pooled features, places of the plain photo and of a text, labels."""

    last: Tensor
    pooled: Tensor
    own: Tensor
    text: Tensor
    labels: Tensor


def train_vision(arguments: argparse.Namespace, material: Material) -> None:
    """Teach the vision blocks: the place of the plain photo, of its caption, and of its class."""
    torch.manual_seed(arguments.seed)
    maps, pooled = features(arguments.folder)
    count = len(material.captions)
    learned = sorted(set(range(count)) - set(material.held_out))
    photos = ingredients.photos(arguments.data)
    tiny = [i for i, p in enumerate(photos) if p.source == "tiny"]
    first = {
        v: next(i for i, p in enumerate(photos) if (p.source, p.view) == ("flickr", v))
        for v in range(1 + ingredients.VIEWS)
    }
    wnids = sorted({p.name.split("/")[-2] for p in photos if p.source == "tiny"})
    offsets = imagenet_names(arguments.data).offsets
    rows = F.normalize(material.space.rows @ material.space.basis, dim=-1)
    classes = rows[[offsets.index(w[1:]) for w in wnids]]
    label = {i: wnids.index(photos[i].name.split("/")[-2]) for i in tiny}
    visual = PhotoVision(output_dim=DIM, **CONFIG["vision"])
    start_vision(visual, material.space, torch.from_numpy(maps[:1000].astype(np.float32)))
    frozen = [visual.trunk, visual.class_projection]
    for module in frozen:
        module.requires_grad_(False)

    def encode(last: Tensor, pool: Tensor, keep: int = 49) -> Tensor:
        x = visual.embed(last, pool)
        if keep < 49:
            x = torch.cat([x[:, :1], x[:, 1 + torch.randperm(49)[:keep]]], 1)
        for block in visual.blocks:
            x = block(x)
        return F.normalize(visual.read(x[:, 0]).float(), dim=-1)

    def take(rows: list[int]) -> tuple[Tensor, Tensor]:
        return (
            torch.from_numpy(maps[rows].astype(np.float32)),
            torch.from_numpy(pooled[rows].astype(np.float32)),
        )

    def batches(start: int) -> Iterator[Views]:
        for step in range(start, 10**9):
            rng = random.Random(f"{arguments.seed}/{step}")
            some = rng.sample(learned, VISION_BATCH * 5 // 8)
            drawn = rng.sample(tiny, VISION_BATCH - len(some))
            plain = [first[0] + i for i in some]
            views = [first[rng.randrange(1 + ingredients.VIEWS)] + i for i in some]
            own = material.space.place(take([*plain, *drawn])[1])
            text = material.of([rng.choice(material.captions[i]) for i in some])
            yield Views(*take([*views, *drawn]), own, text, torch.tensor([label[i] for i in drawn]))

    def loss(batch: Views) -> Tensor:
        out = encode(batch.last, batch.pooled, 24 if visual.training else 49)
        some = len(batch.text)
        keep = (1 - (out * batch.own).sum(-1)).mean()
        named = F.cross_entropy(SCALE * out[some:] @ classes.T, batch.labels)
        return keep + 0.2 * contrast(out[:some], batch.text) + 0.1 * named

    def score() -> dict[str, float]:
        texts = material.of([material.captions[i][0] for i in material.held_out])
        out = encode(*take([first[0] + i for i in material.held_out]))
        found = (out @ texts.T).argmax(-1) == torch.arange(len(texts))
        image = torch.cat([encode(*take(list(range(i, i + 250)))) for i in range(0, 1000, 250)])
        right = (image @ rows.T).argmax(-1) == torch.arange(1000)
        same = (image * material.space.place(take(list(range(1000)))[1])).sum(-1)
        return {
            "captions": found.float().mean().item(),
            "imagenet": right.float().mean().item(),
            "own": same.mean().item(),
        }

    fit("vision", visual, batches, loss, score, 5e-4, arguments)


def start_vision(visual: PhotoVision, space: Space, maps: Tensor) -> None:
    """Let the class token be the photo's own place, the map's tokens of like size, and blocks do nothing."""
    with torch.no_grad():
        visual.class_projection.weight.copy_(space.basis.T)
        visual.class_projection.bias.copy_(-space.mean @ space.basis)
        visual.token_projection.weight.copy_(torch.eye(DIM) / maps.std())
        visual.token_projection.bias.zero_()
        visual.positional_embedding[1:].normal_(std=0.1)
        visual.proj.copy_(torch.eye(DIM))
        for name, weight in visual.blocks.named_parameters():
            if name.endswith(("out_proj.weight", "c_proj.weight")):
                weight.zero_()


def fit(
    name: str,
    model: nn.Module,
    batches: Any,
    loss: Any,
    score: Any,
    rate: float,
    arguments: argparse.Namespace,
) -> None:
    """Train to the last step, with a checkpoint and a row of the log at every fiftieth."""
    parameters = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [p for n, p in parameters if "blocks" in n and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    optimisers = [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [p for _, p in parameters if id(p) not in chosen], lr=rate, weight_decay=0.01, betas=(0.9, 0.98)
        ),
    ]
    path, start, before = arguments.folder / f"{name}.safetensors", 0, 0.0
    states = arguments.folder / f"{name}-optimisers.pt"
    if path.exists():
        model.load_state_dict(load_file(path))
        saved = torch.load(states, weights_only=True)
        start, before = saved["step"], saved["seconds"]
        for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
    began = time.perf_counter() - before
    for step, batch in zip(range(start, arguments.steps), batches(start), strict=False):
        torch.manual_seed(step)
        share = min(1.0, (step + 1) / 100, (arguments.steps - step) / (arguments.steps / 3))
        model.train(share > 0.5)
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = rate * share
            optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            value = loss(batch)
        value.backward()
        nn.utils.clip_grad_norm_([p for _, p in parameters], 1.0)
        for optimiser in optimisers:
            optimiser.step()
        if (step + 1) % 50 == 0 or step + 1 == arguments.steps or step == 0:
            model.eval()
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                scores = {k: round(v, 4) for k, v in score().items()}
            seconds = round(time.perf_counter() - began)
            row = {
                "stage": name,
                "step": step + 1,
                "loss": round(value.item(), 4),
                **scores,
                "seconds": seconds,
            }
            with (arguments.folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            save_file(model.state_dict(), path.with_suffix(".partial"))
            path.with_suffix(".partial").replace(path)
            state = [optimiser.state_dict() for optimiser in optimisers]
            torch.save({"step": step + 1, "seconds": seconds, "optimisers": state}, states)


def export(arguments: argparse.Namespace, _material: Material) -> None:
    """Put the towers together, choose the logit scale on a photo of each ImageNet class, and write them."""
    model = PhotoCLIP(CONFIG)
    trunk, _ = ingredients.load_trunk(arguments.ingredients)
    model.text.load_state_dict(load_file(arguments.folder / "text.safetensors"))
    model.visual.load_state_dict(load_file(arguments.folder / "vision.safetensors"))
    model.visual.trunk.load_state_dict(trunk.state_dict())
    half = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    model.load_state_dict(half)
    tokenizer = photo_tokenizer(arguments.out)
    names = imagenet_names(arguments.data).names
    maps, pooled = features(arguments.folder)
    with torch.no_grad():
        x = model.visual.embed(*(torch.from_numpy(a[:1000].astype(np.float32)) for a in (maps, pooled)))
        for block in model.visual.blocks:
            x = block(x)
        image = F.normalize(model.visual.read(x[:, 0]), dim=-1)
        text = model.encode_text(tokenizer([PHRASE.format(n) for n in names]), True)
        cosines, target = image @ text.T, torch.arange(1000)
        scales = torch.arange(10.0, 60.0, 0.5)
        losses = torch.stack([F.cross_entropy(s * cosines, target) for s in scales])
        half["logit_scale"] = scales[losses.argmin()].log()
    print({"logit scale": scales[losses.argmin()].item(), "nats": losses.min().item()})
    save_file(half, arguments.out / "model.safetensors", metadata={"format": "pt"})
    load_photo(arguments.out)


def main() -> None:
    """Run one stage of the recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("prepare", "words", "text", "vision", "export"))
    parser.add_argument("--ingredients", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="features, checkpoints and the log")
    parser.add_argument("--steps", type=int, help=f"by default {STEPS}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=photo.FOLDER, help="where the finished model goes")
    arguments = parser.parse_args()
    arguments.steps = arguments.steps or STEPS.get(arguments.stage, 0)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    write_config(arguments.out)
    material = prepare(arguments, photo_tokenizer(arguments.out))
    stages = {"words": train_text, "text": train_text, "vision": train_vision, "export": export}
    if arguments.stage in stages:
        stages[arguments.stage](arguments, material)


if __name__ == "__main__":
    main()
