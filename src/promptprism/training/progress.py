"""What a person sees of a run: epoch, loss, rate, time left, peak memory, in TensorBoard too."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from promptprism.errors import PromptPrismError, needs
from promptprism.provenance import Meter
from promptprism.training.checkpoint import Epoch


class Step(Protocol):
    """Called after every training step."""

    def __call__(self, epoch: int, loss: float, images: int) -> None:
        """Show that a step of ``images`` images in ``epoch`` (from 0) had this loss."""
        ...


@contextmanager
def training_progress(
    title: str, epochs: int, steps_per_epoch: int, done: int, meter: Meter, shown: bool
) -> Iterator[Step]:
    """Show a bar on standard error while the body runs; ``done`` epochs are behind already."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("loss {task.fields[loss]}  {task.fields[rate]} images/s  {task.fields[memory]} MiB"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    seen, start, average = 0, meter.seconds, 0.0
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        task = progress.add_task(
            title,
            total=epochs * steps_per_epoch,
            completed=done * steps_per_epoch,
            loss="-",
            rate="-",
            memory="-",
        )

        def step(epoch: int, loss: float, images: int) -> None:
            nonlocal seen, average
            # The mean of about the last ten steps: a single batch says little.
            average = loss if not seen else 0.9 * average + 0.1 * loss
            seen += images
            progress.update(
                task,
                advance=1,
                description=f"{title} epoch {epoch + 1}/{epochs}",
                loss=f"{average:.3f}",
                rate=f"{seen / max(meter.seconds - start, 1e-9):.1f}",
                memory=f"{meter.peak_memory_mb:.0f}" if shown else "",
            )

        yield step


@contextmanager
def tensorboard(folder: Path) -> Iterator[Callable[[Epoch], None]]:
    """A callback for `learn` that writes ``loss``, ``rate`` and ``seconds`` of each epoch for TensorBoard.

    They are on the disk as soon as the epoch is done; epochs count from 0, as in the card's history.

    Raises:
        PromptPrismError: the package is missing, or the folder cannot be written.
    """
    with needs(f"'{folder}'", "tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    try:
        writer = SummaryWriter(str(folder))
    except OSError as error:
        raise PromptPrismError(
            f"cannot write '{folder}' ({error.strerror}): check its permissions, or choose another folder"
        ) from error

    def write(epoch: Epoch) -> None:
        for name in ("loss", "rate", "seconds"):
            writer.add_scalar(name, getattr(epoch, name), epoch.epoch)
        writer.flush()

    with writer:
        yield write
