"""What an image tower's stem gave, kept: it is the same for every method and prompt."""

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor

from promptprism.backbones.tower import VisionTower


class KeptStems:
    """Stems of the views seen last, known by their pixels; for work that sees the same views again.

    Only a costly stem on a CPU is kept, and only of views that are looked at without gradients: those of
    training are new ones. A patch embedding costs no more than to look for it.

    Args:
        megabytes: that they may take, MiB; 256 hold 4,000 photos of the backbone `photo`.
    """

    def __init__(self, megabytes: float = 256) -> None:
        self.room = int(megabytes * 2**20)
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    def __call__(self, vision: VisionTower, images: Tensor) -> Tensor:
        """States [N, S, Dv] of `vision.stem(images)`, images [N, 3, H, W]."""
        patch_embedding = 2 * vision.width * images[0].numel()
        if torch.is_grad_enabled() or images.device.type != "cpu" or vision.stem_flops < 2 * patch_embedding:
            return vision.stem(images)
        keys = [hashlib.sha256(memoryview(image.contiguous().numpy())).digest() for image in images]
        found = [self._kept[key] for key in keys if key in self._kept]
        # Whole batches, as they come: in part, the last digits could be those of another batch size.
        states = torch.stack(found) if len(found) == len(keys) else vision.stem(images)
        for key, state in zip(keys, states, strict=True):
            self._kept[key] = self._kept.pop(key) if key in self._kept else state.clone()
        while len(self._kept) * states[0].nbytes > self.room:
            self._kept.popitem(last=False)
        return states
