"""Adapt a frozen CLIP to your classes from a few labelled images, and know how sure it is."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptprism.estimator import PromptPrism, load_model
    from promptprism.evidence import Opinion

__version__ = "0.1.0"

__all__ = ["Opinion", "PromptPrism", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds; `promptprism --help` should not wait for it.
    if name in ("PromptPrism", "load_model"):
        from promptprism import estimator

        return getattr(estimator, name)
    if name == "Opinion":
        from promptprism.evidence import Opinion

        return Opinion
    raise AttributeError(f"module 'promptprism' has no attribute {name!r}")
