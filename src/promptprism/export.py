"""An adapter as one ONNX graph, from pixels to opinions; `promptprism.runtime` runs it without torch."""

import io
import json
import os
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import promptprism
from promptprism.adapter import Card
from promptprism.data.images import SHRUNK
from promptprism.data.inputs import records_of_known
from promptprism.data.miniworld import load
from promptprism.data.records import Dataset, Records
from promptprism.errors import PromptPrismError, needs
from promptprism.files import sha256_of, temporary, write_text
from promptprism.inference.outputs import Outputs
from promptprism.methods import Classifier
from promptprism.prompts import encode_image
from promptprism.runtime import FACTS, FORMAT, GRAPH, Runtime

#: The graph's answers may differ from torch's by this much; of logits, also by this part of them.
TOLERANCE = 1e-4
_BATCHES = (1, 3, 32)
_OPSET = 18
_AXES = {
    "logits": ["template", "batch", "class"],
    "probability": ["batch", "class"],
    "belief": ["batch", "class"],
    "uncertainty": ["batch"],
    "template_probability": ["template", "batch", "class"],
    "template_belief": ["template", "batch", "class"],
    "template_uncertainty": ["template", "batch"],
}


def export_onnx(
    classifier: Classifier, folder: Path, card: Card, *, int8: bool = False, check: Dataset | None = None
) -> dict[str, Any]:
    """Write a folder with the graph, `model.onnx`, and what it is, `model.json`; whole or not at all.

    The graph takes pixels [B, 3, H, W], float32 of 0..255 (normalising is in it), and gives what
    `promptprism.inference.outputs` names. Its answers are compared with torch's before it is kept.

    Args:
        classifier: on the CPU, in float32.
        folder: a new one.
        card: of the adapter.
        int8: keep the weights of the transformer's products as 8-bit integers, and measure what that costs.
        check: labelled images to measure it on; None takes drawn scenes, and no accuracy.

    Returns:
        what `model.json` says.

    Raises:
        PromptPrismError: the folder exists, a package is missing, the images have classes that the
            classifier has not, or a part cannot be exported: which, why.
    """
    _check(classifier, folder)
    records = load("mini/mammals").test[::8] if check is None else records_of_known(check, classifier.space)
    module = Outputs(classifier).eval()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary(folder) as partial:
            partial.mkdir()
            graph = partial / GRAPH
            _write_graph(module, graph)
            _fold(graph)
            facts = _facts(module, card)
            _seal(partial, facts)
            facts["difference"] = _difference(module, Runtime(partial))
            if int8:
                plain = Runtime(partial)
                _quantize(graph)
                _seal(partial, facts)
                facts["int8"] = _loss(plain, Runtime(partial), records, check)
            _seal(partial, facts)
            partial.rename(folder)
    except OSError as error:
        raise PromptPrismError(
            f"cannot write '{folder}' ({error.strerror}): check its permissions, or choose another place"
        ) from error
    return facts


def _check(classifier: Classifier, folder: Path) -> None:
    with needs("an export", "onnx"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    if os.path.lexists(folder):
        raise PromptPrismError(f"'{folder}' exists: choose another folder for the export, or remove it first")
    if classifier.text is None:
        raise PromptPrismError(
            f"method {classifier.name!r} cannot be exported: it makes the texts of the classes anew for each "
            "image, and the graph holds them as constants. All other methods can be"
        )
    backbone = classifier.backbone
    if backbone.dtype != torch.float32 or backbone.device.type != "cpu":
        raise PromptPrismError(
            f"the backbone runs in {backbone.dtype} on {backbone.device}: load the adapter with "
            "precision='float32', device='cpu' to export it"
        )


def _write_graph(module: Outputs, path: Path) -> None:
    """Trace the module; of what fails, the image tower alone is tried, to say which part it is.

    Raises:
        PromptPrismError: a part has no counterpart in ONNX.
    """
    backbone = module.classifier.backbone
    size = backbone.image_size
    names, axes = module.names, {name: {_AXES[name].index("batch"): "batch"} for name in module.names}
    try:
        _trace(module, size, path, list(names), axes | {"pixels": {0: "batch"}})
    except Exception as error:  # torch's exporter has many kinds
        part = f"the head of method {module.classifier.name!r}"
        try:
            _trace(_Tower(module), size, io.BytesIO(), ["features"], {"pixels": {0: "batch"}})
        except Exception:
            part = f"the image tower of backbone {backbone.name!r}"
        why = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")[:300]
        raise PromptPrismError(
            f"{part} cannot be exported ({type(error).__name__}: {why.strip()}). mini, photo and CLIP's own "
            "ViTs can be, with every method but cocoop"
        ) from error


class _Tower(torch.nn.Module):
    def __init__(self, module: Outputs) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixels: Tensor) -> Tensor:
        views = (pixels * self.module.scale + self.module.shift).unsqueeze(0)
        return encode_image(self.module.classifier.backbone, views)


