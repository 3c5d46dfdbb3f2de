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
    assert joined.targets is None and joined.weights is None and joined.extra == {}
    together = encoder(joined, items).user.split([3, 2])
    for alone, user in zip((first, second), together):
        torch.testing.assert_close(encoder(alone, items).user, user)


def test_times_of_joined_batches_come_along_where_all_have_them():
    first, second = toy_batch((2,)), toy_batch((3, 1))
    assert torch.equal(Batch.join([first, second]).times[1:], second.times)
    assert Batch.join([first, second.replace(times=None)]).times is None
    assert Batch.join([first, second.replace(query_time=None)]).query_time is None
