"""What a server asks: an adapter in torch, or an exported graph, by the same few words."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from promptprism.drift import Reference
from promptprism.errors import PromptPrismError
from promptprism.runtime import FACTS, Answers, Runtime

if TYPE_CHECKING:
    from promptprism.estimator import PromptPrism
    from promptprism.inference.outputs import Outputs

Names = tuple[str, ...]
#: Label spaces besides the own whose texts are kept; the one that was asked for longest ago goes first.
_KEPT = 8


class Engine(Protocol):
    """A model behind a server; `answer` and `prepare` are called by one thread at a time.

    Attributes:
        method: its name.
        classes: its own.
        size: side of the square it sees, pixels.
        reference: answers about held-out photos, if there are.
        temperature: that its probabilities are calibrated by; the reference's are not.
    """

    method: str
    classes: Names
    size: int
    reference: Reference | None
    temperature: float

    def prepare(self, classes: Names | None) -> Names:
        """Make ready for other classes; None are the own.

        Raises:
            PromptPrismError: unusable names, or a model that cannot have others.
        """
        ...

    def caveat(self, classes: Names | None) -> str | None:
        """Why answers with classes that it is ready for may mean little, if so."""
        ...

    def answer(self, pixels: NDArray[np.uint8], classes: Names | None = None) -> Answers:
        """Answer for pixels [B, H, W, 3]."""
        ...


class OnnxEngine:
    """An exported graph: its classes are those it was exported with."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.method, self.classes = runtime, runtime.method, runtime.classes
        self.size, self.reference = runtime.size, runtime.reference
        self.temperature = float(runtime.facts.get("temperature", 1.0))

    def prepare(self, classes: Names | None) -> Names:
        """Refuse all names but its own."""
        if classes is not None and classes != self.classes:
            raise PromptPrismError(
                "an exported graph has the classes that it was exported with: serve the adapter itself, or "
                "export it with --classes"
            )
        return self.classes

    def caveat(self, classes: Names | None) -> str | None:  # noqa: ARG002
        """None: who exported it was told."""
        return None

    def answer(self, pixels: NDArray[np.uint8], classes: Names | None = None) -> Answers:
        """Answer for pixels [B, H, W, 3]."""
        self.prepare(classes)
        return self.runtime.run(pixels)


class TorchEngine:
    """An adapter, for its own classes and for others that are asked for."""

    def __init__(self, model: PromptPrism, reference: Reference | None = None) -> None:
        self.model, self.method = model, model.method
        self.classes: Names = tuple(map(str, model.classes_))
        self.size, self.reference = model.backbone_.image_size, reference
        self.temperature = model.classifier_.temperature
        self._own = self._outputs(model)
        self._others: OrderedDict[Names, Outputs] = OrderedDict()
        self._lock = Lock()

    @staticmethod
    def _outputs(model: Any) -> Outputs:
        from promptprism.inference.outputs import Outputs

        return Outputs(model.classifier_).eval()

    def _for(self, classes: Names | None) -> Outputs:
        if classes is None or classes == self.classes:
            return self._own
        with self._lock:
            if classes not in self._others:
                self._others[classes] = self._outputs(self.model.with_classes(classes))
                if len(self._others) > _KEPT:
                    self._others.popitem(last=False)
            self._others.move_to_end(classes)
            return self._others[classes]

    def prepare(self, classes: Names | None) -> Names:
        """Make texts of other names, or find them."""
        return self._for(classes).classifier.space.names

    def caveat(self, classes: Names | None) -> str | None:
        """Names that mean nothing to the backbone, beside classes that were learned."""
        own = self.model.classifier_.space
        return self.model.trained_.caveat(own if classes is None else replace(own, names=classes))

    def answer(self, pixels: NDArray[np.uint8], classes: Names | None = None) -> Answers:
        """Answer for pixels [B, H, W, 3]."""
        import torch

        module = self._for(classes)
        with torch.no_grad():
            given = torch.from_numpy(pixels).to(self.model.backbone_.device).permute(0, 3, 1, 2).float()
            return Answers(*(output.cpu().numpy() for output in module(given)))


def open_engine(place: Path, **how: Any) -> Engine:
    """Open an adapter, with the arguments of `load_model`, or an exported folder, which takes none.

    Raises:
        PromptPrismError: it is neither; see `load_model` and `Runtime`.
    """
    if (place / FACTS).exists():
        return OnnxEngine(Runtime(place))
    from promptprism.adapter import read_card
    from promptprism.estimator import load_model

    card = read_card(place)
    return TorchEngine(load_model(place, **how), card.reference)
