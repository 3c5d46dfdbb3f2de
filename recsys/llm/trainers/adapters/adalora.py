"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): a budget of directions, shared out over layers while it trains.

    y = W x + alpha / first B diag(E) A Drop(x),        E zero at first

Through ``peft``: of each direction it keeps how much the loss depends on it, and sets E of the least ones of all layers
to 0, fewer and fewer of them left until ``rank`` a layer are. What ``peft`` leaves to its caller, and other loops leave
out without a word, is done here: directions are shared out behind each update, before gradients are cleared; the term
that keeps A and B orthogonal is :meth:`AdaLoRA.penalty`; and an adapter of which nothing was ever taken away is not
merged, as it is another method. What the schedule has seen is kept in buffers, so that a resumed run goes on with it.

Differs from the paper as ``peft`` does: norms of the orthogonality term are not squared, and ``first`` divides alpha.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recsys.errors import DataWarning
from recsys.llm.trainers.adapters.linear import LinearAdapter
from recsys.llm.trainers.adapters.lora import check, exactly
from recsys.nn.decoder import package

NAME = "default"


class AdaLoRA(LinearAdapter):
    """Low-rank matrices beside linear layers, more of them where they matter.

    Args:
        total: optimizer steps of the whole training, those of all stages that train it.
        rank: directions a layer that are left in the end, on average.
        first: directions of each layer at the start.
        alpha, dropout, targets: as of LoRA.
        warmup: optimizer steps before the first directions go.
        last: optimizer steps at the end in which no more go.
        every: optimizer steps from one time to the next that directions are shared out.
        orthogonality: factor of :meth:`penalty`.
        betas: of the averages of how much the loss depends on an entry, and of how much that varies.

    Raises:
        ValueError: a number out of range, or a schedule that leaves no time to share out directions.
    """

    updates: Tensor
    allocations: Tensor
    sensitivity: Tensor
    spread: Tensor
    kept: Tensor

    def __init__(
        self,
        total: int,
        rank: int = 8,
        first: int = 12,
        alpha: float = 16,
        dropout: float = 0.0,
        warmup: int = 0,
        last: int = 0,
        every: int = 1,
        orthogonality: float = 0.5,
        betas: tuple[float, float] = (0.85, 0.85),
        targets: Sequence[str] | None = None,
    ) -> None:
        super().__init__(targets)
        check(rank, alpha, dropout)
        if first <= rank:
            raise ValueError(f"AdaLoRA takes directions away: first must be above rank, found {first} and {rank}")
        if min(warmup, last) < 0 or every < 1 or orthogonality < 0 or not all(0 < beta < 1 for beta in betas):
            raise ValueError(
                "warmup, last and orthogonality must be at least 0, every at least 1 and betas in (0, 1), found "
                f"{warmup}, {last}, {orthogonality}, {every} and {betas}"
            )
        if warmup >= total - last:
            raise ValueError(
                f"of {total} steps {warmup} are warm-up and the last {last} keep what there is: none is left to share "
                "out directions; train longer, or lower warmup or last"
            )
        self.total, self.rank, self.first, self.alpha, self.dropout = total, rank, first, alpha, dropout
        self.warmup, self.last, self.every, self.orthogonality = warmup, last, every, orthogonality
        self.betas = (float(betas[0]), float(betas[1]))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))  # that it has seen
        self.register_buffer("allocations", torch.zeros((), dtype=torch.int64))  # times that directions went
        self._tuner: list[Any] = []

    def penalty(self) -> Tensor:
        """Scalar: ``orthogonality`` times the mean over all A and B of how far their directions are from orthonormal.

        Of A (r, I) that is the Frobenius norm of A Aᵀ - 1, of B (O, r) that of Bᵀ B - 1.
        """
        found = []
        for name, one in self.named().items():
            if ".lora_A." in name or ".lora_B." in name:
                product = one @ one.T if ".lora_A." in name else one.T @ one
                found.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=one.device)))
        return self.orthogonality * torch.stack(found).mean()

    def after_update(self, done: int) -> None:
        """Look at the gradients of an update, and take directions away when it is time.

        Args:
            done: not used: updates of several stages are counted on.

        Raises:
            ValueError: a layer took no part in the loss.
        """
        if not any(one.requires_grad for one in self.parameters_of()):
            return  # this stage trains something else
        idle = self._without_gradient()
        if idle and self.updates < self.total - self.last:
            raise ValueError(f"no gradient reaches {idle[0]} ({len(idle)} of {len(self._layers)} layers), so AdaLoRA "
                             "cannot tell how much the loss depends on it: leave it out of targets")  # fmt: skip
        self.updates += 1
        self._allocate(int(self.updates))

    def _allocate(self, count: int) -> None:
        """Hand ``peft`` what was known before the update, and keep what it makes of it."""
        (tuner,) = self._tuner
        named, final = self.named(), self.total - self.last
        rows = {name: one for name, one in named.items() if ".lora_E." in name}
        allocator, config = tuner.rankallocator, tuner.peft_config[NAME]
        allocator.ipt = dict.fromkeys(named)
        allocator.exp_avg_ipt, allocator.exp_avg_unc = _parted(self.sensitivity, named), _parted(self.spread, named)
        kept = {name: one.flatten().tolist() for name, one in _parted(self.kept, rows).items()}
        config.rank_pattern = kept if count > final else None
        tuner.update_and_allocate(count)
        if count < final:
            self.sensitivity, self.spread = _flat(allocator.exp_avg_ipt), _flat(allocator.exp_avg_unc)
        if count <= final and config.rank_pattern is not None:
            flags = [flag for name in rows for flag in config.rank_pattern[name]]
            self.kept = torch.tensor(flags, device=self.kept.device)
            self.allocations += 1

    def ranks(self) -> dict[str, int]:
        """Directions that each layer has left, by path."""
        return {path: int((layer.lora_E[NAME] != 0).sum()) for path, layer in self._layers.items()}

    def outer(self) -> list[nn.Parameter]:
        """The parameters that what the adapter adds is proportional to."""
        return [one for name, one in self.named().items() if ".lora_E." in name]

    def merge(self) -> None:
        """Fold it into the module's weights, which are parameters again, under their former names.

        Raises:
            ValueError: no direction was ever taken away.
        """
        self._module()
        left, wanted = int(self.kept.sum()), self.rank * len(self._layers)
        if not self.allocations:
            raise ValueError(
                f"AdaLoRA took no direction away in the {int(self.updates)} steps that it saw, so this is not what it "
                f"is for: warmup is {self.warmup}, and after_update must be called behind each step, before gradients "
                "are cleared (fit does). Train on, use LoRA, or take the weights of a later epoch"
            )
        if left > wanted:
            note = f"{left} directions are left where {wanted} were wanted: training ended after {int(self.updates)} "
            warnings.warn(f"{note}of {self.total} steps", DataWarning, stacklevel=2)
        super().merge()

    def detach(self) -> None:
        """Take it out of the module, which is what it was before, if it is in one."""
        super().detach()
        self._tuner = []

    def _inject(self, module: nn.Module, chosen: Mapping[str, nn.Linear]) -> None:
        peft = package("peft")
        first, second = self.betas
        config = peft.AdaLoraConfig(
            init_r=self.first, target_r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, tinit=self.warmup,
            tfinal=self.last, deltaT=self.every, total_step=self.total, beta1=first, beta2=second,
            orth_reg_weight=self.orthogonality, target_modules=exactly(chosen), bias="none",
        )  # fmt: skip
        self._tuner = [peft.AdaLoraModel(module, config, NAME)]
        for path in chosen:
            layer: Any = module.get_submodule(path)
            del layer.ranknum  # a parameter that is not to be trained
            layer.ranknum = {NAME: float(self.first)}
        size = sum(one.numel() for name, one in module.named_parameters() if "lora_" in name)
        device = next(module.parameters()).device
        for name in ("sensitivity", "spread"):
            self.register_buffer(name, torch.zeros(size, device=device))
        self.register_buffer("kept", torch.ones(self.first * len(chosen), dtype=torch.bool, device=device))
        self.updates.zero_()
        self.allocations.zero_()


def _parted(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A flat tensor as tensors of the shapes of ``like``."""
    parts = flat.split([one.numel() for one in like.values()])
    return {name: part.view_as(one) for (name, one), part in zip(like.items(), parts, strict=True)}


def _flat(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([one.flatten() for one in parts.values()])
