"""What a learned model begins its next training with: the weights it has, found by raw id, or new ones when asked."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from cycles import cycles, outcome, plain, tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import recsys as rs
from recsys.data.cut import Cut
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.errors import DataWarning, LeakageError
from recsys.ids.vectors import Vectors
from recsys.ids.vocabulary import Vocabulary
from recsys.items.ids import IdItems
from recsys.items.local import LocalItems
from recsys.items.sums import SumItems
from recsys.items.text import TextItems
from recsys.objectives.softmax import FullSoftmax
from recsys.recommenders.composed import Recommender
from recsys.runs.read import load_run
from recsys.train.fit import fit
from recsys.train.settings import Stage
from recsys.train.warm import merged

QUIET = {"progress": False, "batch_size": 32}


def walks(names, people=12, length=6, first_user=0):
    """A leave-last split of users who walk round the items called ``names``, in that order of rows."""
    items = (np.arange(people)[:, None] + np.arange(length)) % len(names) + 1
    times = np.arange(people * length) * 1000
    prepared = Prepared(items.astype(np.int32).ravel(), np.arange(people + 1) * length, len(names), times=times)
    users = Vocabulary(np.arange(first_user, first_user + people), first=0)
    return Split.of(prepared, LeaveLast(), Vocabulary(np.array(names, object), first=1), users, name="walks")


def names(count, first=0):
    return [f"p{number:02d}" for number in range(first, first + count)]


def weights(model):
    return plain(model.tensors())


@pytest.fixture(scope="module")
def small():
    return walks(names(10))


def trained(split, **parts):
    model = tiny(**parts)
    fit(model, split, epochs=1, learning_rate=0.01, **QUIET)
    return model


def test_k5_a_a_loaded_run_goes_on_from_its_weights(small, tmp_path):
    fit(tiny(), small, epochs=2, learning_rate=0.01, folder=tmp_path, **QUIET)
    loaded = load_run(tmp_path)
    before = weights(loaded)
    fit(loaded, small, epochs=1, learning_rate=1e-30, **QUIET)
    assert weights(loaded) == before


def test_b8_fit_of_no_epochs_changes_nothing(small):
    model = trained(small)
    before = weights(model)
    fit(model, small, epochs=0, **QUIET)
    assert weights(model) == before


def test_init_fresh_gives_what_a_new_model_gives(small):
    model, new = trained(small), tiny()
    for one, init in ((model, "fresh"), (new, "keep")):
        fit(one, small, epochs=1, seed=5, init=init, **QUIET)
    assert weights(model) == weights(new)
    with pytest.raises(ValueError, match="init"):
        fit(model, small, epochs=1, init="warm", **QUIET)


def test_a_model_that_was_only_bound_starts_anew_and_one_whose_weights_were_set_goes_on(small):
    bound, new, given_ = tiny(), tiny(), tiny()
    bound.bind(_context(small))
    fit(bound, small, epochs=1, **QUIET)
    fit(new, small, epochs=1, **QUIET)
    assert weights(bound) == weights(new)
    given_.bind(_context(small))
    with torch.no_grad():
        given_.items.weight[3] = 7.0
    fit(given_, small, epochs=0, **QUIET)
    assert (given_.items.weight[3] == 7.0).all()


def _context(split):
    from recsys.protocols import Context

    return Context(split.num_items, split.items, split.train, split.item_text, 0, split.users)


def test_fit_says_which(small, capsys):
    model = tiny()
    for init, said in (("keep", "starts from new weights"), ("keep", "goes on"), ("fresh", "drops")):
        fit(model, small, epochs=0, init=init)
        assert said in capsys.readouterr().err
    fit(model, walks(names(12, 2), people=14), epochs=0)
    text = capsys.readouterr().err
    assert "4 items are new" in text and "2 items are gone" in text and "2 users are new" in text


def test_a_counted_model_learns_anew_and_says_so(small, capsys):
    model = rs.Popularity()
    fit(model, small)
    fit(model, walks(names(12)))
    assert "anew" in capsys.readouterr().err and model.num_items == 12 and model.cut is not None


@pytest.mark.parametrize("ids", [names(10), names(14), names(10)[::-1], names(6, 3), names(13, 5)[::-1]])
def test_hostile_5_rows_are_carried_over_by_raw_id(small, ids):
    model = Recommender(IdItems(8, extra=2), tiny().encoder, FullSoftmax())
    fit(model, small, epochs=1, learning_rate=0.01, **QUIET)
    before, old = model.items.weight.detach().clone(), model.vocabulary
    encoder = plain(model.encoder.state_dict())
    fit(model, walks(ids), epochs=0, **QUIET)
    assert len(model.items.weight) == len(ids) + 3 and plain(model.encoder.state_dict()) == encoder
    for row, name in enumerate(ids, 1):
        known = int(old.rows([name])[0])
        expected = before[known] if known > 0 else before[1:11].double().mean(0).float()
        assert torch.equal(model.items.weight[row], expected), name
    assert torch.equal(model.items.weight[0], before[0]) and torch.equal(model.items.weight[-2:], before[-2:])
    fit(model, walks(ids), epochs=1, **QUIET)  # and it trains


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(ids=st.lists(st.integers(0, 15), min_size=4, max_size=15, unique=True))
def test_k5_any_catalogue_keeps_the_vectors_of_its_known_items(small, ids):
    model = tiny()
    fit(model, small, epochs=0, **QUIET)
    model.learned = True
    before = dict(zip(model.vocabulary.ids.tolist(), model.item_vectors(), strict=True))
    fit(model, walks([f"p{number:02d}" for number in ids]), epochs=0, **QUIET)
    for name, vector in zip(model.vocabulary.ids.tolist(), model.item_vectors(), strict=True):
        assert name not in before or np.array_equal(vector, before[name])


class Untied(LocalItems):
    """A foreign table: other rows at the output (from item row 1 on), a bias per item, a vector per user."""

    def __init__(self, dim=8):
        super().__init__()
        self.dim, self.num_items = dim, 0

    def bind(self, context):
        self.num_items, n = context.num_items, context.num_items
        self.inputs = torch.nn.Embedding(n + 1, self.dim)
        self.outputs = torch.nn.Parameter(torch.randn(n, self.dim))
        self.crossed = torch.nn.Parameter(torch.randn(3, n))
        people = 0 if context.users is None else len(context.users)
        self.people = torch.nn.Parameter(torch.randn(people, 2))

    def embed(self, ids):
        return self.inputs(ids)

    def output(self, ids):
        return self.outputs[(ids - 1).clamp(min=0)]


def test_tables_of_others_are_carried_over_without_a_word_from_them(small):
    model = Recommender(Untied(), tiny().encoder, FullSoftmax())
    fit(model, small, epochs=1, **QUIET)
    old = {name: value.clone() for name, value in model.items.state_dict().items()}
    fit(model, walks(names(12, 3)[::-1], people=14, first_user=3), epochs=0, **QUIET)
    now = model.items.state_dict()
    assert torch.equal(now["outputs"][-1], old["outputs"][3])  # p03 stands last
    assert torch.equal(now["inputs.weight"][-1], old["inputs.weight"][4])
    assert torch.equal(now["crossed"][:, -1], old["crossed"][:, 3])
    assert torch.equal(now["people"][0], old["people"][3]) and len(now["people"]) == 14
    torch.testing.assert_close(now["people"][-1], old["people"].mean(0))


def test_a_part_that_cannot_be_carried_over_is_named(small):
    class Odd(torch.nn.Module):
        def __init__(self, weight=0.1):
            super().__init__()
            self.weight = weight

        def bind(self, context):
            self.table = torch.nn.Parameter(torch.ones(2 * context.num_items))

        def forward(self, step):
            return self.table.sum() * 0

    model = trained(small, auxiliaries=[Odd()])
    before, cut = weights(model), model.cut
    with pytest.raises(ValueError, match=r"Odd.*fresh"):
        fit(model, walks(names(12)), epochs=0, **QUIET)
    assert weights(model) == before and model.cut == cut and model.num_items == 10 and model.learned
    fit(model, walks(names(12)), epochs=0, init="fresh", **QUIET)


@pytest.mark.parametrize(
    "wrong",
    [
        {"metric": "ndcg@500"},
        {"stages": [Stage(1), Stage(1, losses=["nope"])]},
        {"stages": [Stage(1, losses=["loss.nope"])], "batch_size": 0},
        {"folder": "file/run"},
    ],
)
def test_k5_a_refused_fit_leaves_what_was_learned(small, tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    model = trained(small)
    before, cut = weights(model), model.cut
    with pytest.raises((ValueError, OSError)):
        fit(model, walks(names(4)), **{"epochs": 1, **QUIET, **wrong})
    assert weights(model) == before and model.cut == cut and model.num_items == 10 and model.learned
    assert model.recommend([["p01", "p09"]], 3).items


def test_k7_a_counted_model_is_refused_before_it_is_counted(small):
    model = rs.EASE()
    fit(model, small, **QUIET)
    before = weights(model)
    with pytest.raises(ValueError, match="500"):
        fit(model, walks(names(4)), metric="ndcg@500", **QUIET)
    assert weights(model) == before and model.num_items == 10


@pytest.mark.parametrize("trainable", [False, True])
def test_texts_place_new_items_and_old_vectors_stay(small, tmp_path, trainable):
    random = np.random.default_rng(0)
    texts = random.standard_normal((14, 5)).astype(np.float32)
    Vectors.of(names(14), texts).save(tmp_path / "texts")
    table = TextItems(8, str(tmp_path / "texts"), trainable=trainable)
    model = Recommender(SumItems([table, IdItems(8)]), tiny().encoder, FullSoftmax())
    fit(model, small, epochs=1, learning_rate=0.01, **QUIET)
    before = model.item_vectors()
    mean = texts[:10].mean(0)
    fit(model, walks(names(14)), epochs=0, **QUIET)
    assert np.array_equal(model.item_vectors()[:10], before)
    expected = (texts[10:] - mean) / np.linalg.norm(texts[10:] - mean, axis=1, keepdims=True)
    np.testing.assert_allclose(table.text[11:].detach(), expected, rtol=1e-5, atol=1e-6)
    assert bool(table.known[1:].all())


def test_statistics_are_counted_on_the_new_data(small):
    weighting = rs.InversePropensity()
    model = trained(small, weightings=[weighting])
    new = walks(names(12, 2), people=30)
    fit(model, new, epochs=0, **QUIET)
    other = tiny(weightings=[rs.InversePropensity()])
    fit(other, new, epochs=0, **QUIET)
    assert torch.equal(weighting.propensity.theta, other.weightings[0].propensity.theta)
    assert torch.equal(model.popularity, other.popularity)


def test_a_resumed_run_goes_on_from_its_checkpoint_whatever_the_model_has_learned(small, tmp_path):
    start = trained(small)
    new = walks(names(12))
    tensors = start.tensors()
    for folder, epochs in (("whole", [2]), ("parts", [1, 2])):
        model = tiny()
        model.bind(_context(small))
        model.load_tensors(tensors)
        model.cut = start.cut
        for count in epochs:
            fit(model, new, epochs=count, folder=tmp_path / folder, **QUIET)
            model = trained(small)  # another one resumes
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")


# Which events a model has learned from.


def test_b2_a_b_another_cut_or_weights_are_another_run(small, tmp_path):
    fit(tiny(), small, epochs=1, folder=tmp_path, **QUIET)
    shorter = dataclasses.replace(small, train_stop=small.train_stop - 1)
    weighted = dataclasses.replace(small.prepared, weights=np.linspace(1, 2, 72, dtype=np.float32))
    for other in (shorter, dataclasses.replace(small, prepared=weighted)):
        with pytest.raises(ValueError, match="cut"):
            fit(tiny(), other, epochs=2, folder=tmp_path, **QUIET)


def test_the_cut_is_kept_in_model_run_and_bundle(small, tmp_path):
    model = tiny()
    fit(model, small, epochs=1, folder=tmp_path / "run", **QUIET)
    loaded = load_run(tmp_path / "run")
    assert loaded.cut == model.cut == small.cut and np.array_equal(loaded.cut.stops, small.train_stop)
    rs.export(loaded, tmp_path / "bundle", split=small)
    assert rs.Bundle.load(tmp_path / "bundle").model.cut == small.cut
    counted = rs.Popularity()
    fit(counted, small, folder=tmp_path / "counted", **QUIET)
    assert np.array_equal(load_run(tmp_path / "counted").cut.stops, small.train_stop)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["cut"] == small.cut.to_dict() == config["identity"]["data"]["cut"]


def test_what_was_learned_before_stays_known(small):
    longer = dataclasses.replace(small, train_stop=small.train_stop - 1, valid_stop=small.valid_stop - 1)
    model = trained(small)
    with pytest.raises(LeakageError):
        fit(model, longer, epochs=1, **QUIET)
    fit(model, longer, epochs=1, validate_every=0, **QUIET)
    assert model.cut.digest not in (small.cut.digest, longer.cut.digest)
    assert np.array_equal(model.cut.stops, small.train_stop)
    fit(model, longer, epochs=1, init="fresh", **QUIET)
    assert model.cut == longer.cut


def test_a_model_that_took_items_in_goes_on_with_the_split_that_it_learned(tmp_path):
    split, dim = walks(names(8)), 8
    Vectors.of(names(10), np.random.default_rng(0).normal(size=(10, dim)).astype(np.float32)).save(tmp_path / "vectors")
    model = Recommender(TextItems(dim, str(tmp_path / "vectors")), tiny().encoder, FullSoftmax())
    fit(model, split, epochs=1, **QUIET)
    learned = {name: value.clone() for name, value in model.named_parameters()}
    model.add_items(names(2, first=8))
    fit(model, split, epochs=0, validate_every=0, **QUIET)
    assert model.num_items == 8 and model.vocabulary.digest == split.items.digest
    for name, value in model.named_parameters():
        assert torch.equal(value, learned[name]), name


def test_going_on_with_data_that_may_have_been_learned_is_warned_of():
    model = trained(cycles(users=15))
    with pytest.warns(DataWarning, match="it is not known whether"):
        fit(model, cycles(users=12), epochs=1, **QUIET)


def test_cuts_merge():
    def cut(events="e", stops=None, newest=5):
        return Cut(events, "c", "u", f"{events}{stops}", newest, None if stops is None else np.array(stops))

    assert merged(cut(stops=[1, 2]), cut(stops=[2, 2])) == cut(stops=[2, 2])
    both = merged(cut(stops=[3, 1]), cut(stops=[2, 2]))
    assert both.stops.tolist() == [3, 2] and both.digest not in ("e[3, 1]", "e[2, 2]")
    other = merged(cut("f", [3], 9), cut("e", [2, 2]))
    assert other.stops is None and other.newest == 9 and other.events == "e"
    assert merged(None, cut()).digest != cut().digest


def test_a_catalogue_of_other_users_and_items_on_two_cycles():
    model = trained(cycles(users=12))
    fit(model, cycles(users=15, items=24), epochs=1, **QUIET)
    assert model.num_items == 24


def test_an_encoder_that_reads_texts_keeps_its_tokenizer_and_makes_its_matrix_anew():
    pytest.importorskip("tokenizers")
    from recsys.encoders.recformer import Recformer
    from recsys.items.recformer import RecformerItems
    from recsys.llm.tokens import ItemTokens
    from recsys.targets.last_item import LastItem

    def texted(count, word):
        split = walks(names(count), people=8, length=5)
        titles = np.array(["", *(f"{word} item {number % 4} of {number}" for number in range(count))], object)
        return dataclasses.replace(split, item_text={"title": titles})

    tokens = ItemTokens(columns=["title"], vocab_size=300)
    encoder = Recformer(tokens, dim=8, num_layers=1, num_heads=1, window=4, max_tokens=32, max_length=4)
    model = Recommender(RecformerItems(8), encoder, FullSoftmax(), LastItem())
    old = texted(6, "plain")
    fit(model, old, epochs=1, **QUIET)
    recipe, sentences = tokens.recipe.clone(), tokens.encode([{"title": "plain item 1"}])
    vectors = model.item_vectors()
    fit(model, texted(9, "plain"), epochs=0, **QUIET)
    assert torch.equal(tokens.recipe, recipe) and len(tokens.offsets) == 9 + 2
    assert torch.equal(tokens.encode([{"title": "plain item 1"}]).ids, sentences.ids)
    assert not model.items.made
    scores = model.scores([["p00", "p08"]])
    assert np.isfinite(scores).all() and scores.shape == (1, 9)
    np.testing.assert_allclose(model.item_vectors()[:6].shape, vectors.shape)
    model.items.check_split(None)
    tokens.check_split(texted(9, "plain"))
    fit(model, texted(9, "plain"), epochs=1, **QUIET)


@pytest.mark.parametrize("make", ["hybrid", "intents", "editor"])
def test_parts_with_marks_of_epochs_go_on_with_other_items(small, make):
    from recsys.auxiliaries.cl4srec import CL4SRec
    from recsys.auxiliaries.coserec import CoSeRec
    from recsys.auxiliaries.editor import Editor
    from recsys.auxiliaries.intents import IntentContrast
    from recsys.auxiliaries.triplet import TripletContrast
    from recsys.statistics.similarity import EmbeddingSimilar

    part = {
        "hybrid": lambda: CoSeRec(similar=EmbeddingSimilar()),
        "intents": lambda: IntentContrast(CL4SRec(), dim=8, clusters=2),
        "editor": lambda: TripletContrast(editor=Editor(8, max_length=6), keep_learning=0.5),
    }[make]()
    model = Recommender(IdItems(8, extra=2), tiny().encoder, FullSoftmax(), auxiliaries=[part])
    fit(model, small, epochs=1, **QUIET)
    if make == "editor":
        assert bool(part.taught)
    for split in (small, walks(names(13)[::-1])):
        fit(model, split, epochs=1, **QUIET)
    if make == "editor":
        assert bool(part.taught)
    if make == "hybrid":
        assert len(part.similar.neighbour) == 14 and int(part.similar.neighbour.max()) <= 13
    if make == "intents":
        assert int(part.marks[2]) == 1
