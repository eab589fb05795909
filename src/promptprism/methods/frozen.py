"""Features of the frozen image tower, for methods that learn on top of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from promptprism.backbones import Backbone
from promptprism.data.batches import plain_batches, view_batches
from promptprism.data.records import Record, Records
from promptprism.data.views import make_views
from promptprism.prompts import encode_image

_BATCH = 32


def frozen_features(
    backbone: Backbone, records: Records, view: str = "test", seed: int = 0, epoch: int = 0
) -> Tensor:
    """Image features [N, D] of N records, float32 and not normalised, on the backbone's device.

    Args:
        backbone: the frozen model.
        records: whose images are looked at.
        view: a name of `data.views`; `"test"` is the plain image.
        seed: of the view.
        epoch: another one gives another view.
    """
    make = make_views((view,), backbone.image_size, backbone.mean, backbone.std)
    batches = plain_batches(len(records), _BATCH)
    parts = []
    with torch.inference_mode(False), torch.no_grad():
        for _, views in view_batches([record.source for record in records], batches, make, seed, epoch):
            parts.append(encode_image(backbone, views.to(backbone.device), normalize=False)[0])
    return torch.cat(parts)


def weights_of(records: Sequence[Record]) -> Tensor | None:
    """Weights [N], float32, or None where all are 1, so that nothing is multiplied."""
    if all(record.weight == 1 for record in records):
        return None
    return torch.tensor([record.weight for record in records])
