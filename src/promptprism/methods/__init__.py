"""The methods, by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from promptprism.backbones import Backbone
from promptprism.errors import PromptPrismError
from promptprism.methods.base import Method, MethodSettings
from promptprism.methods.cdc import Cdc, CdcSettings
from promptprism.methods.cocoop import CoCoOp, CoCoOpSettings
from promptprism.methods.coop import CoOp, CoOpSettings
from promptprism.methods.maple import Maple, MapleSettings
from promptprism.methods.zero_shot import ZeroShot, ZeroShotSettings

__all__ = [
    "METHODS",
    "Cdc",
    "CdcSettings",
    "CoCoOp",
    "CoCoOpSettings",
    "CoOp",
    "CoOpSettings",
    "Maple",
    "MapleSettings",
    "Method",
    "MethodSettings",
    "ZeroShot",
    "ZeroShotSettings",
    "build_method",
    "make_settings",
]

METHODS: dict[str, type[Method]] = {method.name: method for method in (ZeroShot, CoOp, CoCoOp, Maple, Cdc)}


def make_settings(name: str, /, **settings: Any) -> MethodSettings:
    """Make the settings of a method from names and values.

    Raises:
        PromptPrismError: no such method, no such setting of it, or a value it cannot have.
    """
    if name not in METHODS:
        raise PromptPrismError(f"Unknown method {name!r}: choose one of {', '.join(METHODS)}.")
    kind = METHODS[name].Settings
    try:
        return kind(**settings)
    except ValidationError as error:
        problem = error.errors()[0]
        setting = str(problem["loc"][0])
        if setting not in kind.model_fields:
            near = difflib.get_close_matches(setting, kind.model_fields, n=3, cutoff=0.4) or kind.model_fields
            raise PromptPrismError(
                f"Method {name!r} has no setting {setting!r}. Did you mean {', '.join(near)}?"
            ) from error
        raise PromptPrismError(
            f"Setting {setting}={problem['input']!r} of method {name!r} is refused: {problem['msg']}."
        ) from error


def build_method(
    name: str,
    /,
    backbone: Backbone,
    class_names: Sequence[str],
    phrase: str = "a photo of a {}.",
    seed: int = 1,
    **settings: Any,
) -> Method:
    """Build a method by name, for instance `build_method("cdc", backbone, names, templates=2)`.

    Args:
        name: a key of `METHODS`.
        backbone: the frozen model.
        class_names: the label space.
        phrase: the data set's own phrase with {} for the class name.
        seed: of the start values.
        **settings: of the method's `Settings`; what is not given takes its default.

    Raises:
        PromptPrismError: unknown method or setting, refused value, or unusable class names.
    """
    chosen = make_settings(name, **settings)
    return METHODS[name](backbone, class_names, chosen, phrase, seed)
