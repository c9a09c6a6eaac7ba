"""The whole way from squares of pixels to probabilities as one module, and the forms in which it leaves tlbatch."""

import io
import logging
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.export import ExportedProgram

from tlbatch.model.classifier import Classifier
from tlbatch.model.heads import Neighbours
from tlbatch.model.symmetries import apply_symmetry

_TINY = float(np.finfo(np.float64).eps)
_AT_ONCE = 8
_COLOURED = re.compile(r"\x1b\[[0-9;]*m")
Floats = npt.NDArray[np.float32]


class ExportModule(nn.Module):
    """A classifier with what prediction and report do around it.

    Parameters
    ----------
    turns
        Symmetries of the square (see `tlbatch.model.symmetries.turned`) in which it looks at an image.
    of_vectors
        Whether it averages the vectors that the head sees; otherwise the probabilities.
    temperature
        By which logarithms of the probabilities are divided; None: they stay as they are.
    """

    def __init__(
        self, model: Classifier, *, symmetry: tuple[int, ...], of_vectors: bool, temperature: float | None
    ) -> None:
        super().__init__()
        self.model = model
        self._turns, self._of_vectors, self._temperature = symmetry, of_vectors, temperature
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Probabilities, float32 (n, num_classes), of images, uint8 (n, size, size, 3)."""
        return self.of_views([apply_symmetry(images, turn) for turn in self._turns])

    def of_views(self, views: Sequence[torch.Tensor]) -> torch.Tensor:
        """Probabilities, float32 (n, num_classes), from the views of n images, uint8 (n, size, size, 3) each.

        All go through the network at once: a graph holds it once then.
        """
        model, squares, num_views = self.model, torch.cat(list(views)), len(views)
        if self._of_vectors:
            found = model.probabilities(model(_mean(model.to_cut(squares), num_views)))
        else:
            found = _mean(model.probabilities(model(squares)), num_views)
        return found if self._temperature is None else _tempered(found, self._temperature)


def _mean(of_views: torch.Tensor, num_views: int) -> torch.Tensor:
    """From one view of all images after the other."""
    return of_views.reshape(num_views, -1, *of_views.shape[1:]).mean(0)


def _tempered(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """As `tlbatch.evaluation.summary.temper`, which keeps a row whose decision rounding would change."""
    exact = probabilities / probabilities.sum(1, keepdim=True)
    found = (exact.clamp_min(_TINY).log() / temperature).softmax(1)
    same = found.argmax(1, keepdim=True) == exact.argmax(1, keepdim=True)
    return torch.where(same, found, probabilities)


def program_of(answering: ExportModule) -> ExportedProgram:
    """The graph of a model on the CPU for any number of images, without the paths of the code that it came from."""
    for module in answering.modules():
        if isinstance(module, Neighbours):
            module.pin()
    size = answering.model.spec.size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.export.export(answering, (example,), dynamic_shapes={"images": {0: torch.export.Dim("n", min=1)}})
    for part in found.graph_module.modules():
        for node in getattr(getattr(part, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    return found


def to_pt2(program: ExportedProgram) -> bytes:
    """The bytes of a file that ``torch.export.load`` reads."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer)
    return buffer.getvalue()


def to_onnx(program: ExportedProgram) -> bytes:
    """The bytes of an ONNX file with the input ``images`` and the output ``probabilities``."""
    for library in ("onnxscript", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.WARNING)  # they tell of every node
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            program, dynamo=True, input_names=["images"], output_names=["probabilities"], verbose=False
        )
    assert made is not None
    proto: Any = made.model_proto
    for node in proto.graph.node:
        node.ClearField("metadata_props")  # paths and lines of the code
    own = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        value.ClearField("metadata_props")
        for length in value.type.tensor_type.shape.dim:
            if length.dim_param == own:
                length.dim_param = "n"
    data: bytes = proto.SerializeToString()
    return data


def run_pt2(data: bytes, images: torch.Tensor) -> Floats:
    """Probabilities by a file that was written just now: what it holds of pickles is our own."""
    module = torch.export.load(io.BytesIO(data)).module()
    with torch.inference_mode():
        return np.concatenate([module(some).numpy() for some in torch.split(images, _AT_ONCE)])


def run_onnx(data: bytes, images: torch.Tensor) -> Floats:
    """Probabilities by ONNX Runtime on the CPU."""
    import onnxruntime  # noqa: PLC0415 (of an extra)

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    parts = [session.run(["probabilities"], {"images": some.numpy()})[0] for some in torch.split(images, _AT_ONCE)]
    return np.concatenate(parts)


def reason_of(error: BaseException) -> str:
    """What an exporter says of a graph that it cannot write, in a line: the cause stands below all that it wraps."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in _COLOURED.sub("", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:200] if lines else ''}".removesuffix(": ")
