"""Parts as class name and JSON: what is kept, what is refused."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest

from recsys.auxiliaries.coserec import CoSeRec
from recsys.encoders.sasrec import SASRec
from recsys.items.ids import IdItems
from recsys.items.sums import SumItems
from recsys.negatives.uniform import UniformNegatives
from recsys.objectives.sampled import SampledSoftmax
from recsys.objectives.softmax import FullSoftmax
from recsys.recommenders.composed import Recommender
from recsys.statistics.similarity import EmbeddingSimilar, Hybrid, ItemCF
from recsys.storage.parts import build, describe


def test_arguments_survive_json() -> None:
    again = build(json.loads(json.dumps(describe(SASRec(dim=8, layout="ligr", dropout=0.35)))))
    assert (again.dim, again.layout, again.dropout, again.max_length) == (8, "ligr", 0.35, 50)


def test_foreign_code_runs_only_when_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "visitor.py").write_text("LOADED = []\nclass Part:\n    def __init__(self, a=1):\n        self.a = a\n")
    monkeypatch.syspath_prepend(tmp_path)
    description = {"class": "visitor:Part", "arguments": {"a": 5}}
    with pytest.raises(PermissionError, match="trust"):
        build(description)
    assert "visitor" not in sys.modules
    assert build(description, trust=["visitor"]).a == 5


def test_a_trusted_module_that_is_not_there_is_explained() -> None:
    with pytest.raises(ValueError, match="PYTHONPATH"):
        build({"class": "nowhere_at_all:Part", "arguments": {}}, trust=["nowhere_at_all"])


@pytest.mark.parametrize(
    "name", ["recsys.storage.parts:json", "recsys.encoders.sasrec:Block", "recsys.storage.parts:describe", "os:system"]
)
def test_only_classes_defined_where_they_say_are_built(name: str) -> None:
    with pytest.raises((ValueError, PermissionError)):
        build({"class": name, "arguments": {}})


def test_an_argument_that_was_not_kept_is_named() -> None:
    class Forgetful:
        def __init__(self, width: int) -> None:
            pass

    with pytest.raises(TypeError, match="width"):
        describe(Forgetful(3))


def test_an_argument_that_is_no_data_is_named() -> None:
    class Holder:
        def __init__(self, function: object) -> None:
            self.function = function

    with pytest.raises(TypeError, match=r"Holder\.function"):
        describe(Holder(lambda: 0))


def through_json(part):
    return build(json.loads(json.dumps(describe(part))))


def test_b4_a_part_in_two_places_is_one_after_loading() -> None:
    table = IdItems(8)
    again = through_json(SumItems([table, IdItems(8), table]))
    assert again.tables[0] is again.tables[2] and again.tables[0] is not again.tables[1]
    negatives = UniformNegatives(3)
    again = through_json(SumItems([IdItems(8), IdItems(8)]))
    assert again.tables[0] is not again.tables[1]
    model = Recommender(IdItems(8), SASRec(8), SampledSoftmax(negatives), auxiliaries=[])
    assert "shared" not in json.dumps(describe(model))


def test_b3_what_coserec_shares_stays_shared() -> None:
    own = Hybrid(ItemCF(), EmbeddingSimilar(), 3)
    auxiliary = CoSeRec(similar=own)
    again = through_json(
        Recommender(IdItems(8), SASRec(8), FullSoftmax(), auxiliaries=[auxiliary, CoSeRec(similar=own)])
    )
    assert again.auxiliaries[0].similar is again.auxiliaries[1].similar


SOFTMAX = {"class": "recsys.objectives.softmax:FullSoftmax", "arguments": {}}
TABLE = {"class": "recsys.items.ids:IdItems", "arguments": {"dim": 8}}
ENCODER = {"class": "recsys.encoders.sasrec:SASRec", "arguments": {"dim": 8}}
WHOLE = {"items": TABLE, "encoder": ENCODER, "objective": SOFTMAX}


def recommender(**changed):
    return {"class": "recsys.recommenders.composed:Recommender", "arguments": {**WHOLE, **changed}}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (
            "recsys.llm.embed:_SentenceEncoder",
            {"name": "attacker/repo", "device": "cpu", "revision": None, "offline": False},
        ),
        ("recsys.llm.chat:ChatEndpoint", {"url": "http://127.0.0.1:9", "model": "x"}),
        ("recsys.llm.local:LocalWriter", {"model": "attacker/repo"}),
        ("recsys.runs.write:RunFolder", {"path": "/tmp/x"}),
        ("recsys.cards.fetch:Fetcher", {}),
        ("recsys.auxiliaries.teacher:TeacherStates", {}),
        ("recsys.auxiliaries.histories:Histories", {}),
        ("recsys.weighting.propensity:Propensity", {}),
        ("recsys.ids.vocabulary:Vocabulary", {}),
        ("recsys.storage.files:Workplace", {"target": "/tmp/x"}),
        ("recsys.items:torch", {}),
        ("recsys.items.sums:_sum", {}),
        ("recsys.cli:main", {}),
        ("recsys.recommenders.composed:nn.Module", {}),
        ("recsys.recommenders.composed:", {}),
        ("recsys..recommender:Recommender", {}),
        ("", {}),
    ],
)
def test_hostile_4_only_public_parts_are_made(name: str, arguments: dict) -> None:
    for description in (
        {"class": name, "arguments": arguments},
        recommender(objective={"class": name, "arguments": arguments}),
    ):
        with pytest.raises((ValueError, PermissionError)):
            build(description)


@pytest.mark.parametrize(
    "changed",
    [
        {"objective": None}, {"objective": 7}, {"objective": [SOFTMAX]}, {"items": ENCODER}, {"encoder": TABLE},
        {"targets": TABLE}, {"auxiliaries": [TABLE]}, {"auxiliaries": {}}, {"auxiliaries": "x"}, {"items": None},
        {"objective": {"class": "recsys.targets.next_item:NextItem", "arguments": {}}},
        {"objective": {"class": "recsys.negatives.uniform:UniformNegatives", "arguments": {}}},
        {"items": {**TABLE, "arguments": []}}, {"items": {"class": 7, "arguments": {}}}, {"items": {"class": None}},
        {"items": {"class": "recsys.items.ids:IdItems", "shared": 3}}, {"items": {**TABLE, "arguments": {"dim": None}}},
        {"items": {**TABLE, "arguments": {"dim": [8]}}}, {"encoder": {**ENCODER, "arguments": {"dim": TABLE}}},
        {"unknown": 1},
    ],
)  # fmt: skip
def test_hostile_4_a_part_must_fit_its_place(changed: dict) -> None:
    build(recommender())
    with pytest.raises((ValueError, TypeError)):
        build(recommender(**changed))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("recsys.items.text:TextItems", {"vectors": "/etc", "text_dim": None}),
        ("recsys.items.frozen:FrozenItems", {"run": "/etc", "dim": None}),
        ("recsys.auxiliaries.semantic:SemanticContrast", {"vectors": "/etc", "text_dim": None}),
        ("recsys.llm.tokens:ItemTokens", {"tokenizer": "attacker/repo", "vocab_size": None}),
    ],
)
def test_hostile_4_making_a_part_reads_no_other_folder_and_asks_no_hub(name: str, arguments: dict) -> None:
    with pytest.raises(PermissionError, match="trust"):
        build({"class": name, "arguments": arguments})
    with pytest.raises((OSError, ValueError)) as caught:
        build(
            {"class": name, "arguments": {**arguments, "tokenizer": "/etc"} if "tokenizer" in arguments else arguments},
            trust=["/etc"],
        )
    assert not isinstance(caught.value, PermissionError)


def test_arguments_that_came_later_count_as_their_defaults() -> None:
    from recsys.items.codes import CodeItems
    from recsys.storage.parts import with_new_defaults

    now = {"model": describe(Recommender(CodeItems(8, "ids"), SASRec(8), FullSoftmax())), "settings": {"a": 1}}
    before = copy.deepcopy(now)
    items = before["model"]["arguments"]["items"]["arguments"]
    del items["start"]
    assert before != now and with_new_defaults(before, now) == now
    told = copy.deepcopy(now)
    told["model"]["arguments"]["items"]["arguments"]["start"] = "codewords"
    assert with_new_defaults(before, told) == before  # what is now asked for is not what it was
    items["std"] = 0.5
    assert with_new_defaults(before, now) != now
    unknown = {"class": "nowhere:Part", "arguments": {}}
    assert with_new_defaults(unknown, {"class": "nowhere:Part", "arguments": {"x": 1}}) == unknown
