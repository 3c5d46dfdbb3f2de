"""What adapters beside linear layers share: which layers, freezing, switching off, growing, folding in.

Legend: O outputs of a linear layer, I inputs, r rank.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from recsys.errors import DataWarning, closest
from recsys.llm.trainers.adapters.frozen import Frozen

# These hand the weights of their linear layers to a kernel instead of calling the layers.
_READ_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


class LinearAdapter(nn.Module):
    """An adapter beside linear layers. A kind of it puts layers around them, with the methods of those of ``peft``.

    What is trained, and the frozen weights as buffers, are in the module that it is attached to, under the names of the
    layers; what else an adapter needs to go on (``state_dict``) is in the adapter.

    Args:
        targets: names of linear layers, each the last parts of a path; None: all that the module calls, besides the
            one that gives the scores of a language model's vocabulary and those whose weight has another name too.

    Raises:
        TypeError: ``targets`` is one name, not a list of them.
    """

    def __init__(self, targets: Sequence[str] | None = None) -> None:
        super().__init__()
        if isinstance(targets, str):
            raise TypeError(f"targets is a list of names of linear layers, found {targets!r}: put it in []")
        self.targets = None if targets is None else list(targets)
        self._held: list[tuple[nn.Module, Frozen]] = []  # in a list: the module is not a part of its adapter
        self._layers: dict[str, Any] = {}
        self._seen = False

    def attach(self, module: nn.Module | Sequence[nn.Module]) -> None:
        """Put it into ``module`` (or several), in place; what is computed stays the same. Draws from torch's generator.

        Raises:
            ImportError: peft is needed and not installed.
            ValueError: it is attached already, the module has an adapter, or no linear layer that ``targets`` fit.
        """
        if self._held:
            raise ValueError(f"this {type(self).__name__} is attached already: make another one, or merge it first")
        if not isinstance(module, nn.Module):
            module = nn.ModuleList(module)
        chosen = linears(module, self.targets)
        frozen = Frozen(module, lambda: self._inject(module, chosen))
        self._held, self._seen = [(module, frozen)], False
        self._layers = {path: module.get_submodule(path) for path in chosen}
        for layer in self._layers.values():
            layer.train(layer.get_base_layer().training)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it the module computes what it did before it was attached to, to the bit."""
        trained = [(one, one.requires_grad) for one in self.parameters_of()]
        on = [layer for layer in self._layers.values() if not layer.disable_adapters]
        for layer in on:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in on:
                layer.enable_adapters(True)
            for parameter, flag in trained:
                parameter.requires_grad_(flag)

    def parameters_of(self) -> list[nn.Parameter]:
        """What is trained."""
        return list(self.named().values())

    def named(self) -> dict[str, nn.Parameter]:
        """What is trained, by its name in the module."""
        return dict(self._module().named_parameters())

    def amplify(self, factor: float) -> None:
        """Multiply what the adapter adds by ``factor``, in place."""
        for parameter in self.outer():
            parameter.data.mul_(factor)

    def outer(self) -> list[nn.Parameter]:
        """The parameters that what the adapter adds is proportional to."""
        return [one for name, one in self.named().items() if ".lora_B" in name]

    def merge(self) -> None:
        """Fold it into the module's weights, which are parameters again, under their former names."""
        self._module()
        for layer in self._layers.values():
            layer.merge()
        self.detach()

    def detach(self) -> None:
        """Take it out of the module, which is what it was before, if it is in one."""
        for module, frozen in self._held:
            for path, layer in self._layers.items():
                parent, _, leaf = path.rpartition(".")
                setattr(module.get_submodule(parent), leaf, layer.get_base_layer())
            frozen.thaw()
            if "peft_config" in vars(module):
                del module.peft_config
        self._held, self._layers = [], {}

    def on_gradients(self) -> None:
        """Warn once of layers that took no part in the loss, whose adapters learn nothing."""
        if self._seen:
            return
        self._seen = True
        names = self._without_gradient()
        if names:
            warnings.warn(f"{len(names)} of {len(self._layers)} adapters get no gradient: {_told(names)}", DataWarning,
                          stacklevel=2)  # fmt: skip

    def _without_gradient(self) -> list[str]:
        """The paths of layers none of whose parameters has a gradient, though the stage trains them."""
        idle = []
        for path, layer in self._layers.items():
            own = [one for one in layer.parameters() if one.requires_grad]
            if own and all(one.grad is None for one in own):
                idle.append(path)
        return idle

    def _module(self) -> nn.Module:
        if not self._held:
            raise ValueError(f"this {type(self).__name__} is attached to no module: call attach(module) first")
        return self._held[0][0]

    def _inject(self, module: nn.Module, chosen: Mapping[str, nn.Linear]) -> None:
        """Put layers in the places of the linear layers that are ``chosen`` by path."""
        raise NotImplementedError


