"""Suites: a protocol, methods, data sets and seeds, written as YAML; each combination is a cell."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from promptprism.backbones.precision import Chosen
from promptprism.data.images import identity
from promptprism.data.records import Dataset, Record
from promptprism.errors import PromptPrismError, first_problem
from promptprism.evaluation.protocols import PROTOCOLS
from promptprism.files import check_regular
from promptprism.methods import METHODS, MethodSettings, make_settings
from promptprism.provenance import BackboneFacts, Facts

NAMED = Path(__file__).parents[1] / "suites"
# The largest suite of the package has 300.
_MOST_NODES = 100_000


class BackboneSpec(Facts):
    """Which backbone to load; see `load_backbone`."""

    name: str = "mini"
    pretrained: str | None = None
    precision: Chosen = "float32"


class Cell(Facts):
    """One method on one data set with one seed.

    Attributes:
        protocol: a name of `PROTOCOLS`.
        method: a name of `METHODS`.
        settings: of the method; JSON has those that are not its defaults, and what it lacks is a default.
        data: what is learned from.
        targets: what else is scored.
        shots: training images per class.
        seed: of the run.
        allow_fewer: take what there is of classes with fewer images than shots.
        version: of the method; see `MethodSettings.version`.
    """

    protocol: str
    method: str
    settings: MethodSettings
    data: str
    targets: tuple[str, ...] = ()
    shots: int
    seed: int
    allow_fewer: bool = False
    version: int = 1

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_version(cls, given: Any) -> Any:
        """What were defaults then is spelled out."""
        method = METHODS.get(str(given.get("method"))) if isinstance(given, Mapping) else None
        version = given.get("version", 1) if method else None
        settings = given.get("settings") if method else None
        if not method or not isinstance(version, int) or not isinstance(settings, Mapping):
            return given
        if version not in method.Settings.earlier:
            return given
        return {**given, "settings": {"preset": version, **settings}, "version": method.Settings.version}

    @field_validator("settings", mode="before")
    @classmethod
    def _of_the_method(cls, given: Any, info: ValidationInfo) -> Any:
        if not isinstance(given, Mapping) or "method" not in info.data:  # which is told of instead
            return given
        try:
            return make_settings(info.data["method"], **given)
        except PromptPrismError as error:
            raise ValueError(str(error)) from error

    @field_serializer("settings")
    def _differing(self, settings: MethodSettings) -> dict[str, Any]:
        return settings.differing()

    @property
    def prediction_settings(self) -> dict[str, Any]:
        """Those settings that training does not see."""
        return self.settings.model_dump(include=set(METHODS[self.method].prediction_settings))

    def differing(self) -> dict[str, Any]:
        """What makes it this cell and no other, as JSON has it: all that is not a default."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def file_name(self, key: str) -> str:
        """A name to read, such as ``cdc--mini-food--16-shots--seed-1--0123abcd``, for what has a key."""
        data = Path(self.data).name if Path(self.data).is_absolute() else self.data
        data = re.sub(r"[^\w.@]+", "-", data)[-40:].strip("-")
        return f"{self.method}--{data}--{self.shots}-shots--seed-{self.seed}--{key[:8]}"

    def __str__(self) -> str:
        return f"{self.method} on {self.data}, {self.shots} shots, seed {self.seed}"


