"""Run in the image by container.sh: what Containerfile leaves out could have broken; writes into a folder."""

import io
import sys
from pathlib import Path

import onnxruntime
import torch
import torch._inductor.compile_fx
import torch.testing
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def double(x, y, size: tl.constexpr) -> None:  # noqa: ANN001 (pointers)
    where = tl.arange(0, size)
    tl.store(y + where, tl.load(x + where) * 2)


def check_exchange(folder: Path) -> None:
    network, x = torch.nn.Linear(4, 2).eval(), torch.ones(3, 4)
    program = torch.export.export(network, (x,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(x), network(x))
    torch.onnx.export(program, dynamo=True, verbose=False).save(folder / "network.onnx")
    session = onnxruntime.InferenceSession(folder / "network.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), network(x).detach())


def check_triton() -> None:
    """Triton compiles for a GPU without one."""
    source = ASTSource(fn=double, signature={"x": "*fp32", "y": "*fp32", "size": "constexpr"}, constexprs={"size": 64})
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


if __name__ == "__main__":
    check_exchange(Path(sys.argv[1]))
    check_triton()
