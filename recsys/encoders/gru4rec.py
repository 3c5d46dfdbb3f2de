"""GRU4Rec: a recurrent net over item embeddings (Hidasi et al. 2016, arXiv 1511.06939), in the form RecBole trains.

embedding -> dropout -> GRU layers without bias -> Linear(hidden, D). What differs from the authors' sessions: whole
histories instead of session-parallel steps, every state from a history's own first item on, and whatever objective is
given instead of TOP1 or BPR. GRU matrices start Xavier uniform (as one kernel of all three gates, like RecBole), the
projection as torch sets it.

Legend: T real tokens, Q wanted tokens, D width, H hidden width.
"""

from __future__ import annotations

from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.nn.dropout import Dropout
from recsys.nn.gru import Steps, run_gru
from recsys.protocols import Context, Encoded, ItemTable


class GRU4Rec(nn.Module):
    """Histories to states by gated recurrence; reads on behind a history at the cost of one more input (``Stepwise``).

    Args:
        dim: width D, the same as the item table's.
        hidden: width H of the recurrent states.
        num_layers: GRU layers, one above the other, no dropout between them.
        dropout: on the embeddings.
        max_length: longest history read; of longer ones the newest items.

    Raises:
        ValueError: a size is below 1, or ``dropout`` is not a probability below 1.
    """

    sees = "past"

    def __init__(
        self, dim: int = 64, hidden: int = 128, num_layers: int = 1, dropout: float = 0.3, max_length: int = 50
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "hidden": hidden, "num_layers": num_layers, "max_length": max_length}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, found {size}")
        self.dim, self.hidden, self.num_layers, self.dropout = dim, hidden, num_layers, dropout
        self.max_length = max_length
        self.drop = Dropout(dropout)
        widths = [dim] + [hidden] * (num_layers - 1)
        self.layers = nn.ModuleList(nn.GRU(width, hidden, bias=False, batch_first=True) for width in widths)
        self.output = nn.Linear(hidden, dim)

    def bind(self, context: Context) -> None:
        """Initialise all weights (from torch's generator, which the caller seeds)."""
        for weight in self.layers.parameters():
            nn.init.xavier_uniform_(weight)
        self.output.reset_parameters()

    def forward(self, batch: Batch, items: ItemTable) -> Encoded:
        """States of all real tokens.

        Raises:
            ValueError: the item table has another width.
        """
        return Encoded(batch, self.output(self._run(batch, items)[-1]))

    def begin(self, batch: Batch, items: ItemTable) -> tuple[Encoded, list[Tensor]]:
        """What calling the encoder gives, and the hidden states (Q, H) of each layer at ``batch.wanted_tokens``."""
        hidden = self._run(batch, items)
        return Encoded(batch, self.output(hidden[-1])), [layer[batch.wanted_tokens] for layer in hidden]

    def extend(self, latents: Tensor, memory: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """States (Q, D) one input after ``memory`` on inputs (Q, D), and the memory after it."""
        x, after = self.drop(latents), []
        for layer, state in zip(self.layers, memory, strict=True):
            x = layer(x.unsqueeze(1), state.unsqueeze(0))[0].squeeze(1)  # (Q, H)
            after.append(x)
        return self.output(x), after

    def _run(self, batch: Batch, items: ItemTable) -> list[Tensor]:
        """(T, H) hidden states of every layer."""
        if items.dim != self.dim:
            raise ValueError(f"the item table has width {items.dim}, the encoder {self.dim}: give both the same dim")
        x, hidden = self.drop(items.embed(batch.flat_ids)), []
        steps = Steps.of(batch.lengths)
        for layer in self.layers:
            assert isinstance(layer, nn.GRU)
            x = run_gru(layer, x, steps)
            hidden.append(x)
        return hidden
