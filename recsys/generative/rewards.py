"""REG4Rec's reward stage: paths of codes are sampled, rewarded by where they lead, and compared within their history.

**A reconstruction.** Known of arXiv 2508.15308 are rewards made for recommendation (PARS), that they look at several
actions to come (MSRA), and that groups of samples are compared (GRPO); what is rewarded by how much is ours. For a path
that leads to an item i' with codes c', and a target i with codes c,

    R_1 = token * (1/M) sum_r [c'_r = c_r] + item * [i' = i]
          + category * [cat(i') = cat(i)] + reflect * [the verdict is right]
    R   = sum_{h=1..H} discount^(h-1) R_1(i_{t+h}) / sum_h discount^(h-1)

over the H training items that follow position t, as far as there are as many. They are the targets of the same training
row, so that nothing of validation or test can be among them. H = 1 is PARS alone. G paths of a history are a group:
:mod:`recsys.objectives.policy_gradient` makes the loss of their advantages, with a divergence to the decoder as it was
when the stage began.

Legend: B histories, G paths of each, H items to come, M codebooks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batch import PAD, Batch
from recsys.errors import DataError, closest
from recsys.generative.set_beam import SetBeam
from recsys.generative.set_sample import SampledPaths, sample_paths
from recsys.llm.trainers.drafts import drawn_positions, histories_to
from recsys.objectives.policy_gradient import divergence_estimate, group_advantages, policy_loss
from recsys.protocols import Change, Context, Encoded, Step
from recsys.recommenders.modes import evaluating


class PathRewards(nn.Module):
    """Rewards of sampled paths, for a later stage of a ``Generator`` with a ``SetDecoder`` (REG4Rec, reconstructed).

    In each step one position of each row is drawn, the history up to it encoded, G paths sampled from the decoder as it
    is, and one update made of them: the ratio of the clipped loss is then 1. The stage that asks for it should train
    the decoder alone, as the divergence compares decoders that read the same states:

        Stage(2, losses=["loss", "PathRewards0"], train=["decoder"], learning_rate=1e-4, name="reward")

    The decoder as it was is kept with the weights (a run is resumed exactly), as large as the decoder.

    Args:
        decoder: that of the generator, the same object.
        samples: G.
        horizon: H; 1 is PARS alone, 3 MSRA.
        discount: of each further item.
        token, item, category, reflect: weights of the parts of the reward; that of categories counts where
            ``category_column`` names one, that of verdicts where the decoder has a head for them.
        category_column: a column of the items, whose values are compared as they are written.
        kl: weight of the divergence.
        clip: how far the ratio of a choice goes on counting.
        order: how the codebook of each step is chosen, see ``SetBeam``.
        weight: of all of it; 10 lets a decoder's own loss beside it count a tenth.

    Raises:
        ValueError: a number out of range.
    """

    carried = ("reference",)
    reference: Tensor  # all weights of the decoder when the stage began; empty before
    categories: Tensor  # (N+1,) int64

    def __init__(
        self,
        decoder: Any,
        samples: int = 16,
        horizon: int = 3,
        discount: float = 0.5,
        token: float = 0.5,
        item: float = 1.0,
        category: float = 0.25,
        reflect: float = 0.25,
        category_column: str | None = None,
        kl: float = 1e-2,
        clip: float = 0.2,
        order: str = "confidence",
        weight: float = 10.0,
    ) -> None:
        super().__init__()
        if samples < 2 or horizon < 1 or not 0 <= discount <= 1:
            raise ValueError(
                "samples must be at least 2 (they are compared), horizon at least 1 and discount from 0 to 1; found "
                f"{samples}, {horizon} and {discount}"
            )
        if min(token, item, category, reflect, kl, clip, weight) < 0 or not token + item:
            raise ValueError(
                "weights, kl and clip must be at least 0, and token or item more; found "
                f"{token}, {item}, {category}, {reflect}, {kl}, {clip} and {weight}"
            )
        self.decoder, self.samples, self.horizon, self.discount = decoder, samples, horizon, discount
        self.token, self.item, self.category, self.reflect = token, item, category, reflect
        self.category_column, self.kl, self.clip, self.order, self.weight = category_column, kl, clip, order, weight
        self._search, self._former = [SetBeam(order=order)], list[nn.Module]()  # in lists, so that they are no parts
        self.register_buffer("reference", torch.zeros(0))
        self.register_buffer("categories", torch.zeros(0, dtype=torch.int64), persistent=False)

    def bind(self, context: Context) -> None:
        """Look the categories up, and forget the decoder of an earlier training.

        Raises:
            DataError: there is no such column.
        """
        self._forget()
        if self.category_column is not None and context.training is not None:
            self.categories = torch.from_numpy(_categories(context, self.category_column))

    def carry(self, before: Mapping[str, Tensor], change: Change) -> None:
        """Nothing: another training has another beginning."""
        self._forget()

    def _forget(self) -> None:
        self.reference, self._former = torch.zeros(0), []

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms of the paths sampled for the rows of this step: "reward", whose value is the mean reward, negative,
        and whose gradient is that of the policy; and "divergence", if it has a weight.

        Raises:
            ValueError: more than one item to come is asked for, and the targets are one of each row.
        """
        assert step.encode is not None and step.items is not None
        random = step.generator(type(self).__name__)
        rows, positions = drawn_positions(step.batch, random)
        wanted = items_to_come(step.batch, rows, positions, self.horizon)
        encoded = step.encode(histories_to(step.batch, rows, positions))
        with evaluating(self.decoder):  # without dropout the policy is the one that sampled, and begins as the former
            paths = sample_paths(self.decoder, encoded, step.items, self.samples, random, self._search[0])
            reward = self.rewards(paths, wanted, step.items, self._verdicts(encoded, step.items, paths))
            return self._terms(encoded, step.items, paths, reward)

    def _terms(self, encoded: Encoded, items: Any, paths: SampledPaths, reward: Tensor) -> dict[str, Tensor]:
        """The terms of the paths by their rewards (B, G)."""
        chosen = (paths.order, paths.tokens, paths.allowed)
        log_probs = self.decoder.path_log_probs(encoded, items, *chosen)[paths.real]
        group = torch.arange(len(reward), device=reward.device)[:, None].expand(reward.shape)[paths.real]
        reward = reward[paths.real]
        old = log_probs.detach()  # sampled from the decoder as it is
        gain = -policy_loss(log_probs, old, group_advantages(reward, group), low=self.clip, high=self.clip)
        found = {"reward": gain.detach() - gain - reward.sum() / max(len(reward), 1)}
        if self.kl:
            with torch.no_grad():
                former = self._reference(log_probs.device).path_log_probs(encoded, items, *chosen)[paths.real]
            apart = divergence_estimate(log_probs, former)
            found["divergence"] = self.kl * apart.sum() / max(apart.numel(), 1)
        return found

    def rewards(self, paths: SampledPaths, wanted: Tensor, items: Any, verdicts: Tensor | None = None) -> Tensor:
        """(B, G) the reward of each path for the item rows ``wanted`` (B, H) to come, 0 where there is none.

        Of a path to codes that several items share the item counts by their number.
        """
        own = items.codes[paths.rows][:, :, None]  # (B, G, 1, M)
        same = own == items.codes[wanted][:, None]  # (B, G, H, M)
        whole = same.all(3)
        found = self.token * same.float().mean(3) + self.item * whole * paths.shares[:, :, None]
        if len(self.categories):
            categories = self.categories.to(wanted.device)
            found = found + self.category * (categories[paths.rows][:, :, None] == categories[wanted][:, None])
        if verdicts is not None:
            found = found + self.reflect * (verdicts[:, :, None] == whole)
        weights = (self.discount ** torch.arange(wanted.shape[1], device=wanted.device)) * (wanted > PAD)
        return (found * weights[:, None]).sum(2) / weights.sum(1)[:, None].clamp(min=1e-12)

    def _verdicts(self, encoded: Encoded, items: Any, paths: SampledPaths) -> Tensor | None:
        """(B, G) bool: whether the decoder thinks that a whole path is right; None where it does not judge."""
        if getattr(self.decoder, "verdict", None) is None or not self.reflect:
            return None
        with torch.no_grad():
            memory = self.decoder.begin(encoded, items)
            first = torch.zeros_like(paths.rows)
            own = torch.arange(paths.rows.shape[1], device=first.device).expand(first.shape)
            _, memory = self.decoder.step(memory, items, None, None)
            for number, tokens in enumerate(paths.tokens.unbind(2)):
                _, memory = self.decoder.step(memory, items, tokens, own if number else first)
            judged: Tensor = self.decoder.judged(memory)
        return judged > -float(np.log(2))

    def _reference(self, device: torch.device) -> Any:
        """The decoder as it was when the stage began; now is when, if it was not known yet."""
        if not len(self.reference):
            self.reference = nn.utils.parameters_to_vector(self.decoder.parameters()).detach().clone()
        if not self._former:
            former = copy.deepcopy(self.decoder).eval().requires_grad_(False).to(device)
            nn.utils.vector_to_parameters(self.reference.to(device), former.parameters())
            self._former = [former]
        return self._former[0]