class Suite(Facts):
    """A grid of cells.

    Attributes:
        name: to call it by.
        note: what it reproduces, and how long that takes.
        protocol: a name of `PROTOCOLS`.
        backbone: the frozen model.
        methods: settings of each row of the grid. The row's name is the method, unless ``method`` is among
            the settings.
        per_data: settings that a row has on one data set instead, by data set and row.
        datasets: what is learned from.
        targets: what else is scored (cross-dataset and cross-domain).
        shots: training images per class.
        seeds: of the runs.
        allow_fewer: take what there is of classes with fewer images than shots.
    """

    name: str
    note: str = ""
    protocol: str
    backbone: BackboneSpec = BackboneSpec()
    methods: dict[str, dict[str, Any]] = Field(min_length=1)
    per_data: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    datasets: tuple[str, ...] = Field(min_length=1)
    targets: tuple[str, ...] = ()
    shots: tuple[int, ...] = Field(default=(16,), min_length=1)
    seeds: tuple[int, ...] = Field(default=(1, 2, 3), min_length=1)
    allow_fewer: bool = False

    @field_validator("backbone", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @field_validator("protocol")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PROTOCOLS:
            raise ValueError(f"unknown protocol {name!r}: choose one of {', '.join(PROTOCOLS)}")
        return name

    @field_validator("shots", "seeds")
    @classmethod
    def _not_below(cls, values: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        least = 1 if info.field_name == "shots" else 0
        if wrong := [value for value in values if value < least]:
            raise ValueError(f"{wrong[0]} is too small: give {least} or more")
        return values

    @field_validator("datasets", "targets", "shots", "seeds")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(values))

    @model_validator(mode="after")
    def _per_what_there_is(self) -> Suite:
        rows = {row for by_row in self.per_data.values() for row in by_row}
        if unknown := sorted({*self.per_data} - {*self.datasets} | rows - {*self.methods}):
            raise ValueError(f"per_data: '{unknown[0]}' is no data set or row of the suite")
        return self

    def only(
        self,
        methods: Sequence[str] = (),
        datasets: Sequence[str] = (),
        seeds: Sequence[int] = (),
        shots: Sequence[int] = (),
        precision: Chosen | None = None,
    ) -> Suite:
        """A part of the suite; nothing given takes all. Seeds, shots and precision need not be the suite's.

        Raises:
            PromptPrismError: a method or data set that the suite has not.
        """
        for kind, wanted, there in (("method", methods, self.methods), ("data set", datasets, self.datasets)):
            if unknown := [name for name in wanted if name not in there]:
                raise PromptPrismError(
                    f"suite '{self.name}' has no {kind} '{unknown[0]}': it has {', '.join(there)}"
                )
        return self.model_copy(
            update={
                "methods": {name: self.methods[name] for name in methods or self.methods},
                "datasets": tuple(datasets) or self.datasets,
                "seeds": tuple(dict.fromkeys(seeds)) or self.seeds,
                "shots": tuple(dict.fromkeys(shots)) or self.shots,
                "backbone": self.backbone.model_copy(
                    update={"precision": precision or self.backbone.precision}
                ),
            }
        )

    def cells(self) -> Iterator[Cell]:
        """Yield the cells, data set by data set; see `grid`."""
        return (cell for _, cell in self.grid())

    def grid(self) -> Iterator[tuple[str, Cell]]:
        """Yield row and cell, data set by data set. What learns nothing runs with the first seed only.

        Raises:
            PromptPrismError: an unknown method, or settings that it cannot have.
        """
        if bool(self.targets) != PROTOCOLS[self.protocol].targets:
            what = "has no" if self.targets else "needs"
            raise PromptPrismError(f"suite '{self.name}': protocol {self.protocol} {what} targets")
        for data in self.datasets:
            for row, given in self.methods.items():
                settings = given | self.per_data.get(data, {}).get(row, {})
                method = settings.pop("method", row)
                try:
                    whole = make_settings(method, **settings)
                except PromptPrismError as error:
                    own = "" if method != row else ". A row of another name says method: NAME"
                    raise PromptPrismError(
                        f"suite '{self.name}', row '{row}', data '{data}': {str(error).rstrip('.')}{own}"
                    ) from error
                for shots in self.shots if whole.learns else self.shots[:1]:
                    for seed in self.seeds if whole.learns else self.seeds[:1]:
                        yield (
                            row,
                            Cell(
                                protocol=self.protocol,
                                method=method,
                                settings=whole,
                                data=data,
                                targets=self.targets,
                                shots=shots,
                                seed=seed,
                                allow_fewer=self.allow_fewer,
                                version=whole.version,
                            ),
                        )


def named_suites() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(path.relative_to(NAMED).with_suffix("").as_posix() for path in NAMED.rglob("*.yaml"))


def _plain_yaml(text: str) -> Any:
    """What YAML says; a few aliases of aliases could stand for more than any memory holds."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if _size(node, {}) > _MOST_NODES:
            raise yaml.YAMLError(f"its aliases stand for more than {_MOST_NODES:,} values")
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: Any, known: dict[int, float]) -> float:
    """How many values a node of YAML is, its aliases written out; infinite if it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inside = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = (part for each in inside for part in (each if isinstance(each, tuple) else (each,)))
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def load_suite(source: str) -> Suite:
    """Read a suite from a YAML file, or by name.

    Raises:
        PromptPrismError: no such suite, no YAML, or not valid; the message names the field.
    """
    path = NAMED / f"{source}.yaml" if source in named_suites() else Path(source)
    try:
        check_regular(path)
        content = _plain_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeEncodeError) as error:
        raise PromptPrismError(
            f"no suite '{source}': give a YAML file, or one of {', '.join(named_suites())}"
        ) from error
    # Dates and numbers that are none are ValueErrors.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise PromptPrismError(f"suite '{path}' is no YAML that is read here: {what}") from error
    if not isinstance(content, dict):
        raise PromptPrismError(f"suite '{path}' must be a mapping with protocol, methods and datasets")
    try:
        return Suite.model_validate({"name": source, **content})
    except ValidationError as error:
        what = first_problem(error.errors(), [*Suite.model_fields])
        raise PromptPrismError(f"suite '{path}' is not valid: {what}") from error


