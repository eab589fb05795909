"""Adapter files: a folder with what was learned (safetensors) and a card (JSON) that says all the rest."""

import json
import os
import re
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, Literal, Self

import huggingface_hub
from pydantic import Field, ValidationError
from torch import Tensor

import promptprism
from promptprism.backbones import Backbone, Precision, check_trusted, find_device, load_backbone
from promptprism.data.names import LabelSpace
from promptprism.data.weights import ClassWeight
from promptprism.drift import Reference
from promptprism.errors import PromptPrismError, first_problem
from promptprism.files import (
    check_place,
    check_regular,
    locked,
    read_tensors,
    sha256_of,
    temporary,
    write_tensors,
    write_text,
)
from promptprism.inference.conformal import Calibration
from promptprism.methods import METHODS, Method, MethodSettings, build_method, make_settings
from promptprism.provenance import BackboneFacts, Facts, Scored
from promptprism.runtime import FACTS
from promptprism.training.loop import Trained, TrainResult

TENSORS, CARD = "adapter.safetensors", "card.json"
_STRANGE = "'{}' {} tensor '{}': it does not belong to its card"
_CHECKSUM = '"checksum": "{}"'


class DataSummary(Facts):
    """What was trained on.

    Attributes:
        name: of the data.
        images: of each class.
        shots: drawn per class; None took all.
        seed: of the draw.
        class_weight: how much the images of each class counted; None is the same.
        corrections: how many of the images a person had corrected.
        left_out: training images of the data that were not learned from.
        started_from: fingerprint of what was learned before, where training went on from it.
        pictures: 12 hex digits of each picture learned from, see `picture_id`, in order, those before too;
            empty if it is not known.
    """

    name: str
    images: dict[str, int]
    shots: int | None
    seed: int
    class_weight: ClassWeight = None
    corrections: int = 0
    left_out: int = 0
    started_from: str | None = None
    pictures: str = ""

    @property
    def seen(self) -> frozenset[str]:
        """The pictures that were learned from, see `picture_id`."""
        return frozenset(self.pictures[at : at + 12] for at in range(0, len(self.pictures), 12))


