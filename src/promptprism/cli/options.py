"""What several commands share: options, and the way from their texts to what they mean."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_type_hints

import typer

from promptprism.errors import PromptPrismError

if TYPE_CHECKING:
    from promptprism.cli.output import Output
    from promptprism.data.reading import Reading
    from promptprism.data.records import Dataset
    from promptprism.estimator import PromptPrism


def option(metavar: str, help: str, *names: str, **more: Any) -> Any:
    """An option with a value: what it is called in the help, what it says, its names if not its own."""
    return typer.Option(*names, metavar=metavar, help=help, **more)


def flag(name: str, help: str) -> Any:
    """An option without a value: its name, so that there is no ``--no-name``, and what it says."""
    return typer.Option(name, help=help)


def argument(metavar: str, help: str, **more: Any) -> Any:
    """An argument: what it is called in the help, and what it is."""
    return typer.Argument(metavar=metavar, help=help, **more)


Root = Annotated[
    Path | None, option("FOLDER", "Folder that holds the data sets' folders.", envvar="PROMPTPRISM_DATA")
]
Json = Annotated[str | None, option("FILE", "Write the result as JSON; - means standard output.", "--json")]
Pretrained = Annotated[str | None, option("TAG|FILE", "Tag or .safetensors file of the backbone's weights.")]
TrustBackbone = Annotated[
    bool, flag("--trust-backbone", "Open the hub, folder or file that the adapter's card names.")
]
Port = Annotated[int, option("N", "0 takes a free one.", min=0, max=65535)]
Device = Annotated[str, option("NAME", "auto, cpu, cuda, cuda:1, ...")]
Devices = Annotated[
    int | None,
    option(
        "N",
        "GPUs of this machine, or cores of its CPU, that share each training step, in float32 unless "
        "--precision says else.",
        min=1,
    ),
]
Strategy = Annotated[
    Literal["ddp"],
    typer.Option(help="How they share it: each has some of its images and texts, and all that learns."),
]
Classes = Annotated[
    str | None,
    option(
        "A,B,...",
        "Names to choose among instead of those learned, separated by commas, or "
        "@FILE with one a line; also such never trained.",
    ),
]
AdapterSettings = Annotated[
    list[str] | None,
    option(
        "NAME=VALUE",
        "Another value of a setting that training does not see, such as distance_aware=true.",
        "--set",
    ),
]


def _located(context: typer.Context, place: Path | None) -> Path | None:
    """The folder of an adapter; one on the hub is fetched, but not while a shell asks what may follow."""
    if place is None or context.resilient_parsing or not place.as_posix().startswith("hf:"):
        return place
    from promptprism import hub

    return hub.fetch(place.as_posix())


_DATA = argument(
    "DATA",
    "Folder with one subfolder per class (inside train/ and test/, or not), CSV of "
    "path,label[,split], a name such as mini/food or caltech101, hf:NAME, or wds:SHARDS.",
)
Data = Annotated[str, _DATA]
OptionalData = Annotated[str | None, _DATA]


def adapter_argument(made_by: str) -> Any:
    """The argument of an adapter: its folder, which a command has made, or its name on the hub."""
    return argument("ADAPTER", f"Folder that {made_by} made, or hf:OWNER/NAME[@REVISION].", callback=_located)


Adapter = Annotated[Path, adapter_argument("fit")]
OptionalAdapter = Annotated[Path | None, adapter_argument("fit")]
EarlierAdapter = Annotated[
    Path | None,
    option(
        "ADAPTER",
        "Go on from what this adapter learned, with its method and settings; its classes stay.",
        "--from",
        callback=_located,
    ),
]
Photos = Annotated[
    list[str],
    argument(
        "PHOTOS",
        "Photos, folders (all below), patterns such as '2024/**/*.jpg', lists (.txt, or .csv with a "
        "column path), WebDataset shards (.tar).",
    ),
]
BackboneName = Annotated[
    str,
    option(
        "NAME",
        "auto, mini, photo, an open_clip name (see backbones), hf-hub:..., or local-dir:...",
        "--backbone",
    ),
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"],
    option("TYPE", "Type of the matrix products: float32, bfloat16, or auto, what is faster here."),
]
Margin = Annotated[
    float | None,
    option(
        "NATS",
        "Ask one template after the other and stop when the leading class is this far ahead, in nats.",
        min=0,
    ),
]
Seed = Annotated[int, option("N", "Seed of the draw of images, start values, order and views.", min=0)]
AllowFewer = Annotated[bool, flag("--allow-fewer", "Go on with classes short of images.")]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of each group of options (a dataclass) as options of its own."""
    spelled: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind = parameter.annotation
        if not is_dataclass(kind):
            spelled.append(parameter)
            continue
        groups[parameter.name], hints = kind, get_type_hints(kind, include_extras=True)
        spelled += [
            inspect.Parameter(one.name, parameter.kind, default=one.default, annotation=hints[one.name])
            for one in fields(kind)
        ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{one.name: given.pop(one.name) for one in fields(kind)})
        command(**given)

    # What Typer asks for.
    run.__signature__ = inspect.Signature(spelled)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in spelled}
    return run


