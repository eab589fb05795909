"""``promptprism predict --engine``: shards named by several processes or machines."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import typer

from promptprism.cli.output import Output, terminal
from promptprism.distributed.cluster import ray_address
from promptprism.errors import PromptPrismError

if TYPE_CHECKING:
    from promptprism.distributed.naming import Failed, Named, Naming
    from promptprism.methods import Classifier

_SHOWN = 20
_HERE = "processes"


def check(
    engine: str | None, workers: int | None, once: bool, out: str | None, others: dict[str, bool]
) -> None:
    """Refuse what cannot be meant.

    Args:
        engine: as given.
        workers: as given.
        once: as given.
        out: as given.
        others: options of one process by their names, and whether they are given.

    Raises:
        PromptPrismError: why, and what to do.
    """
    if engine is None:
        if workers is not None or once:
            raise PromptPrismError("--workers and --once are for shards: add --engine processes, or ray")
        return
    if engine != _HERE:
        ray_address(engine, _HERE)
    if out is None or out.endswith((".csv", ".parquet")):
        raise PromptPrismError("--engine writes tables for each shard: give --out a folder or an address")
    if given := [name for name, is_given in others.items() if is_given]:
        raise PromptPrismError(f"{given[0]} is for one process: leave it out, or --engine")


def shards_of(photos: Sequence[str]) -> list[str]:
    """The shards that were named.

    Raises:
        PromptPrismError: something else was named, or two tables would have the same name.
    """
    from promptprism.data.shards import shard_places
    from promptprism.distributed.naming import stem

    for photo in photos:
        if not (photo.startswith("wds:") or photo.endswith(".tar")):
            raise PromptPrismError(
                f"--engine names photos in shards, and '{photo}' is none: give wds:PATTERN, such as "
                "'wds:shards-{000000..000039}.tar'"
            )
    shards = [place for photo in photos for place in shard_places(photo.removeprefix("wds:"))]
    stems: dict[str, str] = {}
    for shard in shards:
        if (other := stems.setdefault(stem(shard), shard)) is not shard:
            raise PromptPrismError(
                f"'{other}' and '{shard}' would have tables of the same name: name each shard once, and "
                "folders with shards of the same names in two commands, with --out of their own"
            )
    return shards


def predict_shards(
    output: Output,
    classifier: Classifier,
    naming: Naming,
    shards: Sequence[str],
    engine: str,
    workers: int | None,
) -> dict[str, Any]:
    """Name what is left of the shards, and show what became of all.

    Returns:
        what JSON has of it.

    Raises:
        PromptPrismError: the tables cannot be written, or nothing was answered at all.
        KeyboardInterrupt: Ctrl-C, with a message that says what was kept.
    """
    from promptprism.data.growing import arrow
    from promptprism.data.stores import check_folder, is_remote, local
    from promptprism.distributed.naming import Failed, finished
    from promptprism.files import locked, remove

    arrow()
    check_folder(naming.out)
    found: list[Named] = []
    failed: list[Failed] = []
    with ExitStack() as held:
        if not is_remote(naming.out):
            folder = local(naming.out)
            folder.mkdir(parents=True, exist_ok=True)
            lock = folder / ".lock"
            if not held.enter_context(locked(lock)):
                raise PromptPrismError(
                    f"another run is writing to '{folder}': wait for it, or name another folder"
                )
            held.callback(remove, lock)
        before = finished(naming, shards)
        left = [shard for shard in shards if shard not in before]
        cores = os.cpu_count() or 1
        results = held.enter_context(closing(_named(classifier, naming, left, engine, workers or cores)))
        try:
            for result in _watched(results, len(left)):
                (failed if isinstance(result, Failed) else found).append(result)  # type: ignore[arg-type]
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"'{naming.out}': {len(before) + len(found)} of {len(shards)} shards are done; the same "
                "command goes on from there"
            ) from None
    if failed and not found and not before:
        raise PromptPrismError(f"no shard could be named. On '{failed[0].node}': {failed[0].reason}")
    return _told(output, naming, len(shards), list(before.values()), found, failed)


def _named(
    classifier: Classifier, naming: Naming, shards: Sequence[str], engine: str, workers: int
) -> Generator[Named | Failed, None, None]:
    if not shards:
        return
    if engine == _HERE:
        from promptprism.distributed.processes import name_by_processes

        yield from name_by_processes(classifier, naming, shards, workers)
        return
    from promptprism.distributed.ray_shards import name_by_ray

    yield from name_by_ray(classifier, naming, shards, workers, ray_address(engine, _HERE))


def _told(
    output: Output, naming: Naming, shards: int, before: list[Named], found: list[Named], failed: list[Failed]
) -> dict[str, Any]:
    from promptprism.cli import tables

    every, counts = [*before, *found], Counter[str]()
    for one in every:
        counts.update(one.counts)
    answered = sum(one.images - one.unread for one in every)
    unread = sum(one.unread for one in every)
    abstained = sum(one.abstained for one in every)
    if answered:
        output.show(tables.counts(counts, answered, abstained, naming.threshold))
    output.show(f"{len(every)} of {shards} shards in {naming.out}, {len(found)} named now")
    if same := sum(one.images - one.looked for one in found):
        output.show(f"{same} photos are pictures that were answered already")
    reasons = [reason for one in every for reason in one.reasons]
    for reason in reasons[:_SHOWN]:
        output.warn(f"✗ {reason}")
    if (more := unread - len(reasons[:_SHOWN])) > 0:
        output.warn(f"✗ {more} more cannot be read")
    for lost in failed[:_SHOWN]:
        output.warn(f"✗ node '{lost.node}', shard '{lost.shard}': {lost.reason}")
    if (more := len(failed) - _SHOWN) > 0:
        output.warn(f"✗ {more} more shards failed")
    return {
        "images": answered,
        "unread_images": unread,
        "counts": dict(counts.most_common()),
        "abstained": abstained,
        "answered_before": sum(one.images - one.unread for one in before),
        "looked_at": sum(one.looked for one in found),
        "shards": {"all": shards, "before": len(before), "now": len(found)},
        "failures": [{"shard": lost.shard, "node": lost.node, "error": lost.reason} for lost in failed],
    }


def finish(content: dict[str, Any]) -> None:
    """End with code 1 if not all could be named."""
    if content["failures"] or content["unread_images"]:
        raise typer.Exit(1)


def _watched(results: Iterator[Named | Failed], count: int) -> Iterator[Named | Failed]:
    """Show a bar on standard error, if that is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = terminal(stderr=True)
    columns = (
        *(BarColumn(24), MofNCompleteColumn(), TextColumn("shards, {task.fields[images]:,} photos, left")),
        TimeRemainingColumn(),
    )
    images = 0
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=count, images=0)
        for result in results:
            images += getattr(result, "images", 0)
            progress.update(task, advance=1, images=images)
            yield result
