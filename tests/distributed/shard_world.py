"""Shards of MiniWorld's scenes and a model that names them fast; what their tables hold."""

import io
import os
import signal
import tarfile
from dataclasses import fields

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from promptprism.data.miniworld import load
from promptprism.data.names import LabelSpace
from promptprism.methods import build_method, make_settings
from promptprism.methods.cdc_classifier import CdcClassifier


def needs_cluster():
    """Skip where none is asked for: Ray gives its processes seconds to start, too few on busy cores."""
    pytest.importorskip("ray")
    if os.environ.get("PROMPTPRISM_TEST_RAY") != "1":
        pytest.skip("starts Ray clusters, on idle cores: PROMPTPRISM_TEST_RAY=1")


SPACE = LabelSpace(("honeybee", "fox", "tulip", "pizza", "bus", "violin", "castle"))


def scenes(count):
    """Encoded scenes, each another one."""
    for record in load("mini/general").train[:count]:
        file = io.BytesIO()
        record.source.image().resize((40, 40)).save(file, "PNG")
        yield file.getvalue()


def write_shard(path, images):
    """A shard of encoded images, with a label and a text beside each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, content in enumerate(images):
            for ending, data in (("png", content), ("cls", b"0"), ("txt", b"a scene")):
                info = tarfile.TarInfo(f"{number:04}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def shards(folder, count, each):
    """Shards of scenes, whose pattern is returned; the second holds one image that is none."""
    images = list(scenes(count * each))
    for number in range(count):
        own = images[number * each : (number + 1) * each]
        if number == 1:
            own[-1] = b"\x89PNG\r\n no image"
        write_shard(folder / f"shards-{number:06}.tar", own)
    return f"{folder}/shards-{{000000..{count - 1:06}}}.tar"


def cut(path):
    """End a shard in the middle of a member; gives what it was."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 + 700])
    return whole


def classifier(backbone, **settings):
    """CDC that has learned nothing."""
    chosen = make_settings("cdc", **{"templates": 2, "depth": 2} | settings)
    return build_method(chosen, backbone, 1).classifier(SPACE)


def rows(out, kind="answers"):
    """All rows of all tables, by table."""
    return {path.name: pq.read_table(path).to_pylist() for path in sorted((out / kind).glob("*.parquet"))}


class Deadly(CdcClassifier):
    """Ends its process at an image that is all white."""

    def logits(self, views):
        if (views.amin((0, 2, 3, 4)) > 1.8).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().logits(views)


def deadly(one):
    """The same classifier, but for white images."""
    return Deadly(**{field.name: getattr(one, field.name) for field in fields(one)})


def white():
    """Such an image."""
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (255, 255, 255)).save(file, "PNG")
    return file.getvalue()


def same(one, other):
    """Whether two classifiers say the same of the same views."""
    views = torch.randn(1, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return torch.equal(one.logits(views), other.logits(views))
