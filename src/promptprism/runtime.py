"""Predicts from a folder that `promptprism export --onnx` made, by onnxruntime, NumPy and Pillow alone.

    python -m promptprism.runtime FOLDER photo.jpg other.jpg --json

torch is not imported. In Python: ``Runtime("FOLDER").predict(["photo.jpg"])``.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import promptprism
from promptprism.data.images import ImageSource, seen_pixels
from promptprism.drift import Reference
from promptprism.errors import PromptPrismError, needs
from promptprism.files import check_regular, sha256_of

#: Version of the folder's layout and of the graph's inputs and outputs.
FORMAT = 1
GRAPH, FACTS = "model.onnx", "model.json"
_BATCH = 32
_TOP = 5

Floats = NDArray[np.float32]


class Answers(NamedTuple):
    """What a model says of B images; the axes are those of `promptprism.inference.outputs`.

    Only ``logits`` and ``probability`` are there for a method without opinions.
    """

    logits: Floats
    probability: Floats
    belief: Floats | None = None
    uncertainty: Floats | None = None
    template_probability: Floats | None = None
    template_belief: Floats | None = None
    template_uncertainty: Floats | None = None

    def rows(
        self, images: Sequence[str], classes: Sequence[str], templates: bool = False
    ) -> list[dict[str, Any]]:
        """One prediction for each image, as ``predict --json`` has them.

        Raises:
            PromptPrismError: an answer is not finite, or the method has no opinions of templates to show.
        """
        shares, rows = self.probability, []
        if not np.isfinite(shares).all():
            raise PromptPrismError(
                "the answers are not finite: the adapter or the backbone's weights hold damaged or too large "
                "values; fit or export anew"
            )
        best = np.argsort(-shares, axis=-1, kind="stable")[:, :_TOP]
        for i, image in enumerate(images):
            top = [{"class": classes[k], "probability": float(shares[i, k])} for k in best[i]]
            row: dict[str, Any] = {"image": image, **top[0], "belief": None, "uncertainty": None, "top": top}
            if self.belief is not None and self.uncertainty is not None:
                row["belief"] = float(self.belief[i, best[i, 0]])
                row["uncertainty"] = float(self.uncertainty[i])
            if templates:
                row["templates"] = self._voices(i, classes)
            rows.append(row)
        return rows

    def _voices(self, image: int, classes: Sequence[str]) -> list[dict[str, Any]]:
        each = self.template_probability, self.template_belief, self.template_uncertainty
        if any(part is None for part in each):
            raise PromptPrismError(
                "the method has no opinions of templates, only probabilities: do not ask for them"
            )
        probability, belief, uncertainty = each
        assert probability is not None and belief is not None and uncertainty is not None
        return [
            {
                "class": classes[k],
                "probability": float(probability[m, image, k]),
                "belief": float(belief[m, image, k]),
                "uncertainty": float(uncertainty[m, image]),
            }
            for m, k in enumerate(probability[:, image].argmax(-1))
        ]


class Runtime:
    """An exported model.

    Args:
        folder: that `promptprism export --onnx` made.
        threads: of one batch; 0 takes all cores.

    Attributes:
        facts: what ``model.json`` says.
        classes: names, in the order of the columns.
        method: its name.
        size: side of the square that the model sees, pixels.
        reference: answers about held-out photos, if the adapter kept some; see `promptprism.drift`.

    Raises:
        PromptPrismError: no such folder, a damaged or foreign file, another format, or no onnxruntime.
    """

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        self.facts = read_facts(Path(folder))
        self.classes: tuple[str, ...] = tuple(self.facts["class_names"])
        self.method = str(self.facts["method"])
        self.size = int(self.facts["preprocessing"]["size"])
        reference = self.facts.get("reference")
        self.reference = None if reference is None else Reference(**reference)
        graph = Path(folder) / GRAPH
        with needs("an exported model", "onnx", ", or onnxruntime alone"):
            import onnxruntime
        try:
            check_regular(graph)
            if sha256_of(graph) != self.facts["graph"]:
                raise PromptPrismError(
                    f"'{graph}' is not what {FACTS} tells of, its SHA-256 is another: copy or export it again"
                )
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(
                str(graph), options, providers=["CPUExecutionProvider"]
            )
        except PromptPrismError:
            raise
        except Exception as error:  # onnxruntime's own kinds, and OSError
            raise PromptPrismError(f"cannot open '{graph}' ({_line(error)}): export it again") from error

    def pixels(self, source: ImageSource) -> NDArray[np.uint8]:
        """The square [H, W, 3] that the model sees of an image.

        Raises:
            PromptPrismError: it cannot be read.
        """
        return seen_pixels(source, self.size)

    def run(self, pixels: NDArray[np.uint8]) -> Answers:
        """Answer for pixels [B, H, W, 3] of 0..255."""
        given = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)
        return Answers(*self._session.run(list(self.facts["outputs"]), {"pixels": given}))

    def predict(
        self, images: Sequence[ImageSource], *, templates: bool = False, unread: dict[int, str] | None = None
    ) -> list[dict[str, Any]]:
        """Name the class of images and say how sure that is, a row each as ``predict --json`` has them.

        Args:
            images: paths, PIL images or arrays.
            templates: with the opinion of each template.
            unread: a dict for places of images that cannot be read, and reasons; without it, an error.

        Raises:
            PromptPrismError: an image cannot be read (with ``unread``: none of them can).
        """
        rows: list[dict[str, Any]] = []
        faults: dict[int, str] = {}

        def load(place: int) -> NDArray[np.uint8] | None:
            try:
                return self.pixels(images[place])
            except PromptPrismError as error:
                if unread is None:
                    raise
                faults[place] = str(error)
                return None

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for start in range(0, len(images), _BATCH):
                places = range(start, min(start + _BATCH, len(images)))
                read = [
                    (i, square)
                    for i, square in zip(places, pool.map(load, places), strict=True)
                    if square is not None
                ]
                if read:
                    names = [_name(images[i]) for i, _ in read]
                    answers = self.run(np.stack([square for _, square in read]))
                    rows += answers.rows(names, self.classes, templates)
        if not rows:
            raise PromptPrismError(
                "; ".join([*faults.values()][:5]) or "there is no image: give at least one"
            )
        if unread is not None:
            unread |= dict(sorted(faults.items()))
        return rows


def read_facts(folder: Path) -> dict[str, Any]:
    """Read and check what an exported folder says of itself.

    Raises:
        PromptPrismError: it is none, is damaged, or has another format.
    """
    path = folder / FACTS
    try:
        check_regular(path)
        facts = json.loads(path.read_bytes())
        version = facts["format"]
        if version != FORMAT:
            raise PromptPrismError(
                f"'{folder}' has format {version!r}, this promptprism ({promptprism.__version__}) reads "
                f"format {FORMAT}: export it again, or use the version that wrote it, "
                f"{facts.get('promptprism')}"
            )
        for name, kind in (("class_names", list), ("preprocessing", dict), ("outputs", dict), ("graph", str)):
            if not isinstance(facts[name], kind):
                raise TypeError(f"'{name}' is no {kind.__name__}")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PromptPrismError(
            f"'{folder}' is no exported model, it has no {FACTS}: make one with promptprism export ADAPTER "
            "--onnx FOLDER"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PromptPrismError(f"'{path}' is damaged ({_line(error)}): export the adapter again") from error
    return dict(facts)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _name(source: ImageSource) -> str:
    return "an array" if isinstance(source, np.ndarray) else str(source)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 1 if some images cannot be read, 2 if there is no answer."""
    parser = argparse.ArgumentParser(
        prog="python -m promptprism.runtime", description="Name the class of images."
    )
    parser.add_argument("folder", type=Path, help="that promptprism export --onnx made")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--templates", action="store_true", help="with the opinion of each template")
    parser.add_argument("--json", action="store_true", help="the fields of promptprism predict --json")
    asked = parser.parse_args(arguments)
    unread: dict[int, str] = {}
    try:
        runtime = Runtime(asked.folder)
        rows = runtime.predict(asked.images, templates=asked.templates, unread=unread)
    except PromptPrismError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if asked.json:
        document = {
            "schema": "promptprism/predict",
            "schema_version": 1,
            "promptprism": promptprism.__version__,
            "adapter": str(asked.folder),
            "method": runtime.method,
            "classes": len(runtime.classes),
            "predictions": rows,
            "unread": [{"image": asked.images[i], "reason": reason} for i, reason in unread.items()],
        }
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        for row in rows:
            sure = "" if row["uncertainty"] is None else f"  uncertainty {row['uncertainty']:.2f}"
            print(f"{row['image']}: {row['class']}  probability {row['probability']:.2f}{sure}")
            for number, voice in enumerate(row.get("templates", ()), 1):
                print(f"    S{number}: {voice['class']}  probability {voice['probability']:.2f}")
        for reason in unread.values():
            print(f"✗ {reason}", file=sys.stderr)
    return 1 if unread else 0


if __name__ == "__main__":
    sys.exit(main())
