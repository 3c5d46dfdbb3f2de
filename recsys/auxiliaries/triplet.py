"""Contrast of a history with an edited and a random view of it, and the stage in which the editor learns (LACLRec).

A random view is blind; an editor that has learned to undo corruption makes a view on purpose. Both views of a row are
a positive pair (NT-Xent, "coarse"), and the history should be nearer to its edited view than to the random one (a
pairwise ranking loss, "fine"). Sources: "Learnable Sequence Augmenter for Triplet Contrastive Learning in Sequential
Recommendation" (arXiv 2503.20232), of which abstract and idea could be read, and the released code of its successor
TCLARec (anonymityww/TCLA, SIGIR 2025), whose numbers the defaults are.

What we do differently: all positions of a history may be trained at once (the code trains one row per prefix); the
views of a step go through the encoder in one pass; and the recommender has no layer of its own above the editor's
states, unless the encoder is wrapped in :class:`Topped`.

Legend: B histories that take part, L longest of them, D width, N items.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.augmentations.choice import OneOf
from recsys.augmentations.corruption import check_probabilities, corrupt
from recsys.augmentations.crop import Crop
from recsys.augmentations.edits import OPERATIONS
from recsys.augmentations.mask import Mask
from recsys.augmentations.positions import take, view_of
from recsys.augmentations.reorder import Reorder
from recsys.auxiliaries.contrast import check_contrast, check_labels, false_negatives, newest_target, nt_xent
from recsys.auxiliaries.edit_report import edit_sections, editor_quality
from recsys.auxiliaries.editor import Editor, LowerStates
from recsys.data.batch import Batch, blanked
from recsys.errors import DataWarning
from recsys.hooks import bind, member
from recsys.nn.blocks import Block
from recsys.nn.initialise import initialise
from recsys.nn.processes import from_all
from recsys.protocols import Augmentation, Context, Encoded, Encoder, ItemTable, Step

SECONDS, REDUCTIONS = ("edited", "random"), ("sum", "mean")


class TripletContrast(nn.Module):
    """LACLRec's losses: of the editor in the stage named ``pretrain``, of the recommender in any other.

    In ``pretrain`` the terms are "operations" and "insertions" (:meth:`Editor.loss` of corrupted training rows, their
    newest target included); else "contrast" = ``contrast`` NT-Xent(random, edited) and "triplet" = ``triplet`` sum_b
    softplus(h_b . random_b - h_b . edited_b), h_b the state of the history itself. A term of factor 0 is neither
    computed nor given. Editing sees inputs only, never a target, and has no gradient: freeze the editor then
    (``Stage(freeze=["auxiliaries.0.editor"])``).

    Use when: histories are sparse and blind augmentation breaks them; it costs a stage of pre-training and, per step,
    an edit and two views. Prefer instead :class:`recsys.auxiliaries.cl4srec.CL4SRec` where that is too much.

    Args:
        weight: of all terms.
        editor: see there (default: ``Editor()``, none where ``second`` is "random").
        contrast: alpha; .1 in the released code.
        triplet: beta; .001 there, of a sum: with other batch sizes, or ``reduction="mean"``, the same beta weighs
            differently.
        views: the random view (default: crop .6, mask .3 or reorder .6, drawn for each row).
        reduction: of the triplet loss over rows, "sum" or "mean". A sum is over the rows of a batch, of all processes;
            of batches that are accumulated it is the mean, so ``triplet`` does not grow with their number.
        temperature: of the contrast, whose vectors are not normalised.
        hide: which rows are not told apart: those of the same "target", of the same "user", or both.
        second: "edited", or "random" for two random views and no editor (an ablation, without a triplet loss).
        keep_learning: lambda, what the editor's losses weigh in the other stages (STEAM); 0 leaves it as it is while
            the encoder below it moves on.
        pretrain: the name of the editor's stage. Without one, and with ``keep_learning`` 0, views come from an editor
            that learned nothing, which is said once.
        keep, delete, insert: probabilities of the corruption, see :func:`recsys.augmentations.corruption.corrupt`.

    Raises:
        ValueError: an unknown name, a number that cannot be, or a triplet loss without an edited view.
    """

    taught: Tensor  # whether the editor has learned, kept with the weights

    def __init__(
        self,
        weight: float = 1.0,
        editor: Editor | None = None,
        contrast: float = 0.1,
        triplet: float = 0.001,
        views: Augmentation | None = None,
        reduction: str = "sum",
        temperature: float = 1.0,
        hide: Sequence[str] = (),
        second: str = "edited",
        keep_learning: float = 0.0,
        pretrain: str = "pretrain",
        keep: float = 0.4,
        delete: float = 0.45,
        insert: float = 0.15,
    ) -> None:
        super().__init__()
        check_contrast(temperature, 0.0)
        check_labels([hide] if isinstance(hide, str) else hide)
        check_probabilities(keep, delete, insert)
        for name, value, known in (("reduction", reduction, REDUCTIONS), ("second", second, SECONDS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, found {value!r}")
        if min(contrast, triplet, keep_learning) < 0:
            raise ValueError(f"factors must not be negative, found {contrast}, {triplet} and {keep_learning}")
        if second == "random" and (triplet or keep_learning):
            raise ValueError("two random views know no editor: give triplet=0 and keep_learning=0 with second='random'")
        self.weight, self.contrast, self.triplet, self.reduction = weight, contrast, triplet, reduction
        self.temperature, self.hide = temperature, [hide] if isinstance(hide, str) else list(hide)
        self.second, self.keep_learning, self.pretrain = second, keep_learning, pretrain
        self.keep, self.delete, self.insert = keep, delete, insert
        self.editor = Editor() if editor is None and second == "edited" else editor
        self.views = OneOf([Crop(0.6), Mask(0.3), Reorder(0.6)]) if views is None else views
        own = getattr(self.editor, "encoder", None)
        self.needs: frozenset[str] = member(own, "needs") | member(self.views, "needs")
        self.register_buffer("taught", torch.tensor(False))
        self._asked = False
        self.on_epoch(0)

    @property
    def longest(self) -> int | None:
        """Most items of an edited view; None without an editor."""
        return None if self.editor is None else self.editor.max_length

    def bind(self, context: Context) -> None:
        """Initialise the editor, and let the random operations learn the catalogue."""
        self.taught, self._asked = torch.tensor(False), False
        if self.editor is not None:
            bind(self.editor, context)
        bind(self.views, context)
        self.on_epoch(0)

    def on_epoch(self, epoch: int) -> None:
        """Count anew: ``operation_counts`` (3,) of edited tokens, ``edited_rows``, and in how many of these the edit
        put the target where it was not (``edited_to_target``).
        """
        self.operation_counts = torch.zeros(len(OPERATIONS), dtype=torch.int64)
        self.edited_to_target = torch.zeros((), dtype=torch.int64)
        self.edited_rows = 0

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms of the step's stage."""
        if step.stage == self.pretrain:
            return self.learn(step)
        terms: dict[str, Tensor] = {}
        if self.contrast or self.triplet:
            terms.update(self._compare(step))
        if self.keep_learning:
            terms.update({name: value * self.keep_learning for name, value in self.learn(step).items()})
        return terms

    def learn(self, step: Step) -> dict[str, Tensor]:
        """The editor's losses on freshly corrupted training rows.

        Raises:
            ValueError: there is no editor.
        """
        assert step.items is not None and step.encode is not None
        self.taught.fill_(True)
        if self.editor is None:
            raise ValueError("two random views need no stage for an editor: drop it, or give second='edited'")
        whole = training_rows(step.batch, step.items.num_items, self.editor.max_length)
        probabilities = self.keep, self.delete, self.insert
        generator = step.generator("TripletContrast.corruption")
        corrupted = corrupt(
            whole, step.items.num_items, generator, *probabilities, self.editor.max_inserted, self.editor.max_length
        )
        return self.editor.loss(corrupted, step.encode, step.items)

    def pair(self, step: Step, batch: Batch) -> tuple[Batch, Batch]:
        """The random and the edited view of ``batch``, rows of the step's; or two random ones."""
        assert step.items is not None and step.encode is not None
        inputs = view_of(batch)
        if hasattr(self.views, "refresh"):
            self.views.refresh(step.items, step.epoch)
        first = self.views(inputs, step.generator("TripletContrast.first"))
        if self.second == "random" or self.editor is None:
            return first, self.views(inputs, step.generator("TripletContrast.second"))
        if not self._asked and not self.keep_learning and not bool(self.taught):
            warnings.warn(
                f"the editor of TripletContrast learned nothing so far, so its edits are noise: give fit a first "
                f'stage Stage(20, losses=["TripletContrast0"], name={self.pretrain!r}, validate=False), as the recipe '
                "laclrec does",
                DataWarning,
                stacklevel=2,
            )
        self._asked = True
        edited = self.editor.edit(inputs, step.encode, step.items, step.generator("TripletContrast.edit"))
        self._count(batch, edited.batch, edited.operations)
        return first, edited.batch

    def sections(self, model: Any, split: Any) -> dict[str, Any]:
        """What the editor does to training histories, for the run's report."""
        if self.editor is None:
            return {}
        found = edit_sections(model, split)
        if len(split.valid):
            found["Editor quality on fresh corruption"] = editor_quality(model, split, users=2000)
        if self.edited_rows:
            share = int(self.edited_to_target) / self.edited_rows
            tokens = self.operation_counts.tolist()
            shares = {name: count / max(sum(tokens), 1) for name, count in zip(OPERATIONS, tokens, strict=True)}
            shown = {f"tokens: {name}": f"{value:.1%}" for name, value in shares.items()}
            found["Edits in the last epoch of training"] = {**shown, "rows with the target written in": f"{share:.2%}"}
        return found

    def _compare(self, step: Step) -> dict[str, Tensor]:
        rows = (step.batch.lengths > 0).nonzero().squeeze(1)
        batch, own = step.batch.select(rows), step.encoded.user[rows]
        if len(rows):
            assert step.encode is not None
            views = list(self.pair(step, batch))
            if bool((newest_target(batch) < 0).any()):  # an encoder may have spared itself the newest states
                views.append(view_of(batch))
            first, second, *again = step.encode(Batch.join(views)).user.split(len(rows))
            own = again[0] if again else own
        else:
            first = second = own
        if step.share == 0:  # the spare row of a process without rows: it waits for the others, and brings nothing
            batch, own, first, second = batch.select(batch.rows[:0]), own[:0], first[:0], second[:0]
        terms = {}
        if self.contrast:
            hidden = false_negatives(batch, self.hide) if self.hide else None
            terms["contrast"] = self.contrast * nt_xent(first, second, self.temperature, hide=hidden)
        if self.triplet:
            own, second, first = map(from_all, (own, second, first))  # a sum is that of the whole batch
            terms["triplet"] = self.triplet * triplet_loss(own, second, first, self.reduction)
        return terms

    def _count(self, batch: Batch, view: Batch, operations: Tensor) -> None:
        found = torch.bincount(batch.flatten(operations), minlength=len(OPERATIONS))
        self.operation_counts = self.operation_counts.to(found.device) + found
        target = newest_target(batch)[:, None]
        written = (view.ids == target).any(1) & ~(batch.ids == target).any(1)
        self.edited_to_target = self.edited_to_target.to(found.device) + written.sum()
        self.edited_rows += len(batch)