def items_to_come(batch: Batch, rows: Tensor, positions: Tensor, horizon: int) -> Tensor:
    """(n, H) item rows of the target at each position and of those behind it in the same row; 0 where there are none.

    Raises:
        ValueError: more than one is asked for, and rows have a single target.
    """
    assert batch.targets is not None
    targets = batch.targets
    if horizon > 1 and int((targets > PAD).sum(1).max()) <= 1 and int(batch.lengths.max()) > 1:
        raise ValueError(
            f"horizon={horizon} reads the items that follow a target in its row, and the rows have one target each: "
            "use NextItem as the targets, or horizon=1"
        )
    at = positions[:, None] + torch.arange(horizon, device=targets.device)
    inside = at < targets.shape[1]
    found: Tensor = targets[rows[:, None], at.clamp(max=targets.shape[1] - 1)] * inside
    return found


def _categories(context: Context, column: str) -> np.ndarray:
    """(N+1,) int64 a number for the category of each item row; that of items without one is their own."""
    features: Mapping[str, Any] = context.item_features or {}
    texts = context.item_text or {}
    if column not in features and column not in texts:
        known = sorted({*features, *texts})
        raise DataError(f"items have no column {column!r}: {closest(column, known) if known else 'they have none'}")
    values = features[column].strings() if column in features else texts[column]
    names = np.array([str(one) for one in values])
    _, found = np.unique(names, return_inverse=True)
    found = np.where(names == "", -1, found.reshape(-1))
    return np.where(found < 0, found.max(initial=0) + 1 + np.arange(len(found)), found)
