"""The metrics against RecBole's own collector and evaluator, on the same scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.eval.evaluate import evaluate

CUTS = [1, 5, 10, 20]
NAMES = {"Hit": "hr", "Recall": "recall", "NDCG": "ndcg", "MRR": "mrr", "MAP": "map", "Precision": "precision"}
CONFIG = {
    "topk": CUTS, "metrics": list(NAMES), "metric_decimal_place": 12, "eval_args": {"mode": "full"}, "device": "cpu",
    "eval_type": None,
}  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("exclude", ["none", "history-except-targets"])
def test_recbole_gives_the_same_numbers(multi, exclude, random_case, monkeypatch):
    pytest.importorskip("recbole")
    for alias, kind in {"float": float, "int": int, "bool": bool}.items():  # dropped by NumPy, still used by RecBole
        monkeypatch.setitem(vars(np), alias, kind)
    from recbole.evaluator import Collector, Evaluator

    model, part = random_case(users=300, items=80, seed=8, levels=None, multi=multi)
    collector = Collector(CONFIG)
    owner, target = part.targets(np.arange(len(part)))
    scores = torch.nn.functional.pad(model.table.clone(), (1, 0), value=-torch.inf)  # column 0 is RecBole's padding
    if exclude != "none":  # RecBole leaves the history out, less the targets that repeat it
        user, item = part.history(np.arange(len(part)))
        wanted = scores[owner, target]
        scores[user, item] = -torch.inf
        scores[owner, target] = wanted
    collector.eval_batch_collect(scores, None, torch.from_numpy(owner), torch.from_numpy(target))
    expected = Evaluator(CONFIG).evaluate(collector.get_data_struct())

    report = evaluate(model, part, k=CUTS, exclude=exclude, progress=False, memory="1MB")
    for theirs, ours in NAMES.items():
        for k in CUTS:
            assert report.mean(f"{ours}@{k}") == pytest.approx(expected[f"{theirs.lower()}@{k}"], abs=1e-9)
