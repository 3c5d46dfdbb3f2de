"""The GRU over flat tokens against torch.nn.GRU on each row alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recsys.nn.gru import Steps, _by_torch, run_gru

LENGTHS = [3, 1, 0, 7, 3, 2]


def rows(dtype: torch.dtype = torch.float32) -> tuple[nn.GRU, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    gru = nn.GRU(5, 4, bias=False).to(dtype)
    return gru, torch.randn(sum(LENGTHS), 5, dtype=dtype, requires_grad=True), torch.tensor(LENGTHS)


def reference(gru: nn.GRU, tokens: torch.Tensor) -> torch.Tensor:
    return torch.cat([gru(row)[0] for row in tokens.split(LENGTHS) if len(row)])


def test_check_09_gru_matches_torch_without_bias() -> None:
    gru, tokens, lengths = rows()
    states = run_gru(gru, tokens, Steps.of(lengths))
    torch.testing.assert_close(states, reference(gru, tokens), atol=1e-6, rtol=0)


def test_gradients_match_torch() -> None:
    gru, tokens, lengths = rows(torch.float64)
    weight = torch.randn(sum(LENGTHS), 4, dtype=torch.float64)
    inputs = [tokens, gru.weight_ih_l0, gru.weight_hh_l0]
    ours = torch.autograd.grad((run_gru(gru, tokens, Steps.of(lengths)) * weight).sum(), inputs)
    theirs = torch.autograd.grad((reference(gru, tokens) * weight).sum(), inputs)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_the_way_of_other_devices_is_the_same() -> None:
    gru, tokens, lengths = rows()
    steps = Steps.of(lengths)
    states = _by_torch(gru, tokens[steps.index], steps)
    torch.testing.assert_close(states, reference(gru, tokens)[steps.index], atol=1e-6, rtol=0)


def test_no_tokens_give_no_states() -> None:
    gru, _, _ = rows()
    for lengths in (torch.tensor([0, 0]), torch.zeros(0, dtype=torch.long)):
        assert run_gru(gru, torch.zeros(0, 5), Steps.of(lengths)).shape == (0, 4)


def test_autocast_leaves_the_recurrence_in_float32() -> None:
    gru, tokens, lengths = rows()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = run_gru(gru, tokens, Steps.of(lengths))
    torch.testing.assert_close(states, reference(gru, tokens), atol=1e-6, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"bias": False, "num_layers": 2}, {"bias": False, "bidirectional": True}])
def test_other_recurrences_are_refused(settings: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="bias"):
        run_gru(nn.GRU(5, 4, **settings), torch.zeros(2, 5), Steps.of(torch.tensor([2])))


def test_going_back_under_autocast_stays_in_float32() -> None:
    torch.manual_seed(0)
    gru, tokens = nn.GRU(6, 6, bias=False), torch.randn(9, 6)
    steps = Steps.of(torch.tensor([4, 5]))
    gradients = []
    for autocast in (False, True):
        gru.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            run_gru(gru, tokens, steps).square().sum().backward()
        gradients.append(gru.weight_hh_l0.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0])
