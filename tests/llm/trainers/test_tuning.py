"""The loop over sequences as a stage of fit: what it trains, what the reference is, resume, and what it tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import recsys as rs
from recsys.data.split import Split
from recsys.errors import DataError, DataWarning
from recsys.hooks import PartList
from recsys.llm.trainers.adapters.adalora import AdaLoRA
from recsys.llm.trainers.adapters.allora import ALLoRA
from recsys.llm.trainers.adapters.aslora import ASLoRA
from recsys.llm.trainers.adapters.lora import LoRA
from recsys.llm.trainers.credit.groups import GroupRelative
from recsys.llm.trainers.credit.reinforce import w_reinforce
from recsys.llm.trainers.drafts import Judged, Rollouts
from recsys.llm.trainers.item_policy import ItemPolicy
from recsys.llm.trainers.judgements import Judgements, Together
from recsys.llm.trainers.objectives.npo import NPO
from recsys.llm.trainers.objectives.policy import PolicyGradient
from recsys.llm.trainers.objectives.supervised import Supervised
from recsys.llm.trainers.sequences import Role, Sequences
from recsys.llm.trainers.tuning import Tuning
from recsys.testing import check_source
from recsys.train.settings import Stage
from tests.cycles import ODD, outcome, tiny, two_circles


class Down:
    """Pushes what is to be forgotten down, up to where the reference no longer matters; keeps what is to be kept."""

    reads = frozenset({"reference"})

    def __call__(self, batch: Sequences) -> dict[str, Tensor]:
        forget, retain = batch.of(Role.FORGET, asked="Down"), batch.of(Role.RETAIN, asked="Down")
        return {"forget": F.softplus(batch.gains[forget]).mean(), "retain": -batch.means[retain].mean()}

    def figures(self, batch: Sequences) -> dict[str, float]:
        gains = batch.gains[batch.role == Role.FORGET].detach()
        return {"gain": float(gains.sum()), "gain of": float(len(gains))}


class Up:
    """Imitates what was rewarded."""

    reads = frozenset({"reward", "entropy"})

    def __call__(self, batch: Sequences) -> Tensor:
        assert batch.reward is not None
        return -(batch.totals * batch.reward).sum() / len(batch)

    def figures(self, batch: Sequences) -> dict[str, float]:
        assert batch.reward is not None
        groups = batch.group.unique()
        flat = [float((one := batch.reward[batch.group == group]).max() == one.min()) for group in groups]
        return {"groups without signal": float(sum(flat)), "groups without signal of": float(len(groups))}


@pytest.fixture(scope="module")
def split() -> Split:
    return two_circles()


_WEIGHTS: dict[str, Tensor] = {}


def trained(split: Split) -> Any:
    """The same trained model each time."""
    model = tiny(dropout=0.0)
    epochs = 1 if _WEIGHTS else 25
    rs.fit(model, split, epochs=epochs, learning_rate=0.02, batch_size=32, validate_every=0, progress=False)
    if not _WEIGHTS:
        _WEIGHTS.update({name: value.clone() for name, value in model.tensors().items()})
    model.load_tensors({name: value.clone() for name, value in _WEIGHTS.items()})
    return model


def sources(split: Split, seed: int = 0) -> Together:
    users = np.arange(split.train.num_users)
    forget = Judgements.of_users(split.train, ODD, Role.FORGET, max_length=6, batch_size=32, seed=seed)
    retain = Judgements.of_users(split.train, users[len(ODD) :], Role.RETAIN, max_length=6, batch_size=16, seed=seed)
    return Together([forget, retain])


def total(model: Any, split: Split, users: np.ndarray) -> float:
    """The mean log-probability of the newest training item of users, given what came before."""
    histories = [split.train.history(user) for user in users]
    assert split.items is not None
    raw = [[split.items.ids[row - 1] for row in history] for history in histories]
    scores = torch.from_numpy(model.scores([one[:-1] for one in raw])).log_softmax(1)
    return float(scores[torch.arange(len(raw)), torch.tensor([history[-1] - 1 for history in histories])].mean())


def unlearn(model: Any, split: Split, folder: Path | None = None, **more: Any) -> Tuning:
    tuning = Tuning(ItemPolicy(model.encoder, model.items), Judged(), Down())
    model.auxiliaries.append(tuning)
    stage = Stage(6, losses=["Tuning0"], data=sources(split))
    rs.fit(model, split, stages=[stage], init="keep", learning_rate=0.01, validate_every=0, progress=False,
           folder=folder, **more)  # fmt: skip
    return tuning


def test_judged_histories_end_before_their_item(split: Split) -> None:
    found = Judgements.of_users(split.train, np.array([3, 5]), Role.FORGET, max_length=4, batch_size=3)
    seen: dict[tuple[int, ...], int] = {}
    for batch in found.epoch(0):
        assert len(batch) <= 3
        for ids, length, judged in zip(batch.ids, batch.lengths, batch.judged):
            seen[tuple(ids[:length].tolist())] = int(judged[0])
    wanted = {}
    for user in (3, 5):
        history = split.train.history(user).tolist()
        wanted |= {tuple(history[max(at - 4, 0) : at]): history[at] for at in range(1, len(history))}
    assert seen == wanted


def test_judgements_of_one_history_share_a_row(split: Split) -> None:
    train = split.train
    stop = train.stop[2]
    found = Judgements(
        train, np.array([2, 4, 2]), np.array([stop, train.stop[4], stop]), np.array([7, 8, 9]),
        np.array([Role.POSITIVE, Role.NEGATIVE, Role.NEGATIVE]), np.array([1.0, 2.0, 3.0]), max_length=6,
    )  # fmt: skip
    batch = found.batch(np.arange(2))
    assert batch.judged.tolist() == [[7, 9], [8, 0]]
    assert batch.roles.tolist()[0] == [Role.POSITIVE, Role.NEGATIVE]
    assert batch.amounts.tolist() == [[1.0, 3.0], [2.0, 0.0]]


def test_sources_keep_their_contract(split: Split) -> None:
    check_source(Judgements.of_users(split.train, np.arange(20), Role.FORGET, max_length=6, batch_size=16))
    check_source(sources(split))


def test_nothing_judged_is_refused(split: Split) -> None:
    with pytest.raises(DataError):
        Judgements.of_users(split.train, np.array([], np.int64), Role.FORGET)


def test_a_stage_forgets_some_users_and_keeps_others(split: Split) -> None:
    model, others = trained(split), np.arange(10, 60)
    before = total(model, split, ODD), total(model, split, others)
    tuning = unlearn(model, split)
    assert total(model, split, ODD) < before[0] - 1.0
    assert total(model, split, others) > before[1] - 0.2
    assert len(tuning.reference) == sum(one.numel() for part in tuning.policy.parts() for one in part.parameters())


def test_at_the_beginning_policy_and_reference_agree(split: Split) -> None:
    model = trained(split)
    gains = []

    class Looks(Down):
        def __call__(self, batch: Sequences) -> dict[str, Tensor]:
            gains.append(float(batch.gains.detach().abs().max()))
            return super().__call__(batch)

    model.auxiliaries.append(Tuning(ItemPolicy(model.encoder, model.items), Judged(), Looks()))
    stage = Stage(1, losses=["Tuning0"], data=sources(split))
    rs.fit(model, split, stages=[stage], init="keep", learning_rate=0.01, validate_every=0, progress=False)
    assert gains[0] < 1e-5 < 0.01 < gains[-1]


def test_a_stopped_stage_goes_on_exactly(split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlearn(trained(split), split, tmp_path / "whole", checkpoint_every=1)
    calls, plain = [0], Down.__call__

    def stopped(self: Down, batch: Sequences) -> dict[str, Tensor]:
        calls[0] += 1
        if calls[0] == 8:
            raise KeyboardInterrupt
        return plain(self, batch)

    monkeypatch.setattr(Down, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        unlearn(trained(split), split, tmp_path / "halves", checkpoint_every=1)
    unlearn(trained(split), split, tmp_path / "halves", checkpoint_every=1)
    whole, halves = outcome(tmp_path / "whole"), outcome(tmp_path / "halves")
    assert whole["weights"] == halves["weights"]


def test_what_is_counted_stands_in_the_record(split: Split, tmp_path: Path) -> None:
    model = trained(split)
    unlearn(model, split, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    gains = [record["tallies"]["gain"] for record in records]
    assert gains[-1] < gains[0] < 0.5
    assert records[-1]["tallies"]["log-probability of FORGET"] < records[0]["tallies"]["log-probability of FORGET"]


def test_rollouts_raise_what_is_taken(split: Split) -> None:
    model = tiny(dropout=0.0)
    rs.fit(model, split, epochs=2, learning_rate=0.01, batch_size=32, validate_every=0, progress=False)
    before = total(model, split, np.arange(60))
    model.auxiliaries.append(Tuning(ItemPolicy(model.encoder, model.items), Rollouts(8), Up()))
    stage = Stage(20, losses=["Tuning0"])
    rs.fit(
        model, split, stages=[stage], init="keep", learning_rate=0.02, batch_size=32, validate_every=0, progress=False
    )
    assert total(model, split, np.arange(60)) > before + 0.5


def test_an_epoch_without_signal_is_warned_of(split: Split) -> None:
    model = trained(split)

    class Blind(Rollouts):
        def _reward(self, items: Any, drawn: Tensor, wanted: Tensor) -> Tensor:
            return torch.zeros(drawn.shape)

    model.auxiliaries.append(Tuning(ItemPolicy(model.encoder, model.items), Rollouts(4), Up()))
    model.auxiliaries[0].examples = Blind(4)
    with pytest.warns(DataWarning, match="no group"):
        rs.fit(model, split, stages=[Stage(1, losses=["Tuning0"])], init="keep", validate_every=0, progress=False)


def test_a_batch_without_a_role_is_refused(split: Split) -> None:
    model = trained(split)
    model.auxiliaries.append(Tuning(ItemPolicy(model.encoder, model.items), Judged(), Down()))
    only = Judgements.of_users(split.train, np.arange(5), Role.FORGET, max_length=6)
    with pytest.raises(ValueError, match="RETAIN"):
        rs.fit(model, split, stages=[Stage(1, losses=["Tuning0"], data=only)], init="keep", validate_every=0,
               progress=False)  # fmt: skip


def test_23_2_without_its_adapter_the_policy_is_the_one_of_before(split: Split) -> None:
    pytest.importorskip("peft")
    model = trained(split)
    before = total(model, split, ODD), {name: value.clone() for name, value in model.tensors().items()}
    tuning = Tuning(ItemPolicy(model.encoder), Judged(), NPO(0.1), LoRA(4))
    model.auxiliaries.append(tuning)
    tuning.attach()
    assert total(model, split, ODD) == pytest.approx(before[0], abs=1e-6)
    stage = Stage(3, losses=["Tuning0"], train=["encoder"], data=sources(split))
    rs.fit(model, split, stages=[stage], init="keep", learning_rate=0.01, validate_every=0, progress=False)
    after = total(model, split, ODD)
    assert after < before[0] - 0.05
    with tuning.apart():
        assert total(model, split, ODD) == pytest.approx(before[0], abs=1e-6)
    tuning.merge()
    assert total(model, split, ODD) == pytest.approx(after, abs=1e-4)
    model.auxiliaries = PartList()
    assert set(model.tensors()) == set(before[1])  # merged, it is a model like the one of before
    assert all(torch.equal(model.tensors()[name], value) for name, value in before[1].items() if "items" in name)


@pytest.mark.parametrize("adapted", [False, True])
def test_a_run_with_it_is_loaded_again(split: Split, tmp_path: Path, adapted: bool) -> None:
    if adapted:
        pytest.importorskip("peft")
    model = tiny(dropout=0.0)
    tuning = Tuning(ItemPolicy(model.encoder), Judged(), NPO(0.1), LoRA(2) if adapted else None)
    model.auxiliaries.append(tuning)
    stage = Stage(1, losses=["Tuning0"], train=["encoder"], data=sources(split))
    rs.fit(model, split, stages=[stage], validate_every=0, progress=False, folder=tmp_path / "run")
    again = rs.load_run(tmp_path / "run")
    histories = [["item-1", "item-2"], ["item-7"]]
    assert np.allclose(model.scores(histories), again.scores(histories), atol=1e-6)


OBJECTIVES = {
    "npo": lambda: NPO(0.1), "supervised": lambda: Supervised(), "gradient": lambda: PolicyGradient(w_reinforce(0.1)),
    "entropy": lambda: PolicyGradient(GroupRelative(), entropy=0.01, kl=0.1),
}  # fmt: skip
ADAPTERS = {
    "none": lambda: None, "lora": lambda: LoRA(2), "adalora": lambda: AdaLoRA(9, 2, 3, warmup=1, last=1),
    "allora": lambda: ALLoRA(2), "aslora": lambda: ASLoRA(3, 2),
}  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_23_1_every_adapter_trains_with_every_objective(split: Split, adapter: str, objective: str) -> None:
    pytest.importorskip("peft")
    model = trained(split)
    rewarded = objective in ("gradient", "entropy", "supervised")
    examples = Rollouts(4) if rewarded else Judged()
    tuning = Tuning(ItemPolicy(model.encoder), examples, OBJECTIVES[objective](), ADAPTERS[adapter]())
    model.auxiliaries.append(tuning)
    stage = Stage(1, losses=["Tuning0"], train=["encoder"], data=None if rewarded else sources(split))
    fitted = rs.fit(
        model, split, stages=[stage], init="fresh", learning_rate=0.01, batch_size=24, validate_every=0,
        progress=False, max_steps=3,
    )  # fmt: skip
    assert np.isfinite(fitted.history[-1]["loss"])
    if adapter != "none":
        with tuning.apart():
            base = total(model, split, ODD)
        tuning.adapter.detach()
        assert total(model, split, ODD) == pytest.approx(base, abs=1e-6)