def _trace(
    module: torch.nn.Module, size: int, file: Any, outputs: list[str], axes: dict[str, dict[int, str]]
) -> None:
    # Two kinds of exporter are in torch. This one needs no package besides, takes seconds where the other
    # takes minutes, and knows all but expm1.
    torch.onnx.register_custom_op_symbolic("aten::expm1", _expm1, _OPSET)  # type: ignore[attr-defined]
    example = torch.zeros(2, 3, size, size)
    said = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example,),
            str(file) if isinstance(file, Path) else file,
            input_names=["pixels"],
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=_OPSET,
            dynamo=False,
        )


def _fold(graph: Path) -> None:
    """Compute what depends on no image, once: then weights stand as products and 8 bits take them."""
    import onnxruntime

    folded, options = graph.with_suffix(".folded"), onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    folded.replace(graph)


def _expm1(graph: Any, x: Any) -> Any:
    one = graph.op("Constant", value_t=torch.tensor(1.0))
    return graph.op("Sub", graph.op("Exp", x), one)


def _facts(module: Outputs, card: Card) -> dict[str, Any]:
    classifier, backbone = module.classifier, module.classifier.backbone
    own = card.reference is not None and classifier.space.names == card.class_names
    reference = asdict(card.reference) if own and card.reference is not None else None
    return {
        "format": FORMAT,
        "promptprism": promptprism.__version__,
        "graph": "",
        "adapter": card.checksum,
        "method": classifier.name,
        "backbone": {"name": backbone.name, "fingerprint": backbone.fingerprint},
        "class_names": list(classifier.space.names),
        "phrase": classifier.space.phrase,
        "preprocessing": {
            "size": backbone.image_size,
            "resize": "short side",
            "interpolation": "bicubic",
            "crop": "centre",
            "shrink_to": SHRUNK * backbone.image_size,
            "pixels": "float32 RGB, 0..255",
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "normalised": "in the graph",
        },
        "outputs": {name: _AXES[name] for name in module.names},
        "temperature": classifier.temperature,
        "reference": reference,
        "difference": None,
        "int8": None,
    }


def _seal(folder: Path, facts: dict[str, Any]) -> None:
    """Put what is said of a graph into its metadata and beside it."""
    import onnx

    graph = onnx.load(str(folder / GRAPH))
    onnx.helper.set_model_props(
        graph, {name: json.dumps(value) for name, value in facts.items() if name != "graph"}
    )
    onnx.save(graph, str(folder / GRAPH))
    facts["graph"] = sha256_of(folder / GRAPH)
    write_text(folder / FACTS, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def _difference(module: Outputs, runtime: Runtime) -> float:
    """The largest difference from torch, of all outputs but logits, for batches of 1, 3 and 32 images.

    Raises:
        PromptPrismError: it is more than the tolerance.
    """
    largest, generator = 0.0, np.random.default_rng(0)
    for count in _BATCHES:
        # Blocks of colour: noise of single pixels is like no picture.
        small = generator.integers(0, 256, (count, 8, 8, 3), np.uint8)
        rows = np.arange(runtime.size) * 8 // runtime.size
        pixels = small[:, rows][:, :, rows]
        with torch.no_grad():
            ours = module(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
        for name, mine, other in zip(module.names, ours, runtime.run(pixels), strict=False):
            gap = np.abs(mine.numpy() - other)
            allowed = TOLERANCE * (1 + np.abs(mine.numpy())) if name == "logits" else TOLERANCE
            if not (gap <= allowed).all():
                method, backbone = module.classifier.name, module.classifier.backbone.name
                raise PromptPrismError(
                    f"the exported graph is not what torch computes: '{name}' differs by {gap.max():.2g} in "
                    f"a batch of {count}, more than {TOLERANCE:g}. Method {method!r} cannot be exported on "
                    f"backbone {backbone!r}; mini, photo and CLIP's own ViTs can be"
                )
            largest = largest if name == "logits" else max(largest, float(gap.max()))
    return largest


def _quantize(graph: Path) -> None:
    """Make the weights of matrix products 8-bit; the texts of the classes, the last of them, stay."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(graph)).graph
    axes = {weight.name: len(weight.dims) for weight in model.initializer}
    texts = [node.name for node in model.node if any(axes.get(name, 0) > 2 for name in node.input)]
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        quantize_dynamic(
            str(graph),
            str(graph),
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=texts,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,  # without VNNI, processors cut off sums of products of 8 and 8 bits
        )


def _loss(plain: Runtime, small: Runtime, records: Records, check: Dataset | None) -> dict[str, Any]:
    """What 8-bit weights cost: how often both give the same class, and accuracies where there are labels."""
    squares = [plain.pixels(record.source) for record in records]
    parts = [np.stack(squares[start : start + 32]) for start in range(0, len(squares), 32)]
    answers = [[runtime.run(part).probability for part in parts] for runtime in (plain, small)]
    shares = [np.concatenate(each) for each in answers]
    best = [each.argmax(-1) for each in shares]
    found: dict[str, Any] = {
        "images": len(records),
        "data": "drawn scenes" if check is None else check.name,
        "agreement": float((best[0] == best[1]).mean()),
        "largest_difference": float(np.abs(shares[0] - shares[1]).max()),
        "accuracy": None,
        "accuracy_float32": None,
    }
    if check is not None:
        truth = np.array([record.label for record in records])
        found["accuracy_float32"], found["accuracy"] = (float((each == truth).mean()) for each in best)
    return found