def fingerprint(dataset: Dataset) -> str:
    """Digest of a data set's class names, phrase, and which images have which label in which split."""
    digest = hashlib.sha256(json.dumps([dataset.class_names, dataset.phrase]).encode())
    for split, records in (("train", dataset.train), ("test", dataset.test)):
        for record in records:
            digest.update(f"{split} {record.label} {identity(record.source, dataset.folder)}\n".encode())
    return digest.hexdigest()[:16]


def digest_of(**facts: Any) -> str:
    """Short digest of facts that JSON can say, whatever their order."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def images_fingerprint(images: Sequence[Record]) -> str:
    """Digest of the very images that are learned from, whatever their order."""
    labels = sorted(f"{record.label} {identity(record.source, None)}" for record in images)
    return hashlib.sha256("\n".join(labels).encode()).hexdigest()[:16]


def keys(
    cell: Cell, backbone: BackboneFacts, fingerprints: Mapping[str, str], images: str
) -> tuple[str, str]:
    """Keys of what a cell learns and of its result: settings, data and backbone, and nothing else.

    Of settings only those count that are not the method's defaults: a new one, whose default changes nothing,
    leaves every key as it is. Settings that training does not see make another result, but nothing else to
    learn. Versions of the code and its libraries are noted in results, but a new one repeats no finished
    cell, unless the method's own version was raised.

    Args:
        cell: the cell.
        backbone: that it runs with.
        fingerprints: of its data set and targets.
        images: the `images_fingerprint` of those that it learns from.
    """
    free = cell.prediction_settings
    learned = digest_of(
        # Protocols that learn the same share it.
        classes="base" if PROTOCOLS[cell.protocol].halves else "all",
        method=cell.method,
        version=cell.version,
        settings={name: value for name, value in cell.settings.differing().items() if name not in free},
        backbone=backbone.model_dump(include={"fingerprint", "precision"}),
        data=fingerprints[cell.data],
        images=images,
        seed=cell.seed,
    )
    return learned, digest_of(learned=learned, cell=cell.differing(), data=dict(fingerprints))