class Card(Facts):
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
        evaluations: what `promptprism evaluate` found, the last of each data and split.
        reference: answers about photos that were not learned from; None where there are none.
        calibration: what `promptprism calibrate` found; None without.
        tensors: SHA-256 of the file of tensors; cards of early versions lack it.
        checksum: SHA-256 of the card's text with nothing in this place; early ones lack it.
    """

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
    scores: dict[str, dict[str, float]] = Field(default_factory=dict)
    evaluations: tuple[Scored, ...] = ()
    reference: Reference | None = None
    calibration: Calibration | None = None
    tensors: str | None = None
    checksum: str | None = None

    @classmethod
    def of(
        cls,
        trained: Trained,
        space: LabelSpace,
        data: DataSummary | None,
        scores: dict[str, dict[str, float]] | None = None,
        reference: Reference | None = None,
        calibration: Calibration | None = None,
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
            reference=reference,
            calibration=calibration,
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
    check_new(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary(path) as partial:
            partial.mkdir()
            write_tensors(partial / TENSORS, method.state_dict())
            write_card(partial, card.model_copy(update={"tensors": sha256_of(partial / TENSORS)}))
            partial.rename(path)
    except OSError as error:
        raise PromptPrismError(
            f"cannot write '{path}' ({error.strerror}): check the permissions of its folder, or choose "
            "another place"
        ) from error


def write_card(path: Path, card: Card) -> None:
    """Write the card of an adapter folder, in the place of one that is there.

    Raises:
        PromptPrismError: the place cannot be written.
    """
    whole = card.model_copy(update={"checksum": ""})
    write_text(path / CARD, sealed(whole.model_dump_json(indent=2) + "\n"))


def check_own(path: Path) -> None:
    """Refuse a card that must not be written: that cannot be, or of the hub's cache, which is others' too.

    Raises:
        PromptPrismError: see above.
    """
    if path.resolve().is_relative_to(Path(huggingface_hub.constants.HF_HUB_CACHE).resolve()):
        raise PromptPrismError(
            f"'{path}' is of the hub's cache and stays as it came: copy it (cp -rL) and give the copy"
        )
    check_place(path / CARD)


def note(path: Path, found: Scored | Calibration) -> None:
    """Write what was found into an adapter's card, in the place of an earlier one of its kind.

    Raises:
        PromptPrismError: the card cannot be read or written, see `check_own`.
    """
    check_own(path)
    with locked(path.with_name(f".{path.name}.lock"), wait=10.0):
        card = read_card(path)
        if isinstance(found, Calibration):
            write_card(path, card.model_copy(update={"calibration": found}))
            return
        others = [one for one in card.evaluations if (one.data, one.split) != (found.data, found.split)]
        write_card(path, card.model_copy(update={"evaluations": (*others, found)}))


def check_new(path: Path) -> None:
    """Raise PromptPrismError if there is something already."""
    if os.path.lexists(path):
        raise PromptPrismError(f"'{path}' exists: choose another folder for the adapter, or remove it first")


def sealed(card: str) -> str:
    """Write its SHA-256 into the text of a card, where nothing stands yet."""
    digest = sha256_of(card.encode())
    return card.replace(_CHECKSUM.format(""), _CHECKSUM.format(digest))


def _check_seal(card: str, said: object, path: Path) -> None:
    """Refuse a card that is not as it was written; line ends may have changed on the way."""
    plain = card.replace("\r\n", "\n")
    if said is not None and sealed(plain.replace(_CHECKSUM.format(said), _CHECKSUM.format(""))) != plain:
        raise PromptPrismError(
            f"'{path}' is not as it was written, its SHA-256 is another: it is damaged, copy or make the "
            "adapter again. If you changed it on purpose, take out its 'checksum'"
        )


def read_card(path: Path) -> Card:
    """Read and check the card of an adapter folder.

    Raises:
        PromptPrismError: no such folder, no card, or one that is damaged or of another version.
    """
    if not path.is_dir():
        what = "is a file, not an adapter folder" if path.exists() else "does not exist"
        raise PromptPrismError(f"adapter '{path}' {what}: give the folder that save (or fit --out) made")
    try:
        check_regular(path / CARD)
        text = (path / CARD).read_bytes().decode()
        content = json.loads(text)
    except FileNotFoundError as error:
        told = "was made by export: give it to serve or promptprism.runtime, or name the adapter it is of"
        what = told if (path / FACTS).is_file() else f"is no adapter: it has no {CARD}"
        raise PromptPrismError(f"folder '{path}' {what}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise PromptPrismError(
            f"'{path / CARD}' is damaged ({error}): copy or make the adapter again"
        ) from error
    if not isinstance(content, dict) or "format" not in content:
        raise PromptPrismError(f"'{path / CARD}' is no adapter's card: it has no 'format'")
    _check_seal(text, content.get("checksum"), path / CARD)
    newer = _newer(content.get("promptprism"))
    try:
        if content["format"] != 1:
            raise PromptPrismError(
                f"adapter '{path}' has format {content['format']!r}, this promptprism "
                f"({promptprism.__version__}) reads format 1: use the version that wrote it, or a newer one"
            )
        card = _validated(content, path, forgiving=newer)
        make_settings(card.method, **card.settings)
    except PromptPrismError as error:
        if newer:
            raise PromptPrismError(
                f"adapter '{path}' was written by {content['promptprism']}, this is "
                f"{promptprism.__version__}: upgrade promptprism. {error}"
            ) from error
        raise
    return card


def _newer(version: object) -> bool:
    """Whether a version is newer than this program."""
    parts = [re.match(r"(\d{1,9})\.(\d{1,9})", str(one)) for one in (version, promptprism.__version__)]
    there, here = (tuple(map(int, found.groups())) if found else () for found in parts)
    return there > here


def _validated(content: dict[str, Any], path: Path, forgiving: bool) -> Card:
    """Make a card; a forgiving one leaves out what a newer version has added, where it changes no answer."""
    try:
        return Card.model_validate(content)
    except ValidationError as error:
        problems = error.errors()
        neutral = [
            one for one in problems if one["type"] == "extra_forbidden" and one["loc"][0] != "backbone"
        ]
        if forgiving and neutral:
            for problem in neutral:
                *around, name = problem["loc"]
                del reduce(getitem, around, content)[name]  # type: ignore[arg-type]
            return _validated(content, path, forgiving)
        raise PromptPrismError(f"'{path / CARD}' is not valid: {first_problem(problems)}") from error


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

    Settings may differ from the card's in those that training does not see, and be lower in those that
    say how much of what was kept is used; None takes the card's.
    """
    card = read_card(path)
    card.label_space  # noqa: B018 - a damaged one is refused before anything is loaded
    learned_with = make_settings(card.method, **card.settings)
    settings = learned_with if settings is None else settings
    _check_settings(settings, learned_with, path)
    tensors = _read_tensors(path, card)
    if not isinstance(backbone, Backbone):
        facts = card.backbone
        name, weights = (facts.name, facts.pretrained) if backbone is None else (backbone, None)
        if backbone is None and not trust_backbone:
            check_trusted(name, None if pretrained else weights, f"adapter '{path}'")
        device = find_device(device)
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
    method = build_method(learned_with, backbone, card.seed)
    method.allot(len(card.learned_space), card.training.images)
    if card.training.weighted:
        method.weigh(card.training.images)
    learned = method.state_dict()
    for name in sorted(learned.keys() ^ tensors.keys()):
        how = "lacks" if name in learned else "has an unknown"
        raise PromptPrismError(_STRANGE.format(path / TENSORS, how, name))
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
    method.use(settings)
    return Trained(method.eval(), card.learned_space, card.training), card


