"""Checkpoints: one safetensors file per run, replaced after every epoch, from which it goes on bit for bit.

The file holds what is learned, what the method keeps besides, and the optimizer's state; its metadata says
whose they are. Nothing else is needed: every random number of a run is a function of (seed, epoch, image,
template).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, ValidationError
from torch import Tensor

from promptprism.data.content import content_digest
from promptprism.data.names import LabelSpace
from promptprism.data.records import Record
from promptprism.errors import PromptPrismError
from promptprism.files import read_tensors, write_tensors
from promptprism.methods import Method
from promptprism.provenance import Facts

_KEY = "promptprism"


class Epoch(Facts):
    """What one epoch was: number (from 0), steps, learning rate, mean loss, seconds."""

    model_config = ConfigDict(allow_inf_nan=False)

    epoch: int
    steps: int
    rate: float
    loss: float
    seconds: float


class Run(Facts):
    """What makes a run the same run; a checkpoint of another one is refused."""

    method: str
    settings: dict[str, Any]
    backbone: str
    precision: str
    class_names: tuple[str, ...]
    phrase: str
    seed: int
    images: int
    images_digest: str
    start: str | None = None
    weights_digest: str | None = None

    @classmethod
    def of(
        cls, method: Method, space: LabelSpace, records: Sequence[Record], seed: int, start: str | None = None
    ) -> Run:
        """Describe a run that is about to start."""
        digest, weights = hashlib.sha256(), hashlib.sha256()
        for record in records:
            weights.update(b"%r\n" % record.weight)
            digest.update(b"%d %s\n" % (record.label, content_digest(record.source)))
        return cls(
            method=method.name,
            settings=method.settings.model_dump(mode="json"),
            backbone=method.backbone.fingerprint,
            precision=str(method.backbone.dtype).removeprefix("torch."),
            class_names=space.names,
            phrase=space.phrase,
            seed=seed,
            images=len(records),
            images_digest=digest.hexdigest()[:16],
            start=start,
            weights_digest=weights.hexdigest()[:16] if any(one.weight != 1 for one in records) else None,
        )


class _Card(Facts):
    format: Literal[2] = 2  # 1 knew images by their names, and had no digest
    run: Run
    history: tuple[Epoch, ...]
    seconds: float


def save_checkpoint(
    path: Path,
    run: Run,
    history: Sequence[Epoch],
    seconds: float,
    method: Method,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Replace the checkpoint by the state after the last epoch of ``history``.

    Raises:
        PromptPrismError: the place cannot be written.
    """
    tensors = {f"learned/{name}": value for name, value in _tensors(method).items()}
    for place, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{place}/{name}": value for name, value in state.items() if value is not None}
    card = _Card(run=run, history=tuple(history), seconds=seconds)
    write_tensors(path, tensors, {_KEY: card.model_dump_json()})


def load_checkpoint(
    path: Path, run: Run, method: Method, optimizer: torch.optim.Optimizer
) -> tuple[list[Epoch], float]:
    """Bring the method and the optimizer back to where the checkpoint was made.

    Returns:
        The epochs done, and the seconds they took.

    Raises:
        PromptPrismError: the file is damaged, foreign, or of another run.
    """
    tensors, metadata = read_tensors(path, sealed=True)
    try:
        card = _Card.model_validate_json(metadata.get(_KEY, ""))
    except ValidationError as error:
        raise PromptPrismError(
            f"'{path}' is no checkpoint of this version: delete it to start anew"
        ) from error
    for field in Run.model_fields:
        there, here = getattr(card.run, field), getattr(run, field)
        if isinstance(there, dict) and isinstance(here, dict):  # of settings, those that differ
            names = [name for name in there | here if there.get(name) != here.get(name)]
            there, here = ({name: one.get(name) for name in names} for one in (there, here))
        if there != here:
            raise PromptPrismError(
                f"checkpoint '{path}' is of another run: its {field} is {_short(there)}, not {_short(here)}. "
                "Delete it to start anew, or give another place"
            )
    for name, value in _tensors(method).items():
        if (found := tensors.get(f"learned/{name}")) is None or found.shape != value.shape:
            raise PromptPrismError(f"checkpoint '{path}' does not hold '{name}': delete it to start anew")
        value.data.copy_(found)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, place, name = key.split("/")
            state.setdefault(int(place), {})[name] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return list(card.history), card.seconds


def _tensors(method: Method) -> dict[str, Tensor]:
    return {**dict(method.named_parameters()), **dict(method.named_buffers())}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
