"""What work that is too large to be measured here would cost, by what was measured and a few assumptions.

Operations are those of `promptprism.cost` and of the suites' own estimates, for a ViT-B/16. All that is
assumed is in `ASSUMED` and printed beside the figures.
"""

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from promptprism.backbones import sized_backbone
from promptprism.cost.estimate import image_prediction_flops, recomputed_flops, step_flops
from promptprism.data.images import seen_pixels
from promptprism.data.names import LabelSpace
from promptprism.evaluation.estimate import estimate_suite
from promptprism.evaluation.suites import load_suite
from promptprism.methods import Method, build_method, make_settings


@dataclass(frozen=True)
class Assumed:
    """What is not measured.

    Attributes:
        gpu_tflops: operations per second of a GPU in matrix products of these sizes, 1e12: 40 % of the 312 of
            an A100 in bfloat16.
        laion_images: in LAION-400M.
        laion_bytes: of an image in its shards of 256 pixels.
        laion_each: images of a shard.
        row_bytes: of a photo's line in a table.
        seen_bytes: of a picture that `--once` remembers.
        network_bytes: per second between machines, 10 Gbit/s.
        read_bytes: per second that a machine reads from a store.
        imagenet_classes: of ImageNet-21k.
        shots: training images of each.
    """

    gpu_tflops: float = 125.0
    laion_images: float = 400e6
    laion_bytes: float = 25e3
    laion_each: float = 1e4
    row_bytes: float = 60.0
    seen_bytes: float = 250.0
    network_bytes: float = 1.25e9
    read_bytes: float = 1e9
    imagenet_classes: int = 21_841
    shots: int = 16


ASSUMED = Assumed()
_BACKBONE, _PRETRAINED = "ViT-B-16", "openai"


def seconds(model: Mapping[str, float], n: float, workers: float) -> float:
    """Seconds of n things by so many workers."""
    return model["start"] + model["serial"] * n + model["parallel"] * n / workers


def workers_to_half(model: Mapping[str, float]) -> float | None:
    """With how many workers half of what each does is lost to what does not divide; None if all divides."""
    return model["parallel"] / model["serial"] if model["serial"] else None


def read_seconds(count: int = 200) -> float:
    """Processor seconds to decode a JPEG of 256 x 256 pixels and cut out what a model of 224 sees."""
    small = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((256, 256), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)

    class Photo:
        def content(self) -> bytes:
            return file.getvalue()

    began = time.process_time()
    for _ in range(count):
        seen_pixels(Photo(), 224)
    return (time.process_time() - began) / count


def on_paper(found: Mapping[str, Any]) -> dict[str, Any]:
    """Hours and bytes of what is too large, by what was measured.

    Args:
        found: ``shards``, ``cells`` and ``read_seconds_per_image``.
    """
    backbone = sized_backbone(_BACKBONE, _PRETRAINED)
    shards, assumed = found["shards"], ASSUMED
    core_gflops = shards["gflop_per_image"] / shards["alone_seconds_per_image"]
    engine = max(0.0, shards["engine_seconds_per_image"])
    naming = {
        name: _naming(
            build_method(make_settings(name, preset="paper"), backbone),
            found["read_seconds_per_image"] + engine,
        )
        for name in ("zero-shot", "cdc")
    }
    names = tuple(f"class number {number}" for number in range(assumed.imagenet_classes))
    training = _training(build_method(make_settings("cdc", preset="paper"), backbone), LabelSpace(names))
    table = _table(found["cells"]["engine_seconds_per_cell"])
    for one in (*naming.values(), training, table):
        one["core_hours_without_gpu"] = one["pflop"] * 1e6 / core_gflops / 3600
    return {
        "assumed": asdict(assumed),
        "core_gflops": core_gflops,
        "naming": naming,
        "training": training,
        "table": table,
    }


