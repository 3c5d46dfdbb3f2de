"""``recsys forget``: a run that no longer knows some users or items."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.cli.arguments import importable

if TYPE_CHECKING:
    from recsys.data.split import Split


def forget(
    run: Path,
    table: Path,
    /,
    out: Path | None = None,
    items: bool = False,
    epochs: int = 30,
    learning_rate: float = 1e-3,
    beta: float = 0.1,
    kl: float = 100.0,
    extrapolate: float = 0.0,
    tolerance: float = 0.02,
    rank: int = 0,
    batch_size: int = 128,
    seed: int = 0,
    purge: bool = False,
    among: tuple[Path, ...] = (),
    split: Path | None = None,
    trust: tuple[str, ...] = (),
) -> None:
    """Make a run forget some users, or items, without training it anew; experimental.

    A new run folder gets the model, with a statement of what was measured (forgotten.txt, forgotten.json). Where no
    epoch stays within the tolerance nothing is written, and the exit status is 1.

    Args:
        run: the run folder; it stays as it is.
        table: file with their raw ids (.parquet, .csv, .tsv, .ndjson), in the column user or item, or its only one.
        out: the new run folder (default: RUN-forgotten).
        items: the table names items.
        epochs: most epochs over what is to be forgotten.
        learning_rate: learning rate of Adam.
        beta: how soon an event that has become improbable stops counting.
        kl: weight of what keeps the model as it is for others.
        extrapolate: go on by up to this share of the change, as far as the tolerance allows.
        tolerance: share of the others' NDCG@10 on validation that may be lost.
        rank: of low-rank adapters, trained instead of all weights (default: all weights).
        batch_size: events to be forgotten in a batch.
        seed: random seed.
        purge: delete what the cache holds of the old split, the users' rows in reports of the old run, and texts
            about them in profiles.
        among: folders in which profiles, bundles and other runs of the same data are looked for (default: the one that
            the run lies in).
        split: folder of a saved split with the same items (default: the split the run was trained on).
        trust: modules outside recsys whose classes the model may use; their code is run (default: none).
    """
    from recsys.forgetting.forget import forget as forgets
    from recsys.forgetting.purge import purge as purged
    from recsys.forgetting.purge import remains
    from recsys.runs.read import load_run
    from recsys.runs.split import split_of

    target = out or run.with_name(f"{run.resolve().name}-forgotten")
    if target.exists():
        raise FileExistsError(f"{target} is there already: name another folder with --out")
    model = load_run(run, importable(trust))
    found = split_of(run, model, split)
    ids = _ids(table, "item" if items else "user", found)
    adapter: Any = None
    if rank:
        from recsys.llm.trainers.adapters.lora import LoRA

        adapter = LoRA(rank)
    done = forgets(
        model, found, users=None if items else ids, items=ids if items else None, epochs=epochs,
        learning_rate=learning_rate, beta=beta, kl=kl, extrapolate=extrapolate, tolerance=tolerance, adapter=adapter,
        batch_size=batch_size, seed=seed,
    )  # fmt: skip
    if not done.facts["chosen epoch"]:
        raise ValueError(f"nothing was forgotten, and no run is written\n{done}")
    _write(done, run, target)
    kind, places = "items" if items else "users", list(among) or None
    kept = purged(run, found, ids, kind, places) if purge else []
    text = _tell(done, run, target, kept, remains(run, found, ids, kind, places, but=target))
    print(f"{text}\nthe new run: {target}; recsys evaluate {target}, recsys export {target} as any other")


def _write(done: Any, run: Path, target: Path) -> None:
    """The new run folder, under the name that the old run has."""
    from recsys.runs.read import read_config
    from recsys.train.fit import fit

    name = str(read_config(run).get("name") or "")
    fit(done.model, done.split, epochs=0, init="keep", validate_every=0, folder=target, name=name, progress=False)


def _tell(done: Any, run: Path, target: Path, kept: list[str], left: list[str]) -> str:
    """What was done and what is left, also written into the folder."""
    from recsys.storage.files import write_text

    facts = {"facts": done.facts, "before": done.before, "after": done.after, "epochs": done.epochs, "purged": kept}
    lines = [f"{run}, {datetime.date.today()}", "", str(done), ""]
    lines += ["Purged:", *(f"- {line}" for line in kept)] if kept else ["Nothing was purged (--purge does it)."]
    lines += ["Still there, as far as this machine is known:", *(f"- {line}" for line in left)] if left else []
    text = "\n".join(lines) + "\n"
    write_text(target / "forgotten.json", json.dumps(facts, indent=1))
    write_text(target / "forgotten.txt", text)
    return text


def _ids(table: Path, column: str, split: Split) -> list[Any]:
    """The raw ids of a file, of the type that the data have."""
    import polars as pl

    from recsys.errors import DataError
    from recsys.storage.reading import reading

    if not table.is_file():
        raise FileNotFoundError(f"there is no file {table} of {column} ids")
    kind = (split.items if column == "item" else split.users).kind
    with reading(table, f"write the ids as .parquet, .csv, .tsv or .ndjson, in the column {column}"):
        if table.suffix in (".csv", ".tsv"):
            cut = "\t" if table.suffix == ".tsv" else ","
            frame = pl.read_csv(table, separator=cut, infer_schema=False, glob=False)
        elif table.suffix == ".parquet":
            frame = pl.read_parquet(table, glob=False)
        else:
            frame = pl.read_ndjson(table.read_bytes())
        name = column if column in frame.columns else frame.columns[0] if len(frame.columns) == 1 else None
        if name is None:
            raise DataError(f"no column {column!r}; found {', '.join(frame.columns[:10])}")
        found = frame[name].drop_nulls().cast(pl.String if kind == "str" else pl.Int64)
        return list(found.unique(maintain_order=True))
