"""What tests of equality with a public implementation share."""

import zlib

import numpy as np
import torch

from promptprism.data.names import LabelSpace


def start(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The start value of a trainable tensor, a function of its full name in the reference."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.as_tensor(random.standard_normal(shape) * 0.02, dtype=torch.float32)


def part_of(arrays, prefix: str):
    """The arrays with those of a further run, named with a prefix, in place of the main run's."""
    own = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    return arrays | own


def space_of(arrays) -> LabelSpace:
    """The label space of a reference's run."""
    return LabelSpace(arrays["classnames"], arrays.get("template", "a photo of a {}."))


def loss_of(method, arrays) -> torch.Tensor:
    """The loss on the reference's images."""
    return method(arrays["images"][None], arrays["labels"], method.texts(space_of(arrays)), epoch=0)


def logits_of(method, arrays) -> torch.Tensor:
    """Logits of the reference's images."""
    return method.classifier(space_of(arrays)).logits(arrays["images"][None])[0]


def five_steps(method, arrays, optimizer=None) -> list[float]:
    """Losses of five steps on all images, with the reference's SGD or another optimizer."""
    optimizer = optimizer or torch.optim.SGD(method.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = loss_of(method, arrays)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_gradient(found: torch.Tensor, expected: torch.Tensor, name: str = "") -> None:
    """Equal up to 1e-4 of the expected norm."""
    assert (found - expected).norm() < 1e-4 * expected.norm(), name
