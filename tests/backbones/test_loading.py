import gzip
import json
import logging
import math
import socket
import sys
import time
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from promptprism.backbones import build, choice, load_backbone, loading
from promptprism.backbones.backbone import fingerprint_of
from promptprism.backbones.build import build_model, random_model
from promptprism.errors import PromptPrismError, PromptPrismWarning
from promptprism.prompts import encode_image, encode_text

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


@pytest.mark.slow
def test_shipped_photo_is_its_own_forward():
    photo = load_backbone("photo", precision="float32", device="cpu")
    pixels = torch.randn(2, 3, photo.image_size, photo.image_size)
    tokens = photo.tokenize(["a photo of a cat.", "a photo of a red fox."])
    with torch.no_grad():
        image, text = photo.model.encode_image(pixels, True), photo.model.encode_text(tokens, True)
        torch.testing.assert_close(encode_image(photo, pixels[None])[0], image, atol=1e-5, rtol=0)
        torch.testing.assert_close(encode_text(photo, tokens)[0], text, atol=1e-5, rtol=0)
    assert (photo.vision.grid, photo.vision.layers, photo.text.causal) == ((7, 7), 4, True)


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_lies_on_this_disk_asks_no_resolver(folder, monkeypatch):
    def resolver(*arguments):
        raise AssertionError(f"asked for {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    monkeypatch.setattr(loading, "getproxies", dict)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-X", CONFIG)
    weights = str(folder / "open_clip_model.safetensors")
    shipped = load_backbone("mini", device="cpu")
    local = load_backbone(f"local-dir:{folder}", device="cpu")
    assert shipped.name == "mini" and load_backbone("ViT-X", weights).fingerprint == local.fingerprint
    with pytest.raises(PromptPrismError, match=r"asked for \('huggingface.co', 443\)"):
        load_backbone("ViT-B-16", "openai")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ViT-B-16", "open_clip_model.safetensors"),
        ("ViT-S-32-alt", "open_clip_pytorch_model.safetensors"),
        ("ViT-S-32-alt", "open_clip_pytorch_model.bin"),
    ],
)
def test_weights_load_in_every_layout_that_is_published(tmp_path, name, file):
    """True shapes, random weights: by their file's path, and as a folder in the hub's layout."""
    config = open_clip.get_model_config(name)
    model = random_model(name).half()
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    if file.endswith("bin"):
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / file)
    else:
        save_file(state, tmp_path / file)
    by_path = load_backbone(name, str(tmp_path / file), device="cpu")
    in_folder = load_backbone(f"local-dir:{tmp_path}", device="cpu")
    assert by_path.fingerprint == in_folder.fingerprint == fingerprint_of(model)
    assert by_path.vision.reads == "class token" and by_path.text.causal


def test_openais_archives_are_refused_with_the_remedy(tmp_path):
    file = tmp_path / "ViT-B-16.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(file))
    with pytest.raises(PromptPrismError, match=r"TorchScript archive.*pretrained='openai' fetches"):
        load_backbone("ViT-B-16", str(file))


