"""Time of the full softmax, forward and backward, by torch's own products and by oneDNN's (:mod:`recsys.nn.products`).

    python benchmarks/speed/products.py                 all sizes, two threads
    python benchmarks/speed/products.py --smoke

Where torch's own products use all that the processor has (Intel's, or no AVX-512), the library leaves them alone, and
the table says so. Calls alternate in one process; as many targets as whole chunks hold, so what is compared is the
products and not their remainder.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contest import HERE, machine, save, stamp_command

SIZES = ((5120, 1682, 64), (5120, 3416, 64), (1557, 12101, 64), (1557, 12101, 128), (640, 200000, 64))  # T, N, D


def main() -> None:
    """Measure every size, and write the table unless it is a trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each size (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="default: benchmarks/speed/results")
    parser.add_argument("--smoke", action="store_true", help="half a second each, nothing written")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    stamp = machine(options.threads)

    import torch

    from recsys.nn.products import onednn_is_wider

    torch.set_num_threads(options.threads)
    taken = onednn_is_wider()
    runs = [measure(*size, 0.5 if options.smoke else options.seconds) for size in SIZES]
    where = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in stamp.items() if value is not None)
    text = [
        "# Full softmax: torch's products and oneDNN's", "", f"Command: `{stamp_command()}`", "",
        f"Measured: {where}, torch {torch.__version__}; forward and backward, {options.seconds:g} s a size, medians of "
        f"alternating calls. The library takes {'oneDNN' if taken else 'torch'} here.", "",
        "| targets | items | width | torch, ms | oneDNN, ms | ratio |", "|---" * 6 + "|", *map(line, runs), "",
    ]  # fmt: skip
    print("\n".join(text))
    if not options.smoke:
        save(options.output / "products", "\n".join(text), {"stamp": stamp, "command": stamp_command(), "sizes": runs})


def measure(targets: int, items: int, width: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of both, calls alternating."""
    import torch

    from recsys.nn import products
    from recsys.nn.softmax import cross_entropy

    torch.manual_seed(0)
    hidden, table = torch.randn(targets, width, requires_grad=True), torch.randn(items, width, requires_grad=True)
    wanted = torch.randint(1, items + 1, (targets,))

    def call(wider: bool) -> float:
        products.onednn_is_wider = lambda: wider  # type: ignore[assignment]
        began = time.perf_counter()
        torch.autograd.grad(cross_entropy(hidden, wanted, None, (table,)) / targets, [hidden, table])
        return 1e3 * (time.perf_counter() - began)

    times = alternate(call, seconds)
    found = {"targets": targets, "items": items, "width": width, **{name: times[name] for name in times}}
    print(f"{targets} x {items} x {width}: {times['torch']:.1f} and {times['onednn']:.1f} ms", file=sys.stderr)
    return found


def alternate(call: Callable[[bool], float], seconds: float) -> dict[str, float]:
    """Medians of calls that take turns; the first of each is not counted."""
    times: dict[bool, list[float]] = {False: [], True: []}
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times[True]) < 4:
        for wider, found in times.items():
            found.append(call(wider))
    return {"torch": statistics.median(times[False][1:]), "onednn": statistics.median(times[True][1:])}


def line(run: dict[str, Any]) -> str:
    """A row of the table."""
    numbers = [f"{run[key]:,}" for key in ("targets", "items", "width")]
    return (
        f"| {' | '.join(numbers)} | {run['torch']:.1f} | {run['onednn']:.1f} | {run['torch'] / run['onednn']:.2f} × |"
    )


if __name__ == "__main__":
    main()
