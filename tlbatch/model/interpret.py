"""Interpretation of a trained network: activation maps, first filters, Grad-CAM and a 2-D map of its features."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isqrt

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import nn

from tlbatch.config.training import ALL_FROZEN
from tlbatch.core.typing import Floats
from tlbatch.model.classifier import Classifier
from tlbatch.model.heads import is_map, spatial_axes

_MOST_PLACES = 4
_MOST_TRIES = 8
_MOST_COMPONENTS = 50
_FEWEST_ROWS = 10


def telling_places(model: Classifier) -> tuple[str, ...]:
    """Return the names of at most four cut points to show: the last of each resolution, fine to coarse."""
    last: dict[tuple[int, ...], int] = {}
    for at, shape in enumerate(_shapes(model)):
        if at and len(shape) == 3 and is_map(shape):
            last[tuple(shape[axis] for axis in spatial_axes(shape))] = at
    places = sorted(last.values())
    if len(places) > _MOST_PLACES:
        places = [places[int(number)] for number in np.linspace(0, len(places) - 1, _MOST_PLACES).round()]
    return tuple(model.chain.places[at].name for at in places)


def activation_maps(model: Classifier, image: torch.Tensor, names: Sequence[str]) -> dict[str, Floats]:
    """Compute the activation maps of one image at some cut points; those without a map, as of tokens, are left out.

    Parameters
    ----------
    image
        uint8, (size, size, 3).
    names
        Names of cut points, as in `Chain.find`; pool is the last one that the head reads.

    Returns
    -------
    float32 array of shape (channels, h, w) for each name, in their order.

    Raises
    ------
    UserError
        When the network has no such cut point.
    """
    places = {name: model.end if name in ALL_FROZEN else model.chain.find(name, key="place") for name in names}
    found: dict[int, Floats] = {}
    with _evaluating(model), torch.no_grad():
        start, activation = 0, model.normalised(image[None].to(model.mean.device))
        for at in sorted(set(places.values())):
            activation = model.chain.segment(start, at).run(activation, training=False)
            if activation.ndim == 4:  # copied, as the next segment may work in place
                found[at] = _channels_first(activation)[0].float().cpu().numpy().copy()
            start = at
    return {name: found[at] for name, at in places.items() if at in found}


def first_filters(model: Classifier) -> Floats:
    """Return the weights of the first convolution on RGB images.

    Returns
    -------
    float32 array of shape (n, k, k, 3), each filter scaled to 0..1 and grey where it is flat; n = 0 where there is no
    such convolution.
    """
    layers = (layer for layer in model.backbone.modules() if isinstance(layer, nn.Conv2d))
    first = next((layer for layer in layers if layer.weight.shape[1] == 3), None)
    if first is None:
        return np.empty((0, 1, 1, 3), np.float32)
    weights = first.weight.detach().float().permute(0, 2, 3, 1)
    low, high = (edge(weights, (1, 2, 3), keepdim=True) for edge in (torch.amin, torch.amax))
    scaled = torch.where(high > low, (weights - low) / (high - low), 0.5)
    return np.asarray(scaled.cpu().numpy())


def grad_cam(model: Classifier, images: torch.Tensor, classes: torch.Tensor) -> Floats | None:
    """Locate the evidence for a class in an image by Grad-CAM (Selvaraju et al. 2017), at the resolution of the map.

    With A_k the channels of the last map and p the probability of the class: the positive part of
    sum_k mean(d log p / d A_k) A_k. Tokens that form a square are a map. Where the head reads only a class token, the
    map is the last one on which that token still depends.

    Parameters
    ----------
    images
        uint8, (n, size, size, 3), at least one.
    classes
        int64, (n,): the class to explain in each image.

    Returns
    -------
    float32 array of shape (n, h, w), with maximum 1 in each image, or all 0 where there is no evidence for the class;
    None where the network has no map before the head, or the head no gradient, as with nearest neighbours.
    """
    nothing: Floats | None = None
    with _evaluating(model), torch.inference_mode(mode=False):
        pixels = model.normalised(images.to(model.mean.device))
        places = [at for at, shape in enumerate(_shapes(model)) if at and is_map(shape)]
        for at in places[-1 : -_MOST_TRIES - 1 : -1]:
            sloped = _sloped(model, at, pixels, classes.to(pixels.device).clone())
            if sloped is None:
                return None
            maps, slopes = (_as_map(model, values) for values in sloped)
            if maps is None or slopes is None:
                continue
            evidence = (slopes.mean((2, 3), keepdim=True) * maps).sum(1).relu()
            largest = evidence.amax((1, 2), keepdim=True)
            found = np.asarray((evidence / largest.where(largest > 0, 1)).cpu().numpy())
            if slopes.any():
                return found
            nothing = found if nothing is None else nothing
    return nothing


def features(model: Classifier, images: torch.Tensor) -> Floats:
    """Return the input of the head.

    Parameters
    ----------
    images
        uint8, (n, size, size, 3), at least one.

    Returns
    -------
    float32 array of shape (n, d).
    """
    with _evaluating(model), torch.no_grad():
        found = model.pooled(model.normalised(images.to(model.mean.device)), model.stretches(0), training=False)
        return np.asarray(found.float().cpu().numpy())


def flat_map(rows: Floats, seed: int) -> Floats:
    """Embed rows in the plane by t-SNE (van der Maaten and Hinton 2008), which keeps near neighbours near.

    It runs on the first 50 principal components; for fewer than ten rows the first two are returned.

    Parameters
    ----------
    rows
        (n, d).

    Returns
    -------
    float32 array of shape (n, 2), the same for the same rows and seed.
    """
    n = len(rows)
    if n < 2 or (rows == rows[0]).all():
        return np.zeros((n, 2), np.float32)
    reducer = PCA(min(_MOST_COMPONENTS, *rows.shape), random_state=seed)
    components = np.asarray(reducer.fit_transform(rows.astype(np.float64)))
    components = np.pad(components, ((0, 0), (0, max(0, 2 - components.shape[1]))))
    if n < _FEWEST_ROWS:
        return components[:, :2].astype(np.float32)
    with threadpool_limits(1):  # on shared cores, more threads took ten times longer
        plane = TSNE(2, init="pca", random_state=seed, perplexity=min(30.0, (n - 1) / 3)).fit_transform(components)
    return np.asarray(plane, dtype=np.float32)


@contextmanager
def _evaluating(model: Classifier) -> Iterator[None]:
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


def _shapes(model: Classifier) -> tuple[tuple[int, ...], ...]:
    """Return the shape at each cut point up to the head, not pooled as by `Classifier.shape_at`."""
    size = model.spec.size
    with _evaluating(model):
        found = model.chain.shapes(torch.zeros(1, 3, size, size, device=model.mean.device))
    return found[: model.end + 1]


def _channels_first(activation: torch.Tensor) -> torch.Tensor:
    return activation.permute(0, 3, 1, 2) if spatial_axes(tuple(activation.shape[1:])) == (0, 1) else activation


def _as_map(model: Classifier, activation: torch.Tensor) -> torch.Tensor | None:
    """Return a map or tokens as (n, c, h, w), without prefix tokens; None where there are no positions."""
    if activation.ndim == 4:
        return _channels_first(activation)
    num_tokens = activation.shape[1]
    for prefix in (int(getattr(model.backbone, "num_prefix_tokens", 0)), 0, 1):
        side = isqrt(max(0, num_tokens - prefix))
        if side > 1 and side**2 == num_tokens - prefix:
            return activation[:, prefix:].transpose(1, 2).reshape(len(activation), -1, side, side)
    return None


def _sloped(
    model: Classifier, at: int, pixels: torch.Tensor, classes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the activation at a cut point, and the gradient of the log probability of a class there."""
    num_before = sum(end < at for end in model.ends)
    with torch.no_grad():
        parts, last = _parts(model, 0, pixels, slice(num_before))
        activation = model.chain.segment((0, *model.ends)[num_before], at).run(last, training=False).detach()
    with torch.enable_grad():
        activation.requires_grad_()
        later, _ = _parts(model, at, activation.clone(), slice(num_before, None))  # as it may work in place
        chosen = model.probabilities(model.head(torch.cat(parts + later, 1))).gather(1, classes[:, None])
        if not chosen.requires_grad:
            return None
        (slope,) = torch.autograd.grad((chosen + torch.finfo(chosen.dtype).tiny).log().sum(), activation)
    return activation.detach(), slope


def _parts(
    model: Classifier, start: int, activation: torch.Tensor, some: slice
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the head's inputs from some of its cut points, and the activation at the last of them."""
    parts = []
    for end, pool in zip(model.ends[some], model.pools[some], strict=True):
        activation = model.chain.segment(start, end).run(activation, training=False)
        parts.append(pool(activation))
        start = end
    return parts, activation
