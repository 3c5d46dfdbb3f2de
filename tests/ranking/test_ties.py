import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recsys.ranking.ties import best


@given(hnp.arrays(np.float32, (3, 11), elements=st.sampled_from([-np.inf, 0.0, 1.0, 2.0])), st.integers(1, 13))
def test_index_f3_lists_are_those_of_a_stable_sort_and_short_ones_begin_long_ones(scores, k):
    values, columns = best(torch.from_numpy(scores.copy()), k)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert columns.tolist() == order.tolist()
    assert values.tolist() == np.take_along_axis(scores, order, 1).tolist()
    longer = best(torch.from_numpy(scores.copy()), k + 1)[1]
    assert longer[:, : columns.shape[1]].tolist() == columns.tolist()


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from([1, 3, 30]))
def test_wide_rows_are_searched_by_groups_with_the_same_answer(seed, k, values):
    scores = np.random.default_rng(seed).integers(0, values, (2, 6200)).astype(np.float32)
    scores[0, 50:] = -np.inf
    found, columns = best(torch.from_numpy(scores), k)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert columns.tolist() == order.tolist()
    assert found.tolist() == np.take_along_axis(scores, order, 1).tolist()