class Topped(nn.Module):
    """An encoder with further blocks on top: the recommender reads those, an :class:`Editor` the states below.

    The inner encoder's states are its :class:`recsys.auxiliaries.editor.LowerStates`, as TCLARec has them under its
    recommender layer.

    Args:
        layers: blocks on top, in the layout of the released code (LayerNorm behind each residual, width 4 D inside).
    """

    def __init__(self, encoder: Encoder, layers: int = 1, num_heads: int = 2, dropout: float = 0.5) -> None:
        super().__init__()
        self.encoder, self.layers, self.num_heads, self.dropout = encoder, layers, num_heads, dropout
        self.sees, self.dim, self.max_length = encoder.sees, encoder.dim, encoder.max_length
        self.longest: int = member(encoder, "longest") or encoder.max_length
        self.needs: frozenset[str] = member(encoder, "needs")
        self.gives = frozenset({LowerStates})
        causal = encoder.sees == "past"
        self.blocks = nn.ModuleList(
            Block("post", self.dim, num_heads, 4 * self.dim, dropout, norm_eps=1e-5, causal=causal)
            for _ in range(layers)
        )

    def bind(self, context: Context) -> None:
        """Initialise the inner encoder by its own rule, the blocks by Xavier's."""
        bind(self.encoder, context)
        initialise(self.blocks, "xavier_normal")

    def forward(self, batch: Batch, items: ItemTable) -> Encoded:
        """States of all real tokens, zero for an empty history, with :class:`LowerStates`."""
        base = states = self.encoder(batch.ask_all(), items).tokens
        for block in self.blocks:
            states = block(states, batch)
        return Encoded(batch, states, (LowerStates(base),))


