"""From a configuration to a model, without asking a hub where that can be."""

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from promptprism.errors import needs

#: What the text encoders are that open_clip's models name, so that nobody need be asked.
HUGGING_FACE: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("text_encoders.json").read_text(encoding="utf-8")
)


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
    with needs("its text tower", "transformers"):
        import transformers
    text["hf_model_pretrained"] = False
    known = HUGGING_FACE.get(text["hf_model_name"])
    with tempfile.TemporaryDirectory() as folder:
        if known:
            transformers.AutoConfig.for_model(**known).save_pretrained(folder)
            text["hf_model_name"] = folder
        yield config
