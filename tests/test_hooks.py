"""Hooks reach every part of every seam, module or not, at any depth, once each; and unused parts change nothing."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cycles import cycles, plain, tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from recsys import hooks, protocols
from recsys.auxiliaries.cl4srec import CL4SRec
from recsys.auxiliaries.coserec import CoSeRec
from recsys.auxiliaries.duorec import DuoRec
from recsys.auxiliaries.triplet import TripletContrast
from recsys.encoders.sasrec import SASRec
from recsys.items.ids import IdItems
from recsys.items.local import VERBS
from recsys.items.sums import SumItems
from recsys.negatives.uniform import UniformNegatives
from recsys.objectives.sampled import SampledSoftmax
from recsys.objectives.softmax import FullSoftmax
from recsys.recommenders.composed import Recommender
from recsys.storage.parts import build, describe
from recsys.targets.next_item import NextItem
from recsys.testing import check_ranker, toy_context
from recsys.train.fit import fit

HOOKS = ("bind", "on_stage", "on_epoch")


class Told:
    """Counts the hooks that reach it; no module."""

    source = "one"

    def __init__(self) -> None:
        self.told: list[str] = []

    def bind(self, context: Any) -> None:
        self.told.append("bind")

    def on_stage(self, name: str) -> None:
        self.told.append("on_stage")

    def on_epoch(self, epoch: int) -> None:
        self.told.append("on_epoch")

    def sources(self) -> str:
        return self.source

    def check_split(self, split: Any) -> None:
        self.told.append("check_split")

    def sections(self, model: Any, split: Any) -> dict[str, Any]:
        return {type(self).__name__: "here"}


class PlainTargets(Told, NextItem):
    pass


class PlainObjective(Told):
    def __call__(self, encoded: Any, batch: Any, items: Any, generator: Any) -> Any:
        return FullSoftmax()(encoded, batch, items, generator)


class PlainNegatives(Told, UniformNegatives):
    def __init__(self, count: int = 3) -> None:
        UniformNegatives.__init__(self, count)
        Told.__init__(self)


class PlainAuxiliary(Told):
    def __init__(self, weight: float = 0.5, inner: Any = None) -> None:
        super().__init__()
        self.weight, self.inner = weight, inner

    def __call__(self, step: Any) -> Any:
        return step.encoded.user.square().mean()


class PlainAugmentation(Told):
    def __call__(self, batch: Any, generator: Any) -> Any:
        return batch


class PlainWeighting(Told):
    normalised = True

    def __call__(self, batch: Any) -> Any:
        return torch.ones(batch.ids.shape)


class PlainItems(Told):
    def __init__(self, table: IdItems) -> None:
        super().__init__()
        self.table, self.dim = table, table.dim

    def __getattr__(self, name: str) -> Any:
        if name in VERBS:
            return getattr(self.table, name)
        raise AttributeError(name)

    def bind(self, context: Any) -> None:
        super().bind(context)
        self.table.bind(context)


class PlainEncoder(Told):
    sees = "past"

    def __init__(self, inner: SASRec) -> None:
        super().__init__()
        self.inner, self.dim, self.max_length = inner, inner.dim, inner.max_length

    def __call__(self, batch: Any, items: Any) -> Any:
        return self.inner(batch, items)

    def bind(self, context: Any) -> None:
        super().bind(context)
        self.inner.bind(context)


def parts_by_slot() -> dict[str, tuple[Any, Told]]:
    """What to put into a recommender, and the part that must be told, for each slot and some depths."""
    inner, negatives = Told(), PlainNegatives()
    found: dict[str, Any] = {
        "targets": PlainTargets(),
        "objective": PlainObjective(),
        "auxiliaries": [PlainAuxiliary()],
        "augmentations": [PlainAugmentation()],
        "weightings": [PlainWeighting()],
    }
    told = {name: part[0] if isinstance(part, list) else part for name, part in found.items()}
    told |= {"objective/negatives": negatives, "auxiliaries/inner": inner}
    found |= {"objective/negatives": SampledSoftmax(negatives)}
    found |= {"auxiliaries/inner": [Holder(inner)]}
    return {name: (found[name], told[name]) for name in found}


class Holder(nn.Module):
    """Has no hook of its own, and holds something that has."""

    def __init__(self, inner: Any, weight: float = 0.5) -> None:
        super().__init__()
        self.inner, self.weight = inner, weight

    def forward(self, step: Any) -> Any:
        return step.encoded.user.square().mean()


@pytest.mark.parametrize("slot", parts_by_slot())
def test_b6_every_hook_reaches_a_part_of_every_seam(slot: str) -> None:
    given, part = parts_by_slot()[slot]
    model = tiny(**{slot.partition("/")[0]: given})
    fit(model, cycles(users=20), epochs=2, batch_size=32, progress=False)
    assert [part.told.count(name) for name in HOOKS] == [1, 1, 2], part.told
    assert list(hooks.sources(model).values()) == ["one"]
    assert [one for _, one in hooks.having(model, "check_split")] == [part]
    assert [one for _, one in hooks.having(model, "sections")] == [part]


def test_b6_plain_items_and_encoders_are_reached() -> None:
    items, encoder = PlainItems(IdItems(8)), PlainEncoder(SASRec(8, 1, max_length=6))
    model = Recommender(items, encoder, FullSoftmax(), auxiliaries=[Holder(None)])
    model.bind(toy_context())
    hooks.call(model, "on_epoch", 0)
    assert items.told == encoder.told == ["bind", "on_epoch"]


def test_b6_other_sources_of_targets_and_augmentations_are_another_run(tmp_path: Path) -> None:
    split = cycles(users=20)
    for slot in ("targets", "augmentations"):
        given, part = parts_by_slot()[slot]
        fit(tiny(**{slot: given}), split, epochs=1, progress=False, folder=tmp_path / slot)
        again, part = parts_by_slot()[slot]
        part.source = "two"
        with pytest.raises(ValueError, match="sources"):
            fit(tiny(**{slot: again}), split, epochs=2, progress=False, folder=tmp_path / slot)


def test_b6_a_plain_auxiliary_trains_and_is_saved() -> None:
    model = tiny(auxiliaries=[PlainAuxiliary()])
    history = fit(model, cycles(users=20), epochs=1, progress=False).history
    assert set(history[0]["terms"]) == {"loss", "PlainAuxiliary0"}
    again = build(describe(model), trust=[__name__])
    assert isinstance(again.auxiliaries[0], PlainAuxiliary)


def test_parts_are_named_by_their_path_each_once() -> None:
    table = IdItems(8)
    model = Recommender(SumItems([table, table]), SASRec(8, 1), FullSoftmax(), auxiliaries=[CL4SRec(0), CoSeRec()])
    names = [name for name, _ in hooks.parts_of(model)]
    assert names[0] == "" and "items.tables.0" in names and "items.tables.1" not in names
    assert "auxiliaries.1.similar" in names and "targets" in names and len(names) == len(set(names))
    used = [name for name, _ in hooks.parts_of(model, used=True)]
    assert not any(name.startswith("auxiliaries.0") for name in used) and "auxiliaries.1.similar" in used


class Head(nn.Module):
    """A foreign auxiliary with weights of its own, which draws."""

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__()
        self.weight, self.layer = weight, nn.Linear(8, 8)

    def forward(self, step: Any) -> Any:
        noise = torch.rand(8, generator=step.generator("Head"))
        return (self.layer(step.encoded.user) - noise).square().mean()


def trained(auxiliaries: list[Any]) -> dict[str, dict[str, bytes]]:
    """Weights after two epochs: the recommender's, and of each used auxiliary."""
    model = Recommender(IdItems(8, extra=2), SASRec(8, 1, 1, max_length=6), FullSoftmax(), auxiliaries=auxiliaries)
    fit(model, cycles(users=12), epochs=2, batch_size=8, progress=False, validate_every=0, seed=3)
    own = {name: value for name, value in model.tensors().items() if not name.startswith("auxiliaries")}
    heads = {str(n): plain(p.state_dict()) for n, p in enumerate(p for p in model.auxiliaries if p.weight)}
    return {"model": plain(own), **heads}


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, bytes]]:
    return trained([CL4SRec(0.1), Head(), Head(0.2)])


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(places=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=3))
def test_b7_unused_parts_anywhere_change_no_weight(alone: Any, places: list[tuple[int, int]]) -> None:
    auxiliaries: list[Any] = [CL4SRec(0.1), Head(), Head(0.2)]
    makers = (lambda: CL4SRec(0), lambda: Head(0), lambda: DuoRec(0), lambda: CoSeRec(0), lambda: TripletContrast(0))
    for place, kind in places:
        auxiliaries.insert(min(place, len(auxiliaries)), makers[kind]())
    assert trained(auxiliaries) == alone


