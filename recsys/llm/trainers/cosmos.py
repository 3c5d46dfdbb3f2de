"""COSMOS (2025, arXiv 2502.17410): matrices by their leading directions as Adam does, and by Muon in the others.

For W (m, n) with gradient G, its average M and r directions P (n, r) of its inputs, at each optimizer step:

    M <- b1 M + G                                      G' = (G + b1 M) / (1 + b1 c1),  c1 = (1 - b1^t) / (1 - b1)
    P <- Q of QR(b2 P S + (1 - b2) G^T G P),           S (r, r): what G^T G is among the directions, averaged with b2
    v <- b2 v + (1 - b2) (G P)^2                       U1 = (G' P / (sqrt(v / c2) + eps)) P^T,  c2 = 1 - b2^t
    B = orthogonalised G' - G' P P^T, of norm sqrt(m n)
    W <- (1 - lr decay) W - lr ratio sqrt(m n) U / |U|,  U = U1 + gamma B

Vectors, embeddings and heads are Adam's, with decoupled decay. A matrix needs mn + mr + nr + r^2 numbers of state,
where Adam needs 2mn. The equations are those of the authors' code. Not as there: r is at most m and n; Adam's part uses
the betas it is given; gradients are not written to; matrices are computed in float32 and uncompiled; tensors of three
and more dimensions are refused and not left to Adam in silence; which parameters are matrices is said by the groups.
What is left of G' once the directions have all of it is rounding noise, and scaling it to sqrt(m n) makes it as large
as U1: B is 0 where it is less than 1e-4 of G'. v is not turned along with P, as in the code.

Legend: m outputs, n inputs, r directions, t optimizer steps so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

NEWTON = (3.4445, -4.7750, 2.0315)  # the polynomial of Muon
NOISE = 1e-4
HEADS = ("lm_head", "embed", "embedding", "embeddings")  # parts of names that no matrix is behind


class Cosmos(torch.optim.Optimizer):
    """The optimizer, for parameters in groups of a ``kind``: "matrix" or "adam".

    Args:
        params: dicts with "params" and "kind" (:func:`sorted_parameters` makes them of a module), or parameters, each
            of two dimensions a matrix then.
        lr: learning rate.
        betas, eps: of the averages.
        weight_decay: decoupled.
        rank: r, where m and n are not less.
        gamma: weight of the other directions.
        ratio: of the learning rate of matrices.

    Raises:
        ValueError: a number out of range, a kind that does not exist, or a matrix that is none.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rank: int = 64,
        gamma: float = 0.2,
        ratio: float = 0.1,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0 or rank < 1 or gamma < 0 or ratio <= 0:
            raise ValueError(
                "lr, eps, weight_decay and gamma must be at least 0, rank at least 1 and ratio above 0, found "
                f"{lr}, {eps}, {weight_decay}, {gamma}, {rank} and {ratio}"
            )
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), found {betas}")
        given = list(params)
        if given and not isinstance(given[0], dict):
            given = _by_kind({"params": given}, [one for one in given if one.dim() == 2])
        given = [part for group in given for part in _kinds(group)]
        super().__init__(given, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rank": rank,
                                 "gamma": gamma, "ratio": ratio})  # fmt: skip

    @classmethod
    def of(cls, model: nn.Module, learning_rate: float = 1e-3, **options: Any) -> Callable[[Iterable[Any]], Cosmos]:
        """A function for ``fit(optimizer=...)``, which sorts parameters by what they are in ``model``.

        Args:
            options: as of the class.
        """
        matrices = {id(one) for one in _matrices(model)}

        def make(given: Iterable[Any]) -> Cosmos:
            bound = matrices | {id(one) for one in _matrices(model)}  # fit may have made its weights since
            parts, groups = list(given), []
            for group in parts if parts and isinstance(parts[0], dict) else [{"params": parts}]:
                groups += _by_kind(group, [one for one in group["params"] if id(one) in bound])
            return cls(groups, lr=learning_rate, **options)

        return make

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        found = None
        if closure is not None:
            with torch.enable_grad():
                found = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.is_sparse:
                    raise ValueError("COSMOS takes no sparse gradients: make the embedding with sparse=False")
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                move = _matrix_step if group["kind"] == "matrix" else _adam_step
                move(parameter, parameter.grad.float(), state, group)
        return found


def sorted_parameters(module: nn.Module) -> list[dict[str, Any]]:
    """The parameters of a module in a group of each kind: weights of linear layers, and all others.

    Adam's are embeddings, heads (``lm_head``, a weight that an embedding has too) and all but two dimensions.
    """
    return _by_kind({"params": list(module.parameters())}, _matrices(module))


