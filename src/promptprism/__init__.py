"""Adapt a frozen CLIP to your classes from a few labelled images, and know how sure it is."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from promptprism.errors import NotFittedError, PromptPrismError

if TYPE_CHECKING:
    from promptprism.backbones import load_backbone as load_backbone
    from promptprism.data.names import LabelSpace as LabelSpace
    from promptprism.data.records import Dataset as Dataset
    from promptprism.data.registry import load_data as load_data
    from promptprism.estimator import PromptPrism as PromptPrism
    from promptprism.estimator import load_model as load_model
    from promptprism.evaluation.run_suite import run_suite as run_suite
    from promptprism.evaluation.store import read_results as read_results
    from promptprism.evaluation.suites import load_suite as load_suite
    from promptprism.evidence import Opinion as Opinion

__version__ = "0.1.0"

# Importing torch takes seconds; `promptprism --help` should not wait for it.
_PLACES = {
    "Dataset": "data.records",
    "LabelSpace": "data.names",
    "Opinion": "evidence",
    "PromptPrism": "estimator",
    "load_backbone": "backbones",
    "load_data": "data.registry",
    "load_model": "estimator",
    "load_suite": "evaluation.suites",
    "read_results": "evaluation.store",
    "run_suite": "evaluation.run_suite",
}

__all__ = ["NotFittedError", "PromptPrismError", "__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'promptprism' has no attribute {name!r}")
    return getattr(import_module(f"promptprism.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
