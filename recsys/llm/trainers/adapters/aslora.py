"""ASLoRA (2024, arXiv 2412.10135): layers share A, and B of layers that turn out alike become one.

    y = W x + alpha / r B_{k(l)} A x,       k: the group of layer l, at first one group a layer

For many small adapters (a market, a tenant, a season). Only the abstract was at hand: that A is shared by all layers
and that B are merged as training goes. How they are merged is a reconstruction: among layers of one kind (the same path
without the number of the layer, the same sizes), between two steps of training, the two groups whose B (as exponential
averages) have the highest cosine become one, at even intervals, until ``groups`` are left. The new B is the mean of the
two by the number of their layers, and so are the optimizer's averages of it.

With L layers of a kind, r I + L O r numbers are trained at the start and r I + groups O r in the end, where LoRA trains
L r (I + O).
A merged B is one parameter with one state of the optimizer. Which layers share is kept in a buffer. Parameters that go
while a run is under way cannot be followed by copies of the model in other processes, so it trains in one.

Legend: L layers of a kind, O outputs, I inputs, r rank.
"""

from __future__ import annotations

import re
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.errors import DataWarning
from recsys.llm.trainers.adapters.linear import LinearAdapter
from recsys.llm.trainers.adapters.lora import check
from recsys.llm.trainers.adapters.lowrank import LowRankLinear, fresh, insert


