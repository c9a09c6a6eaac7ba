"""The simpler alternative to the LSTM: a linear classifier per attribute, with the word order of the training set."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from tlbatch.config.data import Data
from tlbatch.config.training import Fit
from tlbatch.core.typing import Ints
from tlbatch.model.fitted_head import Vectors
from tlbatch.model.heads import head_like
from tlbatch.model.phrase_decoder import NONE, PhraseHead

_LEAST = math.log(1e-6)


@dataclass(frozen=True)
class Attribute:
    """Tags of which an image has at most one."""

    name: str
    tags: tuple[int, ...]
    """Numbers in the vocabulary."""

    def values(self, phrases: Ints) -> Ints:
        """Return the value of each phrase (n, tags): 0 for none, else 1 + the place of its first tag here, (n,)."""
        place = np.zeros(max(phrases.max(initial=0), *self.tags) + 3, np.int64)  # the last two are for none and unknown
        place[list(self.tags)] = np.arange(len(self.tags)) + 1
        found = place[phrases]
        first = (found > 0).argmax(axis=1)
        return np.asarray(found[np.arange(len(found)), first])


class AttributeHead(PhraseHead):
    """A linear layer whose outputs are the values of attributes, none of them included.

    Attributes
    ----------
    tags
        (num_outputs,): the tag that each output stands for, or none; each none starts an attribute.
    orders
        (m, max_tags): the most common order of each set of tags in the training split.
    places
        (num_tags,): mean position of a tag in its phrase, 0 to 1, for sets that the training split does not have.
    """

    tags: torch.Tensor
    orders: torch.Tensor
    places: torch.Tensor

    def __init__(self, width: int, tags: torch.Tensor, orders: torch.Tensor, places: torch.Tensor) -> None:
        super().__init__(len(places), max(1, int((tags == NONE).sum())))
        self.linear = nn.Linear(width, len(tags))
        self.register_buffer("tags", tags)
        self.register_buffer("orders", orders)
        self.register_buffer("places", places)

    @property
    def _stretches(self) -> list[slice]:
        """The outputs of each attribute."""
        starts = [*torch.nonzero(self.tags == NONE)[:, 0].tolist(), len(self.tags)]
        return [slice(start, stop) for start, stop in pairwise(starts)]

    def _log_probabilities(self, features: torch.Tensor) -> list[torch.Tensor]:
        """Return the log probabilities of each attribute's values."""
        outputs = self.linear(features)
        return [outputs[:, stretch].log_softmax(1) for stretch in self._stretches]

    def losses(self, features: torch.Tensor, phrases: torch.Tensor) -> torch.Tensor:
        """Return the negative log likelihood of all attributes' values, (n,); the order of tags does not count."""
        total = features.new_zeros(len(features))
        rows = phrases.cpu().numpy()
        for stretch, log_p in zip(self._stretches, self._log_probabilities(features), strict=True):
            attribute = Attribute("", tuple(self.tags[stretch][1:].tolist()))
            values = torch.from_numpy(attribute.values(rows)).to(log_p.device)
            total -= log_p.gather(1, values[:, None])[:, 0].clamp_min(_LEAST)  # the value may not occur in training
        return total

    def write(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the most probable value of each attribute, as a phrase of at least one tag."""
        values, every = self._values(features)
        chosen = [self.tags[stretch][own] for stretch, own in zip(self._stretches, values, strict=True)]
        orders = {frozenset(order): order for order in _rows(self.orders)}
        place = dict(enumerate(self.places.tolist()))
        phrases = [
            orders.get(frozenset(tags)) or sorted(tags, key=lambda tag: (place[tag], tag))
            for tags in _rows(torch.stack(chosen, 1))
        ]
        padded = torch.full((len(features), self.max_tags), NONE)
        for row, phrase in zip(padded, phrases, strict=True):
            row[: len(phrase)] = torch.tensor(phrase, dtype=torch.int64)
        return padded.to(features.device), every

    def _values(self, features: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the value of each attribute, (n,) each, and the log probability of all together, (n,).

        Where every attribute's most probable value is none, the tag that lowers the probability least is used instead.
        """
        log_p = self._log_probabilities(features)
        found = [one.max(1) for one in log_p]
        values = [best.indices for best in found]
        total = torch.stack([best.values for best in found]).sum(0)
        gains = [one[:, 1:].max(1).values - one[:, 0] for one in log_p]
        gain, which = torch.stack(gains).max(0)
        empty = torch.stack(values).sum(0) == 0
        for at, one in enumerate(log_p):
            values[at] = torch.where(empty & (which == at), one[:, 1:].argmax(1) + 1, values[at])
        return values, total + torch.where(empty, gain, 0.0)


def restored_head(tensors: Mapping[str, torch.Tensor], head: nn.Module) -> nn.Module:
    """Return the head for the tensors of a checkpoint: the given one, unless it was fitted on training vectors."""
    if "head.orders" in tensors:
        tags, orders, places = (tensors[f"head.{name}"] for name in ("tags", "orders", "places"))
        restored = AttributeHead(tensors["head.linear.weight"].shape[1], tags, orders, places)
        restored.of_class = head.of_class if isinstance(head, PhraseHead) else restored.of_class
        return restored
    return head_like(tensors, head) if isinstance(head, nn.Sequential) else head


def _rows(phrases: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(tag for tag in row if tag >= 0) for row in phrases.tolist()]


def attributes_in(vocabulary: Sequence[str], data: Data) -> list[Attribute]:
    """Return the job's attributes, restricted to known tags, and an own attribute for each tag that is in none."""
    named = data.attributes_in(vocabulary)
    number = {name: place for place, name in enumerate(vocabulary)}
    taken = {tag for tags in named.values() for tag in tags}
    found = [Attribute(name, tuple(number[tag] for tag in tags)) for name, tags in named.items()]
    return found + [Attribute(f"tag {tag}", (number[tag],)) for tag in vocabulary if tag not in taken]


def fit_attributes(
    kind: Fit, vectors: Vectors, phrases: Ints, attributes: Sequence[Attribute], *, num_tags: int, seed: int
) -> tuple[AttributeHead, dict[str, float]]:
    """Fit a linear classifier for each attribute, its penalty chosen by cross-validation over groups.

    Parameters
    ----------
    vectors
        Features and groups; the labels are not read.
    phrases
        Phrase of each vector, (n, tags).

    Returns
    -------
    The head, and the mean out-of-fold loss of the chosen penalty, by attribute.
    """
    from tlbatch.model.sklearn_heads import fit_head  # noqa: PLC0415 (scikit-learn takes seconds to import)

    layers, losses = [], {}
    for attribute in attributes:
        values = attribute.values(phrases)
        number = 1 + len(attribute.tags)
        if len(np.unique(values)) == 1:
            layers.append(_constant(vectors.features.shape[1], number, int(values[0])))
            continue
        fitted = fit_head(kind, replace(vectors, labels=values, num_classes=number), seed=seed)
        (layer,) = fitted.head
        assert isinstance(layer, nn.Linear)
        layers.append(layer)
        losses[attribute.name] = min(fitted.scores.values())
    tags = torch.tensor([tag for attribute in attributes for tag in (NONE, *attribute.tags)])
    head = AttributeHead(vectors.features.shape[1], tags, *_orders(phrases, len(attributes), num_tags))
    weights = {"weight": torch.cat([one.weight for one in layers]), "bias": torch.cat([one.bias for one in layers])}
    head.linear.load_state_dict(weights)
    return head, losses


def _constant(width: int, number: int, value: int) -> nn.Linear:
    """Make a layer that always predicts the same value."""
    layer = nn.Linear(width, number)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, -1e4)
    with torch.no_grad():
        layer.bias[value] = 0
    return layer


def _orders(phrases: Ints, max_tags: int, num_tags: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most common order of each set of tags that a phrase can have, and the mean position of each tag."""
    counts = Counter(tuple(tag for tag in row if tag >= 0) for row in phrases.tolist())
    best: dict[frozenset[int], tuple[int, ...]] = {}
    for phrase, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0])):
        if 0 < len(phrase) <= max_tags:
            best.setdefault(frozenset(phrase), phrase)
    sums, times = np.zeros(num_tags), np.zeros(num_tags)
    for phrase, count in counts.items():
        for place, tag in enumerate(phrase):
            sums[tag] += count * (place + 1) / (len(phrase) + 1)
            times[tag] += count
    places = torch.from_numpy(sums / np.maximum(times, 1)).float()
    rows = [torch.tensor(phrase) for phrase in best.values()] or [torch.tensor([NONE])]
    return pad_sequence(rows, batch_first=True, padding_value=NONE), places
