"""The methods, by name."""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from promptprism.backbones import Backbone
from promptprism.errors import PromptPrismError
from promptprism.methods.base import Method, MethodSettings, Shape
from promptprism.methods.cdc import Cdc
from promptprism.methods.cdc_settings import CdcSettings
from promptprism.methods.classifier import PART, Classifier, Texts
from promptprism.methods.clip_lora import ClipLora
from promptprism.methods.cocoop import CoCoOp, CoCoOpSettings
from promptprism.methods.coop import CoOp, CoOpSettings
from promptprism.methods.ivlp import Ivlp, Vpt
from promptprism.methods.kgcoop import KgCoOp
from promptprism.methods.linear_probe import LinearProbe
from promptprism.methods.maple import Maple, MapleSettings
from promptprism.methods.mmrl import Mmrl
from promptprism.methods.prograd import ProGrad
from promptprism.methods.promptsrc import PromptSrc
from promptprism.methods.tip_adapter import TipAdapter, TipAdapterF
from promptprism.methods.zero_shot import ZeroShot, ZeroShotSettings
from promptprism.plugins import Registry

__all__ = [
    "METHODS",
    "PART",
    "Cdc",
    "CdcSettings",
    "Classifier",
    "CoCoOp",
    "CoCoOpSettings",
    "CoOp",
    "CoOpSettings",
    "Maple",
    "MapleSettings",
    "Method",
    "MethodSettings",
    "Shape",
    "Texts",
    "ZeroShot",
    "ZeroShotSettings",
    "build_method",
    "make_settings",
]


def _is_method(name: str, loaded: object) -> bool:
    if not (isinstance(loaded, type) and issubclass(loaded, Method)):
        return False
    return getattr(loaded, "name", None) == name == getattr(loaded.Settings, "method", None)


_OWN: tuple[type[Method], ...] = (
    *(ZeroShot, LinearProbe, TipAdapter, TipAdapterF, CoOp, KgCoOp, ProGrad, CoCoOp),
    *(Vpt, Ivlp, Maple, PromptSrc, Mmrl, ClipLora, Cdc),
)
if len({method.name for method in _OWN}) < len(_OWN):
    raise TypeError("two methods have one name: Settings of each say theirs, method: ClassVar[str] = NAME")
METHODS = Registry(
    "promptprism.methods",
    {method.name: method for method in _OWN},
    _is_method,
    "a Method whose name, and that of its Settings, is that of the entry",
)


def make_settings(name: str, also: Iterable[str] = (), /, **given: Any) -> MethodSettings:
    """Make the settings of a method from names and values: here text becomes an object.

    Args:
        name: a key of `METHODS`.
        also: other names that the caller takes, to suggest where a setting is misspelt.
        **given: of the method's `Settings`; what is not given takes its default.

    Raises:
        PromptPrismError: no such method, no such setting of it, or a value it cannot have.
    """
    if name not in METHODS:
        raise PromptPrismError(
            f"Unknown method {name!r}: choose one of {', '.join(METHODS)}, or install its package."
        )
    kind = METHODS[name].Settings
    try:
        return kind(**given)
    except ValidationError as error:
        # A name that is unknown says more than a value that it leaves wrong.
        known = {(), *((field,) for field in kind.model_fields)}
        problem = min(error.errors(), key=lambda one: one["loc"][:1] in known)
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:  # settings that cannot be together
            raise PromptPrismError(f"Settings of method {name!r} are refused: {message}.") from error
        setting = str(problem["loc"][0])
        if setting not in kind.model_fields:
            names = (*kind.model_fields, "preset", *also)
            near = difflib.get_close_matches(setting, names, n=3, cutoff=0.4) or names
            raise PromptPrismError(
                f"Method {name!r} has no setting {setting!r}. Did you mean {', '.join(near)}?"
            ) from error
        raise PromptPrismError(
            f"Setting {setting}={problem['input']!r} of method {name!r} is refused: {message}."
        ) from error


def build_method(settings: MethodSettings, backbone: Backbone, seed: int = 1) -> Method:
    """Build the method that settings are of, at its start values.

    Args:
        settings: see `make_settings`.
        backbone: the frozen model.
        seed: of the start values.

    Raises:
        PromptPrismError: the backbone cannot have such prompts.
    """
    return METHODS[settings.method](backbone, settings, seed)
