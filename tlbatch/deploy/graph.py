"""The complete model from square images to probabilities as one module, and its export to pt2 and ONNX."""

import io
import logging
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from tlbatch.core.typing import Floats
from tlbatch.model.classifier import Classifier
from tlbatch.model.heads import Neighbours
from tlbatch.model.symmetries import apply_symmetry

_TINY = float(np.finfo(np.float64).eps)
_AT_ONCE = 8
_COLOURED = re.compile(r"\x1b\[[0-9;]*m")


class ExportModule(nn.Module):
    """A classifier with view averaging and temperature scaling.

    Parameters
    ----------
    symmetry
        Symmetries of the square (see `tlbatch.model.symmetries.apply_symmetries`) that are averaged.
    of_vectors
        Whether to average the vectors that enter the head; otherwise the probabilities.
    temperature
        Divisor of the log-probabilities; None: no scaling.
    """

    def __init__(
        self, model: Classifier, *, symmetry: tuple[int, ...], of_vectors: bool, temperature: float | None
    ) -> None:
        super().__init__()
        self.model = model
        self._symmetries, self._of_vectors, self._temperature = symmetry, of_vectors, temperature
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return probabilities, float32 (n, num_classes), of images, uint8 (n, size, size, 3)."""
        return self.of_views([apply_symmetry(images, number) for number in self._symmetries])

    def of_views(self, views: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return probabilities, float32 (n, num_classes), from the views of n images, uint8 (n, size, size, 3) each.

        All views go through the network in one batch, so that an exported graph holds the network only once.
        """
        model, squares, num_views = self.model, torch.cat(list(views)), len(views)
        if self._of_vectors:
            found = model.probabilities(model(_mean(model.to_cut(squares), num_views)))
        else:
            found = _mean(model.probabilities(model(squares)), num_views)
        return found if self._temperature is None else _tempered(found, self._temperature)


def _mean(of_views: torch.Tensor, num_views: int) -> torch.Tensor:
    """Average over views; the rows are ordered by view first."""
    return of_views.reshape(num_views, -1, *of_views.shape[1:]).mean(0)


def _tempered(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """Scale as `tlbatch.evaluation.summary.temper`, which keeps rows whose predicted class rounding would change."""
    exact = probabilities / probabilities.sum(1, keepdim=True)
    found = (exact.clamp_min(_TINY).log() / temperature).softmax(1)
    same = found.argmax(1, keepdim=True) == exact.argmax(1, keepdim=True)
    return torch.where(same, found, probabilities)


def program_of(answering: ExportModule) -> ExportedProgram:
    """Trace a model on the CPU for any batch size, and remove the source paths from the graph."""
    for module in answering.modules():
        if isinstance(module, Neighbours):
            module.pin()
    size = answering.model.spec.size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        found = torch.export.export(answering, (example,), dynamic_shapes={"images": {0: torch.export.Dim("n", min=1)}})
    for part in found.graph_module.modules():
        for node in getattr(getattr(part, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    return found


def to_pt2(program: ExportedProgram) -> bytes:
    """Return the bytes of a file for ``torch.export.load``."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.export.save(program, buffer)
    return buffer.getvalue()


def to_onnx(program: ExportedProgram) -> bytes:
    """Return the bytes of an ONNX file with the input ``images`` and the output ``probabilities``."""
    for library in ("onnxscript", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.WARNING)  # they log every node
    with warnings.catch_warnings(action="ignore"):
        made = torch.onnx.export(
            program, dynamo=True, input_names=["images"], output_names=["probabilities"], verbose=False
        )
    assert made is not None
    proto: Any = made.model_proto
    for node in proto.graph.node:
        node.ClearField("metadata_props")  # source paths and line numbers
    own = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        value.ClearField("metadata_props")
        for length in value.type.tensor_type.shape.dim:
            if length.dim_param == own:
                length.dim_param = "n"
    data: bytes = proto.SerializeToString()
    return data


def run_pt2(data: bytes, images: torch.Tensor) -> Floats:
    """Return the probabilities of a pt2 file that this process has just written, so its pickles are trusted."""
    module = torch.export.load(io.BytesIO(data)).module()
    with torch.inference_mode():
        return np.concatenate([module(some).numpy() for some in torch.split(images, _AT_ONCE)])


def run_onnx(data: bytes, images: torch.Tensor) -> Floats:
    """Return the probabilities from ONNX Runtime on the CPU."""
    import onnxruntime  # noqa: PLC0415 (of an extra)

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    parts = [session.run(["probabilities"], {"images": some.numpy()})[0] for some in torch.split(images, _AT_ONCE)]
    return np.concatenate(parts)


def reason_of(error: BaseException) -> str:
    """Return why an exporter failed, in one line: the innermost cause of the exception."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in _COLOURED.sub("", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:200] if lines else ''}".removesuffix(": ")
