"""Devices, precision and processes: Lightning is started here and nowhere else."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch

from recsys.train.settings import Training

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def start(settings: Training) -> Fabric:
    """Lightning's Fabric for ``settings``, launched: from here on every process of the run is alive.

    Raises:
        ValueError: the machine has no such accelerator, or the strategy spreads one model over several devices.
    """
    accelerator = resolve_accelerator(settings.accelerator)
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    options: dict[str, Any] = {"strategy": settings.strategy, "num_nodes": settings.num_nodes}
    with warnings.catch_warnings():
        # It suggests other accelerators than the one asked for.
        warnings.filterwarnings("ignore", message=".*available but not used.*")
        fabric = Fabric(
            accelerator=accelerator,
            devices=settings.devices,  # type: ignore[arg-type]
            precision=resolve_precision(settings.precision, accelerator),  # type: ignore[arg-type]
            loggers=list(settings.loggers),
            **options,
        )
    _check_strategy(fabric)
    if isinstance(fabric.strategy, DDPStrategy):  # a stage, or a last layer, may leave parameters without gradient
        fabric.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
    fabric.launch()
    return fabric


def resolve_accelerator(name: str) -> str:
    """The accelerator that "auto" means here; any other name is checked against this machine.

    Raises:
        ValueError: a GPU is wanted where there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name in ("gpu", "cuda") and not torch.cuda.is_available():
        built = "this torch was installed without CUDA" if torch.version.cuda is None else "no CUDA device answers"
        raise ValueError(
            f'accelerator="{name}" asks for a GPU, and this machine shows none ({built}): use accelerator="cpu" or '
            '"auto", or install a CUDA build of torch and check nvidia-smi'
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError('accelerator="mps" asks for an Apple GPU, and this machine shows none: use "cpu" or "auto"')
    return "cuda" if name == "gpu" else name


def resolve_precision(name: str, accelerator: str) -> str:
    """The precision that "auto" means: bf16-mixed on a GPU that computes in it, 32-true elsewhere."""
    if name != "auto":
        return name
    return "bf16-mixed" if accelerator == "cuda" and torch.cuda.is_bf16_supported() else "32-true"


def _check_strategy(fabric: Fabric) -> None:
    from lightning.fabric.strategies import DDPStrategy, SingleDeviceStrategy

    if not isinstance(fabric.strategy, (DDPStrategy, SingleDeviceStrategy)):
        raise ValueError(
            f"{type(fabric.strategy).__name__} spreads one model over several devices, and checkpoints and validation "
            'need it whole: use strategy="ddp" (one copy per device) or "auto"'
        )