class ASLoRA(LinearAdapter):
    """Low-rank matrices beside linear layers, shared between layers of a kind.

    Args:
        total: optimizer steps of the whole training, those of all stages that train it.
        rank, alpha, targets: as of LoRA.
        groups: groups of B that are left of each kind; None: a quarter of its layers.
        begin, end: shares of ``total`` between which groups are merged.
        decay: of the averages of B that are compared.

    Raises:
        ValueError: a number out of range.
    """

    updates: Tensor
    members: Tensor

    def __init__(
        self,
        total: int,
        rank: int = 8,
        alpha: float = 16,
        groups: int | None = None,
        begin: float = 0.2,
        end: float = 0.6,
        decay: float = 0.99,
        targets: Sequence[str] | None = None,
    ) -> None:
        super().__init__(targets)
        check(rank, alpha)
        if total < 1 or not 0 <= begin < end <= 1 or not 0 <= decay < 1 or (groups is not None and groups < 1):
            raise ValueError(
                "total and groups must be at least 1, 0 <= begin < end <= 1 and decay in [0, 1), found "
                f"{total}, {groups}, {begin}, {end} and {decay}"
            )
        self.total, self.rank, self.alpha, self.groups = total, rank, alpha, groups
        self.begin, self.end, self.decay = begin, end, decay
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))  # that it has seen
        self._kinds: list[list[str]] = []  # paths of the layers of each kind
        self._optimizer: Any = lambda: None  # weakly: it is not a part

    def on_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Have the optimizer, of which merged parameters are taken out.

        Raises:
            ValueError: several processes train the model.
        """
        spread = torch.distributed.is_available() and torch.distributed.is_initialized()
        if spread and torch.distributed.get_world_size() > 1:
            raise ValueError("ASLoRA makes parameters fewer in training, which several processes cannot follow: train "
                             "in one (devices=1), or use LoRA")  # fmt: skip
        self._optimizer = weakref.ref(optimizer)

    def after_update(self, done: int) -> None:
        """Follow B, and merge groups when it is time.

        Args:
            done: not used: updates of several stages are counted on.

        Raises:
            ValueError: groups are to be merged, and nobody gave the optimizer.
        """
        if not any(one.requires_grad for one in self.parameters_of()):
            return  # this stage trains something else
        self.updates += 1
        last = self._last_update()
        for number, paths in enumerate(self._kinds):
            average = self._average(number)
            for row, path in zip(average, paths, strict=True):
                row.lerp_(self._layers[path].lora_B.detach(), 1 - self.decay)
            while self.updates <= last and len(self.groups_of(number)) > self._wanted(len(paths)):
                if not self._merge_two(number):
                    break
        if self.updates == last:
            self._tell()

    def groups_of(self, number: int) -> list[list[str]]:
        """The layers of each group of a kind, by path."""
        found: dict[int, list[str]] = {}
        for path in self._kinds[number]:
            found.setdefault(id(self._layers[path].lora_B), []).append(path)
        return list(found.values())

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Group layers as they were when ``tensors`` were saved."""
        if not self._held or "members" not in tensors:
            return
        layout = iter(tensors["members"].tolist())
        for paths in self._kinds:
            owners: dict[int, nn.Parameter] = {}
            for path in paths:
                layer, member = self._layers[path], next(layout)
                if member not in owners:
                    taken = any(layer.lora_B is one for one in owners.values())
                    owners[member] = nn.Parameter(layer.lora_B.detach().clone()) if taken else layer.lora_B
                layer.lora_B = owners[member]
        self._note()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        self.make_room({"members": state_dict[f"{prefix}members"]} if f"{prefix}members" in state_dict else {})
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _inject(self, module: nn.Module, chosen: Mapping[str, nn.Linear]) -> None:
        kinds: dict[tuple[str, int, int], list[str]] = {}
        for path, one in chosen.items():
            kind = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", path), one.in_features, one.out_features
            kinds.setdefault(kind, []).append(path)
        self._kinds = list(kinds.values())
        self._check_schedule()
        layers = {}
        for number, paths in enumerate(self._kinds):
            inner, outer = fresh(chosen[paths[0]], self.rank)
            for path in paths:
                own = nn.Parameter(outer.detach().clone())
                layers[path] = LowRankLinear(chosen[path], inner, own, self.alpha / self.rank)
            self.register_buffer(f"average_{number}", torch.stack([outer.detach()] * len(paths)))  # (L, O, r)
        insert(module, layers)
        self._layers = layers
        self.updates.zero_()
        self._note()

    def _check_schedule(self) -> None:
        first, last = int(self.begin * self.total), self._last_update()
        most = max(len(paths) - self._left(len(paths)) for paths in self._kinds)
        if most and last <= first:
            raise ValueError(
                f"no step of {self.total} lies between begin={self.begin} and end={self.end}, so no groups could be "
                "merged: train longer, or set them farther apart"
            )
        if not most:
            warnings.warn("no two layers are of one kind, or groups are as many as layers: nothing of B will be shared",
                          DataWarning, stacklevel=2)  # fmt: skip

    def _last_update(self) -> int:
        return int(self.end * self.total)

    def _left(self, layers: int) -> int:
        """Groups that are left in the end of so many layers."""
        return min(layers, max(1, layers // 4) if self.groups is None else self.groups)

    def _wanted(self, layers: int) -> int:
        """Groups that there are to be now: fewer by one at even intervals, the last one at the end."""
        first, last = int(self.begin * self.total), self._last_update()
        share = min(1.0, max(0.0, (int(self.updates) - first) / max(last - first, 1)))
        return layers - int((layers - self._left(layers)) * share + 1e-9)

    def _average(self, number: int) -> Tensor:
        return self.get_buffer(f"average_{number}")

    def _merge_two(self, number: int) -> bool:
        """Make one of the two groups that are most alike; False if no two have begun to learn."""
        optimizer = self._optimizer()
        if optimizer is None:
            raise ValueError("groups are to be merged, and the optimizer that trains them is not known: call "
                             "on_optimizer(optimizer) before training (fit does)")  # fmt: skip
        average, paths = self._average(number), self._kinds[number]
        places = [[paths.index(path) for path in group] for group in self.groups_of(number)]
        means = torch.stack([average[group[0]].flatten() for group in places])  # (groups, O r)
        alike = F.normalize(means.double(), dim=1)
        cosines = alike @ alike.T
        begun = means.abs().amax(1) > 0
        cosines[~(begun & begun[:, None])] = -torch.inf
        cosines.fill_diagonal_(-torch.inf)
        best = int(cosines.argmax())
        if cosines.flatten()[best] == -torch.inf:
            return False
        one, other = sorted(divmod(best, len(places)))
        self._join(number, places[one], places[other], optimizer)
        return True

    def _join(self, number: int, one: Sequence[int], other: Sequence[int], optimizer: torch.optim.Optimizer) -> None:
        """Let the layers ``other`` of a kind share the B of the layers ``one``."""
        paths, average = self._kinds[number], self._average(number)
        kept, gone = self._layers[paths[one[0]]].lora_B, self._layers[paths[other[0]]].lora_B
        share = len(other) / (len(one) + len(other))
        kept.data.lerp_(gone.data, share)
        average[[*one, *other]] = average[one[0]].lerp(average[other[0]], share)
        for place in other:
            self._layers[paths[place]].lora_B = kept
        forget(optimizer, kept, gone, share)
        self._note()

    def _note(self) -> None:
        """Keep which layers share: of each kind, for each layer the number of its group."""
        numbers = []
        for kind in range(len(self._kinds)):
            group_of = {path: group for group, paths in enumerate(self.groups_of(kind)) for path in paths}
            numbers += [group_of[path] for path in self._kinds[kind]]
        self.register_buffer("members", torch.tensor(numbers, device=self.updates.device))

    def _tell(self) -> None:
        """Warn of kinds that have more groups than wanted."""
        more = [
            f"{paths[0]} and its like: {len(self.groups_of(number))}, not {self._left(len(paths))}"
            for number, paths in enumerate(self._kinds)
            if len(self.groups_of(number)) > self._left(len(paths))
        ]
        if more:
            warnings.warn(f"groups were to be merged whose B had learned nothing yet: {more[0]}", DataWarning,
                          stacklevel=2)  # fmt: skip


def forget(optimizer: torch.optim.Optimizer, kept: nn.Parameter, gone: nn.Parameter, share: float) -> None:
    """Take ``gone`` out of an optimizer; averages of its gradients go into those of ``kept`` by ``share``.

    An optimizer whose state of a parameter is not all of the parameter's shape begins anew with ``kept``.
    """
    for group in optimizer.param_groups:
        group["params"][:] = [one for one in group["params"] if one is not gone]
    other, own = optimizer.state.pop(gone, {}), optimizer.state.get(kept, {})
    large = {name: one for name, one in own.items() if isinstance(one, Tensor) and one.dim()}
    if any(one.shape != kept.shape for one in large.values()) or large.keys() - other.keys():
        optimizer.state.pop(kept, None)
        return
    for name, one in large.items():
        one.lerp_(other[name].to(one.dtype), share)
