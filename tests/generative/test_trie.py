"""Tries against the codes they are made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.generative import trie as module
from recsys.generative.trie import Trie, trie_of
from tests.generative.coded import Coded


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    codes = draw(st.lists(st.tuples(*(st.integers(0, size - 1) for size in sizes)), min_size=1, max_size=30))
    return np.array(codes), sizes


def walked(trie: Trie, depth: int = 0, node: int = 0) -> list[tuple[tuple[int, ...], list[int]]]:
    """Codes and items of all leaves below a node, by its children only."""
    first, last = trie.first[depth][node : node + 2].tolist()
    if depth == trie.levels:
        return [((), trie.items[first:last].tolist())]
    return [
        ((int(trie.code[depth + 1][child]), *codes), items)
        for child in range(first, last)
        for codes, items in walked(trie, depth + 1, child)
    ]


@given(catalogues())
def test_rpg_14_17_enumerated_paths_are_the_set_of_tuples(given) -> None:
    codes, sizes = given
    trie, wanted = Trie(codes, sizes), {}
    for row, one in enumerate(codes.tolist(), 1):
        wanted.setdefault(tuple(one), []).append(row)
    assert walked(trie) == sorted(wanted.items())
    assert trie.nodes == [len({tuple(one[:depth]) for one in codes.tolist()}) for depth in range(len(sizes) + 1)] + [
        len(codes)
    ]


@given(catalogues())
def test_nodes_above_items_and_ranges_of_items_below_nodes(given) -> None:
    codes, sizes = given
    trie = Trie(codes, sizes)
    paths = trie.paths(torch.arange(1, len(codes) + 1))
    for depth in range(1, len(sizes) + 1):
        assert torch.equal(trie.code[depth][paths[:, depth - 1]].long(), torch.from_numpy(codes[:, depth - 1]))
        for node in range(trie.nodes[depth]):
            below = trie.items[int(trie.begin[depth][node]) : int(trie.begin[depth][node + 1])].tolist()
            assert sorted(below) == ((paths[:, depth - 1] == node).nonzero()[:, 0] + 1).tolist()
        parents = trie.parents(paths[:, depth - 1], depth)
        assert torch.equal(parents, paths[:, depth - 2] if depth > 1 else torch.zeros_like(parents))
        table = trie.tables[depth - 1]
        if table is None:
            assert int(trie.first[depth - 1].diff().max()) < sizes[depth - 1] / module.SHARE
            continue
        for row in range(len(codes)):
            assert int(table[parents[row], codes[row, depth - 1]]) == int(paths[row, depth - 1])
        assert int((table >= 0).sum()) == trie.nodes[depth]


def test_rpg_14_17_bytes_are_within_the_bound() -> None:
    count, size, levels = 100_000, 64, 4
    codes = np.random.default_rng(0).integers(0, size, (count, levels))
    trie = Trie(codes, [size] * levels)
    bound = 5 * size**2 + 12 * sum(min(size**level, count) for level in range(levels + 1))
    assert trie.nbytes <= bound + 8 * count + 4 * 2 * (levels + 1)  # items and their positions, ends of the ranges
    assert all(one.dtype == torch.int32 for one in trie._tensors())
    assert trie.tables[1] is not None and trie.tables[2] is None


def test_codes_beyond_one_word_are_sorted_alike() -> None:
    codes = np.random.default_rng(0).integers(0, 3, (200, 12)) * 4000
    trie = Trie(codes, [8001] * 12)
    assert codes[trie.items.numpy() - 1].tolist() == sorted(codes.tolist())


def test_semantic_ids_12_4_codes_that_are_no_ids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 of 2 items .* item row 2: \[0, 4\] at level 2"):
        Trie(np.array([[0, 1], [0, 4]]), [2, 4])
    with pytest.raises(ValueError, match="outside their level"):
        Trie(np.array([[0, -1]]), [2, 4])
    with pytest.raises(ValueError, match="2 levels"):
        Trie(np.array([[0, 1]]), [2, 4, 4])
    for empty in (np.zeros((0, 2), int), np.zeros((3, 0), int), np.zeros(3, int)):
        with pytest.raises(ValueError, match=r"\(N, M\)"):
            Trie(empty, [2, 4])


def test_a_trie_is_built_once_and_again_for_other_codes(monkeypatch) -> None:
    built = []
    make = Trie.__init__
    monkeypatch.setattr(module.Trie, "__init__", lambda self, *given: (built.append(1), make(self, *given))[1])
    items = Coded([[0, 1], [1, 1]], [2, 2])
    assert trie_of(items) is trie_of(items, "cpu") and len(built) == 1
    items.codes[1, 0] = 1
    assert trie_of(items).nodes == [1, 1, 1, 2] and len(built) == 2
    items.codes = items.codes.clone()
    assert trie_of(items).nodes == [1, 1, 1, 2] and len(built) == 3
    assert trie_of(Coded([[0, 1]], [2, 2])).num_items == 1 and trie_of(items).num_items == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_trie_moves() -> None:
    trie = Trie(np.array([[0, 1], [1, 0]]), [2, 2])
    moved = trie.to("cuda")
    assert trie.to("cpu") is trie and all(one.is_cuda for one in moved._tensors()) and not trie.items.is_cuda
