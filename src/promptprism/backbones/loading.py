"""Find, check and load the weights of a backbone by name."""

import difflib
import importlib
import json
import logging
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
import open_clip
import torch
from torch import nn

from promptprism.backbones.backbone import Backbone, Tokenizer
from promptprism.backbones.build import HUGGING_FACE, build_model, hub_free, random_model
from promptprism.backbones.photo import load_photo, photo_tokenizer
from promptprism.backbones.precision import Precision, warn_if_slow
from promptprism.errors import PromptPrismError, needs
from promptprism.plugins import Registry

logger = logging.getLogger(__name__)

MINI = Path(__file__).with_name("mini")
LOCAL, HUB = "local-dir:", "hf-hub:"
_CONFIG = "open_clip_config.json"
#: The names that weights have in folders and on hubs, the first one found is taken; as open_clip does.
_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)


def load_backbone(
    name: str = "mini", pretrained: str | None = None, *, precision: Precision = "auto", device: str = "auto"
) -> Backbone:
    """Load a frozen vision-language model.

    Args:
        name: `"mini"` (shipped), a name of open_clip's (`"ViT-B-16"`, see `promptprism backbones`),
            `"hf-hub:owner/repository"`, or `"local-dir:folder"` in open_clip's layout:
            `open_clip_config.json`, `open_clip_model.safetensors`, and a tokenizer's files if it has one of
            its own (`bpe.txt.gz` for merges, or what Hugging Face's `save_pretrained` writes).
        pretrained: with a name of open_clip's: one of its tags (`"openai"`) or the path of a weights file.
        precision: what the matrix products run in, `"auto"` is what is faster here and safe; layer norms,
            prompts and features are float32 in any case.
        device: `"auto"` takes CUDA where there is one, else MPS, else the CPU.

    Raises:
        PromptPrismError: the name, tag or device is unknown, the model is of a kind that is not known, a
            package is missing, or the weights are not to be had; the message says which file was wanted and
            how to supply it.
    """
    device = find_device(device)
    if name in SHIPPED:
        if pretrained:
            raise PromptPrismError(f"pretrained={pretrained!r} has no meaning for {name!r}: leave it out.")
        model, tokenizer = made(name)
    else:
        model, tokenizer = _fetch(name, pretrained)
    backbone = Backbone(
        model, tokenizer, name=name, pretrained=pretrained, precision=precision, device=device
    )
    if precision != "float32":  # float32 is what results are compared in, and no trap
        warn_if_slow(precision, backbone.device, backbone.width)
    return backbone


def made(name: str) -> tuple[nn.Module, Tokenizer]:
    """The module and the tokenizer of a backbone that comes with a package.

    Raises:
        PromptPrismError: what another package brings fails, or is something else.
    """
    whose = f"backbone {name!r}, of a package that adds it ({SHIPPED.group}),"
    try:
        pair = SHIPPED[name]()
    except Exception as error:  # another's code may fail in any way
        if name in SHIPPED.own:
            raise
        raise PromptPrismError(f"{whose} cannot be made ({type(error).__name__}: {error})") from error
    if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], nn.Module)):
        raise PromptPrismError(f"{whose} must give a module and a tokenizer, not {type(pair).__name__}")
    return pair


def _fetch(name: str, pretrained: str | None = None) -> tuple[nn.Module, Tokenizer]:
    """The module and the tokenizer of a model of open_clip's, a hub's or a folder's."""
    wanted, remedy = _check_request(name, pretrained)
    quick_gelu = open_clip.get_pretrained_cfg(name, pretrained or "").get("quick_gelu", False)
    try:
        with quick_to_fail(_asks_hub(name, pretrained)):
            config = _config(name)
            own = config["text_cfg"].get("hf_tokenizer_name")
            if own:
                with needs(f"the tokenizer of backbone '{name}'", "transformers"):
                    importlib.import_module("transformers")
            with hub_free(config) as free:
                model = open_clip.create_model(
                    name,
                    pretrained,
                    require_pretrained=True,
                    force_quick_gelu=quick_gelu,
                    text_cfg=free["text_cfg"],
                )
            if own:
                wanted = f"the tokenizer's files of huggingface.co/{own}"
                remedy = (
                    "Without a network, put them and the weights into a folder, and use 'local-dir:FOLDER'."
                )
            return model, _tokenizer(name, config)
    except PromptPrismError:
        raise
    except Exception as error:  # open_clip, the hub and safetensors each raise their own
        raise PromptPrismError(
            f"Backbone {name!r} could not be loaded: wanted {wanted}. {remedy} (Cause: {_last_line(error)})"
        ) from error