def _check_settings(settings: MethodSettings, learned_with: MethodSettings, path: Path) -> None:
    """Refuse settings that what was learned cannot be used with."""
    method = METHODS[learned_with.method]
    free, lowered = method.prediction_settings, method.lowered_settings
    for name, value in sorted(settings):
        if value == (before := getattr(learned_with, name)) or name in free:
            continue
        if name not in lowered or value > before:
            why = f"it keeps {before}" if name in lowered else "it was learned with"
            raise PromptPrismError(
                f"setting '{name}' of adapter '{path}' cannot be changed to {value!r}, {why}: fit anew. Can "
                f"be: {', '.join(sorted(free)) or 'none'}; lowered: {', '.join(sorted(lowered)) or 'none'}"
            )


def _read_tensors(path: Path, card: Card) -> dict[str, Tensor]:
    """Read what was learned, and compare it with its card before anything of that size is built."""
    tensors, _ = read_tensors(path / TENSORS)
    if card.tensors is not None and sha256_of(path / TENSORS) != card.tensors:
        raise PromptPrismError(
            f"'{path / TENSORS}' is not what its card tells of, its SHA-256 is another: it is damaged or of "
            "another adapter, copy or make the adapter again"
        )
    settings = make_settings(card.method, **card.settings)
    for name, axes in METHODS[card.method].axes(settings, card.training.images).items():
        if (found := tensors.get(name)) is None:
            raise PromptPrismError(_STRANGE.format(path / TENSORS, "lacks", name))
        shape = tuple(found.shape)
        fits = len(shape) == len(axes) and all(a in (None, size) for a, size in zip(axes, shape, strict=True))
        if not fits or not found.numel():
            told = " x ".join("any" if axis is None else str(axis) for axis in axes)
            raise PromptPrismError(
                f"tensor '{name}' in '{path / TENSORS}' is {shape} {found.dtype}, but the card's settings "
                f"need {told}: the files do not belong together"
            )
    return tensors
