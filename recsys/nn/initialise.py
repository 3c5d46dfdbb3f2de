"""Initialisations of the published codes, by name. They are not equivalent: see the scale note.

| name | rule | used by |
|---|---|---|
| ``normal`` | N(0, 0.02) on linear layers and tables, zero bias | RecBole |
| ``mixed`` | the same, but Xavier uniform on the joint query, key and value projection | antklen (SASRec+) |
| ``glorot`` | Glorot uniform on kernels and tables, zero bias | kang205/SASRec (TensorFlow 1 defaults) |
| ``xavier_normal`` | Xavier normal on every matrix, the rest as torch sets it | pmixer, RecTools |
| ``xavier_uniform`` | Xavier uniform on the same | SCE, RECE |
| ``torch`` | torch's own: tables N(0, 1), linear layers Kaiming uniform | gSASRec-pytorch |

Scale: Xavier on a (N + 1) x D table has variance 2 / (N + 1 + D), 0.024 at 3,416 items and D = 64 but 0.0014 at a
million, so one recipe starts very differently on a large catalogue; ``normal`` does not.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

SCHEMES = ("normal", "mixed", "glorot", "xavier_normal", "xavier_uniform", "torch")


def check_scheme(scheme: str) -> str:
    """``scheme`` itself, if it is one of :data:`SCHEMES`.

    Raises:
        ValueError: it is not.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"init must be one of {', '.join(SCHEMES)}, found {scheme!r}")
    return scheme


def initialise(module: nn.Module, scheme: str) -> None:
    """Set every parameter below ``module`` anew, by ``scheme``, from torch's global generator."""
    check_scheme(scheme)
    for layer in module.modules():
        reset: Callable[[], None] | None = getattr(layer, "reset_parameters", None)
        if reset is not None and layer is not module:
            reset()
        if scheme in ("normal", "mixed", "glorot") and isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for name, parameter in module.named_parameters():
        if parameter.dim() >= 2:
            initialise_table(parameter, scheme, linear="position" not in name)
            if scheme == "mixed" and (".query." in name or ".key_value." in name):
                bound = (6 / (4 * parameter.shape[1])) ** 0.5  # as one (3 D, D) kernel
                nn.init.uniform_(parameter, -bound, bound)


def initialise_table(weight: Tensor, scheme: str, linear: bool = False) -> None:
    """Fill one matrix by ``scheme``; ``linear`` says that it is a layer's kernel, not a lookup table."""
    if scheme in ("normal", "mixed"):
        nn.init.normal_(weight, std=0.02)
    elif scheme in ("glorot", "xavier_uniform"):
        nn.init.xavier_uniform_(weight)
    elif scheme == "xavier_normal":
        nn.init.xavier_normal_(weight)
    elif not linear:
        nn.init.normal_(weight)
