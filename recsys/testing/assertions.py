"""The assertions of the conformance checks, one function each, which raises ``AssertionError`` if it does not hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from recsys.data.batch import PAD, Batch
from recsys.hooks import parts_of
from recsys.storage.parts import build, describe

RELATIVE, ABSOLUTE = 1e-4, 1e-5


def same(found: Any, expected: Any, what: str) -> None:
    """``found == expected``."""
    require(found == expected, f"{what}: expected {expected}, found {found}")


def require(condition: bool, message: str) -> None:
    """``condition`` holds, or ``message`` says what is wrong."""
    if not condition:
        raise AssertionError(message)


def evaluated(part: Any, call: Callable[[], Any]) -> Any:
    """The answer of ``call`` while ``part`` is in eval mode; asserts nothing."""
    if not isinstance(part, nn.Module):
        return call()
    part.eval()
    with torch.no_grad():
        found = call()
    part.train()
    return found


def seeded(call: Callable[[], Tensor]) -> None:
    """Two calls from equal seeds of torch agree, dropout included."""
    torch.manual_seed(0)
    first = call()
    torch.manual_seed(0)
    close(call(), first, "two training passes with equal seeds")


def parameters(part: Any) -> list[tuple[str, nn.Parameter]]:
    """Trained parameters by name, none if ``part`` is not a module; asserts nothing."""
    return [one for one in part.named_parameters() if one[1].requires_grad] if isinstance(part, nn.Module) else []


def gradients(part: Any, loss: Callable[[], Tensor], what: str = "") -> None:
    """Every parameter gets a gradient that is not zero everywhere; a jitter first, so that zero starts do not count."""
    if not isinstance(part, nn.Module):
        return
    kept = {name: value.detach().clone() for name, value in parameters(part)}
    generator = torch.Generator().manual_seed(13)
    with torch.no_grad():
        for _, value in parameters(part):
            value.add_(torch.randn(value.shape, generator=generator) * 0.05)
    part.zero_grad()
    loss().backward()  # type: ignore[no-untyped-call]
    dead = [name for name, value in parameters(part) if value.grad is None or not bool(value.grad.any())]
    with torch.no_grad():
        for name, value in parameters(part):
            value.copy_(kept[name])
    part.zero_grad()
    require(not dead, f"no gradient reaches {', '.join(dead)}{f' ({what})' if what else ''}: use them, or remove them")


def modules(part: Any) -> set[str]:
    """Modules that define the classes of ``part`` and of what it holds; asserts nothing."""
    inner = [one for _, one in parts_of(part)]
    return {type(one).__module__ for one in inner} | {type(one).__module__ for one in vars(part).values()}


def round_trip(
    part: Any, answer: Callable[[Any], Tensor] | None = None, bind: Callable[[Any], Any] = lambda part: part
) -> None:
    """Class, JSON arguments and tensors are enough to make the part again."""
    described = describe(part)
    again = build(described, trust=[type(part).__module__, *modules(part)])
    same(describe(again), described, "arguments after saving and loading (keep each as an attribute, unchanged)")
    if isinstance(part, nn.Module):
        bind(again).load_state_dict(part.state_dict())
    if answer is not None:
        close(evaluated(again, lambda: answer(again)), evaluated(part, lambda: answer(part)), "answers after loading")


def unchanged(batch: Batch, call: Callable[[], Any]) -> Any:
    """The answer of ``call``, after checking that it changed nothing in ``batch``."""
    names = [entry.name for entry in fields(batch) if isinstance(getattr(batch, entry.name), Tensor)]
    before = {name: getattr(batch, name).clone() for name in names}
    found = call()
    changed = [name for name in names if not torch.equal(before[name], getattr(batch, name))]
    require(not changed, f"the batch was changed in place: {', '.join(changed)}; return batch.replace(...) instead")
    return found


def close(found: Any, expected: Any, what: str) -> None:
    """Equal shapes, and values equal up to float32 rounding."""
    found, expected = torch.as_tensor(found).detach(), torch.as_tensor(expected).detach()
    same(tuple(found.shape), tuple(expected.shape), f"shapes of {what}")
    if not torch.allclose(found, expected, RELATIVE, ABSOLUTE):
        raise AssertionError(f"{what} differ by up to {(found - expected).abs().max().item():.3g}; they must be equal")


def well_formed(batch: Batch, size: int, what: str) -> None:
    """A batch of ``size`` histories: lengths, padding and the shapes of optional fields agree."""
    require(isinstance(batch, Batch), f"{what} must be a Batch, found {type(batch).__name__}")
    same(len(batch), size, f"histories of {what}")
    same(batch.ids.dtype, torch.int64, f"type of ids of {what}")
    require(
        bool((batch.lengths >= 0).all() and (batch.lengths <= batch.ids.shape[1]).all()), f"{what}: lengths exceed L"
    )
    require(bool((batch.ids[~batch.mask] == PAD).all()), f"{what}: ids behind a history's length must be 0")
    require(bool((batch.ids[batch.mask] != PAD).all()), f"{what}: a real position holds the padding row 0")
    for name in ("targets", "weights", "times"):
        value = getattr(batch, name)
        if value is not None:
            same(value.shape, batch.ids.shape, f"shape of {name} of {what}, as of ids")
    require(bool((batch.ids >= 0).all()), f"{what}: negative item rows")