#: The models that come with a package, ours or another: how each module and its tokenizer are made.
_OWN: dict[str, Callable[[], tuple[nn.Module, Tokenizer]]] = {
    "mini": lambda: _fetch(f"{LOCAL}{MINI}"),
    "photo": lambda: (load_photo(), photo_tokenizer()),
}
SHIPPED = Registry(
    "promptprism.backbones",
    _OWN,
    lambda name, loaded: callable(loaded) and name not in open_clip.list_models(),
    "a function that makes module and tokenizer, under a name that open_clip has not",
)


def sized_backbone(name: str, pretrained: str | None = None) -> Backbone:
    """A backbone with its sizes and tokens; weights are loaded only of a model on this disk.

    Raises:
        PromptPrismError: the model is unknown, or its sizes or its tokenizer are not to be had.
    """
    if name in SHIPPED or name.startswith(LOCAL):
        return load_backbone(name, precision="float32", device="cpu")
    try:
        with quick_to_fail(_asks_hub(name, "tag")):
            config = _config(name)
            with torch.device("meta"):
                model = build_model(config)
            tokenizer = _tokenizer(name, config)
    except PromptPrismError:
        raise
    except Exception as error:  # a hub's many kinds
        if not name.startswith(HUB):
            _check_request(name, pretrained or "tag")  # says what is wrong with the name
        raise PromptPrismError(
            f"the sizes of backbone '{name}' are not to be had ({_last_line(error)}): check the name and the "
            "network, or estimate with a model of open_clip's of that size"
        ) from error
    # Memory that is reserved and never filled.
    return Backbone(model.to_empty(device="cpu"), tokenizer, name=name, fingerprint="0" * 16)


def random_backbone(name: str, precision: Precision, device: str | torch.device = "cpu") -> Backbone:
    """A model of open_clip's with random weights, always the same: speed does not depend on them."""
    tokenizer = open_clip.get_tokenizer(name)
    return Backbone(random_model(name), tokenizer, name=name, precision=precision, device=device)


def names() -> list[str]:
    """The names of open_clip's models."""
    return cast(list[str], open_clip.list_models())


def plain(name: str) -> str:
    """A name without case and dashes."""
    return "".join(filter(str.isalnum, name.casefold()))


def near_names(name: str) -> list[str]:
    """The names that are most like one, whatever its case and dashes."""
    known = {known: plain(known) for known in (*SHIPPED, *names())}
    near = difflib.get_close_matches(plain(name), known.values(), n=4, cutoff=0.5)
    return [each for form in near for each, of in known.items() if of == form][:4]


