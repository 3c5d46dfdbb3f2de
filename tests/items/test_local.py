"""What a table makes of its output vectors, against the whole matrix; input-only rows that parts ask for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.augmentations.mask import Mask
from recsys.auxiliaries.cl4srec import CL4SRec
from recsys.auxiliaries.editor import Editor
from recsys.auxiliaries.triplet import TripletContrast
from recsys.encoders.bert4rec import BERT4Rec
from recsys.encoders.sasrec import SASRec
from recsys.items import local
from recsys.items.ids import IdItems
from recsys.items.local import LocalItems
from recsys.items.recformer import RecformerItems
from recsys.items.sums import SumItems
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context, ItemTable
from recsys.ranking.ties import best
from recsys.recommenders.composed import Recommender
from recsys.storage.parts import build, describe
from recsys.targets.masked_items import MaskedItems
from recsys.testing import check_items, toy_context

DIM = 8


class Signs(LocalItems):
    """The least that a table of somebody's says: many items have equal vectors."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.dim = dim
        self.vectors = torch.nn.Linear(dim, dim, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        return self.output(ids)

    def output(self, ids: Tensor) -> Tensor:
        bits = (ids[..., None] * 7 // 3) >> torch.arange(self.dim) & 1
        return self.vectors((bits * 2.0 - 1.0) * (torch.arange(self.dim) < 3))


def bound(items: Any, num_items: int = 97) -> Any:
    torch.manual_seed(0)
    items.bind(Context(num_items))
    return items


def test_a_table_of_somebody_conforms_and_trains() -> None:
    check_items(Signs(16))
    model = Recommender(Signs(), SASRec(DIM, 1, max_length=6), FullSoftmax())
    model.bind(toy_context())
    assert model.item_vectors().shape == (30, DIM)
    assert isinstance(model.items, ItemTable)
    assert [item for item, _ in model.similar(["i1"], 3)[0]] != ["i1"]


@pytest.mark.parametrize("held", [1, 97 * 16, 10**6])
def test_the_best_of_many_products_in_chunks_are_those_of_all(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PRODUCTS", held)
    table, states = bound(Signs()), torch.randn(29, DIM)
    with torch.no_grad():
        scores = table.scores(states)
    assert len(scores[0].unique()) < 10  # equal ones at every cut
    for k in (1, 5, 97, 200):
        expected, columns = best(scores, k)
        values, rows = table.topk(states, k)
        assert torch.equal(rows, columns + 1)
        assert torch.equal(values, expected)
    values, rows = table.topk(states[:0], 3)
    assert (values.shape[0], rows.shape[0]) == (0, 0)


def test_scores_carry_gradients_and_cosines_do() -> None:
    table, states = bound(IdItems(DIM)), torch.randn(3, DIM, requires_grad=True)
    for metric in ("dot", "cosine"):
        weights = torch.randn(3, 97)
        ours = torch.autograd.grad((table.scores(states, metric) * weights).sum(), [states, table.weight])
        left, right = states, table.weight[1:]
        if metric == "cosine":
            left, right = F.normalize(left, dim=1), F.normalize(right, dim=1)
        theirs = torch.autograd.grad((left @ right.T * weights).sum(), [states, table.weight])
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_is_no_item_table_is_refused_when_parts_are_put_together() -> None:
    class Bare(torch.nn.Module):
        dim, num_items = DIM, 0

        def embed(self, ids: Tensor) -> Tensor:
            return ids

        output = embed

        def blocks(self, size: int | None = None) -> Any:
            yield 1, torch.zeros(1, DIM)

    for make in (lambda: Recommender(Bare(), SASRec(DIM), FullSoftmax()), lambda: SumItems([IdItems(DIM), Bare()])):  # type: ignore[arg-type, list-item]
        with pytest.raises(TypeError, match=r"Bare has no .*log_sum_exp.*LocalItems"):
            make()


def test_rows_are_asked_for_by_the_parts_that_need_them() -> None:
    sasrec: dict[str, Any] = {"encoder": SASRec(DIM, 1, max_length=9), "objective": FullSoftmax()}
    for given, rows in (
        ({"targets": MaskedItems(), "encoder": BERT4Rec(DIM, 1, max_length=9)}, 1),
        ({"auxiliaries": [CL4SRec()]}, 1),
        (
            {
                "auxiliaries": [
                    CL4SRec(operations=[Mask(0.3), Mask(0.5)]),
                    TripletContrast(editor=Editor(DIM, max_length=9)),
                ]
            },
            2,
        ),
        ({"auxiliaries": [CL4SRec(0)]}, 0),
        ({}, 0),
    ):
        model = Recommender(IdItems(DIM), **{**sasrec, **given})
        model.bind(toy_context())
        assert model.items.extra == rows
        assert len(model.items.weight) == 31 + rows  # type: ignore[arg-type]
        again = build(describe(model))
        assert again.items.extra == rows
    asked = IdItems(DIM, extra=3)
    Recommender(asked, BERT4Rec(DIM, 1, max_length=9), FullSoftmax(), MaskedItems())
    assert asked.extra == 3


def test_a_model_that_asked_for_its_rows_starts_as_one_that_was_given_them() -> None:
    tensors = []
    for items in (IdItems(DIM), IdItems(DIM, extra=1)):
        model = Recommender(items, BERT4Rec(DIM, 1, max_length=9), FullSoftmax(), MaskedItems())
        model.bind(toy_context())
        tensors.append((describe(model), model.tensors()))
    (told, ours), (expected, theirs) = tensors
    assert told == expected
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_part_that_counts_later_asks_when_the_model_is_bound() -> None:
    part = CL4SRec(0)
    model = Recommender(IdItems(DIM), SASRec(DIM, 1, max_length=9), FullSoftmax(), auxiliaries=[part])
    part.weight = 0.1
    model.bind(toy_context())
    assert model.items.extra == 1


def test_a_table_without_room_for_a_mask_names_the_part_that_wants_it() -> None:
    with pytest.raises(ValueError, match=r"MaskedItems \(targets\) needs 1 .*RecformerItems"):
        Recommender(RecformerItems(DIM), BERT4Rec(DIM, 1, max_length=9), FullSoftmax(), MaskedItems())


def test_the_tables_of_a_sum_get_the_same_rows() -> None:
    both = SumItems([IdItems(DIM, extra=1), IdItems(DIM)])
    assert [table.extra for table in (both, *both.tables)] == [1, 1, 1]
    model = Recommender(
        both,
        SASRec(DIM, 1, max_length=9),
        FullSoftmax(),
        auxiliaries=[TripletContrast(editor=Editor(DIM, max_length=9))],
    )
    model.bind(toy_context())
    assert [len(table.weight) for table in both.tables] == [33, 33]
