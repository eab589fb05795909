"""From a configuration to a model, without asking a hub where that can be."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import open_clip
import torch
from torch import nn

from promptprism.errors import PromptPrismError

_ROBERTA = {
    "vocab_size": 250002,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_MT5 = {
    "model_type": "mt5",
    "vocab_size": 250112,
    "d_kv": 64,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
_NLLB = {
    "model_type": "m2m_100",
    "vocab_size": 256206,
    "d_model": 1024,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "max_position_embeddings": 1024,
    "scale_embedding": True,
    "activation_function": "relu",
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
#: What the text encoders are that open_clip's models name, so that nobody need be asked.
HUGGING_FACE: dict[str, dict[str, Any]] = {
    "roberta-base": {"model_type": "roberta", **_ROBERTA, "vocab_size": 50265},
    "xlm-roberta-base": {"model_type": "xlm-roberta", **_ROBERTA},
    "xlm-roberta-large": {"model_type": "xlm-roberta", **_ROBERTA, **_LARGE},
    "google/mt5-base": {**_MT5, "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "google/mt5-xl": {**_MT5, "d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "facebook/nllb-200-distilled-600M": {
        **_NLLB,
        **dict.fromkeys(("encoder_layers", "decoder_layers"), 12),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 4096),
    },
    "facebook/nllb-200-distilled-1.3B": {
        **_NLLB,
        **dict.fromkeys(("encoder_layers", "decoder_layers"), 24),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 8192),
    },
}


def build_model(config: dict[str, Any]) -> nn.Module:
    """Build the model of an open_clip configuration, with random weights, on the default device."""
    with hub_free(config) as config:
        text, vision = config["text_cfg"], config["vision_cfg"]
        custom = config.pop("custom_text", False) or "hf_model_name" in text
        if "timm_model_name" in vision:
            vision["timm_model_pretrained"] = False
        kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
        if "multimodal_cfg" in config:
            kind = open_clip.CoCa
        model: nn.Module = kind(**config)
        return model


def random_model(name: str, precision: str = "float32") -> Any:
    """A model of open_clip's with random weights, always the same, as open_clip casts it."""
    logging.disable(logging.WARNING)  # open_clip warns that there are no weights
    try:
        with hub_free(open_clip.get_model_config(name)) as config, torch.random.fork_rng():
            create = partial(open_clip.create_model, name, pretrained_text=False, text_cfg=config["text_cfg"])
            torch.manual_seed(0)
            model = create().eval().requires_grad_(False)
            if precision == "float32":
                return model
            low = create(precision="bf16").eval().requires_grad_(False)
    finally:
        logging.disable(logging.NOTSET)
    low.load_state_dict(model.state_dict())
    return low


@contextmanager
def hub_free(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A copy of a configuration whose text encoder is described here and not on a hub, if it is known.

    Raises:
        PromptPrismError: the text encoder needs a package that is missing.
    """
    config = deepcopy(config)
    text = config["text_cfg"]
    if not text.get("hf_model_name"):
        yield config
        return
    need_transformers("its text tower")
    import transformers

    text["hf_model_pretrained"] = False
    known = HUGGING_FACE.get(text["hf_model_name"])
    with tempfile.TemporaryDirectory() as folder:
        if known:
            transformers.AutoConfig.for_model(**known).save_pretrained(folder)
            text["hf_model_name"] = folder
        yield config


def need_transformers(what: str) -> None:
    """Refuse what needs Hugging Face's `transformers` where it is missing.

    Raises:
        PromptPrismError: it is missing.
    """
    if importlib.util.find_spec("transformers") is None:
        raise PromptPrismError(
            f"{what} needs Hugging Face's transformers, which is not installed: "
            "pip install 'promptprism[transformers]'"
        )
