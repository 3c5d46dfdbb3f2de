"""``recsys quickstart``: all of it once, on ml-100k."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.cli.fit import parse

if TYPE_CHECKING:
    from recsys.train.run import Run


def quickstart(out: Path = Path("runs/quickstart"), epochs: int | None = None) -> None:
    """Fetch ml-100k, train SASRec, blend it with item-kNN, compare, export a bundle, recommend by title.

    Args:
        out: run folder of SASRec; its bundle, and the run of the blend with its own, are written into it.
        epochs: maximum number of training epochs (default: those of the recipe).
    """
    from recsys.serve.bundle import export as write

    flags = [] if epochs is None else ["--epochs", str(epochs)]
    run = parse(["sasrec_ml100k", "--no-baselines", "--out", str(out), *flags])()
    print(f"\n{write(run.model, out / 'bundle', split=run.split)}\n")
    show(parse(["blend", "--members", str(out), "--out", str(out / "blend")])(), out / "blend")


def show(run: Run, out: Path) -> None:
    """Export a bundle and recommend, by title, for one history of the test part."""
    from recsys.serve.bundle import Bundle
    from recsys.serve.bundle import export as write

    split = run.split
    write(run.model, out / "bundle", split=split)
    bundle = Bundle.load(out / "bundle")
    print(f"\n{bundle}")
    titles = (split.item_text or {}).get("title")
    lengths = split.test.history_lengths
    person = int(abs(lengths - 30).argmin())
    _, rows = split.test.history(_one(person))
    history = split.items.raw(rows)
    best = bundle.recommend([history.tolist()], k=10)

    def name(row: int) -> str:
        return str(titles[row]) if titles is not None and titles[row] else str(split.items.raw(_one(row))[0])

    print(
        f"\nuser {split.users.raw(split.test.users[_one(person)])[0]} watched, newest last: "
        + "; ".join(map(name, rows[-5:]))
    )
    print("recommended from the bundle:")
    for rank, (row, score) in enumerate(zip(best.rows[0], best.scores[0], strict=True), 1):
        if row:
            print(f"  {rank:>2}. {name(int(row))}  ({score:.2f})")


def _one(position: int) -> Any:
    import numpy as np

    return np.array([position])
