"""Intent contrast: a history against the centre of the cluster that it falls into (ICLRec, ICSRec), beside view pairs.

Every epoch k-means groups the states of training histories; each history is then drawn to the centroid nearest to it
and away from the others' (ICLRec: Chen et al. 2022, arXiv 2202.02519; ICSRec: Qin et al. 2024, arXiv 2310.14318).

What we do differently: the clustered states are those that training itself came by in the epoch before, the newest
``POINTS`` per centroid, where the authors encode all training rows once more before every epoch. That costs no pass;
the states are older and have dropout in them, and the first epoch has no intent term. Clusters begin with the centroids
of the epoch before, and the mean over a history leaves out padding (theirs counts it, so that clusters follow length).
States and centroids are saved with the model, so that a resumed run goes on with them.

Legend: B histories that take part, D width, K clusters, M states remembered.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.auxiliaries.contrast import alike, check_contrast, check_pool, halves, inputs, nt_xent, pooled, together
from recsys.auxiliaries.pairs import ViewContrast
from recsys.errors import DataWarning
from recsys.hooks import bind, member
from recsys.index.clusters import kmeans
from recsys.nn.processes import from_all
from recsys.protocols import Change, Context, Step

POINTS = 64  # states remembered per centroid
EPOCH, SEEN, KNOWN = range(3)


class IntentContrast(nn.Module):
    """View pairs, and each view against its intent: loss = pairs.weight * pairs + intent * (mean over both views).

    The two terms are recorded as ``.pairs`` and ``.intent``; both views are encoded once for both. ICLRec is

        IntentContrast(CL4SRec(0.1, [Crop(0.2), Mask(0.7, hide="drop"), Reorder(0.2)], pool="flat"), dim)

    (the authors draw both operations of a pair on their own, so that they coincide in a third of the rows; here they
    differ, and a history of one item stays as it is), and ICSRec for Beauty, whose intent term is a sum over the two
    views where ours is a mean, is

        IntentContrast(DuoRec(0.3, hide=("target",)), dim, intent=0.2, pool="last", hide=True)

    Use when: users fall into groups that the items of one history do not show; not worth it below some thousand rows.

    Args:
        pairs: where the views come from, and the loss between them; with weight 0 only the intents count.
        dim: width D of the encoder's states.
        weight: of both terms.
        intent: of the intent term.
        clusters: K; 256 in both papers for Beauty and Sports.
        iterations: of k-means, per epoch.
        temperature: divides the products of the intent term.
        pool: what stands for a history: the "mean" over its items' states (ICLRec) or the state of the "last"
            (ICSRec). An encoder may leave out states that no target needs; where the ``pool`` misses one the
            histories are read once more, without gradient.
        hide: do not tell apart histories of one cluster.

    Raises:
        ValueError: an unknown pool or mode, a temperature that is not positive, or sizes below 1 (``clusters``: 2).
    """

    centroids: Tensor  # (K, D)
    memory: Tensor  # (M, D) states of this epoch, a ring
    marks: Tensor  # (3,) int64: epoch of the centroids, states seen in it, whether there are centroids
    _ready: bool  # the intent term counts
    _told: bool

    def __init__(
        self,
        pairs: ViewContrast,
        dim: int = 64,
        weight: float = 1.0,
        intent: float = 0.1,
        clusters: int = 256,
        iterations: int = 20,
        temperature: float = 1.0,
        pool: str = "mean",
        hide: bool = False,
    ) -> None:
        super().__init__()
        check_contrast(temperature, 0.0)
        check_pool(pool, ("mean", "last"))
        if dim < 1 or iterations < 1 or clusters < 2:
            raise ValueError(f"dim and iterations must be >= 1, clusters >= 2, found {dim}, {iterations}, {clusters}")
        if getattr(pairs, "mode", "us_x") != "us_x":
            raise ValueError(f'intents need both views of DuoRec read anew, mode="us_x"; found {pairs.mode!r}')
        self.pairs, self.dim, self.weight, self.intent, self.clusters = pairs, dim, weight, intent, clusters
        self.iterations, self.temperature, self.pool, self.hide = iterations, temperature, pool, hide
        self.needs: frozenset[str] = member(pairs, "needs")
        self.longest: int | None = member(pairs, "longest")
        self.as_ranked: bool = member(pairs, "as_ranked")
        self._seed = 0
        self._forget()

    def bind(self, context: Context) -> None:
        """Forget all states, and let ``pairs`` learn the catalogue."""
        self._seed = context.seed
        self._forget()
        bind(self.pairs, context)

    def carry(self, before: dict[str, Tensor], change: Change) -> None:
        """The states at hand are clustered before the first epoch of the run that begins."""
        self.marks[0] = -1

    def on_epoch(self, epoch: int) -> None:
        """Cluster the states of the epoch before, unless that was done before training was interrupted."""
        before, seen, _ = self.marks.tolist()
        if before != epoch:
            count = min(seen, len(self.memory))
            known = count >= self.clusters
            if known:
                start = self.centroids.cpu().numpy() if self.marks[KNOWN] else None
                vectors = self.memory[:count].cpu().numpy()
                found = kmeans(vectors, self.clusters, self.iterations, self._seed, start)
                self.centroids.copy_(torch.from_numpy(found))
            elif seen and not self._told:
                self._told = True
                note = f"{count} histories are too few for {self.clusters} clusters: no intent term; ask for fewer"
                warnings.warn(note, DataWarning, stacklevel=2)
            self.marks.copy_(torch.tensor([epoch, 0, int(known)]))
        self._ready = bool(self.marks[KNOWN])

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Both terms of a step; the intents' is 0 while there are no clusters.

        Raises:
            ValueError: the states have another width than ``dim``.
        """
        rows, inner = self.pairs.rows(step.batch), step.within("IntentContrast")
        batch, terms = step.batch.select(rows), {}
        every = self.pool != "last" or self.pairs.pool != "last"
        encoded = together(step, self.pairs.views(inner, batch), every) if len(rows) else None
        if self.pairs.weight:
            terms["pairs"] = self.pairs.weight * self.pairs.contrast(
                step, batch, *halves(encoded, self.pairs.pool, step)
            )
        own = self._own(step, rows)
        if own.shape[1] != self.dim:
            raise ValueError(f"the encoder's states have width {own.shape[1]}, IntentContrast was told dim={self.dim}")
        first, second = halves(encoded, self.pool, step)
        if step.share == 0:  # the spare row of a process without rows
            own, first, second = own[:0], first[:0], second[:0]
        if self.training:
            self._remember(own)
        terms["intent"] = self.intent * self._term(own, first, second)
        return terms

    def _own(self, step: Step, rows: Tensor) -> Tensor:
        """(B, D) what stands for the histories ``rows``, of the recommendation pass if that computed all it takes."""
        encoded = step.encoded
        read = torch.zeros(len(encoded.batch.flat), dtype=torch.bool, device=rows.device)
        read[encoded.batch.wanted_tokens] = True
        if not bool((read[encoded.batch.last[encoded.batch.lengths > 0]] if self.pool == "last" else read).all()):
            with torch.no_grad():
                encoded = together(step, [inputs(step.batch)], every=True)
        return pooled(encoded, self.pool)[rows].detach().float()

    def _term(self, own: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The mean over the views of NT-Xent(view, centroid nearest to its history); all (B, D)."""
        if not self._ready:
            return 0.0 * first.sum()
        losses = []
        for view, state in ((first, own), (second, own if self.pairs.same_history else second.detach().float())):
            intents = torch.cdist(state, self.centroids).argmin(1)  # (B,)
            centres = F.normalize(self.centroids, dim=1)[intents].to(view.dtype)
            losses.append(nt_xent(view, centres, self.temperature, hide=alike(intents) if self.hide else None))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _remember(self, own: Tensor) -> None:
        """Write the states (b, D) of this step, of all processes, over the oldest."""
        states = from_all(own)[-len(self.memory) :]
        positions = (self.marks[SEEN] + torch.arange(len(states), device=states.device)) % len(self.memory)
        self.memory.index_copy_(0, positions, states)
        self.marks[SEEN] += len(states)

    def _forget(self) -> None:
        self._ready, self._told = False, False
        self.register_buffer("centroids", torch.zeros(self.clusters, self.dim))
        self.register_buffer("memory", torch.zeros(self.clusters * POINTS, self.dim))
        self.register_buffer("marks", torch.tensor([-1, 0, 0]))
