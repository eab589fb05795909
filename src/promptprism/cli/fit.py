"""``promptprism fit``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from promptprism.cli.options import (
    BackboneName,
    Data,
    Device,
    Devices,
    Json,
    LabelColumn,
    Names,
    PathColumn,
    Precision,
    Pretrained,
    Root,
    Seed,
    SplitColumn,
    Splits,
    Strategy,
    make_reading,
    open_data,
    option,
    parse_settings,
)
from promptprism.cli.output import Output
from promptprism.errors import CollapseWarning, PromptPrismError


def fit(
    data: Data,
    out: Annotated[Path, option("FOLDER", "Folder to make for the adapter.", "--out", "-o")],
    method: Annotated[str, option("NAME", "cdc, maple, cocoop, coop or zero-shot.")] = "cdc",
    shots: Annotated[int, option("N", "Training images drawn per class.", min=1)] = 16,
    root: Root = None,
    splits: Splits = None,
    names: Names = None,
    path_column: PathColumn = "path",
    label_column: LabelColumn = "label",
    split_column: SplitColumn = "split",
    seed: Seed = 1,
    backbone: BackboneName = "auto",
    pretrained: Pretrained = None,
    precision: Precision = "auto",
    device: Device = "auto",
    devices: Devices = None,
    strategy: Strategy = "ddp",  # noqa: ARG001 - the one there is
    phrase: Annotated[
        str | None, option("TEXT", "Text with {} for the class name, instead of the data's own.")
    ] = None,
    settings: Annotated[
        list[str] | None, option("NAME=VALUE", "A setting of the method; may be repeated.", "--set")
    ] = None,
    allow_fewer: Annotated[
        bool, typer.Option("--allow-fewer", help="Go on with classes short of images.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    json_file: Json = None,
) -> None:
    """Learn from a few labelled images per class, and save an adapter."""
    output = Output("fit", json_file)
    chosen = parse_settings(settings)
    from promptprism.adapter import read_card
    from promptprism.cli import tables
    from promptprism.cli.info import card_facts
    from promptprism.estimator import PromptPrism
    from promptprism.methods import make_settings

    make_settings(method, **chosen)
    reading = make_reading(splits, names, path_column, label_column, split_column)
    with _reserved(out, resume) as checkpoint:
        dataset = open_data(data, output, root, reading)
        if resume and not checkpoint.exists():
            output.warn(f"no '{checkpoint}' to go on from: starting from the beginning")
        model = PromptPrism(
            method,
            backbone,
            pretrained,
            precision=precision,
            device=device,
            devices=devices,
            shots=shots,
            allow_fewer=allow_fewer,
            seed=seed,
            phrase=phrase,
            progress=True,
            **chosen,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapseWarning)  # told below, as an error
            model.fit(dataset, checkpoint=checkpoint)
        if model.training_.collapsed:
            checkpoint.unlink(missing_ok=True)
            raise PromptPrismError(
                f"the run collapsed: {model.training_.collapsed}. Nothing was saved; try a smaller lr"
            )
        model.save(out)
        checkpoint.unlink(missing_ok=True)
    card = read_card(out).model_dump(mode="json")
    output.show(tables.facts(str(out), card_facts(card)))
    output.show(f"Next: promptprism evaluate {out} DATA, or promptprism predict {out} IMAGE...")
    output.write(adapter=str(out), skipped=len(dataset.skipped), **card)


@contextmanager
def _reserved(out: Path, resume: bool) -> Iterator[Path]:
    """Keep a place for one run, and give where its checkpoint goes.

    Raises:
        PromptPrismError: another run has it, or it cannot be used; said before anything is trained.
    """
    from promptprism.adapter import CARD
    from promptprism.files import check_place, locked, remove

    checkpoint, lock = out.with_name(f"{out.name}.checkpoint"), out.with_name(f".{out.name}.lock")
    if os.path.lexists(out):
        if (out / CARD).is_file():
            remove(checkpoint)  # of a run that was killed when all was saved
        raise PromptPrismError(f"'{out}' exists: choose another folder for the adapter, or remove it first")
    check_place(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock) as mine:
        if not mine:
            raise PromptPrismError(f"another run is writing '{out}': choose another folder, or wait for it")
        try:
            if checkpoint.exists() and not resume:
                raise PromptPrismError(
                    f"'{checkpoint}' is left of an unfinished run: add --resume to go on, or remove it"
                )
            yield checkpoint
        finally:
            remove(lock)
