from dataclasses import fields

import torch

from recsys.data.batch import Batch
from recsys.encoders.sasrec import SASRec
from recsys.items.ids import IdItems
from recsys.testing import toy_batch, toy_context


def test_joined_batches_are_read_as_each_alone():
    items, encoder = IdItems(16), SASRec(16, num_layers=1, max_length=8)
    for part in (items, encoder):
        torch.manual_seed(0)
        part.bind(toy_context())
    encoder.eval()
    first, second = toy_batch((5, 1, 3)), toy_batch((2, 7), seed=1)
    joined = Batch.join([first, second])
    assert joined.ids.shape == (5, 7) and joined.lengths.tolist() == [5, 1, 3, 2, 7]
    assert joined.targets is None and joined.weights is None and joined.events is None
    together = encoder(joined, items).user.split([3, 2])
    for alone, user in zip((first, second), together):
        torch.testing.assert_close(encoder(alone, items).user, user)


def test_times_of_joined_batches_come_along_where_all_have_them():
    first, second = toy_batch((2,)), toy_batch((3, 1))
    assert torch.equal(Batch.join([first, second]).times[1:], second.times)
    assert Batch.join([first, second.replace(times=None)]).times is None
    assert Batch.join([first, second.replace(query_time=None)]).query_time is None


def test_wanted_is_a_field_and_asking_for_all_keeps_the_targets() -> None:
    targets = torch.tensor([[0, 2, 3], [4, 0, 0], [0, 0, 0]])
    batch = Batch(*torch.arange(6).view(2, 3), torch.ones(3, 3).long(), torch.tensor([3, 1, 2]), targets=targets)
    assert batch.wanted is None and batch.wanted_tokens.tolist() == [1, 2, 3]
    assert batch.replace(targets=None).wanted_tokens.tolist() == [2, 3, 5]
    every = batch.ask_all()
    assert every.wanted_tokens.tolist() == list(range(6)) and torch.equal(every.targets, targets)
    some = batch.replace(wanted=torch.tensor([0, 4, 5]))
    assert some.wanted_tokens.tolist() == [0, 4, 5]
    assert some.select(torch.tensor([2, 0])).wanted_tokens.tolist() == [0, 1, 2]
    assert some.select(torch.tensor([1])).wanted_tokens.tolist() == []
    assert some.trim(3).wanted_tokens.tolist() == some.to("cpu").wanted_tokens.tolist() == [0, 4, 5]
    assert some.replace(lengths=torch.tensor([2, 1, 1])).wanted is None, "its tokens have other numbers"


def test_histories_leave_behind_what_belongs_to_targets() -> None:
    more = {name: torch.ones(1, 2) for name in ("targets", "weights", "importance", "target_times", "words")}
    batch = Batch(*torch.ones(2, 1).long(), torch.ones(1, 2).long(), torch.tensor([2]), times=torch.ones(1, 2), **more)
    alone = batch.replace(events=torch.ones(1), target_index=torch.ones(1)).ask_all().histories()
    given = {entry.name for entry in fields(alone) if isinstance(getattr(alone, entry.name), torch.Tensor)}
    assert given == {"rows", "users", "ids", "lengths", "times"}
