"""What an editor does: edits by title, shares by operation and by popularity, and how well it undoes corruption.

``model`` is a recommender with a :class:`recsys.auxiliaries.triplet.TripletContrast` among its auxiliaries. Nothing
here is trained, and the model is left in the mode it was in. Legend: B histories, L longest, T tokens, M most items
inserted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.augmentations.corruption import corrupt
from recsys.augmentations.edits import DELETE, INSERT, OPERATIONS
from recsys.auxiliaries.editor import Edited, Editor, best_rows, evaluating
from recsys.data.batch import PAD, Batch
from recsys.errors import not_fitted
from recsys.randomness import torch_generator

ROWS = 256  # histories edited at a time
EDITS = 8  # newest edits of a history that are shown
POPULARITY = ("head", "mid", "tail")


def show_edits(
    model: Any, histories: Sequence[Sequence[Any]], titles: Mapping[Any, str] | None = None, seed: int = 0
) -> str:
    """How the editor changes raw histories (oldest item first), one line per edit; unknown items are left out.

    Args:
        titles: text of raw item ids; an id without text is shown itself.
        seed: of random decisions.

    Raises:
        ValueError: the model has no editor, or is not fitted.
        TypeError: a history is one id, not a list of them.
    """
    if any(isinstance(history, (str, bytes)) for history in histories):
        raise TypeError("a history is a list of raw item ids: pass [[id, id, ...], ...]")
    batch = _batch(model, histories)
    edited = _edit(model, batch, seed)
    lines = []
    for number, row in enumerate(_lines(model, batch, edited, titles or {}), 1):
        lines += [f"history {number}", *(f"  {line}" for line in row)]
    return "\n".join(lines)


def editor_quality(model: Any, split: Any, seed: int = 0, users: int | None = None) -> dict[str, float]:
    """How well the editor undoes fresh corruption of validation users' histories (of their training events).

    ``operation_accuracy`` against ``majority_accuracy``, the share of the commonest label; ``generator_top1``, how
    often the generator puts the right item first (it knows the ones before it), against ``popularity_top1``, the share
    of the most popular item of training among the items to insert; ``tokens`` and ``insertions``, how many were asked.

    Args:
        users: of this many validation users, the first ones (default: all).

    Raises:
        ValueError: the model has no editor, or the split no validation users.
    """
    part = _part(model)
    editor: Editor = part.editor
    index = np.arange(len(split.valid))[:users]
    if len(index) == 0:
        raise ValueError(
            "the split has no validation users, whose histories would be corrupted: split with a valid part"
        )
    counts, popular = torch.zeros(3, dtype=torch.int64), int(split.train.item_counts().argmax())
    right, top, favourite, items = 0, 0, 0, 0
    with torch.no_grad(), evaluating(editor, model.encode):
        for number, chunk in enumerate(np.array_split(index, -(-len(index) // ROWS))):
            batch = split.valid.batch(chunk, editor.max_length).to(_device(model))
            batch = batch.select((batch.lengths > 0).nonzero().squeeze(1))
            if len(batch) == 0:
                continue
            generator = torch_generator(seed, "editor_quality", number, device=batch.ids.device)
            probabilities = part.keep, part.delete, part.insert
            limits = editor.max_inserted, editor.max_length
            corrupted = corrupt(batch, model.items.num_items, generator, *probabilities, *limits)
            states = editor.states(corrupted.batch, model.encode, model.items)
            labels = corrupted.batch.flatten(corrupted.operations)
            counts += torch.bincount(labels, minlength=3).cpu()
            right += int((editor.operation_head(states).argmax(1) == labels).sum())
            hidden, targets = editor.predict(states, corrupted, model.items)
            real = targets <= model.items.num_items
            top += int((best_rows(hidden[real], model.items) == targets[real]).sum())
            favourite, items = favourite + int((targets[real] == popular).sum()), items + int(real.sum())
    tokens, asked = max(int(counts.sum()), 1), max(items, 1)
    return {
        "operation_accuracy": right / tokens,
        "majority_accuracy": int(counts.max()) / tokens,
        "generator_top1": top / asked,
        "popularity_top1": favourite / asked,
        "tokens": int(counts.sum()),
        "insertions": items,
    }


def edit_sections(model: Any, split: Any, users: int = 2000, shown: int = 5, seed: int = 0) -> dict[str, Any]:
    """For a run's report: edits of some training histories by title, and their shares over some ``users`` of them."""
    lengths = split.train.lengths
    known = np.flatnonzero(lengths > 0)
    index = known[:: max(1, -(-len(known) // users))]
    editor = _part(model).editor
    level = _levels(split.train.item_counts())
    operations = torch.zeros(3, dtype=torch.int64)
    popularity = torch.zeros(3, len(POPULARITY), dtype=torch.int64)
    for rows in np.array_split(index, max(1, -(-len(index) // ROWS))):
        batch = split.train.gather(rows, editor.max_length).to(_device(model))
        edited = _edit(model, batch, seed)
        codes = batch.flatten(edited.operations).cpu()
        operations += torch.bincount(codes, minlength=3)
        for code, items in enumerate(_items_by_operation(batch, edited, model.items.num_items)):
            popularity[code] += torch.bincount(level[items.cpu()], minlength=len(POPULARITY))
    shares = operations / operations.sum().clamp(min=1)
    by_popularity = popularity / popularity.sum(1, keepdim=True).clamp(min=1)
    return {
        "Edits by operation": {"bars": dict(zip(OPERATIONS, shares.tolist(), strict=True))},
        "Edits by item popularity": {
            "bars": {
                f"{name}, {part}": by_popularity[code, column].item()
                for code, name in enumerate(("kept", "deleted", "inserted"))
                for column, part in enumerate(POPULARITY)
            }
        },
        "Edits of training histories": _table(model, split, index[:: max(1, len(index) // shown)][:shown], seed),
    }


def _table(model: Any, split: Any, users: np.ndarray, seed: int) -> list[dict[str, str]]:
    batch = split.train.gather(users, _part(model).editor.max_length).to(_device(model))
    texts = split.item_text or {}
    column = next(iter([name for name in texts if "title" in name.lower()] or texts), None)
    edited = _edit(model, batch, seed)
    shown = torch.cat([batch.ids.flatten(), edited.inserted.flatten()]).unique()
    rows = shown[shown <= model.items.num_items].tolist()
    titles = {} if column is None else {split.items.raw(np.array([row]))[0]: texts[column][row] for row in rows if row}
    told = _lines(model, batch, edited, {raw: title for raw, title in titles.items() if title.strip()})
    rows = []
    for name, lines in zip(split.users.raw(users).tolist(), told, strict=True):
        parts = [line.split(maxsplit=1) for line in lines]
        edits = [number for number, (operation, _) in enumerate(parts) if operation != "keep"]
        for number in edits[-EDITS:]:
            operation, item = parts[number]
            anchor = next((title for verb, title in parts[number:] if verb != "insert"), "")
            rows.append(
                {"user": str(name), "edit": operation, "item": item, "before": anchor * (operation == "insert")}
            )
        if not edits:
            rows.append({"user": str(name), "edit": "none", "item": f"all {len(parts)} items kept", "before": ""})
    return rows


def _lines(model: Any, batch: Batch, edited: Edited, titles: Mapping[Any, str]) -> Iterator[list[str]]:
    """Of each history: keep, delete or insert, and the item; insertions in the order in which they will stand."""

    def name(row: int) -> str:
        raw = model.vocabulary.raw(np.array([row]))[0]
        return str(titles.get(raw, raw))

    num_items = model.items.num_items
    views = batch.ids.tolist(), batch.lengths.tolist(), edited.operations.tolist(), edited.inserted.tolist()
    for ids, length, operations, inserted in zip(*views, strict=True):
        lines: list[str] = []
        for row, operation, listed in zip(ids[:length], operations, inserted, strict=False):
            if operation == INSERT:
                lines += [f"insert {name(one)}" for one in reversed(listed) if PAD < one <= num_items]
            lines.append(f"{'delete' if operation == DELETE else 'keep  '} {name(row)}")
        yield lines


def _edit(model: Any, batch: Batch, seed: int) -> Edited:
    generator = torch_generator(seed, "show_edits", device=batch.ids.device)
    edited: Edited = _part(model).editor.edit(batch, model.encode, model.items, generator)
    return edited


def _items_by_operation(batch: Batch, edited: Edited, num_items: int) -> list[Tensor]:
    """Item rows that are kept (anchors of insertions too), deleted, and inserted."""
    gone = batch.mask & (edited.operations == DELETE)
    new = edited.inserted[(edited.inserted > PAD) & (edited.inserted <= num_items)]
    return [batch.ids[batch.mask & ~gone], batch.ids[gone], new]


def _levels(counts: np.ndarray) -> Tensor:
    """(N + 1,): 0 for head items, the most popular that hold a third of the events, 1 for the next third, else 2."""
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    level = np.empty(len(counts), np.int64)
    level[order] = np.minimum(before * 3 // max(int(counts.sum()), 1), 2)
    return torch.from_numpy(level)


def _batch(model: Any, histories: Sequence[Sequence[Any]]) -> Batch:
    """Raw histories as a batch, the newest items of each that the editor reads."""
    longest = _part(model).editor.max_length
    if model.vocabulary is None:
        raise not_fitted(model)
    found = [model.vocabulary.rows(list(history)) if len(history) else np.zeros(0, np.int64) for history in histories]
    rows = [torch.from_numpy(one[one > 0][-longest:].astype(np.int64)) for one in found]
    lengths = torch.tensor([len(one) for one in rows], dtype=torch.int64)
    ids = torch.nn.utils.rnn.pad_sequence([torch.zeros(1, dtype=torch.int64), *rows], batch_first=True)[1:]
    number = torch.arange(len(rows))
    return Batch(number, torch.full_like(number, -1), ids, lengths).to(_device(model))


def _part(model: Any) -> Any:
    """The auxiliary that holds the editor."""
    for part in getattr(model, "auxiliaries", ()):
        if isinstance(getattr(part, "editor", None), Editor):
            return part
    raise ValueError("the model has no editor: add TripletContrast to its auxiliaries")


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device
