"""Removes from site-packages what no run needs, and prints the MB of each kind: python slim.py SITE_PACKAGES.

Kept though large: torch/include, for `train.compile` on a base that has a C++ compiler, and `testing` folders, which
packages import.
"""

import shutil
import struct
import sys
from pathlib import Path

KINDS = {
    "profiler of Triton": ["triton/backends/nvidia/lib/cupti*", "triton/_C/libproton.so"],
    "device code of NVSHMEM": ["nvidia/nvshmem/lib/*.bc"],
    "cuSOLVER over several GPUs": ["nvidia/*/lib/libcusolverMg.so*"],
    "tests of packages": ["**/tests", "onnx/backend/test/data"],
    "Triton for AMD": ["triton/backends/amd/lib/*.so"],
    "headers of CUDA": ["nvidia/*/include", "nvidia/*/cccl"],
    "tests and plugins of Triton": ["triton/instrumentation", "triton/plugins", "triton/FileCheck"],
    "protoc": ["torch/bin/protoc*"],
    "static libraries": ["**/*.a"],
}


def size(path: Path) -> int:
    """Bytes of a file or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def remove(path: Path) -> int:
    """Remove a file or folder; its bytes."""
    saved = size(path)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return saved


def cut(library: Path) -> int:
    """Cut off what is never loaded, symbols of debuggers and linkers after the last segment; the bytes left."""
    with library.open("r+b") as file:
        header = file.read(64)
        if header[:5] != b"\x7fELF\x02":  # 64-bit
            return 0
        (segments,), (count,) = struct.unpack_from("<Q", header, 32), struct.unpack_from("<H", header, 56)
        file.seek(segments)
        end = max(row[2] + row[5] for row in struct.iter_unpack("<IIQQQQQQ", file.read(56 * count)))
        file.seek(40)
        file.write(bytes(8))  # no sections: where they are,
        file.seek(58)
        file.write(bytes(6))  # their size, number and names
        file.truncate(end)
    return library.stat().st_size


def main(site: Path) -> None:
    """Remove each kind and say what it saved."""
    saved = {
        kind: sum(remove(path) for rule in rules for path in list(site.glob(rule))) for kind, rules in KINDS.items()
    }
    before = after = 0
    for library in site.rglob("*.so*"):
        if "nvidia" not in library.parts and library.is_file() and not library.is_symlink():  # theirs stay as they are
            before += library.stat().st_size
            after += cut(library) or library.stat().st_size
    saved["symbols of debuggers"] = before - after
    for kind, number in saved.items():
        print(f"{number / 1e6:8.1f} MB  {kind}")
    print(f"{sum(saved.values()) / 1e6:8.1f} MB  in all; left: {size(site) / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
