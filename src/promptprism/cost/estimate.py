"""What a step and a prediction of a method cost by its shape, before anything is run.

Operations are those of the matrix products of both towers, in floating-point operations; memory is in MiB, on
top of the frozen weights.
"""

from torch import Tensor

from promptprism.backbones import Tower
from promptprism.backbones.block import layer_bytes
from promptprism.cost.arithmetic import image_flops, shared_image_flops, text_flops
from promptprism.methods import Method


def step_flops(method: Method, tokens: Tensor, batch: int) -> float:
    """Operations of a training step that cannot be saved: forward, and backward to the inputs.

    Frozen weights want no gradient, nor do image layers below the first prompts.

    Args:
        method: at any values.
        tokens: of its texts, [K, L].
        batch: images.
    """
    shape = method.shape
    shared, own = _image_flops(method, shape.patch_groups)
    text = text_flops(method.backbone, tokens, shape.text_prompts)
    if shape.texts_per_image:
        return batch * (own + 2 * text)
    image = shape.templates * (shared + (1 + shape.through_images) * own)
    image += shape.plain_images * image_flops(method.backbone)
    if not shape.text_learns:
        return batch * image
    return batch * image + (1 + shape.backward_passes) * shape.templates * text


def look_flops(method: Method, images: int) -> float:
    """Operations of looking at so many training images before the first step."""
    return method.shape.looks * images * image_flops(method.backbone)


def recomputed_flops(method: Method, tokens: Tensor, item: int) -> float:
    """Operations of the texts that a step computes a second time, for want of `Shape.text_memory_mb`."""
    shape = method.shape
    if not shape.text_learns:
        return 0.0
    share = max(0.0, 1 - shape.text_memory_mb / max(_text_mb(method, tokens, item), 1e-9))
    return share * shape.templates * text_flops(method.backbone, tokens, shape.text_prompts)


def image_prediction_flops(method: Method) -> float:
    """Operations of the image tower for one image that is predicted."""
    shared, own = _image_flops(method)
    return shared + own * (method.shape.templates if method.shape.through_images else 1)


def text_prediction_flops(method: Method, tokens: Tensor, images: int) -> float:
    """Operations of the texts [K, L] of so many predictions: once per label space, or per image."""
    shape = method.shape
    times = images if shape.texts_per_image else shape.templates
    return times * text_flops(method.backbone, tokens, shape.text_prompts)


def training_mb(method: Method, tokens: Tensor, batch: int, item: int) -> float:
    """What the backward pass needs, and the trainable parameters with gradients and the optimizer's state.

    Args:
        method: at any values.
        tokens: of its texts, [K, L].
        batch: images of a step.
        item: bytes of a number in matrix products.
    """
    backbone, shape = method.backbone, method.shape
    vision = shape.templates * batch * _image_mb(method, item)
    if not shape.through_images:  # one layer at a time
        vision /= max(1, backbone.vision_layers)
    copies = 4 if method.settings.optimizer == "adamw" else 3
    learned = 4 * copies * sum(parameter.numel() for parameter in method.parameters()) / 2**20
    text = _text_mb(method, tokens, item) if shape.text_learns else 0.0
    text = batch * text if shape.texts_per_image else min(text, shape.text_memory_mb)
    return learned + text + vision


def prediction_mb(method: Method, batch: int, item: int) -> float:
    """One layer of a batch of images; arguments as for `training_mb`."""
    shape = method.shape
    images = batch * (shape.templates if shape.through_images else 1)
    return images * _image_mb(method, item) / max(1, method.backbone.vision_layers)


def _image_flops(method: Method, groups: int = 1) -> tuple[float, float]:
    """Operations of one image below the first prompts and, for one template, from there on."""
    backbone, shape = method.backbone, method.shape
    own = image_flops(backbone, shape.vision_prompts, shape.vision_from, groups)
    return shared_image_flops(backbone, shape.vision_from, groups), own


def _image_mb(method: Method, item: int) -> float:
    """What autograd keeps of one image in all layers."""
    vision = method.backbone.vision
    tokens = vision.tokens + method.shape.vision_prompts
    return tokens * _kept_mb(vision, tokens, item)


def _text_mb(method: Method, tokens: Tensor, item: int) -> float:
    """What the backward pass needs of the texts if all is kept."""
    backbone, shape = method.backbone, method.shape
    end = backbone.text.end(tokens)
    own = int((end - shape.text_prompts).clamp(min=1).sum())
    return shape.templates * own * _kept_mb(backbone.text, int(end.max()) + 1, item)


def _kept_mb(tower: Tower, keys: int, item: int) -> float:
    """MiB that autograd keeps of one token in all layers."""
    return tower.layers * layer_bytes(tower.width, tower.heads, keys, item) / 2**20
