import numpy as np
import torch

from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.ids.vocabulary import Vocabulary
from recsys.statistics.same_target import same_item


def made(seed=0, users=30, items=12, longest=9):
    """A leave-last split with users of 0 to ``longest`` events, and repeats."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, users)
    rows = rng.integers(1, items + 1, lengths.sum()).astype(np.int32)
    prepared = Prepared(rows, np.concatenate([[0], np.cumsum(lengths)]), items)
    names = Vocabulary(np.arange(1, items + 1), 1), Vocabulary(np.arange(users), 0)
    return Split.of(prepared, LeaveLast(), *names)


def groups(training, items):
    """Per item row, the training events with a history that have it, and the user of each event: one by one."""
    found = {item: [] for item in range(1, items + 1)}
    owner = {}
    for user in range(training.num_users):
        for place, item in enumerate(training.history(user)):
            event = int(training.start[user]) + place
            owner[event] = user
            if place:
                found[int(item)].append(event)
    return found, owner


def test_a_partner_is_another_training_event_with_the_same_item():
    split = made()
    found, owner = groups(split.train, 12)
    same = same_item(split.train)
    assert len(same) == sum(map(len, found.values()))
    assert same.counts(np.arange(1, 13)).tolist() == [len(found[item]) for item in range(1, 13)]
    events = np.array([event for group in found.values() for event in group])
    items = np.array([item for item, group in found.items() for _ in group])
    for seed in range(20):
        users, partners = same.draw(events, items, torch.Generator().manual_seed(seed))
        for event, item, user, partner in zip(events, items, users, partners):
            assert partner in found[item] and owner[int(partner)] == user
            assert (partner != event) == (len(found[item]) > 1)


def test_partners_are_drawn_uniformly():
    split = made(3, users=60)
    found, _ = groups(split.train, 12)
    item = max(found, key=lambda one: len(found[one]))
    event, others = found[item][1], set(found[item]) - {found[item][1]}
    count = 4000
    _, partners = same_item(split.train).draw(
        np.full(count, event), np.full(count, item), torch.Generator().manual_seed(0)
    )
    drawn, times = np.unique(partners, return_counts=True)
    assert set(drawn.tolist()) == others
    expected = count / len(others)
    assert ((times - expected) ** 2 / expected).sum() < 3 * len(others)  # chi-square, mean len(others) - 1


def test_a_batch_carries_the_events_it_predicts_when_a_part_needs_them():
    split = made()
    users = np.flatnonzero(split.train.lengths > 1)
    batch = split.train.gather(users, 3, needs=frozenset({"events"}))
    assert batch.events.tolist() == (split.train.stop[users] - 1).tolist()
    assert split.train.gather(users, 3).events is None
    moved = batch.select(torch.tensor([1, 0])).events
    assert moved.tolist() == batch.events[[1, 0]].tolist()
