"""How much the CPU gains when glibc keeps freed memory: frozen forward passes, the two ways interleaved.

    python tests/bench/bench_memory.py

Prints the median images a second of each way and their ratio. Each measurement is a process of its own, because the
setting cannot be taken back.
"""

import statistics
import subprocess
import sys
import time

ROUNDS, SECONDS, BATCH = 5, 3.0, 32


def measure(*, keep: bool) -> float:
    """Images a second of EfficientNet-Lite0 at 224 px in this process."""
    import timm
    import torch

    from tlbatch.distributed.process_group import keep_freed_memory

    if keep:
        keep_freed_memory()
    net = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval().to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        net(images)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            net(images)
            done += BATCH
    return done / (time.perf_counter() - start)


def main() -> None:
    """Interleave the two ways."""
    if sys.argv[1:]:
        print(measure(keep=sys.argv[1] == "keep"))
        return
    found: dict[str, list[float]] = {"plain": [], "keep": []}
    for _ in range(ROUNDS):
        for way, rates in found.items():
            done = subprocess.run([sys.executable, __file__, way], capture_output=True, text=True, check=True)
            rates.append(float(done.stdout))
    plain, keep = (statistics.median(found[way]) for way in ("plain", "keep"))
    print(f"plain {plain:.1f} images/s, memory kept {keep:.1f} images/s, ratio {keep / plain:.2f}")


if __name__ == "__main__":
    main()
