"""Learnable prompts, and how they enter the frozen text and vision towers."""

from promptprism.prompts.learner import PromptLearner
from promptprism.prompts.text import encode_text
from promptprism.prompts.vision import encode_image, finish_image, start_image

__all__ = ["PromptLearner", "encode_image", "encode_text", "finish_image", "start_image"]
