"""Pre-train the mini CLIP on MiniWorld scenes with captions, and on natural photos where they are at hand.

    torchrun --nproc-per-node 2 tools/pretrain_mini.py --photos tiny-imagenet-200.tar --folder mini-run

Contrastive, with a linear head that names the concept beside it, thrown away at the end. Muon moves the
matrices of the blocks, AdamW the rest. The rate is constant and falls linearly over the last quarter of
``--steps``, so a run may go on with more of them. What a batch holds depends on its number and the seed
only, however many processes share it (one for each core is quickest); a run that is stopped goes on where
its last checkpoint is. The photos (Tiny ImageNet's tar with a ``classes.json`` of names) are not
redistributed; without them the model learns drawings only.
"""

import argparse
import gzip
import io
import json
import os
import random
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import open_clip.transformer
import torch
import torch.distributed as dist
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, IterableDataset

from promptprism.data.miniworld.captions import STYLES
from promptprism.data.miniworld.scenes import SIZE, Scene, render
from promptprism.data.miniworld.sprites import Concept, Pixels, concepts, sprite
from promptprism.data.miniworld.worlds import PRETRAINING_ARTISTS, WORLD_ARTISTS, draw_scene

MERGES = 4096
CONTEXT = 48
# Half of the patches is left out until the rate falls: twice as many scenes are seen in the same time.
PATCH_DROPOUT = 0.5
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 192,
        "vision_cfg": {"image_size": SIZE, "layers": 6, "width": 192, "head_width": 64, "patch_size": 8},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": 512 + MERGES + 2,
            "width": 192,
            "heads": 3,
            "layers": 4,
        },
    },
    "preprocess_cfg": {"interpolation": "bicubic", "resize_mode": "shortest"},
}
OUT = Path(__file__).parents[1] / "src/promptprism/backbones/mini"
# Artists of MiniWorld's data sets are seen in few scenes, and late: as CLIP has seen a little of everything.
RARE_FROM = 1250
RARE = ((0.08, WORLD_ARTISTS), (0.13, ("emojione-monotone",)))
PHRASES = (
    "a photo of a {}.", "a photo of a {}.", "a photo of a {}.", "a photo of the {}.", "a picture of a {}.",
    "a drawing of a {}.", "a small photo of a {}.", "a close-up photo of a {}.", "art of a {}.", "{}.",
    "an image of {}.",
)  # fmt: skip
RANK, PROCESSES = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
Batch = tuple[Tensor, Tensor, Tensor]


def write_config(folder: Path) -> None:
    """Write the model's config and the first of CLIP's merges."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    with gzip.open(default_bpe()) as file:
        lines = file.read().decode().split("\n")[: MERGES + 1]
    with gzip.GzipFile(folder / "bpe.txt.gz", "wb", mtime=0) as out:
        out.write("\n".join(lines).encode())


def caption(scene: Scene, rng: random.Random) -> str:
    """Describe a scene, with its factors in varied order and completeness."""
    name = scene.concept.name
    if rng.random() < 0.5:
        return PHRASES[int(rng.random() * len(PHRASES))].format(name)
    style = STYLES[scene.artist] if rng.random() < 0.5 else "photo"
    kind = [w for w in (scene.colour, scene.pattern) if rng.random() < 0.6]
    ground = f"a {' '.join(kind)} background" if kind else ""
    second = f"a small {scene.second.name}" if scene.second and rng.random() < 0.7 else ""
    if ground and rng.random() < 0.25:
        return f"{ground} and a {name}" + (f" with {second}." if second else ".")
    text = f"a {style} of a {name}"
    text += f" on {ground}" if ground else ""
    return text + (f" with {second}." if second else ".")


def recoloured(rng: random.Random) -> Any:
    """Return a drawing function that sometimes changes an artist's colours, so that shape is learnt too."""
    kind, order, gain = rng.random(), rng.sample(range(3), 3), [0.6 + 0.8 * rng.random() for _ in range(3)]

    def draw(artist: str, code: str) -> Pixels:
        pixels = sprite(artist, code)
        if kind > 0.4:
            return pixels
        colours = pixels[..., :3].astype(np.float32)
        if kind < 0.1:
            colours = colours.mean(-1, keepdims=True).repeat(3, -1)
        elif kind < 0.15:
            colours = np.where(colours.mean(-1, keepdims=True) > 110, 240.0, 20.0).repeat(3, -1)
        else:
            colours = colours[..., order] * gain if kind < 0.25 else colours * gain
        return np.concatenate([colours.clip(0, 255).astype(np.uint8), pixels[..., 3:]], -1)

    return draw


