"""The estimator: what a user fits and asks, with scikit-learn's conventions."""

from promptprism.estimator.model import PromptPrism, load_model

__all__ = ["PromptPrism", "load_model"]
