"""A small random model of every family that open_clip has: the same modules, a few layers, small images."""

import importlib.util
import zlib
from functools import partial
from unittest import mock

import open_clip
import pytest
import timm
import torch
from timm.models.vitamin import VitCfg, VitConvCfg

from promptprism.backbones import build

VIT = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
EOS_TEXT = {**TEXT, "pool_type": "eos", "eos_id": 2, "vocab_size": 500}
#: SigLIP's: no start token, the end token pads, read at the last position.
SIGLIP_TEXT = {
    **TEXT,
    "vocab_size": 500,
    "no_causal_mask": True,
    "pool_type": "last",
    "proj_bias": True,
    "norm_kwargs": {"eps": 1e-6},
}
TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
CONVOLUTIONS = VitCfg(
    embed_dim=(8, 16, 32),
    depths=(1, 1, 1),
    stem_width=8,
    conv_cfg=VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6),
    head_type="1d",
)
COCA = {"context_length": 17, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
HF = {
    "roberta-base": {
        "vocab_size": 500,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "google/mt5-base": {
        "vocab_size": 500,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 48,
        "num_layers": 2,
        "num_decoder_layers": 1,
        "num_heads": 2,
    },
    "facebook/nllb-200-distilled-600M": {
        "vocab_size": 500,
        "d_model": 32,
        **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
    },
}
HF["xlm-roberta-base"] = HF["roberta-base"]


def of_timm(name, pool, proj="", **sizes):
    return {
        "vision_cfg": {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": 32},
        "timm": sizes,
    }


def of_hf(name, pooler=None, proj=None, **vision):
    text = {"hf_model_name": name, "hf_pooler_type": pooler, "hf_proj_type": proj, "context_length": 16}
    text |= vision
    return {"vision_cfg": VIT | vision, "text_cfg": text, "tokens": None if "mt5" in name else 0}


def of_resnet(**more):
    return {"vision_cfg": {"layers": (1, 1, 1, 1), "width": 8, "head_width": 16, "image_size": 64}, **more}


SIGLIP = {
    "text_cfg": SIGLIP_TEXT,
    "init_logit_bias": -10.0,
    "tokens": None,
    **of_timm("vit_base_patch16_siglip_224", "map", "none", **TIMM_VIT),
}
CUSTOM = {"custom_text": True}
FAST = {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 32, 64)}

#: Name of the family, or of its best-known model, to its configuration; `timm` are the sizes of a timm tower,
#: `tokens` the start token, None for none, of tokenizers other than CLIP's.
FAMILIES = {
    "ViT": {},
    "ViT-quickgelu": {"quick_gelu": True},
    "ViT-layer-scale": {"vision_cfg": VIT | {"ls_init_value": 0.1, "no_ln_pre": True}},
    "ViT-average": {"vision_cfg": VIT | {"pool_type": "avg"}},
    "ViT-qk-norm": {"vision_cfg": VIT | {"qk_norm": True}, "text_cfg": TEXT | {"qk_norm": True}},
    "ViT-sincos": {"vision_cfg": VIT | {"pos_embed_type": "sin_cos_2d"}},
    "CLIPA": {
        "vision_cfg": VIT | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": TEXT | {"pool_type": "last", "no_causal_mask": True, "vocab_size": 500},
        "tokens": 101,
    },
    "MetaCLIP2-worldwide": {
        "text_cfg": TEXT | {"pool_type": "eos", "eos_id": 2, "vocab_size": 500},
        "tokens": 0,
    },
    "MetaCLIP2-mt5": {
        "text_cfg": TEXT | {"pool_type": "eos", "eos_id": 2, "vocab_size": 500},
        "tokens": None,
    },
    "RN50": of_resnet(),
    "RN50-quickgelu": of_resnet(quick_gelu=True),
    "convnext": of_timm("convnext_tiny", "", "linear", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    "convnext_large_d": of_timm("convnext_tiny", "", "mlp", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    "swin": of_timm(
        "swin_base_patch4_window7_224",
        "",
        "linear",
        img_size=32,
        window_size=4,
        embed_dim=16,
        depths=(1, 1),
        num_heads=(1, 2),
    ),
    "vit_medium_gap": of_timm("vit_medium_patch16_gap_256", "", "linear", **TIMM_VIT),
    "vit_relpos": of_timm("vit_relpos_medium_patch16_cls_224", "", "linear", **TIMM_VIT),
    "coca_ViT-B-32": {
        "vision_cfg": VIT | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": COCA,
    },
    "coca_base": {
        "vision_cfg": VIT | {"output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": COCA,
    },
    "coca_roberta": {**of_hf("roberta-base", proj="linear", output_tokens=True), "multimodal_cfg": COCA},
    "EVA01": CUSTOM | of_timm("eva_giant_patch14_224", "token", None, **TIMM_VIT),
    "EVA02-B": CUSTOM | of_timm("eva02_base_patch16_clip_224", "token", None, **TIMM_VIT),
    "EVA02-E": CUSTOM | of_timm("eva02_enormous_patch14_clip_224", "token", None, **TIMM_VIT),
    "MobileCLIP-S": CUSTOM
    | {"text_cfg": TEXT | {"no_causal_mask": True}}
    | of_timm("fastvit_mci0", "avg", None, **FAST),
    "MobileCLIP-B": CUSTOM | of_timm("vit_base_mci_224", "token", None, img_size=32, depth=2),
    "MobileCLIP2-L": CUSTOM
    | {"text_cfg": TEXT | {"no_causal_mask": True}}
    | of_timm("vit_large_patch14_clip_224", "token", None, **TIMM_VIT),
    "ViTamin": CUSTOM
    | of_timm("vitamin_small_224", "", "linear", **TIMM_VIT | {"patch_size": 1, "embed_cfg": CONVOLUTIONS}),
    "PE-Core": CUSTOM | of_timm("vit_pe_core_tiny_patch16_384", "map", None, **TIMM_VIT),
    "PE-Core-bigG": CUSTOM | of_timm("vit_pe_core_gigantic_patch14_448", "map", None, **TIMM_VIT),
    "SigLIP": CUSTOM | SIGLIP,
    "SigLIP-i18n": CUSTOM | SIGLIP | {"text_cfg": SIGLIP_TEXT | {"proj_type": "none"}},
    "SigLIP2": CUSTOM | SIGLIP | {"text_cfg": SIGLIP_TEXT | {"act_kwargs": {"approximate": "tanh"}}},
    "roberta": of_hf("roberta-base", "mean_pooler") | {"quick_gelu": True},
    "xlm-roberta": of_hf("xlm-roberta-base", "mean_pooler", "mlp"),
    "mt5": of_hf("google/mt5-base", "mean_pooler", "mlp"),
    "nllb": of_hf("facebook/nllb-200-distilled-600M", "cls_pooler", "linear"),
    "nllb-siglip": SIGLIP
    | of_hf("facebook/nllb-200-distilled-600M", "cls_pooler", "linear")
    | {"vision_cfg": SIGLIP["vision_cfg"]},
}


class Words:
    """A tokenizer of whole words, with a start token or none; the end token is 2, the padding 1."""

    context_length = 16

    def __init__(self, start, vocab_size=500, pad=1):
        self.start, self.vocab_size, self.pad = start, vocab_size, pad

    def __call__(self, texts, context_length=None):
        length = context_length or self.context_length
        tokens = torch.full((len(texts), length), self.pad)
        for row, text in zip(tokens, texts, strict=True):
            ids = [] if self.start is None else [self.start]
            ids += [3 + zlib.crc32(word.encode()) % (self.vocab_size - 200) for word in text.split()]
            row[: len(ids) + 1] = torch.tensor([*ids, 2][:length])
        return tokens


def make(family):
    """A random model and its tokenizer; the test is skipped where a package is missing."""
    config = {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": TEXT, **FAMILIES[family]}
    sizes, start = config.pop("timm", {}), config.pop("tokens", "clip")
    if config["text_cfg"].get("hf_model_name") and importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    small = {name: build.HUGGING_FACE[name] | HF[name] for name in HF}
    with (
        torch.random.fork_rng(),
        mock.patch.object(timm, "create_model", partial(timm.create_model, **sizes)),
        mock.patch.object(build, "HUGGING_FACE", small),
    ):
        torch.manual_seed(0)
        model = build.build_model(config).eval()
        for value in model.parameters():
            if value.ndim == 1:  # random norms and biases, so that none can be forgotten
                value.data += 0.1 * torch.randn_like(value)
            elif value.ndim == 2:  # starts of 0.02 do nothing at these widths
                value.data *= max(1.0, 0.15 / (value.std().item() + 1e-9))
    tokenizer = open_clip.SimpleTokenizer(context_length=16) if start == "clip" else Words(start)
    return model, tokenizer
