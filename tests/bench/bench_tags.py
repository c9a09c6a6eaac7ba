"""How fast phrases are written from cached vectors: the batched beam search against one image at a time, interleaved.

    OMP_NUM_THREADS=2 python tests/bench/bench_tags.py

An LSTM of the default size with 60 tags learns 2,000 phrases of random vectors of 1,280 numbers, so that phrases end as
they do in use. Prints the seconds for 50,000 phrases in batches of 128 with the default beam and greedily, the median
phrases a second of both ways, and their ratio.
"""

import statistics
import time

import torch

from tlbatch.config.model import Decoder
from tlbatch.model.phrase_decoder import NONE, PhraseDecoder

NUM, BATCH, ALONE, ROUNDS, WIDTH, TAGS = 50_000, 128, 200, 3, 1280, 60


def learned(beam: int) -> tuple[PhraseDecoder, torch.Tensor]:
    """A decoder that has learned phrases of two to five tags, and the vectors that it writes them of."""
    torch.manual_seed(0)
    decoder = PhraseDecoder(Decoder(beam=beam), WIDTH, TAGS).train()
    vectors = torch.randn(2000, WIDTH)
    phrases = torch.randint(0, TAGS, (2000, 5))
    phrases[torch.arange(5) >= torch.randint(2, 6, (2000, 1))] = NONE
    optimizer = torch.optim.Adam(decoder.parameters(), 3e-3)
    for step in range(300):
        some = torch.arange(BATCH * step, BATCH * (step + 1)) % 2000
        optimizer.zero_grad()
        decoder(vectors[some], phrases[some]).mean().backward()
        optimizer.step()
    return decoder.eval(), vectors


@torch.inference_mode()
def seconds(decoder: PhraseDecoder, vectors: torch.Tensor, *, num: int, batch: int) -> float:
    """To write some phrases."""
    start = time.perf_counter()
    for first in range(0, num, batch):
        decoder.write(vectors[torch.arange(first, min(first + batch, num)) % len(vectors)])
    return time.perf_counter() - start


def main() -> None:
    """Interleave the two ways."""
    decoder, vectors = learned(beam=Decoder().beam)
    with torch.inference_mode():
        lengths = (decoder.write(vectors)[0] >= 0).sum(1).float()
    print(f"{float(lengths.mean()):.1f} tags a phrase")
    greedy, _ = learned(beam=1)
    whole = seconds(decoder, vectors, num=NUM, batch=BATCH), seconds(greedy, vectors, num=NUM, batch=BATCH)
    print(f"{NUM} phrases: beam of {Decoder().beam} {whole[0]:.1f} s, greedy {whole[1]:.1f} s")
    rates: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        together = 50 * BATCH / seconds(decoder, vectors, num=50 * BATCH, batch=BATCH)
        rates.append((together, ALONE / seconds(decoder, vectors, num=ALONE, batch=1)))
    together, alone = (statistics.median(some) for some in zip(*rates, strict=True))
    print(f"in batches {together:.0f} phrases/s, one by one {alone:.0f}, ratio {together / alone:.1f}")


if __name__ == "__main__":
    main()
