"""``promptprism fit``."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

from promptprism.cli.options import (
    AllowFewer,
    BackboneName,
    DataOptions,
    Device,
    Devices,
    EarlierAdapter,
    Json,
    ModelOptions,
    OptionalData,
    Precision,
    Pretrained,
    Seed,
    Strategy,
    TrustBackbone,
    flag,
    grouped,
    open_data,
    option,
    parse_settings,
)
from promptprism.cli.output import Output, command
from promptprism.errors import CollapseWarning, PromptPrismError


@grouped
def fit(
    *,
    data: OptionalData = None,
    out: Annotated[Path, option("FOLDER", "Folder to make for the adapter.", "--out", "-o")],
    method: Annotated[
        str | None,
        option(
            "NAME",
            "What learns: one of the names that methods lists; with --from that of the adapter.",
            show_default="cdc",
        ),
    ] = None,
    shots: Annotated[str, option("N|all", "Training images drawn per class, or all there are.")] = "16",
    corrections: Annotated[
        Path | None,
        option(
            "FILE",
            "CSV of corrected photos (path,label), as review writes it: all are learned from, beside "
            "the shots.",
        ),
    ] = None,
    start: EarlierAdapter = None,
    reading: DataOptions,
    seed: Seed = 1,
    backbone: BackboneName = "auto",
    pretrained: Pretrained = None,
    trust_backbone: TrustBackbone = False,
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
    allow_fewer: AllowFewer = False,
    tensorboard: Annotated[
        Path | None, option("FOLDER", "Write loss and rate of every epoch for TensorBoard there.")
    ] = None,
    resume: Annotated[bool, flag("--resume", "Go on with an interrupted run.")] = False,
    json_file: Json = None,
) -> None:
    """Learn from a few labelled images per class, and save an adapter.

    Without DATA it learns from corrected photos alone, going on from an adapter that knows the classes.
    """
    output = Output("fit", json_file)
    chosen = parse_settings(settings)
    from promptprism.adapter import read_card
    from promptprism.cli import tables
    from promptprism.cli.info import card_facts
    from promptprism.estimator import PromptPrism
    from promptprism.methods import make_settings
    from promptprism.training.progress import tensorboard as to_tensorboard

    if start is not None:
        earlier = read_card(start)
        method, chosen = method or earlier.method, earlier.settings | chosen
    method = method or "cdc"
    make_settings(method, **chosen)
    drawn = _shots(shots)
    how = reading.parse()
    with _reserved(out, resume) as checkpoint:
        dataset = None if data is None else open_data(data, output, reading.root, how)
        before = None
        if start is not None:
            place = None if backbone == "auto" else backbone
            opening = ModelOptions(place, pretrained, trust_backbone, device)
            before = opening.open(start, precision=precision)
        if resume and not checkpoint.exists():
            output.warn(f"no '{checkpoint}' to go on from: starting from the beginning")
        model = PromptPrism(
            method,
            before.backbone_ if before else backbone,
            pretrained,
            precision=precision,
            device=device,
            devices=devices,
            shots=drawn,
            allow_fewer=allow_fewer,
            seed=seed,
            phrase=phrase,
            progress=True,
            **chosen,
        )
        with warnings.catch_warnings(), ExitStack() as stack:
            warnings.simplefilter("ignore", CollapseWarning)  # told below, as an error
            told = None if tensorboard is None else stack.enter_context(to_tensorboard(tensorboard))
            model.fit(dataset, corrections=corrections, start=before, checkpoint=checkpoint, callback=told)
        if model.training_.collapsed:
            checkpoint.unlink(missing_ok=True)
            raise PromptPrismError(
                f"the run collapsed: {model.training_.collapsed}. Nothing was saved; try a smaller lr"
            )
        model.save(out)
        checkpoint.unlink(missing_ok=True)
    card = read_card(out).model_dump(mode="json")
    output.show(tables.facts(str(out), card_facts(card)))
    if left := (card["data"] or {}).get("left_out"):
        output.show(
            f"{left} labelled images were left out, {drawn} were drawn of each class: --shots all takes all"
        )
    output.show(f"Next: {command('evaluate', out, 'DATA')}, or {command('predict', out, 'IMAGE...')}")
    output.write(adapter=str(out), skipped=len(dataset.skipped) if dataset else 0, **card)


def _shots(text: str) -> int | None:
    """How many images of each class to draw; None is all.

    Raises:
        PromptPrismError: it is no number from 1, nor all.
    """
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise PromptPrismError(f"--shots '{text}' is no number of images: give 1 or more, or all")
    return int(text)


@contextmanager
def _reserved(out: Path, resume: bool) -> Iterator[Path]:
    """Keep a place for one run, and give where its checkpoint goes.

    Raises:
        PromptPrismError: another run has it, or it cannot be used; said before anything is trained.
    """
    from promptprism.adapter import CARD, check_new
    from promptprism.files import check_place, locked, remove

    if not out.name:  # "." or "/"
        check_new(out)
    checkpoint, lock = out.with_name(f"{out.name}.checkpoint"), out.with_name(f".{out.name}.lock")
    if (out / CARD).is_file():
        remove(checkpoint)  # of a run that was killed when all was saved
    check_new(out)
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
