"""Adapter files: a folder with what was learned (safetensors) and a card (JSON) that says all the rest."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

import promptprism
from promptprism.backbones import Backbone, Precision, check_trusted, load_backbone
from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismError
from promptprism.files import read_tensors, write_tensors, write_text
from promptprism.methods import METHODS, Method, MethodSettings, build_method, make_settings
from promptprism.provenance import BackboneFacts
from promptprism.training.loop import Trained, TrainResult

TENSORS, CARD = "adapter.safetensors", "card.json"


class DataSummary(BaseModel):
    """What was trained on: data, images per class, shots if they were drawn, seed of the draw."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    images: dict[str, int]
    shots: int | None
    seed: int


class Card(BaseModel):
    """All of an adapter but the trainable parameters.

    Attributes:
        format: version of this layout.
        promptprism: version that wrote it.
        method: name of the method.
        settings: all its settings.
        backbone: the frozen model that the numbers were learned for.
        class_names: label space, in the order of the labels.
        phrase: hand-crafted text around a class name.
        seed: of the run.
        data: what was trained on, None if the model was never trained (zero-shot).
        training: what training was and cost.
        scores: metrics that were measured with the model, by name of the data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    promptprism: str = promptprism.__version__
    method: str
    settings: dict[str, Any]
    backbone: BackboneFacts
    class_names: tuple[str, ...]
    phrase: str
    seed: int
    data: DataSummary | None
    training: TrainResult
    scores: dict[str, dict[str, float]] = {}

    @classmethod
    def of(
        cls,
        trained: Trained,
        space: LabelSpace,
        data: DataSummary | None,
        scores: dict[str, dict[str, float]] | None = None,
    ) -> Self:
        """Describe what was learned, and the label space that it is to be opened with."""
        method = trained.method
        return cls(
            method=method.name,
            settings=method.settings.model_dump(mode="json"),
            backbone=BackboneFacts.of(method.backbone),
            class_names=space.names,
            phrase=space.phrase,
            seed=trained.training.seed,
            data=data,
            training=trained.training,
            scores=scores or {},
        )

    @property
    def label_space(self) -> LabelSpace:
        """Class names and phrase."""
        return LabelSpace(self.class_names, self.phrase)

    @property
    def learned_space(self) -> LabelSpace:
        """The label space that was learned."""
        return LabelSpace(tuple(self.data.images) if self.data else self.class_names, self.phrase)


def save_adapter(path: Path, method: Method, card: Card) -> None:
    """Write an adapter folder, whole or not at all.

    Raises:
        PromptPrismError: the folder exists, or the place cannot be written.
    """
    if path.exists():
        raise PromptPrismError(f"'{path}' exists: choose another folder for the adapter, or remove it first")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    except OSError as error:
        raise PromptPrismError(
            f"cannot write '{path}' ({error.strerror}): check the permissions of its folder, or choose "
            "another place"
        ) from error
    try:
        write_tensors(partial / TENSORS, method.state_dict())
        write_text(partial / CARD, card.model_dump_json(indent=2) + "\n")
        partial.chmod(0o755)  # mkdtemp makes private folders
        partial.rename(path)
    except OSError as error:
        raise PromptPrismError(f"cannot write '{path}' ({error.strerror}): choose another place") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_card(path: Path) -> Card:
    """Read and check the card of an adapter folder.

    Raises:
        PromptPrismError: no such folder, no card, or one that is damaged or of another version.
    """
    if not path.is_dir():
        what = "is a file, not an adapter folder" if path.exists() else "does not exist"
        raise PromptPrismError(f"adapter '{path}' {what}: give the folder that save (or fit --out) made")
    try:
        content = json.loads((path / CARD).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PromptPrismError(f"folder '{path}' is no adapter: it has no {CARD}") from error
    except (OSError, ValueError) as error:
        raise PromptPrismError(
            f"'{path / CARD}' is damaged ({error}): copy or make the adapter again"
        ) from error
    if not isinstance(content, dict) or "format" not in content:
        raise PromptPrismError(f"'{path / CARD}' is no adapter's card: it has no 'format'")
    if content["format"] != 1:
        raise PromptPrismError(
            f"adapter '{path}' has format {content['format']!r}, this promptprism "
            f"({promptprism.__version__}) reads format 1: use the version that wrote it, or a newer one"
        )
    try:
        return Card.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PromptPrismError(f"'{path / CARD}' is not valid: {where}: {first['msg']}") from error


def load_adapter(
    path: Path,
    backbone: str | Backbone | None = None,
    pretrained: str | None = None,
    precision: Precision = "auto",
    device: str = "auto",
    trust_backbone: bool = False,
    settings: MethodSettings | None = None,
) -> tuple[Trained, Card]:
    """Read an adapter folder and build its method; see `promptprism.load_model`.

    Settings may differ from the card's in those that training does not see; None takes the card's.
    """
    card = read_card(path)
    card.label_space  # noqa: B018 - a damaged one is refused before anything is loaded
    learned_with = make_settings(card.method, **card.settings)
    settings = learned_with if settings is None else settings
    free = METHODS[card.method].prediction_settings
    if changed := sorted({name for name, value in settings if value != getattr(learned_with, name)} - free):
        raise PromptPrismError(
            f"setting '{changed[0]}' of adapter '{path}' cannot be changed, it was learned with: fit "
            f"anew. Can be: {', '.join(sorted(free)) or 'none'}"
        )
    tensors, _ = read_tensors(path / TENSORS)
    if not isinstance(backbone, Backbone):
        facts = card.backbone
        name, weights = (facts.name, facts.pretrained) if backbone is None else (backbone, None)
        if backbone is None and not trust_backbone:
            check_trusted(name, None if pretrained else weights, f"adapter '{path}'")
        try:
            backbone = load_backbone(name, pretrained or weights, precision=precision, device=device)
        except PromptPrismError as error:
            if pretrained or name != facts.name:
                raise
            raise PromptPrismError(
                f"{error} Adapter '{path}' was learned with these weights: if they lie elsewhere on this "
                "machine, say where: pretrained=FILE or backbone='local-dir:...' (--pretrained, --backbone)"
            ) from error
    if backbone.fingerprint != card.backbone.fingerprint:
        raise PromptPrismError(
            f"adapter '{path}' was learned for backbone {card.backbone.name!r} with fingerprint "
            f"{card.backbone.fingerprint}, but {backbone.name!r} has {backbone.fingerprint}: the weights "
            "differ. Give the weights it was trained with (backbone=... or pretrained=...)"
        )
    method = build_method(settings, backbone, card.seed)
    method.allot(len(card.learned_space), card.training.images)
    learned = method.state_dict()
    for name in sorted(learned.keys() ^ tensors.keys()):
        how = "lacks" if name in learned else "has an unknown"
        raise PromptPrismError(f"'{path / TENSORS}' {how} tensor '{name}': it does not belong to its card")
    for name, value in learned.items():
        found = tensors[name]
        if found.shape != value.shape or found.dtype != value.dtype:
            raise PromptPrismError(
                f"tensor '{name}' in '{path / TENSORS}' is {tuple(found.shape)} {found.dtype}, but the "
                f"card's settings need {tuple(value.shape)} {value.dtype}: the files do not belong together"
            )
        if not found.isfinite().all():
            raise PromptPrismError(
                f"tensor '{name}' in '{path / TENSORS}' is not finite: the file is damaged"
            )
        value.copy_(found)
    return Trained(method.eval(), card.learned_space, card.training), card
