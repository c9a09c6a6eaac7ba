"""Phrases: what the LSTM learns and writes, and the linear classifiers that it is compared with."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch

from tlbatch.config.data import Data
from tlbatch.config.model import Decoder
from tlbatch.model.attribute_head import Attribute, attributes_in, fit_attributes, restored_head
from tlbatch.model.fitted_head import Vectors
from tlbatch.model.phrase_decoder import NONE, UNKNOWN, PhraseDecoder, packed, same_phrases, unpacked

WIDTH, TAGS = 6, 4


def rows(*phrases: Sequence[int], width: int = 4) -> torch.Tensor:
    """Phrases as a tensor."""
    return torch.tensor([[*phrase, *[NONE] * (width - len(phrase))] for phrase in phrases])


def decoder(**changed: object) -> PhraseDecoder:
    torch.manual_seed(3)
    made = PhraseDecoder(Decoder.model_validate({"embedding": 8, "hidden": 16, "max_tags": 3} | changed), WIDTH, TAGS)
    for weight in made.parameters():  # far from uniform, so that the best phrase is clearly the best
        weight.data.mul_(4)
    made.say.bias.data[made.end] -= 3
    return made.eval()


def images(number: int) -> torch.Tensor:
    return torch.randn(number, WIDTH, generator=torch.Generator().manual_seed(number))


def every_phrase(most: int) -> list[tuple[int, ...]]:
    """But the empty one."""
    return [phrase for length in range(1, most + 1) for phrase in product(range(TAGS), repeat=length)]


def test_a_wide_beam_writes_the_most_probable_of_all_phrases() -> None:
    made, seen = decoder(beam=100), images(7)
    written, log_probability = made.write(seen)
    losses = torch.stack([made.losses(seen, rows(phrase).expand(7, -1)) for phrase in every_phrase(3)])
    best, which = losses.min(0)
    assert torch.allclose(log_probability, -best, atol=1e-5)
    assert same_phrases(written, rows(*(every_phrase(3)[one] for one in which.tolist()))).all()
    assert len(set(which.tolist())) > 1


@pytest.mark.parametrize("beam", [1, 2, 5])
def test_log_probabilities_are_those_that_training_maximises_and_no_beam_beats_all_phrases(beam: int) -> None:
    seen, made = images(50), decoder(beam=beam)
    written, log_probability = made.write(seen)
    assert torch.allclose(log_probability, -made.losses(seen, written), atol=1e-4)
    best = decoder(beam=100).write(seen)[1]
    assert (log_probability <= best + 1e-5).all()
    assert beam > 1 or (log_probability < best - 1e-3).any()


def test_what_is_written_of_an_image_does_not_depend_on_the_others() -> None:
    made, seen = decoder(beam=3), images(9)
    together = made.write(seen)
    alone = [made.write(seen[[at]]) for at in range(9)]
    assert torch.equal(together[0], torch.cat([phrase for phrase, _ in alone]))
    assert torch.allclose(together[1], torch.cat([log_probability for _, log_probability in alone]), atol=1e-5)


def test_of_a_phrase_that_is_too_long_the_first_tags_are_learned_and_not_that_it_ends() -> None:
    made, seen = decoder(), images(2)
    whole, cut = made.losses(seen, rows([0, 1, 2, 3], [0, 1, 2, 3])), made.losses(seen, rows([0, 1, 2], [0, 1, 2]))
    assert (whole < cut).all()
    assert torch.equal(whole, made.losses(seen, rows([0, 1, 2, 0], [0, 1, 2, 1])))


def test_padding_is_no_tag_and_an_unknown_tag_is_learned_but_never_written() -> None:
    made, seen = decoder(beam=100), images(4)
    narrow, wide = rows([0, 1], [2], [], [3], width=2), rows([0, 1], [2], [], [3], width=9)
    assert torch.allclose(made.losses(seen, narrow), made.losses(seen, wide))
    unknown = made.losses(seen, rows([UNKNOWN], [UNKNOWN, 1], [1, UNKNOWN], [UNKNOWN]))
    assert torch.isfinite(unknown).all()
    made.say.bias.data[made.unknown] = 50
    written, _ = made.write(seen)
    assert int(written.max()) < TAGS


def test_it_learns_phrases_whose_order_depends_on_the_image() -> None:
    torch.manual_seed(0)
    made = PhraseDecoder(Decoder(embedding=16, hidden=32, dropout=0.1, max_tags=3), WIDTH, TAGS).train()
    made.read_classes("abcd", "abcd")
    seen = torch.eye(WIDTH)[:4].repeat(16, 1)
    labels = rows([0, 1], [1, 0], [3, 2, 0], [2]).repeat(16, 1)
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        made(seen, labels).mean().backward()
        optimizer.step()
    phrases, log_probability, losses = unpacked(made.eval()(seen[:4], labels[:4]))
    assert same_phrases(phrases, labels[:4]).all()
    assert torch.allclose(log_probability, -losses, atol=1e-4)
    assert (log_probability > -0.2).all()


def test_smoothing_is_for_training_alone() -> None:
    made, seen, labels = decoder(dropout=0), images(3), rows([0], [1], [2])
    plain = made.train()(seen, labels)
    made.smoothing = 0.1
    assert not torch.allclose(made(seen, labels), plain)
    assert torch.allclose(unpacked(made.eval()(seen, labels))[2], plain)


def test_a_class_that_is_not_in_the_vocabulary_is_unknown() -> None:
    made = decoder()
    made.read_classes(["red", "long", "coat", "hat"], ["coat", "hat", "long", "new", "red"])
    assert made.phrases(torch.tensor([[4, 2, 0], [3, 0, NONE]])).tolist() == [[0, 1, 2], [UNKNOWN, 2, NONE]]


def test_packed_numbers_come_back() -> None:
    phrases, log_probability, losses = rows([2, 0], []), torch.tensor([-0.5, -9.0]), torch.tensor([1.0, 2.0])
    back = unpacked(packed(phrases, log_probability, losses))
    assert [one.tolist() for one in back] == [phrases.tolist(), log_probability.tolist(), losses.tolist()]


@pytest.mark.parametrize(("one", "other", "same"), [([1, 2], [1, 2], True), ([1, 2], [2, 1], False), ([], [1], False)])
def test_phrases_are_the_same_in_rows_of_any_length(one: list[int], other: list[int], same: bool) -> None:  # noqa: FBT001
    assert same_phrases(rows(one, width=2), rows(other, width=5)).tolist() == [same]


# --- linear classifiers, one an attribute


def vectors(phrases: torch.Tensor, *, noise: float = 0.3) -> Vectors:
    """Features in which each tag has a column."""
    rng = np.random.default_rng(0)
    features = rng.normal(0, noise, (len(phrases), WIDTH))
    for row, phrase in zip(features, phrases.tolist(), strict=True):
        row[[tag for tag in phrase if tag >= 0]] += 1
    return Vectors(features, np.zeros(len(phrases), np.int64), np.arange(len(phrases)), 2)


COLOURS, COAT, HAT = Attribute("colour", (0, 1)), Attribute("coat", (2,)), Attribute("hat", (3,))


def test_attributes_are_those_that_are_named_and_every_other_tag() -> None:
    data = Data(images="x", tag_separator=" ", attributes={"colour": ("red", "blue"), "none": ("pink",)})
    assert data.attributes_in(["blue", "coat", "red"]) == {"colour": ("red", "blue")}
    found = attributes_in(["blue", "coat", "red"], data)
    assert found == [Attribute("colour", (2, 0)), Attribute("tag coat", (1,))]
    same_name = Data(images="x", tag_separator=" ", attributes={"coat": ("red",)})
    assert attributes_in(["coat", "red"], same_name) == [Attribute("coat", (1,)), Attribute("tag coat", (0,))]


def test_the_value_of_an_attribute_is_its_first_tag_or_none() -> None:
    phrases = np.array([[3, 1, 0], [2, NONE, NONE], [UNKNOWN, 0, NONE], [NONE] * 3])
    assert COLOURS.values(phrases).tolist() == [2, 0, 1, 0]
    assert COAT.values(phrases).tolist() == [0, 1, 0, 0]


def test_linear_classifiers_write_what_they_see_in_the_order_of_training() -> None:
    some = [[0, 2], [2, 1], [1, 3], [3], [0, 3], [2, 3]]  # blue stands after the coat, and before the hat
    phrases = rows(*(some[at % 6] for at in range(120)))
    head, losses = fit_attributes(
        "logistic", vectors(phrases), phrases.numpy(), [COLOURS, COAT, HAT], num_tags=TAGS, seed=0
    )
    assert set(losses) == {"colour", "coat", "hat"}
    clean = vectors(rows(*some), noise=0)
    written, log_probability = head.eval().write(torch.from_numpy(clean.features).float())
    assert same_phrases(written, rows(*some)).all()
    assert torch.allclose(log_probability, -head.losses(torch.from_numpy(clean.features).float(), rows(*some)))
    both = torch.zeros(1, WIDTH)
    both[0, [1, 2, 3]] = torch.tensor([9.0, 9.0, 9.0])  # a set that training does not have: by the mean places
    assert head.write(both)[0].tolist() == [[2, 1, 3]]


def test_an_attribute_that_never_varies_is_always_said() -> None:
    phrases = rows(*([2, at % 2] for at in range(40)))
    head, losses = fit_attributes("svm", vectors(phrases), phrases.numpy(), [COLOURS, COAT], num_tags=TAGS, seed=0)
    assert set(losses) == {"colour"}
    assert head.write(torch.zeros(1, WIDTH))[0][0, 0] == 2


def test_no_phrase_is_empty_and_a_value_that_training_lacks_costs_no_more_than_a_millionth() -> None:
    phrases = rows(*([at % 2, 2 + at % 2] for at in range(40)))
    head, _ = fit_attributes("logistic", vectors(phrases), phrases.numpy(), [COLOURS, COAT, HAT], num_tags=TAGS, seed=0)
    seen = images(20) * 0.1
    head.eval().linear.bias.data[[3, 5]] += 50  # neither coat nor hat
    head.linear.bias.data[0] += 60  # no colour either, which training never had
    written, log_probability = head.write(seen)
    assert ((written >= 0).sum(1) == 1).all()
    assert torch.allclose(-log_probability.clamp_min(-13.8), head.losses(seen, written).clamp_max(13.8), atol=0.1)
    assert float(head.losses(seen, rows([2, 3]).expand(20, -1)).max()) <= 3 * 13.82


def test_a_fitted_head_comes_back_from_its_tensors() -> None:
    phrases = rows(*([at % 2, 2 + at % 2] for at in range(40)))
    head, _ = fit_attributes("logistic", vectors(phrases), phrases.numpy(), [COLOURS, COAT, HAT], num_tags=TAGS, seed=0)
    head.of_class = torch.tensor([3, 2, 1, 0])
    tensors = {f"head.{name}": value for name, value in head.state_dict().items()}
    before = decoder()
    before.read_classes("abcd", "dcba")
    back = restored_head(tensors, before)
    back.load_state_dict(head.state_dict())
    seen = images(5)
    assert torch.equal(back.eval()(seen), head.eval()(seen))
    assert torch.equal(back.of_class, head.of_class)
    assert back.max_tags == head.max_tags == 3