def linears(module: nn.Module, targets: Sequence[str] | None = None) -> dict[str, nn.Linear]:
    """The linear layers of ``module`` that an adapter can stand beside, by path; ``targets`` as of an adapter.

    Raises:
        ValueError: there is none, a name fits none or fits one that no adapter can stand beside, or the module has an
            adapter already.
    """
    bar = _barred(module)
    found = {path: one for path, one in module.named_modules() if isinstance(one, nn.Linear)}
    if any(hasattr(one, "get_base_layer") for one in module.modules()):
        raise ValueError("the module has an adapter already: merge that one first, as two would not know of each other")
    if "" in found:
        raise ValueError("an adapter is put into what holds linear layers; found a linear layer alone: give its owner")
    if targets is None:
        heads = _heads(module)
        chosen = {path: one for path, one in found.items() if path not in bar and one not in heads}
        if not chosen:
            raise ValueError(
                f"{type(module).__name__} has no linear layer that an adapter can stand beside{_why(bar)}: attach it "
                "to the encoder or decoder"
            )
        return chosen
    chosen = {}
    for target in targets:
        fits = [path for path in found if path == target or path.endswith(f".{target}")]
        if not fits:
            names = sorted({path.rpartition(".")[2] for path in found})
            raise ValueError(f"targets names {target!r}, which is no linear layer of the module; "
                             f"{closest(target, names)}")  # fmt: skip
        for path in fits:
            if path in bar:
                raise ValueError(f"targets names {target!r}, and {path} {bar[path]}: leave it out")
        chosen.update({path: found[path] for path in fits})
    if not chosen:
        raise ValueError("targets names no linear layer: give names, or None for all")
    return {path: one for path, one in found.items() if path in chosen}


def _barred(module: nn.Module) -> dict[str, str]:
    """Why no adapter can stand beside a linear layer, by path."""
    bar: dict[str, str] = {}
    paths = {id(one): path for path, one in module.named_modules()}
    used = Counter(id(value) for part in module.modules() for value in part._parameters.values())
    held = Counter(id(one) for part in module.modules() for one in part._modules.values())
    for path, part in module.named_modules():
        if isinstance(part, nn.Linear) and (used[id(part.weight)] > 1 or held[id(part)] > 1):
            bar[path] = "shares its weight with another layer"
        if isinstance(part, _READ_WEIGHTS):
            inner = [paths[id(one)] for one in part.modules() if isinstance(one, nn.Linear)]
            bar.update(dict.fromkeys(inner, f"is read by {type(part).__name__} without being called"))
    return bar


def _heads(module: nn.Module) -> set[nn.Module]:
    """The layers that make scores of a language model's vocabulary, which are larger than all others."""
    owners: list[Any] = [part for part in module.modules() if hasattr(part, "get_output_embeddings")]
    found = [part.get_output_embeddings() for part in owners]
    return {one for one in found if one is not None}


def _why(bar: Mapping[str, str]) -> str:
    return "" if not bar else f" ({next(iter(bar))} {next(iter(bar.values()))})"


def _told(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
    return (
        f"{shown}. The module does not call these layers, or this loss does not depend on them: leave them out with "
        "targets=[...], the names of the others"
    )