class Photos:
    """The natural photos, decoded once into memory, and their names."""

    def __init__(self, archive: Path) -> None:
        self.images: dict[str, list[bytes]] = {}
        with tarfile.open(archive) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is None:
                    continue
                parts = Path(member.name).parts
                if parts[-1] == "classes.json":
                    self.names: dict[str, list[str]] = json.load(file)
                elif parts[1] == "train":
                    self.images.setdefault(parts[2], []).append(file.read())
        self.keys = sorted(self.images)

    def draw(self, rng: random.Random, label: int) -> tuple[Image.Image, str]:
        """Return a randomly cropped photo of a class and a caption."""
        key = self.keys[label]
        data = self.images[key][int(rng.random() * len(self.images[key]))]
        image = Image.open(io.BytesIO(data)).convert("RGB")
        side = 36 + rng.random() * (image.width - 36)
        x, y = rng.random() * (image.width - side), rng.random() * (image.height - side)
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        names = self.names[key]
        name = names[0] if rng.random() < 0.7 else names[int(rng.random() * len(names))]
        return image, PHRASES[int(rng.random() * len(PHRASES))].format(name)


class Batches(IterableDataset[Batch]):
    """Batches without two of a kind: every false negative of the contrastive loss would be a true pair."""

    def __init__(self, tokenizer: SimpleTokenizer, photos: Photos | None, size: int, seed: int) -> None:
        self.tokenizer, self.photos, self.size, self.seed = tokenizer, photos, size, seed
        self.start = 0
        self.concepts = [c for c in concepts() if c.artists & set(PRETRAINING_ARTISTS)]

    @property
    def classes(self) -> int:
        """Return how many labels the auxiliary head tells apart."""
        return len(self.concepts) + (len(self.photos.keys) if self.photos else 0)

    def __iter__(self) -> Iterator[Batch]:
        step = self.start
        while True:
            yield self.batch(step)
            step += 1

    def scene(self, rng: random.Random, concept: Concept, rare: bool) -> Scene:
        """Draw a scene, mostly of an artist of the pre-training."""
        artists: tuple[str, ...] = PRETRAINING_ARTISTS
        if rare:
            share = rng.random()
            drawn = [a for bound, a in RARE if share < bound and concept.artists.issuperset(a)]
            artists = drawn[0] if drawn else artists
        return draw_scene(rng, concept, artists, self.concepts)

    def batch(self, step: int) -> Batch:
        """Return this process's part of a batch: images [B, 3, H, W] in bytes, tokens [B, L], labels [B]."""
        rng = random.Random(f"{self.seed}/{step}")
        photos = self.size // 5 if self.photos else 0
        labels = rng.sample(range(len(self.concepts)), self.size - photos)
        labels += [
            len(self.concepts) + i for i in rng.sample(range(self.classes - len(self.concepts)), photos)
        ]
        images, captions = [], []
        labels = labels[RANK::PROCESSES]
        for row, label in enumerate(labels):
            rng = random.Random(f"{self.seed}/{step}/{row * PROCESSES + RANK}")
            if label < len(self.concepts):
                scene = self.scene(rng, self.concepts[label], rare=step >= RARE_FROM)
                image, text = render(scene, recoloured(rng)), caption(scene, rng)
            else:
                assert self.photos is not None
                image, text = self.photos.draw(rng, label - len(self.concepts))
            images.append(image)
            captions.append(text)
        pixels = torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2)
        return pixels, self.tokenizer(captions), torch.tensor(labels)


def gather(features: Tensor) -> Tensor:
    """Put the features of all processes together; gradients reach this process's own."""
    if PROCESSES == 1:
        return features
    parts = [torch.empty_like(features) for _ in range(PROCESSES)]
    dist.all_gather(parts, features.detach().contiguous())
    parts[RANK] = features
    return torch.cat(parts)


