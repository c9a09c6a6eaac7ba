"""The symmetries of the square, on the device."""

import torch


def apply_symmetries(images: torch.Tensor, symmetry: torch.Tensor) -> torch.Tensor:
    """Apply to each image its symmetry of the square: mirrored left to right if odd, then rotated by quarter turns.

    Parameters
    ----------
    images
        (n, size, size, 3), of any type, on any device.
    symmetry
        (n,), 0 to 7 on the CPU: 2 * quarter turns + mirrored.

    Returns
    -------
    Tensor like ``images``.
    """
    for number in set(symmetry.tolist()) - {0}:
        chosen = (symmetry == number).nonzero()[:, 0].to(images.device)
        images = images.index_copy(0, chosen, apply_symmetry(images[chosen], number))
    return images


def apply_symmetry(images: torch.Tensor, number: int) -> torch.Tensor:
    """Apply the same symmetry to all images."""
    if number % 2:
        images = images.flip(2)
    return images.rot90(number // 2, (1, 2)) if number > 1 else images
