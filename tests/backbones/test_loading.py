import gzip
import json
import logging
import math
import time
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from promptprism.backbones import load_backbone, loading
from promptprism.errors import PromptPrismError

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 514 + 100, "width": 32, "heads": 2, "layers": 1},
    "quick_gelu": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random model in the shipped one's layout: fp16 weights, and the first 100 merges of CLIP's BPE."""
    root = tmp_path_factory.mktemp("model")
    model = open_clip.CLIP(**CONFIG, init_logit_scale=math.log(20))
    save_file(
        {k: v.half().contiguous() for k, v in model.state_dict().items()},
        root / "open_clip_model.safetensors",
    )
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (root / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": CONFIG, "preprocess_cfg": preprocess})
    )
    with gzip.open(open_clip.tokenizer.default_bpe(), "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[:101]
    with gzip.open(root / "bpe.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(merges))
    return root


def test_local_folder(folder):
    backbone = load_backbone(f"local-dir:{folder}", device="cpu")
    assert backbone.activation == "quick_gelu" and backbone.image_size == 16
    assert backbone.mean == (0.5, 0.5, 0.5) and backbone.std == (0.25, 0.25, 0.25)
    assert backbone.logit_scale == pytest.approx(20, rel=1e-3)
    assert backbone.tokenize(["a 🦊"]).max() == 513 + 100


def test_mini_is_one_more_local_folder(folder, monkeypatch):
    monkeypatch.setattr(loading, "MINI", folder)
    mini = load_backbone(precision="bfloat16")
    assert mini.name == "mini" and mini.dtype == torch.bfloat16
    assert mini.fingerprint == load_backbone(f"local-dir:{folder}").fingerprint


def test_shipped_mini():
    if not (loading.MINI / "open_clip_model.safetensors").is_file():
        pytest.skip("the mini CLIP is not here yet")
    mini = load_backbone("mini")
    tokens = mini.tokenize(["a photo of a fox."])
    assert tokens.shape == (1, mini.context_length)


def test_plain_name_with_a_local_file_says_which_activation_runs(monkeypatch, tmp_path, folder, caplog):
    monkeypatch.setitem(
        open_clip.factory._MODEL_CONFIGS, "ViT-X", {k: v for k, v in CONFIG.items() if k != "quick_gelu"}
    )
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-X-quickgelu", CONFIG)
    file = str(folder / "open_clip_model.safetensors")
    with caplog.at_level(logging.WARNING):
        assert load_backbone("ViT-X", file).activation == "gelu"
    assert "runs with GELU" in caplog.text and "ViT-X-quickgelu" in caplog.text
    assert load_backbone("ViT-X-quickgelu", file).activation == "quick_gelu"


def test_quick_gelu_of_a_tag_is_honoured(monkeypatch, folder):
    plain = {k: v for k, v in CONFIG.items() if k != "quick_gelu"}
    tag = {"file": str(folder / "open_clip_model.safetensors"), "quick_gelu": True}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-X", plain)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-X", {"openai": tag})
    assert load_backbone("ViT-X", "openai").activation == "quick_gelu"


@pytest.mark.parametrize(
    ("name", "pretrained", "words"),
    [
        ("ViT-B-61", "openai", r"Unknown backbone 'ViT-B-61'. Did you mean .*ViT-B-16"),
        ("minni", None, "Did you mean mini"),
        ("ViT-B-16", None, "needs weights: give pretrained=TAG with one of openai"),
        ("ViT-B-16", "opnai", "neither a file nor a known tag. Tags: openai"),
        ("local-dir:/nowhere", None, "/nowhere/open_clip_config.json does not exist"),
        ("hf-hub:a/b", "openai", "leave it out"),
        ("mini", "openai", "pretrained='openai' has no meaning for 'mini': leave it out"),
    ],
)
def test_refused_before_anything_heavy(name, pretrained, words):
    with pytest.raises(PromptPrismError, match=words):
        load_backbone(name, pretrained)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta:x"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(PromptPrismError, match=f"device '{device}' cannot be used: give auto, cpu"):
        load_backbone(device=device)


@pytest.mark.parametrize(
    ("name", "pretrained", "words"),
    [
        ("ViT-B-16", "openai", r"huggingface.co/timm/vit_base_patch16_clip_224.openai.*'ViT-B-16-quickgelu'"),
        ("hf-hub:laion/some-model", None, "huggingface.co/laion/some-model.*local-dir:FOLDER"),
    ],
)
def test_no_network(monkeypatch, tmp_path, name, pretrained, words):
    def no_network(*_):
        raise OSError("no network")

    monkeypatch.setattr(loading.socket, "getaddrinfo", no_network)
    monkeypatch.setattr(loading, "getproxies", dict)
    start = time.perf_counter()
    with pytest.raises(PromptPrismError, match=words):
        load_backbone(name, pretrained)
    assert time.perf_counter() - start < 10


def test_cut_file(folder, tmp_path):
    whole = (folder / "open_clip_model.safetensors").read_bytes()
    for file in ("open_clip_config.json", "bpe.txt.gz"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    (tmp_path / "open_clip_model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(PromptPrismError, match="Check that the file is whole"):
        load_backbone(f"local-dir:{tmp_path}")