def _naming(method: Method, core_seconds: float) -> dict[str, float]:
    assumed, flop = ASSUMED, image_prediction_flops(method)
    images = assumed.laion_images
    rate = assumed.gpu_tflops * 1e12 / flop
    return {
        "pflop": images * flop / 1e15,
        "gpu_hours": images / rate / 3600,
        "core_hours": images * core_seconds / 3600,
        "cores_per_gpu": rate * core_seconds,
        "images_per_second_per_gpu": rate,
        "read_bytes": images * assumed.laion_bytes,
        "read_bytes_per_second_per_gpu": rate * assumed.laion_bytes,
        "gpus_to_fill_a_store": assumed.read_bytes / (rate * assumed.laion_bytes),
        "written_bytes": images * assumed.row_bytes,
        "tables": 2 * images / assumed.laion_each,
        "seen_bytes": images * assumed.seen_bytes,
    }


def _training(method: Method, space: LabelSpace) -> dict[str, float]:
    assumed, settings = ASSUMED, method.settings
    tokens = method.texts(space).tokens
    text_flop = step_flops(method, tokens, 0) + recomputed_flops(method, tokens, 2)
    flop = step_flops(method, tokens, settings.batch_size) + recomputed_flops(method, tokens, 2)
    steps = settings.epochs * len(space) * assumed.shots // settings.batch_size
    features = 4.0 * method.shape.templates * len(space) * method.backbone.embed_dim
    step_seconds = flop / assumed.gpu_tflops / 1e12
    # The features are gathered and their gradients summed; a ring moves up to twice as much of each.
    moved = 4 * features
    return {
        "pflop": steps * flop / 1e15,
        "steps": float(steps),
        "share_of_texts": text_flop / flop,
        "step_seconds": step_seconds,
        "gpu_hours": steps * step_seconds / 3600,
        "text_features_bytes": features,
        "moved_bytes_per_step": moved,
        "moved_bytes": steps * moved,
        "moved_seconds_per_step": moved / assumed.network_bytes,
        "devices_until_the_network": step_seconds / (moved / assumed.network_bytes),
    }