def split_names(text: str | None) -> list[str]:
    """Names separated by commas, or one a line in a file after an @.

    Raises:
        PromptPrismError: the file cannot be read.
    """
    text = text or ""
    # A class may be called so; a file is only what follows an @, or a path that is there.
    if text.startswith("@") or (text and "," not in text and Path(text).is_file()):
        from promptprism.data.reading import read_text

        names = read_text(Path(text.removeprefix("@")), "file of class names").splitlines()
    else:
        names = text.split(",")
    return [name.strip() for name in names if name.strip()]


def parse_settings(pairs: Sequence[str] | None) -> dict[str, Any]:
    """NAME=VALUE, values as in JSON, or else text."""
    settings: dict[str, Any] = {}
    for pair in pairs or ():
        name, given, value = pair.partition("=")
        if not given or not name.strip() or not value.strip():
            raise PromptPrismError(f"--set '{pair}' is no setting: write NAME=VALUE, such as --set epochs=10")
        try:
            settings[name.strip()] = json.loads(value)
        except ValueError:
            settings[name.strip()] = value
    return settings


def parse_numbers(text: str | None, what: str = "seed", least: int = 0) -> list[int]:
    """Whole numbers separated by commas, of ``--WHATs``."""
    names = split_names(text)
    if wrong := [name for name in names if not name.isdecimal() or int(name) < least]:
        raise PromptPrismError(f"{what} '{wrong[0]}' is no whole number from {least}: write --{what}s 1,2,3")
    return [int(name) for name in names]


def open_data(data: str, output: Output, root: Path | None = None, reading: Reading | None = None) -> Dataset:
    """Load data by name or place, and say what of it is left out."""
    from promptprism.data.registry import load_data

    dataset = load_data(data, root, reading)
    if dataset.skipped:
        output.warn(
            f"{len(dataset.skipped)} files are left out, such as '{dataset.skipped[0]}': they are no images, "
            "or lie outside of the class folders (of train, val and test, if there are such)"
        )
    return dataset


@dataclass(frozen=True)
class DataOptions:
    """Where data is, and what the user says of it."""

    root: Root = None
    splits: Annotated[
        list[str] | None,
        option(
            "SPLIT=NAME",
            "What DATA calls train, val or test, such as train=seg_train; all else is left out.",
            "--split",
        ),
    ] = None
    names: Annotated[
        Path | None,
        option("FILE", "CSV, TSV or JSON: what DATA calls each class (a number, a synset), and its name."),
    ] = None
    path_column: Annotated[str, option("NAME", "Column of a CSV with the images' paths.")] = "path"
    label_column: Annotated[str, option("NAME", "Column of a CSV with the class names.")] = "label"
    split_column: Annotated[str, option("NAME", "Column of a CSV with the splits.")] = "split"

    def parse(self) -> Reading:
        """How data is to be read.

        Raises:
            PromptPrismError: a split is none of train, val and test, is named twice, or without what the data
                calls it.
        """
        from promptprism.data.reading import Reading

        given: dict[str, str] = {}
        for pair in self.splits or ():
            split, equals, name = pair.partition("=")
            if not equals or not name.strip():
                raise PromptPrismError(
                    f"--split '{pair}' names no split: write SPLIT=NAME, such as train=seg_train"
                )
            if (split := split.strip().lower()) in given:
                raise PromptPrismError(
                    f"--split {split} is given twice, as {given[split]} and {name.strip()}: give one"
                )
            given[split] = name.strip()
        return Reading(given, self.names, self.path_column, self.label_column, self.split_column)

    def open(self, data: str, output: Output) -> Dataset:
        """Load data as `open_data` does."""
        return open_data(data, output, self.root, self.parse())


@dataclass(frozen=True)
class ModelOnCpu:
    """Where an adapter finds its backbone."""

    backbone: Annotated[
        str | None,
        option(
            "NAME",
            "The adapter's backbone, such as local-dir:FOLDER, if not where its card says.",
            "--backbone",
        ),
    ] = None
    pretrained: Pretrained = None
    trust_backbone: TrustBackbone = False
    device: ClassVar[str] = "cpu"

    def open(
        self,
        adapter: Path,
        settings: Sequence[str] | None = None,
        classes: str | None = None,
        precision: Precision = "auto",
    ) -> PromptPrism:
        """Load an adapter, for other classes if there are any.

        Raises:
            PromptPrismError: see `make_settings`, `load_model` and `with_classes`.
        """
        from promptprism.adapter import read_card
        from promptprism.estimator import load_model
        from promptprism.methods import make_settings

        chosen = parse_settings(settings)
        make_settings(read_card(adapter).method, **chosen)  # a parameter of load_model is no setting
        model = load_model(
            adapter,
            backbone=self.backbone,
            pretrained=self.pretrained,
            device=self.device,
            precision=precision,
            trust_backbone=self.trust_backbone,
            **chosen,
        )
        return model if classes is None else model.with_classes(split_names(classes))


@dataclass(frozen=True)
class ModelOptions(ModelOnCpu):
    """Where an adapter finds its backbone, and where it computes."""

    device: Device = "auto"  # type: ignore[misc]