def orthogonalised(x: Tensor, iterations: int = 5) -> Tensor:
    """(m, n) of ``x`` (m, n) with singular values near 1, by Newton and Schulz's iteration; tall ones are turned."""
    a, b, c = NEWTON
    turned = x.shape[0] > x.shape[1]
    x = x.T if turned else x
    x = x / (torch.linalg.matrix_norm(x) + 1e-7)
    for _ in range(iterations):
        squares = x @ x.T
        x = a * x + (b * squares + c * squares @ squares) @ x
    return x.T if turned else x


def _matrix_step(weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    first, second = group["betas"]
    size, eps, count = weight.numel() ** 0.5, group["eps"], state["step"]
    if count == 1:
        state["momentum"] = torch.zeros_like(gradient)
        state["square"] = gradient.new_zeros(weight.shape[0], min(group["rank"], *weight.shape))  # (m, r)
    momentum = state["momentum"].mul_(first).add_(gradient)
    _turn(gradient, state, second)
    directions = state["directions"]
    seen = gradient @ directions  # (m, r)
    square = state["square"].mul_(second).addcmul_(seen, seen, value=1 - second)
    ahead = (gradient + first * momentum) / (1 + first * (1 - first**count) / (1 - first))
    inside = ahead @ directions
    update = (inside / ((square / (1 - second**count)).sqrt() + eps)) @ directions.T
    rest = ahead - inside @ directions.T
    if torch.linalg.matrix_norm(rest) >= NOISE * torch.linalg.matrix_norm(ahead):
        other = orthogonalised(rest)
        update = update + group["gamma"] * size * other / (torch.linalg.matrix_norm(other) + eps)
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    factor = group["lr"] * group["ratio"] * size / (torch.linalg.matrix_norm(update) + eps)
    weight.sub_((factor * update).to(weight.dtype))


def _turn(gradient: Tensor, state: dict[str, Any], beta: float) -> None:
    """Follow the leading directions of the inputs."""
    if "directions" not in state:
        rank = state["square"].shape[1]
        # The right singular vectors of G are the eigenvectors of G^T G, with more digits.
        directions = torch.linalg.svd(gradient, full_matrices=False).Vh[:rank].T.contiguous()
        seen = gradient @ directions
        state["directions"], state["inner"] = directions, (1 - beta) * seen.T @ seen
        return
    before, inner = state["directions"], state["inner"]
    mixed = beta * before @ inner + (1 - beta) * gradient.T @ (gradient @ before)
    directions = torch.linalg.qr(mixed).Q.contiguous()  # as it is when it was saved
    turn, seen = before.T @ directions, gradient @ directions
    state["directions"] = directions
    state["inner"] = beta * turn.T @ inner @ turn + (1 - beta) * seen.T @ seen


def _adam_step(weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    first, second = group["betas"]
    if state["step"] == 1:
        state["average"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    average = state["average"].lerp_(gradient, 1 - first)
    square = state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
    count = state["step"]
    divisor = (square / (1 - second**count)).sqrt() + group["eps"]
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    weight.sub_((group["lr"] / (1 - first**count) * average / divisor).to(weight.dtype))


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    """Weights of two dimensions that linear layers, attention or adapters multiply by, each once."""
    embeddings = {id(one) for part in module.modules() if isinstance(part, nn.Embedding) for one in part.parameters()}
    found: dict[int, nn.Parameter] = {}
    for name, one in module.named_parameters():
        parts = set(name.lower().split("."))
        owner = module.get_submodule(name.rpartition(".")[0])
        named = parts.isdisjoint(HEADS) and not any("embed" in part for part in parts)
        linear = isinstance(owner, (nn.Linear, nn.MultiheadAttention)) or "lora_" in name
        if one.dim() == 2 and named and linear and id(one) not in embeddings:
            found[id(one)] = one
    return list(found.values())


def _by_kind(group: dict[str, Any], matrices: Sequence[Tensor]) -> list[dict[str, Any]]:
    """A group as one of each kind. Where it has a name, both say which group they are of."""
    held = {id(one) for one in matrices}
    others = [one for one in group["params"] if id(one) not in held]
    made = []
    for kind, params in (("matrix", list(matrices)), ("adam", others)):
        if params:
            called = {"name": f"{group['name']} ({kind})", "of": group["name"]} if "name" in group else {}
            made.append({**group, **called, "params": params, "kind": kind})
    return made


def _kinds(group: dict[str, Any]) -> list[dict[str, Any]]:
    """A group, if its kind exists and fits."""
    kind = group.get("kind")
    if kind not in ("matrix", "adam"):
        raise ValueError(f'a parameter group of COSMOS has the kind "matrix" or "adam", found {kind!r}: '
                         "see sorted_parameters(module)")  # fmt: skip
    held = group["params"]
    for one in [held] if isinstance(held, Tensor) else held:
        if kind == "matrix" and one.dim() != 2:
            raise ValueError(f'{tuple(one.shape)} is no matrix: put it into a group of the kind "adam"')
    return [group]