def triplet_loss(anchors: Tensor, near: Tensor, far: Tensor, reduction: str = "sum") -> Tensor:
    """-log sigmoid(a . near - a . far) over rows (B, D), by "sum" or "mean"; finite for any finite products."""
    anchors, near, far = (value.float() for value in (anchors, near, far))
    losses = F.softplus((anchors * far).sum(1) - (anchors * near).sum(1))
    return losses.sum() if reduction == "sum" else losses.sum() / max(len(losses), 1)


def training_rows(batch: Batch, num_items: int, max_length: int) -> Batch:
    """The rows that a prepared batch was made of: inputs with hidden items restored, and the newest target behind.

    Of longer rows the newest ``max_length`` items. Rows without a target behind their input end with the input.
    """
    newest, lengths = newest_target(batch), batch.lengths
    assert batch.targets is not None
    hidden = batch.ids > num_items
    ids = F.pad(torch.where(hidden, batch.targets, batch.ids), (0, 1))
    behind = (newest > 0) & ~hidden.gather(1, (lengths - 1).clamp(min=0)[:, None]).squeeze(1)
    ids = ids.scatter(1, lengths[:, None], torch.where(behind, newest, 0)[:, None])
    times = batch.times
    if times is not None:
        at = (lengths - 1).clamp(min=0)[:, None]
        asked = (times if batch.target_times is None else batch.target_times).gather(1, at)
        times = F.pad(times, (0, 1)).scatter(1, lengths[:, None], asked * behind[:, None])
    lengths = lengths + behind.long()
    surplus = (lengths - max_length).clamp(min=0)
    position = torch.arange(min(ids.shape[1], max_length), device=ids.device)
    index = (position + surplus[:, None]).clamp(max=ids.shape[1] - 1)
    unknown = torch.arange(ids.shape[1], device=ids.device) == batch.lengths[:, None]  # behind the input
    features = {
        name: blanked(torch.cat([values, torch.zeros_like(values[:, :1])], 1), unknown)
        for name, values in batch.features.items()
    }
    return take(view_of(batch, ids=ids, times=times, features=features), index, lengths - surplus)
