"""Small models that every test may use: `tiny` (seconds would be too long) and the golden CLIP."""

import gc
import hashlib
import math
import os
import zlib
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import settings
from miniatures import WNID_NAMES, small_imagenets

from promptprism.backbones import Backbone
from promptprism.data import layouts

GOLDEN = Path(__file__).with_name("golden")

# Tests assert values, not time: the machine may be busy.
settings.register_profile("values", deadline=None)
settings.load_profile("values")

# Workers of pytest-xdist share the cores, and their threads would only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_collection_finish():
    """What imports have made stays: the collections that measurements ask for need not walk it each time."""
    gc.freeze()


DATA_ROOT = os.environ.get("PROMPTPRISM_DATA")


@pytest.fixture(scope="session", autouse=True)
def _no_data_root():
    """The data sets that a machine has change no test: `real_data` is the one way to them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PROMPTPRISM_DATA", raising=False)
        yield


@pytest.fixture(scope="session")
def real_data():
    """Paths below PROMPTPRISM_DATA: `real_data("eurosat")`, given ways to it, is the first one that is there.

    Where there is none, the test is skipped.
    """

    def find(*places: str) -> Path:
        for place in places:
            if DATA_ROOT and (path := Path(DATA_ROOT, place)).exists():
                return path
        pytest.skip(f"needs {' or '.join(places)} below PROMPTPRISM_DATA")

    return find


def make_tiny(precision: str = "float32", **changes) -> Backbone:
    """A random CLIP: 2 + 2 layers, text 48 wide, vision 64 wide, 32 px, 40 tokens, logit scale 30."""
    config = {
        "embed_dim": 24,
        "vision_cfg": {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32},
        "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 2},
        "init_logit_scale": math.log(30),
    }
    config = {key: {**value, **changes.pop(key, {})} if isinstance(value, dict) else value
              for key, value in config.items()} | changes  # fmt: skip
    custom = config.pop("custom_text", False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
        for name, value in model.named_parameters():  # random norms and biases, so that none can be forgotten
            if value.ndim == 1:
                value.data += 0.1 * torch.randn_like(value)
            elif "token_embedding" in name or "positional" in name:
                value.data *= 10
    tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    return Backbone(model, tokenizer, name="tiny", precision=precision)


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    return make_tiny()


@pytest.fixture(scope="session")
def tiny_factory():
    return make_tiny


def golden_weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The rule of tests/golden: weights are a function of their name."""
    a = np.random.RandomState((zlib.crc32(key.encode()) + 7) % 2**32).standard_normal(shape)
    if key == "logit_scale":
        return np.asarray(math.log(100))
    if key.endswith("bias"):
        return 0.02 * a
    if "ln_" in key:
        return 1 + 0.05 * a
    if key == "token_embedding.weight":
        return 0.02 * a
    if "positional_embedding" in key:
        return 0.01 * a
    if a.ndim >= 2:
        return a / math.sqrt(shape[-1]) * (0.05 if a.ndim == 4 else 1)
    return 0.02 * a


@pytest.fixture(scope="session")
def golden_backbone() -> Backbone:
    """The CLIP of the golden data: OpenAI's layout and activation, 3 + 3 layers."""
    model = open_clip.CLIP(
        embed_dim=512,
        vision_cfg={"layers": 3, "width": 768, "head_width": 64, "patch_size": 16, "image_size": 32},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 3},
        quick_gelu=True,
    )
    state = model.state_dict()
    model.load_state_dict({k: torch.as_tensor(golden_weight(k, tuple(v.shape))) for k, v in state.items()})
    return Backbone(model, open_clip.SimpleTokenizer(), name="golden")


@pytest.fixture(scope="session")
def golden():
    """Golden arrays by name: `golden("maple")["logits"]`."""

    def load(name: str) -> dict[str, torch.Tensor]:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return {k: torch.as_tensor(v) if v.dtype.kind != "U" else v.tolist() for k, v in arrays.items()}

    return load


@pytest.fixture
def imagenets(tmp_path, monkeypatch) -> Path:
    """The root of an ImageNet of four classes and its shifts, whose names are taken for CLIP's."""
    monkeypatch.setattr(layouts, "CLIP_NAMES", hashlib.sha256(WNID_NAMES.encode()).hexdigest())
    small_imagenets(tmp_path)
    return tmp_path