def test_b7_names_count_the_used_parts_of_a_class() -> None:
    def names(*parts: Any) -> list[str]:
        return tiny(auxiliaries=parts).loss_names

    assert names(Head(0), Head(0.1)) == names(Head(0.1), Head(0)) == names(Head(0.1)) == ["loss", "Head0"]
    assert names(Head(), DuoRec(), Head()) == ["loss", "Head0", "DuoRec0", "Head1"]


def test_b7_an_auxiliary_of_weight_0_asks_the_data_for_nothing() -> None:
    class Timed(Head):
        needs = frozenset({"times"})

        def bind(self, context: Any) -> None:
            if context.training is not None:
                context.training.check_needs(self.needs)

    fit(tiny(auxiliaries=[Timed(0)]), cycles(users=12), epochs=1, progress=False)  # data without times


def test_b6_a_recommender_of_plain_parts_conforms() -> None:
    check_ranker(tiny(auxiliaries=[PlainAuxiliary()], augmentations=[PlainAugmentation()], targets=PlainTargets()))


def test_properties_that_make_parts_anew_end() -> None:
    class Endless:
        def __init__(self, parent: Any = None) -> None:
            self.given = Told()

        @property
        def parent(self) -> Any:
            return Endless()

    class Kept:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        @property
        def inner(self) -> Any:
            return self._inner

    told = Told()
    assert len(hooks.parts_of(Endless())) == 1
    assert [part for _, part in hooks.having(Kept(told), "on_epoch")] == [told]