def encode_text(model: Any, tokens: Tensor) -> Tensor:
    """Encode captions, tokens [B, L], to unit features [B, D]; each half is cut to its own longest."""
    order = tokens.argmax(-1).argsort()
    features = []
    for half in tokens[order].chunk(2):
        end = half.argmax(-1)
        length = int(end.max()) + 1
        x = model.token_embedding(half[:, :length]) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        features.append(x[torch.arange(len(x)), end] @ model.text_projection)
    return F.normalize(torch.cat(features)[order.argsort()], dim=-1)


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="tar of natural photos; left out without it")
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the checkpoint and the log")
    parser.add_argument("--out", type=Path, default=OUT, help="where the finished model goes")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if PROCESSES > 1:
        dist.init_process_group("gloo")
    if RANK == 0:
        write_config(arguments.out)
    if PROCESSES > 1:
        dist.barrier()
    tokenizer = SimpleTokenizer(bpe_path=str(arguments.out / "bpe.txt.gz"), context_length=CONTEXT)
    torch.manual_seed(arguments.seed)
    photos = Photos(arguments.photos) if arguments.photos else None
    model = open_clip.CLIP(**CONFIG["model_cfg"])
    model.visual.patch_dropout = open_clip.transformer.PatchDropout(PATCH_DROPOUT)
    data = Batches(tokenizer, photos, arguments.batch, arguments.seed)
    head = nn.Linear(CONFIG["model_cfg"]["embed_dim"], data.classes)
    both = nn.ModuleDict({"model": model, "head": head})
    matrices = [p for n, p in both.named_parameters() if "resblocks" in n and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in both.parameters() if id(p) not in chosen]
    optimisers = [
        torch.optim.Muon(matrices, lr=1.5e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1.5e-3, weight_decay=0.01, betas=(0.9, 0.98)),
    ]
    checkpoint, seconds = arguments.folder / "checkpoint.safetensors", 0.0
    if checkpoint.exists():
        data.start, seconds = load(checkpoint, both, optimisers)
        print(f"going on at step {data.start}", flush=True)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1) * 255
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1) * 255
    began, window = time.perf_counter() - seconds, time.perf_counter()
    loader = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=4))
    for step in range(data.start, arguments.steps):
        pixels, tokens, labels = next(loader)
        torch.manual_seed(PROCESSES * step + RANK)  # of the patches that are left out
        decay = (arguments.steps - step) / (0.25 * arguments.steps)
        share = min(1.0, (step + 1) / 300, decay)
        if decay < 1:
            model.visual.patch_dropout.prob = 0.0
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = 1.5e-3 * share
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            image = F.normalize(model.visual((pixels.float() - mean) / std), dim=-1)
            text = encode_text(model, tokens)
            naming = F.cross_entropy(head(image * 16).float(), labels)
        logits = model.logit_scale.exp() * gather(image.float()) @ gather(text.float()).T
        target = torch.arange(len(logits))
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        both.zero_grad()
        # Every process has the whole contrastive loss, whose gradient reaches its own features only: their
        # sum is the gradient. Of the naming loss each has a part, and of the scale the whole gradient.
        (contrast + naming / PROCESSES).backward()  # type: ignore[no-untyped-call]
        model.logit_scale.grad /= PROCESSES
        if PROCESSES > 1:
            gradients = [p.grad for p in both.parameters() if p.grad is not None]
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            for gradient, part in zip(
                gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True
            ):
                gradient.copy_(part.view_as(gradient))
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))
        if RANK == 0 and ((step + 1) % 50 == 0 or step + 1 == arguments.steps):
            now = time.perf_counter()
            row = {
                "step": step + 1,
                "contrast": round(contrast.item(), 4),
                "naming": round(naming.item(), 4),
                "scale": round(model.logit_scale.exp().item(), 2),
                "pairs_per_second": round(50 * arguments.batch / (now - window)),
                "seconds": round(now - began),
            }
            window = now
            with (arguments.folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
        if RANK == 0 and ((step + 1) % 250 == 0 or step + 1 == arguments.steps):
            save(checkpoint, both, optimisers, step + 1, time.perf_counter() - began)
            half = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
            partial = arguments.out / "open_clip_model.partial"
            save_file(half, partial, metadata={"steps": str(step + 1)})
            partial.replace(arguments.out / "open_clip_model.safetensors")


def save(
    path: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer], step: int, seconds: float
) -> None:
    """Write weights and optimiser states, at once or not at all."""
    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    for i, optimiser in enumerate(optimisers):
        for number, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{i}/{number}/{k}": torch.as_tensor(v) for k, v in state.items()}
    tensors["step"], tensors["seconds"] = torch.tensor(step), torch.tensor(seconds, dtype=torch.float64)
    partial = path.with_suffix(".partial")
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, partial)
    partial.replace(path)


def load(path: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    """Read what save() wrote; return the number of finished steps and the seconds they took."""
    tensors = load_file(path)
    model.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
    for i, optimiser in enumerate(optimisers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimiser/{i}/"):
                _, _, number, name = key.split("/")
                state.setdefault(int(number), {})[name] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return int(tensors["step"]), float(tensors["seconds"])


if __name__ == "__main__":
    main()