@pytest.mark.slow
def test_a_tokenizer_of_hugging_faces_in_the_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    config = {
        "embed_dim": 32,
        "vision_cfg": CONFIG["vision_cfg"],
        "text_cfg": {
            "hf_model_name": "roberta-base",
            "hf_tokenizer_name": "roberta-base",
            "hf_proj_type": "mlp",
        },
    }
    small = build.HUGGING_FACE["roberta-base"] | {
        "vocab_size": 9,
        "hidden_size": 16,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    words = {
        word: place for place, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "photo", "of", "cat"])
    }
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.HUGGING_FACE, "roberta-base", small)
        save_file(build_model(config).state_dict(), tmp_path / "open_clip_model.safetensors")
        backbone = load_backbone(f"local-dir:{tmp_path}", device="cpu")
    assert backbone.tokenize(["a photo of cat"])[0, :7].tolist() == [0, 4, 5, 6, 7, 2, 1]
    assert (backbone.first_word, backbone.count_tokens("a photo of a"), backbone.word(7)) == (1, 4, "cat")
    with pytest.raises(PromptPrismError, match="does not fit into the 77 tokens"):
        backbone.tokenize(["cat " * 76])
    assert backbone.tokenize(["cat " * 75]).shape == (1, 77)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PromptPrismError, match=r"pip install 'promptprism\[transformers\]'"):
        load_backbone("roberta-ViT-B-32", "laion2b_s12b_b32k")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"config.json": "{}"}, "Its config.json is another library's"),
        ({"open_clip_config.json": "{"}, "is no configuration of open_clip's"),
        ({"open_clip_config.json": '{"model_cfg": {"embed_dim": 1, "vision_cfg": {}}}'}, "text_cfg"),
        ({"open_clip_config.json": json.dumps({"model_cfg": CONFIG})}, "has no open_clip_model.safetensors"),
    ],
)
def test_a_folder_of_another_family_is_refused(tmp_path, content, words):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(PromptPrismError, match=words):
        load_backbone(f"local-dir:{tmp_path}")


def test_weights_of_another_architecture_are_refused(folder, tmp_path):
    (tmp_path / "open_clip_model.safetensors").write_bytes(
        (folder / "open_clip_model.safetensors").read_bytes()
    )
    wide = CONFIG | {"embed_dim": 24}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": wide}))
    with pytest.raises(PromptPrismError, match=r"fits its config. \(Cause: .*size mismatch"):
        load_backbone(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "pretrained", "trusted"),
    [
        ("mini", None, True),
        ("ViT-B-16", "openai", True),
        ("ViT-B-16", "/etc/passwd", False),
        ("hf-hub:a/b", None, False),
        ("local-dir:/etc", None, False),
        ("ViT-Z", "openai", False),
        ("custom", None, True),
    ],
)
def test_only_what_is_shipped_or_published_is_trusted_unasked(name, pretrained, trusted):
    if trusted:
        choice.check_trusted(name, pretrained, "adapter 'x'")
        return
    words = f"adapter 'x' names a backbone that you did not: {name}.*--trust-backbone"
    with pytest.raises(PromptPrismError, match=words):
        choice.check_trusted(name, pretrained, "adapter 'x'")


def test_drawings_meet_mini_and_photos_the_model_for_photos_once_it_is_there(monkeypatch):
    assert choice.backbone_for("mini/food") == "mini"
    monkeypatch.setattr(choice, "SHIPPED", {"mini": None, "photo": None})
    assert choice.backbone_for("mini/food") == "mini" and choice.backbone_for("flowers") == "photo"
    monkeypatch.setattr(choice, "load_backbone", lambda name, *_, **__: name)
    assert choice.as_backbone("auto", "flowers", None, "auto", "cpu") == "photo"
    with pytest.warns(PromptPrismWarning, match="'mini' knows MiniWorld's drawings, and 'flowers' is none"):
        assert choice.as_backbone("mini", "flowers", None, "auto", "cpu") == "mini"
    monkeypatch.setattr(choice, "SHIPPED", {"mini": None})
    assert choice.backbone_for("flowers") == "mini"


def test_the_nearest_names_are_shown_whatever_the_case():
    assert loading.near_names("vit-b-16")[0] == "ViT-B-16"
    assert loading.near_names("vit_b_16_siglip2")[0] == "ViT-B-16-SigLIP2"
    assert loading.near_names("MINI")[0] == "mini" and not loading.near_names("?")


def test_a_gpu_is_taken_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert loading.find_device("auto") == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading.find_device("auto") == "cuda"


def test_cut_file(folder, tmp_path):
    whole = (folder / "open_clip_model.safetensors").read_bytes()
    for file in ("open_clip_config.json", "bpe.txt.gz"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    (tmp_path / "open_clip_model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(PromptPrismError, match="Check that the file is whole"):
        load_backbone(f"local-dir:{tmp_path}")
