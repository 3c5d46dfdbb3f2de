"""Products that models and indexes share: equal vectors get equal numbers, whoever asks beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.ranking.products import inverse_norms, products, refuse_nonfinite


@pytest.mark.parametrize("dim", [8, 16, 64, 100])
@pytest.mark.parametrize("items", [37, 60, 1003])
def test_index_f5_equal_vectors_get_equal_scores_alone_and_in_company(dim: int, items: int) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, queries = torch.randn(items, dim, generator=generator), torch.randn(40, dim, generator=generator)
    vectors[-1] = vectors[items // 2] = vectors[0]
    whole = products(queries, vectors)
    for count in (*range(1, 34), 39, 40):
        found = products(queries[:count], vectors)
        assert torch.equal(found[:, 0], found[:, -1])
        assert torch.equal(found[:, 0], found[:, items // 2])
        into = torch.empty(count, items)
        assert torch.equal(products(queries[:count], vectors, out=into), into)
        np.testing.assert_allclose(found, whole[:count], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whole, queries.numpy() @ vectors.numpy().T, rtol=1e-4, atol=1e-4)


def test_minus_infinity_is_a_score_and_nan_is_none() -> None:
    refuse_nonfinite(torch.tensor([[-torch.inf, 1.0], [-torch.inf, -torch.inf]]))
    refuse_nonfinite(torch.empty(0, 3))
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="position 8"):
            refuse_nonfinite(torch.tensor([[0.0, 1.0], [-torch.inf, bad]]), first=7)
    assert inverse_norms(torch.tensor([[3.0, 4.0]])).tolist() == pytest.approx([0.2])
