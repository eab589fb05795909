"""The one road to a trained model. A method says what it learns and its loss; the rest is here."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field

from promptprism.backbones import Backbone, fingerprint_of
from promptprism.data.batches import labels_of, shuffled_batches, view_batches
from promptprism.data.images import check_images
from promptprism.data.names import LabelSpace
from promptprism.data.records import Record
from promptprism.data.views import make_views
from promptprism.errors import PromptPrismError
from promptprism.inference.predictor import Predictor, check_labels
from promptprism.methods import Classifier, Method, MethodSettings, Texts, build_method
from promptprism.methods.frozen import weights_of
from promptprism.provenance import Cost, Facts, Meter
from promptprism.training.checkpoint import Epoch, Run, load_checkpoint, save_checkpoint
from promptprism.training.progress import Step, training_progress
from promptprism.training.schedule import make_optimizer, rate_scale, step_rate

# Of how many training images it is seen whether a run collapsed; a sound one may fail on fewer than the
# second number by bad luck.
_CHECKED_IMAGES, _FEWEST_CHECKED = 256, 16


class TrainResult(Facts):
    """What a run was and what it cost.

    Attributes:
        seed: of the run.
        images: number of training images.
        trainable: number of trainable parameters.
        steps: optimizer steps.
        seconds_per_step: mean, waiting for images included.
        history: every epoch.
        accuracy: share of (at most 256) plainly seen training images classified right; None if nothing was
            trained.
        collapsed: why the run failed although it went to its end, or None. A collapsed run is no result.
        cost: seconds, memory, device, versions; sittings before a resume included in the seconds.
        weighted: whether images counted unequally.
    """

    seed: int
    images: int
    trainable: int
    steps: int
    seconds_per_step: float | None
    history: tuple[Epoch, ...]
    accuracy: float | None
    collapsed: str | None
    cost: Cost
    weighted: bool = Field(default=False, exclude_if=lambda weighted: not weighted)


@dataclass(frozen=True, eq=False)
class Trained:
    """A method that has learned.

    Attributes:
        method: what was learned.
        space: the label space that it was learned with.
        training: what training was and cost.
    """

    method: Method
    space: LabelSpace
    training: TrainResult

    @property
    def fingerprint(self) -> str:
        """Of what was learned, 16 hex digits."""
        return fingerprint_of(self.method)

    def classifier(self, space: LabelSpace | None = None) -> Classifier:
        """What was learned, for a label space; None is the one learned."""
        return self.method.classifier(self.space if space is None else space, self.space)

    def caveat(self, space: LabelSpace) -> str | None:
        """What is wrong with a label space: names that its backbone does not know, beside learned classes."""
        backbone, places = self.method.backbone, self.space.places(space)
        unknown = [name for name, place in zip(space.names, places, strict=True) if place < 0]
        if not (self.method.settings.learns and backbone.few_names and 0 < len(unknown) < len(space)):
            return None
        return (
            f"{len(unknown)} of {len(space)} classes were not learned, first '{unknown[0]}', and stand "
            f"beside learned ones: backbone '{backbone.name}' knows few names, and gives them hardly an "
            "image. Learn them too (fit --from ADAPTER, a few images each), or take them alone"
        )


def learn(
    settings: MethodSettings,
    backbone: Backbone,
    space: LabelSpace,
    records: Sequence[Record],
    *,
    seed: int = 1,
    validation: Sequence[Record] = (),
    start: Trained | None = None,
    checkpoint: Path | None = None,
    progress: bool = False,
    after_epoch: Callable[[int, Method], None] | None = None,
    callback: Callable[[Epoch], None] | None = None,
    devices: int | None = None,
) -> Trained:
    """Learn a label space from labelled images; the last epoch counts.

    The optimizer is the settings'; rates are those of `step_rate`, times `rate_scale`. With a checkpoint, the
    state after every epoch is kept in that file, and a run that finds its own file goes on from there: on
    a CPU the result equals that of an uninterrupted run bit for bit. What learns nothing (zero-shot, or zero
    epochs) needs no records.

    Args:
        settings: of the method, see `make_settings`.
        backbone: the frozen model.
        space: the classes to learn.
        records: training images, with labels into the names of the space.
        seed: decides the start values, the order of the images and all views.
        validation: images by which a method that has something to choose may do so, with labels into the
            same names; they are not learned from.
        start: what was learned before, to go on from; classes that it knows need no images.
        checkpoint: a file to keep the state in.
        progress: show a bar on standard error.
        after_epoch: called with the number of each epoch (from 0) when it is done, and the method; it must
            leave the method as it found it. What it takes counts as training in the seconds. Not with
            ``devices``.
        callback: called with each epoch when it is done and, with a checkpoint, kept: what it raises ends the
            run, and resuming goes on behind that epoch. Epochs of an earlier sitting are not told again.
        devices: GPUs of this machine, or cores of its CPU, that share each step as processes, see
            `promptprism.training.devices`; None takes this process, as does what takes no steps.

    Raises:
        PromptPrismError: no images or a label out of range, an unreadable image, a checkpoint of another
            run, or a loss that is not finite.
        KeyboardInterrupt: Ctrl-C, with a message that says what was kept.
    """
    from promptprism.training.devices import check_devices, share  # which imports this

    method = build_method(settings, backbone, seed)
    if devices is not None:
        check_devices(devices, method)
    if start:
        method.check_start(start.method)
    validation = validation if method.chooses else ()
    before = places_of(start.space, space) if start else ()
    weighted = settings.learns and weights_of(records) is not None
    if weighted:
        method.weigh(len(records))
    _check(settings, space, records, validation, seed, before)
    method.allot(len(space), len(records))
    texts = method.texts(space)
    epochs = settings.epochs if settings.learns else 0
    history: list[Epoch] = []
    meter = Meter(backbone.device)
    accuracy, collapsed = None, None
    if settings.learns:
        method.prepare(texts, tuple(records))
    if start:
        method.go_on_from(start.method, before)
    if epochs:
        run = (
            Run.of(method, space, records, seed, start.fingerprint if start else None)
            if checkpoint or devices
            else None
        )
        optimizer = make_optimizer(settings, method.parameters())
        if checkpoint and run and checkpoint.exists():
            history, seconds = load_checkpoint(checkpoint, run, method, optimizer)
            meter.add(seconds)
        training = Training(
            method, texts, records, optimizer, history, meter, run, checkpoint, progress, callback
        )
        if devices and len(history) < epochs:
            share(training, devices, space)
        else:
            training.go(after_epoch)
        history = training.history
    if settings.learns:
        method.eval().finish(texts, tuple(records), tuple(validation))
        accuracy, collapsed = _examine(method.classifier(space), records)
    steps_taken = sum(epoch.steps for epoch in history)
    result = TrainResult(
        seed=seed,
        images=len(records),
        trainable=sum(value.numel() for value in method.parameters()),
        steps=steps_taken,
        seconds_per_step=sum(epoch.seconds for epoch in history) / steps_taken if steps_taken else None,
        history=tuple(history),
        accuracy=accuracy,
        collapsed=collapsed,
        cost=meter.cost(),
        weighted=weighted,
    )
    return Trained(method.eval(), space, result)


@dataclass
class Training:
    """A run under way, all that the one loop goes by; where devices share steps, each process has its own.

    Attributes:
        method: what learns.
        texts: of the label space that it learns.
        records: training images.
        optimizer: of the method's parameters.
        history: the epochs done.
        meter: its seconds.
        run: what makes it the same run.
        checkpoint: where its state is kept after every epoch, if anywhere.
        progress: show a bar on standard error.
        callback: called with each epoch that is done.
    """

    method: Method
    texts: Texts
    records: Sequence[Record]
    optimizer: torch.optim.Optimizer
    history: list[Epoch]
    meter: Meter
    run: Run | None
    checkpoint: Path | None
    progress: bool
    callback: Callable[[Epoch], None] | None = None

    def go(self, after_epoch: Callable[[int, Method], None] | None = None) -> None:
        """Train to the last epoch; what is in `history` is behind already."""
        method, epochs = self.method, self.method.settings.epochs
        steps = len(self._batches(0))
        method.train()
        try:
            with training_progress(
                method.name, epochs, steps, len(self.history), self.meter, self.progress
            ) as show:
                for epoch in range(len(self.history), epochs):
                    done = [*self.history, self._epoch(epoch, show)]
                    if self.checkpoint and self.run:
                        seconds = self.meter.seconds
                        save_checkpoint(self.checkpoint, self.run, done, seconds, method, self.optimizer)
                    self.history = done
                    if after_epoch:
                        after_epoch(epoch, method)
                    if self.callback:
                        self.callback(done[-1])
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self.interrupted()) from None

    def interrupted(self) -> str:
        """What is said of a run that was stopped; of what was kept the file knows, to the last instant."""
        done, place, what = self.history, self.checkpoint, "Nothing was kept yet"
        if place is None or self.run is None:
            what = "Nothing was kept: no checkpoint was asked for"
        elif place.exists():
            done, _ = load_checkpoint(place, self.run, self.method, self.optimizer)
            what = f"The first {len(done)} are kept in '{place}': the same call, resuming, goes on from there"
        return f"stopped in epoch {len(done) + 1} of {self.method.settings.epochs}. {what}"

    def _batches(self, epoch: int) -> list[list[int]]:
        return shuffled_batches(len(self.records), self.method.settings.batch_size, self.method.seed, epoch)

    def _epoch(self, epoch: int, show: Step) -> Epoch:
        method, meter, optimizer = self.method, self.meter, self.optimizer
        backbone, settings, ranks = method.backbone, method.settings, method.backbone.ranks
        started, total = meter.seconds, 0.0
        scale = rate_scale(backbone.logit_scale, settings.optimizer)
        labels = labels_of(self.records)
        weights = weights_of(self.records)
        if weights is not None:
            weights = (weights / weights.mean()).float()
        batches = own = self._batches(epoch)
        if ranks:
            backbone.ranks = ranks = ranks.of(batches[0])
            own = [ranks.own(batch) for batch in batches]
        make = make_views(method.views, backbone.image_size, backbone.mean, backbone.std)
        rates = [scale * step_rate(settings, epoch, step, len(batches)) for step in range(len(batches))]
        reading = view_batches([record.source for record in self.records], own, make, method.seed, epoch)
        for rate, batch, (_, views) in zip(rates, batches, reading, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            given = (labels,) if weights is None else (labels, weights)
            own_labels, *own_weights = (each[batch].to(backbone.device) for each in given)
            loss = method(views.to(backbone.device), own_labels, self.texts, epoch, *own_weights)
            _check_loss(method, loss)
            value = loss.item()
            if not math.isfinite(value):
                raise self._diverged(epoch, rate, f"the loss is {value}")
            loss.backward()
            optimizer.step()
            total += value
            show(epoch, value, len(batch))
        # The last step has no loss after it.
        if not all(tensor.isfinite().all() for tensor in method.parameters()):
            raise self._diverged(epoch, rates[-1], "what it learned is not finite")
        method.after_epoch(epoch)
        return Epoch(
            epoch=epoch,
            steps=len(batches),
            rate=rates[0],
            loss=total / len(batches),
            seconds=meter.seconds - started,
        )

    def _diverged(self, epoch: int, rate: float, what: str) -> PromptPrismError:
        there = self.checkpoint and self.checkpoint.exists()
        kept = f". The epochs before are in '{self.checkpoint}': remove it first" if there else ""
        return PromptPrismError(
            f"{self.method.name} diverged: {what} in epoch {epoch + 1}, at a rate of {rate:.3g}. Nothing of "
            f"this run is a result: try a smaller lr than {self.method.settings.lr:g}, or precision "
            f"float32{kept}"
        )


def _check_loss(method: Method, loss: object) -> None:
    if isinstance(loss, torch.Tensor) and loss.ndim == 0 and loss.requires_grad:
        return
    shown = f"a tensor {[*loss.shape]}" if isinstance(loss, torch.Tensor) else type(loss).__name__
    raise PromptPrismError(f"{method.label}: forward must give a scalar tensor with a gradient, not {shown}")


def _check(
    settings: MethodSettings,
    space: LabelSpace,
    records: Sequence[Record],
    validation: Sequence[Record],
    seed: int,
    before: Sequence[int],
) -> None:
    if seed < 0:
        raise PromptPrismError(f"seed is {seed}: give 0 or a positive integer")
    if len(space) < 2 and settings.learns:
        raise PromptPrismError(
            f"there is one class only, '{space.names[0]}': nothing to tell apart, give at least two"
        )
    if settings.learns and (
        empty := set(range(len(space))) - {record.label for record in records} - {*before}
    ):
        names = ", ".join(f"'{space.names[label]}'" for label in sorted(empty)[:5])
        raise PromptPrismError(
            f"{len(empty)} classes have no image to train on: {names}. Add some, or remove them"
        )
    check_labels((*records, *validation), len(space))
    for place, record in enumerate(records):
        if not 0 < record.weight < math.inf:
            raise PromptPrismError(
                f"weight of image {place} is {record.weight}: give a positive number, or leave the image out"
            )
    if settings.learns:
        check_images([record.source for record in (*records, *validation)])


def places_of(learned: LabelSpace, space: LabelSpace) -> list[int]:
    """The place of each class that was learned, in another label space that holds them all."""
    places = space.places(learned)
    if lost := [name for name, place in zip(learned.names, places, strict=True) if place < 0]:
        raise PromptPrismError(
            f"{len(lost)} classes that were learned before are not among those to learn, first: '{lost[0]}': "
            "keep them, or start anew"
        )
    return places


def _examine(classifier: Classifier, records: Sequence[Record]) -> tuple[float, str | None]:
    """Accuracy on training images, and why the run must be called collapsed, if so."""
    some = records[:: max(1, math.ceil(len(records) / _CHECKED_IMAGES))]
    sources, labels = [record.source for record in some], labels_of(some)
    batches = Predictor(classifier).logits(sources)
    predicted = torch.cat([classifier.probabilities(logits).argmax(-1).cpu() for logits in batches])
    accuracy = (predicted == labels).double().mean().item()
    if len(some) >= _FEWEST_CHECKED and len(set(labels.tolist())) > 1:
        chance = 1 / len(classifier.space)
        if len(set(predicted.tolist())) == 1:
            name = classifier.space.names[int(predicted[0])]
            return accuracy, f"every one of {len(some)} training images is taken for '{name}'"
        if accuracy <= chance:
            return accuracy, f"accuracy on training images is {accuracy:.1%}, not above chance ({chance:.1%})"
    return accuracy, None
