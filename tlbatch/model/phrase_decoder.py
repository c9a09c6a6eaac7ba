"""Heads that write phrases: the tags of an image in their order, by an LSTM.

A phrase is a row of tag numbers in the vocabulary, padded with -1. Labels are rows of class numbers of the data set,
which may include tags that no training image has.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy, layer_norm

from tlbatch.config.job import Job
from tlbatch.config.model import Decoder
from tlbatch.core.errors import UserError
from tlbatch.runs.manifest import Manifest

NONE = -1
UNKNOWN = -2
"""A tag of a label that is not in the vocabulary."""
_FIXED = 2


def outputs_named(job: Job, manifest: Manifest) -> tuple[str, ...]:
    """Return the classes, or with tags the vocabulary, which comes from the training split alone.

    Raises UserError if no tag has enough training images.
    """
    if job.objective != "tags":
        return manifest.classes
    enough = job.decoder.min_images
    words = tuple(
        name for name, count in zip(manifest.classes, manifest.counts["train"], strict=True) if count >= enough
    )
    if not words:
        raise UserError(f"decoder.min_images = {enough}: no tag has that many training images; lower it, or add images")
    return words


class PhraseHead(nn.Module):
    """Base class of heads that write phrases.

    In training mode it returns the loss of each image; in evaluation mode its phrases, as by `packed`.
    """

    of_class: torch.Tensor

    def __init__(self, num_tags: int, max_tags: int) -> None:
        super().__init__()
        self.num_tags, self.max_tags = num_tags, max_tags
        self.register_buffer("of_class", torch.arange(num_tags), persistent=False)

    def read_classes(self, vocabulary: Sequence[str], classes: Sequence[str]) -> None:
        """Store which tag of the vocabulary each class of the data set is."""
        number = {name: place for place, name in enumerate(vocabulary)}
        self.of_class = torch.tensor([number.get(name, UNKNOWN) for name in classes])

    def phrases(self, labels: torch.Tensor) -> torch.Tensor:
        """Convert labels to phrases, both (n, tags), with `UNKNOWN` where a tag is not in the vocabulary."""
        return torch.where(labels < 0, NONE, self.of_class[labels.clamp_min(0)])

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Map (n, width) to losses (n,) in training, to (n, 2 + max_tags) in evaluation, where labels are optional.

        Parameters
        ----------
        labels
            int64, (n, tags).
        """
        phrases = None if labels is None else self.phrases(labels)
        if self.training:
            assert phrases is not None, "training needs phrases"
            return self.losses(features, phrases)
        losses = features.new_zeros(len(features)) if phrases is None else self.losses(features, phrases)
        return packed(*self.write(features), losses)

    def losses(self, features: torch.Tensor, phrases: torch.Tensor) -> torch.Tensor:
        """Compute the negative log likelihood of each phrase, (n,)."""
        raise NotImplementedError

    def write(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a phrase for each image, (n, max_tags); return them and their log probabilities, (n,)."""
        raise NotImplementedError


def packed(phrases: torch.Tensor, log_probabilities: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """Pack phrases into one float32 row per image, exact for small integers: (n, 2 + max_tags)."""
    return torch.cat([log_probabilities[:, None], losses[:, None], phrases.to(torch.float32)], 1)


def unpacked(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the phrases (n, max_tags), their log probabilities (n,) and the losses of the labels (n,)."""
    return outputs[:, _FIXED:].long(), outputs[:, 0], outputs[:, 1]


def same_phrases(phrases: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return whether rows hold the same phrase, (n,), whatever their padding."""
    width = max(phrases.shape[1], others.shape[1])
    padded = [torch.nn.functional.pad(some, (0, width - some.shape[1]), value=NONE) for some in (phrases, others)]
    return (padded[0] == padded[1]).all(1)


class PhraseDecoder(PhraseHead):
    """An LSTM that reads the image, then writes one tag after another until the end token.

    As Vinyals et al., Show and Tell (2015): the projected image vector is the first input, a start token the second,
    and the previous tag every later one; dropout is applied before and after the LSTM.
    """

    def __init__(self, settings: Decoder, num_features: int, num_tags: int) -> None:
        super().__init__(num_tags, settings.max_tags)
        self._beam = settings.beam
        self.smoothing = 0.0
        """Label smoothing in training."""
        self.end, self.unknown, self.start = num_tags, num_tags + 1, num_tags + 2
        self.see = nn.Linear(num_features, settings.embedding)
        self.read = nn.Embedding(num_tags + 3, settings.embedding)
        self.lstm = nn.LSTM(settings.embedding, settings.hidden, batch_first=True)
        self.say = nn.Linear(settings.hidden, num_tags + 2)
        self.dropout = nn.Dropout(settings.dropout)

    def losses(self, features: torch.Tensor, phrases: torch.Tensor) -> torch.Tensor:
        """Compute the negative log likelihood of each phrase and its end token, (n,), with teacher forcing.

        A phrase that is too long is truncated, and has no end token then.
        """
        tokens = torch.where(phrases == UNKNOWN, self.unknown, phrases)
        shown = tokens[:, : self.max_tags]
        steps = shown.new_full((len(shown), 1), NONE)
        wanted = torch.cat([shown, steps], 1)
        lengths = (tokens >= 0).sum(1)
        ends = torch.arange(wanted.shape[1], device=tokens.device) == lengths[:, None]
        wanted = torch.where(ends, self.end, wanted)
        given = torch.cat([torch.full_like(steps, self.start), shown.clamp_min(0)], 1)
        inputs = torch.cat([self._first_input(features), self.read(given)], 1)
        states, _ = self.lstm(self.dropout(inputs))
        log_p = self.say(self.dropout(states[:, 1:])).transpose(1, 2)
        smoothing = self.smoothing if self.training else 0.0
        each = cross_entropy(log_p, wanted, ignore_index=NONE, reduction="none", label_smoothing=smoothing)
        return each.sum(1)

    def write(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the most probable phrases by beam search, for all images at once.

        The beam of an image does not depend on other images. A phrase that has ended keeps its place; none is empty.
        """
        number, device = len(features), features.device
        _, state = self.lstm(self._first_input(features))
        last = torch.full((number, 1), self.start, device=device)
        scores = features.new_zeros((number, 1))
        phrases = torch.full((number, 1, self.max_tags), NONE, device=device)
        for step in range(self.max_tags + 1):
            states, state = self.lstm(self.read(last.flatten())[:, None], state)
            log_p = self.say(states[:, 0]).log_softmax(1).view(*last.shape, -1)  # of the next token
            log_p[:, :, self.unknown] = -torch.inf
            if step == 0:
                log_p[:, :, self.end] = -torch.inf  # no image is without a tag
            if step == self.max_tags:
                log_p[:, :, : self.end] = -torch.inf
            if step:
                has_ended = last == self.end
                log_p[has_ended] = -torch.inf
                log_p[..., self.end].masked_fill_(has_ended, 0.0)
            every = (scores[:, :, None] + log_p).flatten(1)
            scores, places = every.topk(min(self._beam, every.shape[1]), dim=1)
            origin, last = places // log_p.shape[2], places % log_p.shape[2]
            phrases = phrases.gather(1, origin[:, :, None].expand(-1, -1, self.max_tags))
            if step < self.max_tags:
                phrases[:, :, step] = torch.where(last < self.end, last, NONE)
            kept = (torch.arange(number, device=device)[:, None] * log_p.shape[1] + origin).flatten()
            state = state[0][:, kept], state[1][:, kept]  # of the phrases that stay in the beam
            if bool((last == self.end).all()):
                break
        return phrases[:, 0], scores[:, 0]

    def _first_input(self, features: torch.Tensor) -> torch.Tensor:
        """Return the first input, (n, 1, embedding): the image vector, standardised since its scale is arbitrary."""
        found: torch.Tensor = self.see(layer_norm(features, features.shape[1:]))
        return found[:, None]