def find_device(device: str) -> str:
    """The device that is meant; ``"auto"`` takes CUDA where there is one, else MPS, else the CPU.

    Raises:
        PromptPrismError: it is unknown or not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each kind of device has its own
        raise PromptPrismError(
            f"device {device!r} cannot be used: give auto, cpu, or cuda where there is one. "
            f"(Cause: {str(error).splitlines()[0][:200]})"
        ) from error
    return device


def _check_request(source: str, pretrained: str | None) -> tuple[str, str]:
    """Refuse what cannot work; say which file is wanted and how to supply it should loading fail."""
    if source.startswith((LOCAL, HUB)) and pretrained:
        raise PromptPrismError(f"pretrained={pretrained!r} has no meaning for {source!r}: leave it out.")
    if source.startswith(LOCAL):
        weights = _check_folder(Path(source.removeprefix(LOCAL)))
        return str(weights), "Check that the file is whole and fits its config."
    if source.startswith(HUB):
        repository = source.removeprefix(HUB)
        return (
            f"open_clip_config.json and open_clip_model.safetensors of huggingface.co/{repository}",
            "Without a network, copy both into a folder and use 'local-dir:FOLDER'.",
        )
    if source not in names():
        near = near_names(source)
        hint = f"Did you mean {', '.join(near)}?" if near else "See 'promptprism backbones'."
        raise PromptPrismError(f"Unknown backbone {source!r}. {hint} Or use 'hf-hub:...', 'local-dir:...'.")
    tags = open_clip.list_pretrained_tags_by_model(source)
    if pretrained is None:
        raise PromptPrismError(
            f"Backbone {source!r} needs weights: give pretrained=TAG with one of "
            f"{', '.join(tags) or '(no tags)'}, or the path of a .safetensors file."
        )
    if tag := open_clip.get_pretrained_cfg(source, pretrained):
        repository = tag.get("hf_hub", "").strip("/")
        where = f"huggingface.co/{repository}" if repository else tag.get("url", "")
        return (
            f"open_clip_model.safetensors from {where}",
            f"Without a network, fetch that file elsewhere and give its path as pretrained "
            f"(with the name {_plain_name(source, tag)!r}).",
        )
    if not Path(pretrained).is_file():
        near = difflib.get_close_matches(pretrained, tags, n=4, cutoff=0.3) or tags
        raise PromptPrismError(
            f"pretrained={pretrained!r} of backbone {source!r} is neither a file nor a known tag. "
            f"Tags: {', '.join(near) or 'none'}."
        )
    _check_weights(Path(pretrained), "openai" if "openai" in tags else (tags or ["TAG"])[0])
    if f"{source}-quickgelu" in names():
        logger.warning(
            "%s runs with GELU. If it comes from OpenAI, its weights need QuickGELU: use the name %s.",
            pretrained,
            f"{source}-quickgelu",
        )
    return pretrained, f"Check that the file is whole and holds a {source}."


def _check_folder(folder: Path) -> Path:
    """The weights of a folder in open_clip's layout."""
    file = folder / _CONFIG
    if not file.is_file():
        other = ""
        if (folder / "config.json").is_file():
            other = " Its config.json is another library's: take the model as open_clip publishes it."
        raise PromptPrismError(f"Backbone folder {folder} has no {_CONFIG}: {file} does not exist.{other}")
    try:
        model = json.loads(file.read_text(encoding="utf-8"))["model_cfg"]
        if missing := {"embed_dim", "vision_cfg", "text_cfg"} - model.keys():
            raise KeyError(min(missing))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PromptPrismError(
            f"{file} is no configuration of open_clip's: it must hold 'model_cfg' with 'embed_dim', "
            f"'vision_cfg' and 'text_cfg' ({type(error).__name__}: {error})."
        ) from error
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise PromptPrismError(
            f"Backbone folder {folder} has no {_WEIGHTS[0]}: {folder / _WEIGHTS[0]} does not exist."
        )
    _check_weights(weights, "TAG")
    return weights


def _check_weights(file: Path, tag: str) -> None:
    """Refuse an archive that holds a program: OpenAI published CLIP's weights as TorchScript."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                raise PromptPrismError(
                    f"{file} is a TorchScript archive: a program with weights, which is not run. Take the "
                    f"weights alone: pretrained={tag!r} fetches OpenAI's as safetensors, or give their file."
                )


def _plain_name(name: str, tag: dict[str, Any]) -> str:
    """The name under which a tag's file has the right activation when it is given by path."""
    quick = f"{name}-quickgelu"
    return quick if tag.get("quick_gelu") and quick in names() else name


def _config(source: str) -> dict[str, Any]:
    config: dict[str, Any] | None = open_clip.get_model_config(source)
    if config is None:
        raise KeyError(source)
    return config


def _tokenizer(source: str, config: dict[str, Any]) -> Tokenizer:
    merges = Path(source.removeprefix(LOCAL)) / "bpe.txt.gz"
    if source.startswith(LOCAL) and merges.is_file():
        context = config["text_cfg"].get("context_length", 77)
        tokenizer: Tokenizer = open_clip.SimpleTokenizer(bpe_path=str(merges), context_length=context)
    else:
        tokenizer = open_clip.get_tokenizer(source)
    return tokenizer


@contextmanager
def quick_to_fail(asks_hub: bool) -> Iterator[None]:
    """Keep other libraries' logs off the screen, and the hub from retrying for a minute without a network.

    What lies on this disk asks no resolver, which may take seconds. The hub is told of no one's habits.
    """
    constants = huggingface_hub.constants
    before = logging.root.manager.disable, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY
    logging.disable(logging.CRITICAL)
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        if asks_hub and not (constants.HF_HUB_OFFLINE or getproxies()):
            try:
                socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
            except OSError:
                constants.HF_HUB_OFFLINE = True
        yield
    finally:
        logging.disable(before[0])
        constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY = before[1:]


def _asks_hub(source: str, pretrained: str | None) -> bool:
    """Whether weights, text encoder or tokenizer come from Hugging Face, or from its cache."""
    if source.startswith(HUB):
        return True
    text = _config(source)["text_cfg"]
    encoder = text.get("hf_model_name")
    if encoder and encoder not in HUGGING_FACE:
        return True
    if source.startswith(LOCAL):
        return False
    return bool(text.get("hf_tokenizer_name")) or not (pretrained and Path(pretrained).is_file())


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1][:300]