def test_the_tables_of_the_protocols_name_every_hook_and_member() -> None:
    root = Path(hooks.__file__).parent
    sources = [path.read_text() for path in root.rglob("*.py")]
    called = {name for text in sources for name in re.findall(r'(?:having|call)\([\w.]+, "(\w+)"', text)}
    assert {"on_epoch", "param_groups", "refresh", "sections"} <= called
    listed = set(re.findall(r"^(\w+)\(", protocols.__doc__ or "", re.M))
    assert called | {"bind", "state_dict"} <= listed, "a hook is called that the table does not have"
    table = (protocols.__doc__ or "").split("member        default")[1]
    members = dict(re.findall(r'^(\w+) +(frozenset\(\)|None|False|True|0|\(\)|"windows")  ', table, re.M))
    assert members == {name: repr(value).replace("'", '"') for name, value in hooks.DEFAULTS.items()}


def test_members_are_read_with_their_defaults() -> None:
    part = SimpleNamespace(rows_behind=2)
    assert hooks.member(part, "rows_behind") == 2 and hooks.member(part, "longest") is None
    with pytest.raises(KeyError):
        hooks.member(part, "no such member")


def test_tables_in_a_sum_are_refreshed_once() -> None:
    class Made(IdItems):
        def refresh(self, encoder: Any, epoch: int) -> None:
            self.epochs = [*getattr(self, "epochs", []), epoch]

    made = Made(8)
    model = Recommender(SumItems([IdItems(8), made]), SASRec(8, 1), FullSoftmax())
    hooks.call(model, "on_epoch", 3)
    assert made.epochs == [3]