def _table(seconds_per_cell: float) -> dict[str, float]:
    flop = cells = 0.0
    suites = files("promptprism").joinpath("suites", "paper").iterdir()
    for name in sorted(entry.name for entry in suites):
        suite = load_suite(f"paper/{name.removesuffix('.yaml')}")
        for cell in estimate_suite(suite, gigaflops=1.0).cells:
            flop += cell.train_flops + cell.test_flops
            cells += 1
    return {
        "pflop": flop / 1e15,
        "cells": cells,
        "gpu_hours": flop / ASSUMED.gpu_tflops / 1e12 / 3600,
        "engine_seconds": cells * seconds_per_cell,
    }


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the page, by their names."""
    paper, shards, cells, devices = found["paper"], found["shards"], found["cells"], found["devices"]
    worth = _grid(
        ("work", "two processes against one", "start, s", "does not divide, ms each", "divides, ms each"),
        [
            _growth("photos in shards", shards),
            _growth("cells of a suite", cells),
            (f"training with {devices['classes']:,} classes", f"{devices['speedup']:.2f}", "", "", ""),
        ],
    )
    photo = 1000 * shards["engine_seconds_per_image"]  # a difference of two measurements
    costs = _grid(
        ("engine", "costs"),
        [
            ("per photo", f"{photo:.2f} ms" if photo > 0 else "too little to be told from noise"),
            ("per cell", f"{1000 * cells['engine_seconds_per_cell']:.0f} ms"),
        ],
    )
    classes = _grid(
        (
            "classes",
            "texts, s",
            "memory for it, MiB",
            "features, MiB",
            "a photo, ms",
            "memory for it, MiB",
            "the whole matrix",
        ),
        [
            (
                f"{part['classes']:,}",
                f"{part['text_seconds']:.1f}",
                f"{part['text_peak_mb']:.0f}",
                f"{part['text_features_mb']:.0f}",
                f"{1000 * part['seconds_per_image']:.0f}",
                f"{part['peak_mb']:.0f}",
                f"{whole['text_peak_mb']:.0f} and {whole['peak_mb']:.0f} MiB",
            )
            for part, whole in zip(found["classes"][::2], found["classes"][1::2], strict=True)
        ],
    )
    zero, cdc = paper["naming"]["zero-shot"], paper["naming"]["cdc"]
    training, table = paper["training"], paper["table"]
    large = _grid(
        ("work", "PFLOP", "GPU hours", "core hours beside them", "core hours without a GPU", "bytes moved"),
        [
            _large("LAION-400M, zero-shot", zero, f"{zero['core_hours']:,.0f}", _bytes(zero["read_bytes"])),
            _large(
                "LAION-400M, CDC with 4 templates",
                cdc,
                f"{cdc['core_hours']:,.0f}",
                _bytes(cdc["read_bytes"]),
            ),
            _large(
                "ImageNet-21k, CDC, 16 shots",
                training,
                "few",
                f"{_bytes(training['moved_bytes'])} between devices",
            ),
            _large(f"the paper's tables, {table['cells']:,.0f} cells", table, "few", "few"),
        ],
    )
    where = _grid(
        ("figure", "value"),
        [
            ("operations of a core, measured", f"{paper['core_gflops']:.0f} GFLOP/s"),
            ("reading a photo of 256 pixels, measured", f"{1000 * found['read_seconds_per_image']:.1f} ms"),
            ("photos per second of a GPU, zero-shot", f"{zero['images_per_second_per_gpu']:,.0f}"),
            ("cores that read for it", f"{zero['cores_per_gpu']:.0f}"),
            ("bytes per second that it reads", _bytes(zero["read_bytes_per_second_per_gpu"])),
            ("photos per second of a GPU, CDC", f"{cdc['images_per_second_per_gpu']:,.0f}"),
            ("cores that read for it", f"{cdc['cores_per_gpu']:.1f}"),
            ("tables of LAION-400M", f"{cdc['tables']:,.0f} files, {_bytes(cdc['written_bytes'])}"),
            ("what --once would remember of it", _bytes(cdc["seen_bytes"])),
            ("ImageNet-21k: share of texts in a step", f"{100 * training['share_of_texts']:.1f} %"),
            ("ImageNet-21k: a step on one GPU", f"{training['step_seconds']:.2f} s"),
            ("moved in a step between devices", _bytes(training["moved_bytes_per_step"])),
            ("which takes by 10 Gbit/s", f"{training['moved_seconds_per_step']:.2f} s"),
            ("GPUs from which on the network is slower", f"{training['devices_until_the_network']:.1f}"),
        ],
    )
    assumed = _grid(
        ("assumed", "value"),
        [(name.replace("_", " "), f"{value:,g}") for name, value in paper["assumed"].items()],
    )
    return {
        "worth": worth,
        "costs": costs,
        "classes": classes,
        "large": large,
        "where": where,
        "assumed": assumed,
    }


def filled(page: str, found: Mapping[str, Any]) -> str:
    """A page whose tables, from ``<!-- scale: NAME -->`` to ``<!-- end -->``, are those of what was found."""
    for name, table in tables(found).items():
        before, mark, rest = page.partition(f"<!-- scale: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        page = before + mark + (table if mark else "") + end + after
    return page


def _growth(name: str, found: Mapping[str, Any]) -> Sequence[str]:
    model = found["model"]
    numbers = f"{model['start']:.1f}", f"{1000 * model['serial']:.2f}", f"{1000 * model['parallel']:.2f}"
    return name, f"{found['speedup']:.2f}", *numbers


def _large(name: str, found: Mapping[str, float], cores: str, moved: str) -> Sequence[str]:
    hours = f"{found['gpu_hours']:,.0f}", cores, f"{found['core_hours_without_gpu']:,.0f}"
    return name, f"{found['pflop']:,.0f}", *hours, moved


def _bytes(count: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    while count >= 1000 and units[1:]:
        count /= 1000
        del units[0]
    return f"{count:,.0f} {units[0]}" if count >= 10 else f"{count:.1f} {units[0]}"


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
