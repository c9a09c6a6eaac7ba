"""The search of the audit for copies, beside decoding as many photographs.

    python tests/bench/bench_audit.py [NUMBER]

NUMBER (100,000 by default) images of random spectra, and 35,000 with the spectra of synthetic eyes, all of which look
alike: spectra are drawn from the mean and the covariance of 1,500 drawn eyes.
"""

import io
import resource
import sys
import time

import numpy as np
from PIL import Image

from tlbatch.data.decode import decode
from tlbatch.data.near_copies import find_copies
from tlbatch.data.near_duplicates import FREQUENCIES, hashes_of, low_frequencies
from tlbatch.data.synthetic.fundus import draw

NUM_DRAWN = 1500
NUM_EYES = 35_000
MAX_BITS = 16
SIDE = 256
"""Short side of images in shards."""


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    random = np.random.default_rng(0)
    eyes = [draw(0, n // 2, "left" if n % 2 else "right", grade=n % 5, side=SIDE) for n in range(NUM_DRAWN)]
    print("| images | search for copies | decoding as many at 256 px | of copies | most memory |")
    print("|---|---|---|---|---|")
    decode_s = decoding(eyes[:200])
    sets = {
        f"{NUM_EYES:,} synthetic eyes": lambda: spectra_like(eyes, NUM_EYES, random),
        f"{number:,} random": lambda: random.standard_normal((number, FREQUENCIES, FREQUENCIES)).astype(np.float32),
    }
    for name, made in sets.items():
        spectra = made()
        hashes, stored = hashes_of(spectra), spectra.astype(np.float16)
        start = time.process_time()
        find_copies(hashes, stored, np.arange(len(stored)), MAX_BITS)
        search_s, whole_s = time.process_time() - start, decode_s * len(stored)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"| {name} | {search_s:.0f} s | {whole_s:.0f} s | {search_s / whole_s:.2f} | {memory:.0f} MiB |")


def decoding(eyes: list[np.ndarray]) -> float:
    """Return the CPU seconds to decode an image and compute its spectrum."""
    files = []
    for eye in eyes:
        buffer = io.BytesIO()
        Image.fromarray(eye).save(buffer, "JPEG", quality=92)
        files.append(buffer.getvalue())
    start = time.process_time()
    for data in files:
        low_frequencies(decode(data))
    return (time.process_time() - start) / len(files)


def spectra_like(eyes: list[np.ndarray], number: int, random: np.random.Generator) -> np.ndarray:
    """Draw spectra with the mean and the covariance of those of some images."""
    known = np.stack([low_frequencies(eye) for eye in eyes]).reshape(len(eyes), -1)
    mean = known.mean(axis=0)
    _, scales, axes = np.linalg.svd(known - mean, full_matrices=False)
    drawn = random.standard_normal((number, len(scales))).astype(np.float32) * (scales / np.sqrt(len(eyes)))
    return (mean + drawn @ axes).reshape(number, FREQUENCIES, FREQUENCIES)


if __name__ == "__main__":
    main()
