"""The loop of training over sequences, as an auxiliary: examples, policy, reference, objective in each step of fit.

    draft = examples(step)                        which sequences, and what each is for
    reference = policy(draft)                     without the adapter, or with the weights of the beginning
    sequences = policy(draft)                     log-probabilities, with gradient
    loss = objective(sequences) + penalty         a stage that asks for it trains the adapter, or the parts themselves

It is a stage of :func:`recsys.fit` like any other: validation, early stopping, resume and the run folder are its own.

    model = rs.load_run("runs/tiger")
    tuning = Tuning(CodePolicy(model.encoder, model.decoder), Judged(), NPO(beta=0.1), LoRA(rank=8))
    model.auxiliaries.append(tuning)
    tuning.attach()
    rs.fit(model, split, stages=[Stage(5, losses=["Tuning0"], train=["encoder", "decoder"], data=source)], init="keep")
    tuning.merge()

With an adapter the model's own weights are frozen from ``bind`` on: what is to be trained in full before is trained in
a run of its own. Without one the parts are trained themselves, and their weights of the beginning are kept as well.
Policy and reference run without dropout: at the beginning they agree, and ratios are 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.errors import DataWarning
from recsys.hooks import bind
from recsys.llm.trainers.sequences import Role, Sequences
from recsys.protocols import Change, Context, Step
from recsys.ranking.filters import Shown
from recsys.recommenders.modes import evaluating

SIGNAL = "groups without signal"  # a figure that objectives over rewards tell


@dataclass(frozen=True)
class Scored:
    """What a policy says of the sequences of a draft."""

    log_probs: Tensor  # (N, T) float32
    mask: Tensor  # (N, T) bool
    tokens: Tensor  # (N, T) int64
    fields: dict[str, Any]  # group, role, reward and weight of the sequences
    full: Tensor | None = None  # (N, T, C) log-probabilities of all that could stand there, -inf for what could not


class Policy(Protocol):
    """What says how probable sequences are: the seam between the loop and the kind of model."""

    def parts(self) -> list[nn.Module]:
        """The modules that are trained, or adapted."""

    def __call__(self, step: Step, draft: Any, full: bool = False) -> Scored:
        """Scores of the sequences of a draft; their order is the same for policy and reference."""


class Samples(Policy, Protocol):
    """A policy that also draws items behind histories."""

    def sample(self, step: Step, histories: Batch, count: int, temperature: float, shown: Shown | None) -> Tensor:
        """(B, count) item rows, different ones; 0 where there are not as many."""


class Examples(Protocol):
    """Which sequences a step is about. ``reference()`` is a context in which the policy is the reference."""

    def __call__(self, step: Step, policy: Any, reference: Any) -> Any: ...


class Tuning(nn.Module):
    """An auxiliary that trains over sequences.

    Args:
        policy: what says how probable sequences are; it holds the model's parts, the same objects.
        examples: which sequences each step is about.
        objective: the loss over them.
        adapter: what is trained beside the frozen parts; None: the parts themselves.
        weight: of all of it.

    Raises:
        ValueError: the weight is negative.
    """

    carried = ("reference",)
    reference: Tensor  # without an adapter: all weights of the parts when training began; empty before

    def __init__(
        self, policy: Any, examples: Examples, objective: Any, adapter: Any = None, weight: float = 1.0
    ) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight must be at least 0, found {weight}")
        self.policy, self.examples, self.objective, self.adapter = policy, examples, objective, adapter
        self.weight = weight
        self._attached = False
        self._tally: dict[str, list[float]] = {}
        self.register_buffer("reference", torch.zeros(0))

    def bind(self, context: Context) -> None:
        """Put the adapter in (behind the binding of the parts), and forget an earlier beginning."""
        self.reference = self.reference.new_zeros(0)
        bind(self.objective, context)
        if self._attached:
            self.adapter.detach()
            self._attached = False
        if hasattr(self.policy, "bind"):  # it has a model of its own
            self.policy.bind(context)
        self.attach()

    def carry(self, before: Mapping[str, Tensor], change: Change) -> None:
        """Nothing: another training has another beginning."""
        self.reference = self.reference.new_zeros(0)

    def attach(self) -> None:
        """Put the adapter in, if there is one and it is not; what the model computes stays the same."""
        if self.adapter is not None and not self._attached:
            self.adapter.attach(nn.ModuleList(self.policy.parts()))
            self._attached = True

    def merge(self) -> None:
        """Fold the adapter into the parts, which are then as they were before it, with other weights."""
        if self._attached:
            self.adapter.merge()
            self._attached = False

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms of the objective, by name ("sequences" where it is one scalar), and "penalty" of the adapter.

        Raises:
            ValueError: the draft has no sequence, or as the objective.
        """
        reads = frozenset(getattr(self.objective, "reads", ()))
        with ExitStack() as modes:
            for part in self.policy.parts():
                modes.enter_context(evaluating(part))
            draft = self.examples(step, self.policy, self.apart)
            former = self._former(step, draft, reads)
            scored = self.policy(step, draft, full=bool(reads & {"entropy", "entropy gradient", "divergence"}))
        if not len(scored.log_probs):
            raise ValueError("no sequence is left in a step: look at what the data of the stage name")
        batch = sequences(scored, former, reads)
        found = self.objective(batch)
        self._count(batch)
        terms = {"sequences": found} if isinstance(found, Tensor) else dict(found)
        penalty = getattr(self.adapter, "penalty", None)
        value = None if penalty is None else penalty()
        return terms if value is None else {**terms, "penalty": value}

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within it the policy is the reference, and nothing has a gradient."""
        with torch.no_grad():
            if self.adapter is not None:
                with self.adapter.off():
                    yield
                return
            own = [parameter for part in self.policy.parts() for parameter in part.parameters()]
            if not len(self.reference):
                self.reference = nn.utils.parameters_to_vector(own).detach().clone()
            now = [parameter.data for parameter in own]
            _put(own, self.reference.to(now[0].device))
            try:
                yield
            finally:
                for parameter, data in zip(own, now, strict=True):
                    parameter.data = data

    def on_epoch(self, epoch: int) -> None:
        """Begin to count anew."""
        self._tally = {}

    def tallies(self) -> dict[str, float]:
        """Means over the updates of this epoch, since the run was last resumed: what the objective counts, by name.

        Warns where no group of the epoch had any signal.
        """
        found = {name: total / max(number, 1) for name, (total, number) in self._tally.items()}
        if found.get(SIGNAL) == 1.0:
            warnings.warn(
                "in no group of this epoch did rewards differ, so nothing was learned from them: sample more items of "
                "each history, reward shared codes as well, or train the model further before",
                DataWarning,
                stacklevel=2,
            )
        return found

    def _former(self, step: Step, draft: Any, reads: frozenset[str]) -> Scored | None:
        if not reads & {"reference", "divergence"}:
            return None
        with self.apart():
            return self.policy(step, draft, full="divergence" in reads)

    def _count(self, batch: Sequences) -> None:
        told = getattr(self.objective, "figures", None)
        values = {} if told is None else dict(told(batch))
        for name in [name for name in values if not name.endswith(" of")]:
            total = self._tally.setdefault(name, [0.0, 0.0])
            total[0] += float(values[name])
            total[1] += float(values.get(f"{name} of", 1.0))
        totals = batch.totals.detach()
        for role in map(Role, batch.role.unique().tolist()):
            chosen = batch.role == role
            total = self._tally.setdefault(f"log-probability of {role.name}", [0.0, 0.0])
            total[0] += float(totals[chosen].sum())
            total[1] += int(chosen.sum())


def sequences(scored: Scored, former: Scored | None, reads: frozenset[str]) -> Sequences:
    """The batch that an objective reads, from what policy and reference say.

    Raises:
        ValueError: the reference scored other sequences.
    """
    if former is not None and not torch.equal(former.tokens, scored.tokens):
        raise ValueError(
            "policy and reference have not scored the same sequences: a policy must not draw when it scores"
        )
    more: dict[str, Any] = {}
    if former is not None and "reference" in reads:
        more["reference"] = former.log_probs.detach()
    if scored.full is not None and reads & {"entropy", "entropy gradient"}:
        more["entropy"] = entropy(scored.full if "entropy gradient" in reads else scored.full.detach())
    if scored.full is not None and former is not None and former.full is not None and "divergence" in reads:
        more["divergence"] = divergence(former.full, scored.full)
    return Sequences(scored.log_probs, scored.mask, tokens=scored.tokens, **scored.fields, **more)


def entropy(log_probs: Tensor) -> Tensor:
    """(...,) entropy of distributions (..., C); what has probability zero adds nothing."""
    return -(log_probs.exp() * log_probs.masked_fill(log_probs == -torch.inf, 0)).sum(-1)


def divergence(reference: Tensor, log_probs: Tensor) -> Tensor:
    """(...,) KL(reference || policy) of distributions (..., C) over the same choices."""
    absent = (reference == -torch.inf) | (log_probs == -torch.inf)
    apart = reference.masked_fill(absent, 0) - log_probs.masked_fill(absent, 0)
    return (reference.exp().masked_fill(absent, 0) * apart).sum(-1)


def _put(parameters: list[nn.Parameter], vector: Tensor) -> None:
    first = 0
    for parameter in parameters:
        parameter.data = vector[first : first + parameter.numel()].view_as(parameter)
        first += parameter.numel()
