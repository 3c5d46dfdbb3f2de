"""SLMRec's distillation: a shallow language model learns the block ends of a deep one (arXiv 2405.17890).

Teacher and student are :class:`recsys.encoders.slmrec.SLMRec` encoders whose layers are taken as b equal blocks; h_k is
the state at the last token at the end of block k, the last of them after the final norm. Added to the cross-entropy:

- cosine * (1 - mean_k cos(h_k teacher, h_k student)), the direction,
- norm * mean_k ||h_k teacher - h_k student||^2, the value,
- supervision * mean_{k<b} CE(target, A_k h_k student), an own head A_k per block of the student but the last.

Where paper and released code differ the default is the paper's. The code sums over the blocks (``reduction="sum"``: its
cosine counts b times as much) and takes the norm without the square (``norm_power=1``). The squared norm sums over the
hidden width, so it grows with the model: look at the terms before trusting .1, or take ``norm_reduce="mean"``.

Legend: B histories, H hidden size, D width of item vectors, b blocks, R training rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.auxiliaries.teacher import CACHES, TeacherStates
from recsys.encoders.slmrec import BlockEnds
from recsys.protocols import Context, Encoded, Step
from recsys.storage.layout import hash_run

REDUCTIONS = ("mean", "sum")


class Distillation(nn.Module):
    """What a student loses by not being its teacher, as the terms "cosine", "norm" and "supervision".

    The teacher is read from its run folder when training begins. It is not part of the model: never trained, never in
    training mode, never saved, and a loaded student does not ask for it.

    Args:
        teacher: run folder of a recommender with an ``SLMRec`` encoder; "" if only ``supervision`` is wanted.
        cosine: weight of the direction (lambda_1); a term of weight 0 costs nothing.
        norm: weight of the value (lambda_2).
        supervision: weight of the heads (lambda_3).
        blocks: b; the student's encoder needs as many.
        reduction: "mean" over the blocks (paper) or "sum" (released code), for all three terms.
        norm_power: of the distance: 2 (paper) or 1 (released code).
        norm_reduce: squares are added up ("sum") or averaged ("mean") over the H numbers of a state.
        dim, hidden: D and H of the student, which the heads need; no other term does.
        cache: None runs the teacher in every optimizer step. "prefixes" and "users" read every training row of
            ``LastItem`` or ``LastOfUser`` once and keep the states in the user's cache, R * b * H * 4 bytes; not with
            augmentations.
        weight: of all of it.
        trust: as in :func:`recsys.load_run`, for the teacher: the folder or hub name of its language model, if that is
            not in its run.

    Raises:
        ValueError: nothing to distil (all weights are 0, or no teacher for a term that needs one), a choice or number
            out of range, or heads without ``dim`` and ``hidden``.
    """

    def __init__(
        self,
        teacher: str = "",
        cosine: float = 1.0,
        norm: float = 0.1,
        supervision: float = 1.0,
        blocks: int = 4,
        reduction: str = "mean",
        norm_power: int = 2,
        norm_reduce: str = "sum",
        dim: int | None = None,
        hidden: int | None = None,
        cache: str | None = None,
        weight: float = 1.0,
        trust: Sequence[str] = (),
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("reduction", reduction, REDUCTIONS), ("norm_reduce", norm_reduce, REDUCTIONS),
            ("norm_power", norm_power, (1, 2)), ("cache", cache, CACHES),
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, found {value!r}")
        if min(cosine, norm, supervision, weight) < 0 or not cosine + norm + supervision:
            raise ValueError(
                f"nothing to distil: cosine, norm and supervision must be at least 0, and one of them more, found "
                f"{cosine}, {norm} and {supervision}; leave Distillation out for cross-entropy alone"
            )
        if (cosine or norm) and not str(teacher):
            raise ValueError("nothing to distil from: teacher= must name the run folder of the teacher")
        if blocks < 1 + bool(supervision):
            raise ValueError(f"blocks must be at least {1 + bool(supervision)}, found {blocks}")
        if supervision and (dim is None or hidden is None):
            raise ValueError("the heads of supervision need dim= and hidden=, the widths of the student")
        self.teacher, self.cosine, self.norm, self.supervision = str(teacher), cosine, norm, supervision
        self.blocks, self.reduction, self.norm_power, self.norm_reduce = blocks, reduction, norm_power, norm_reduce
        self.dim, self.hidden, self.cache, self.weight = dim, hidden, cache, weight
        self.needs: frozenset[str] = frozenset({"events"} if cache else ())
        self.heads = nn.Parameter(torch.empty(blocks - 1, dim or 0, hidden or 0)) if supervision else None
        self.trust = list(trust)
        self._source: list[TeacherStates] = []  # in a list, so that the teacher is not part of this module

    def bind(self, context: Context) -> None:
        """Initialise the heads as torch does linear layers; where there is training, read the teacher.

        Raises:
            FileNotFoundError, DataError: the teacher's folder is not there or damaged, or it knows other items.
            ValueError: the teacher is not an ``SLMRec``, or its layers do not divide into the blocks.
        """
        if self.heads is not None:
            nn.init.uniform_(self.heads, -((self.hidden or 1) ** -0.5), (self.hidden or 1) ** -0.5)
        if context.training is not None and (self.cosine or self.norm):
            self._source = [TeacherStates(self.teacher, context, self.blocks, self.cache, self.trust)]

    def sources(self) -> str:
        """Hash of the teacher: after another training of it this is another run."""
        return hash_run(self.teacher) if self.cosine or self.norm else ""

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms that have a weight.

        Raises:
            ValueError: the student gives no block ends, others than ``blocks``, or of another width than the teacher's.
        """
        encoded = step.encoded
        known = (step.batch.lengths > 0).nonzero().squeeze(1)
        student = self._student(encoded)[known]
        terms: dict[str, Tensor] = {}
        if self.cosine or self.norm:
            if not self._source:
                raise ValueError(
                    "there is no teacher: train with rs.fit, which reads it (or call bind(context) yourself, with a "
                    "training part)"
                )
            teacher = self._source[0](step.batch)[known].to(student.dtype)
            if teacher.shape[-1] != student.shape[-1]:
                raise ValueError(
                    f"the teacher's states are {teacher.shape[-1]} wide, the student's {student.shape[-1]}: both need "
                    "the same hidden size"
                )
            terms |= self._matched(teacher, student)
        if self.heads is not None:
            terms["supervision"] = self.supervision * self._supervised(step, encoded, self._student(encoded))
        return terms

    def direction(self, teacher: Tensor, student: Tensor) -> Tensor:
        """1 - D_cos of block ends (n, b, H)."""
        return self._over_blocks(1 - F.cosine_similarity(teacher, student, dim=-1))

    def distance(self, teacher: Tensor, student: Tensor) -> Tensor:
        """D_norm of block ends (n, b, H)."""
        squares = (teacher - student).square()
        squared = squares.sum(-1) if self.norm_reduce == "sum" else squares.mean(-1)
        # The root has no slope at 0, where teacher and student agree already.
        return self._over_blocks(squared if self.norm_power == 2 else squared.clamp(min=1e-24).sqrt())

    def _matched(self, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
        terms = {}
        if self.cosine:
            terms["cosine"] = self.cosine * self.direction(teacher, student)
        if self.norm:
            terms["norm"] = self.norm * self.distance(teacher, student)
        return terms

    def _over_blocks(self, values: Tensor) -> Tensor:
        """(n, b) to a scalar: over the blocks as ``reduction`` says, then the mean over the histories."""
        each = values.mean(1) if self.reduction == "mean" else values.sum(1)
        return each.sum() / max(len(each), 1)

    def _supervised(self, step: Step, encoded: Encoded, student: Tensor) -> Tensor:
        """Cross-entropy of the heads at the rows with a target, weighted as the objective's."""
        assert self.heads is not None and step.items is not None
        batch = step.batch
        if student.shape[-1] != self.hidden or step.items.dim != self.dim:
            raise ValueError(
                f"the heads are made for hidden={self.hidden} and dim={self.dim}, and the student has "
                f"{student.shape[-1]} and {step.items.dim}: give Distillation these"
            )
        _, targets, weights = encoded.at_targets(batch)
        assert batch.targets is not None
        chosen = batch.flatten(batch.targets) > 0
        rows = (batch.flat // batch.ids.shape[1])[chosen]
        states = torch.einsum("nkh,kdh->nkd", student[rows, :-1], self.heads).flatten(0, 1)
        heads = self.blocks - 1
        weights = states.new_ones(len(rows)) if weights is None else weights
        own = states.new_ones(len(rows)) if batch.weights is None else batch.flatten(batch.weights)[chosen]
        many = weights.repeat_interleave(heads)
        total = step.items.cross_entropy(states, targets.repeat_interleave(heads), many)
        total = total / own.sum().clamp(min=1e-12)
        return total / heads if self.reduction == "mean" else total

    def _student(self, encoded: Encoded) -> Tensor:
        """(B, b, H) block ends of the student."""
        given = encoded.get(BlockEnds)
        found = None if given is None else given.states
        if found is None or found.shape[1] != self.blocks:
            number = "none" if found is None else found.shape[1]
            raise ValueError(
                f"nothing to distil into: {self.blocks} block ends are needed, and the encoder gives {number}: make "
                f"the student with SLMRec(..., blocks={self.blocks})"
            )
        return found
