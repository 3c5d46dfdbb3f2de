"""Our SASRec against RecBole's own, with its weights copied: layout ``post`` and its settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from recsys.data.batch import Batch
from recsys.encoders.sasrec import SASRec
from recsys.items.ids import IdItems
from recsys.protocols import Context

pytestmark = pytest.mark.parity

NUM_ITEMS, LENGTH, DIM = 50, 20, 32


class _Catalogue:
    def num(self, field: str) -> int:
        return NUM_ITEMS + 1


def theirs() -> Any:
    sasrec = pytest.importorskip("recbole.model.sequential_recommender.sasrec", exc_type=ImportError)
    config = {
        "USER_ID_FIELD": "user", "ITEM_ID_FIELD": "item", "LIST_SUFFIX": "_list", "NEG_PREFIX": "neg_",
        "ITEM_LIST_LENGTH_FIELD": "length", "MAX_ITEM_LIST_LENGTH": LENGTH, "device": "cpu",
        "n_layers": 2, "n_heads": 2, "hidden_size": DIM, "inner_size": 4 * DIM, "hidden_dropout_prob": 0.5,
        "attn_dropout_prob": 0.5, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "initializer_range": 0.02,
        "loss_type": "CE",
    }  # fmt: skip
    torch.manual_seed(0)
    model = sasrec.SASRec(config, _Catalogue()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def ours(reference: Any) -> tuple[SASRec, IdItems]:
    items = IdItems(DIM, scale=False)
    items.bind(Context(NUM_ITEMS))
    encoder = SASRec(
        DIM, 2, 2, 0.5, LENGTH, layout="post", hidden=4 * DIM, activation="gelu", attention_dropout=0.5,
        inner_dropout=False, positions="absolute", input_norm=True, final_norm=False, norm_eps=1e-12,
    )  # fmt: skip
    copied = {
        "position_table.weight": reference.position_embedding.weight,
        "before.weight": reference.LayerNorm.weight,
        "before.bias": reference.LayerNorm.bias,
    }
    for index, layer in enumerate(reference.trm_encoder.layer):
        attention, feed, at = layer.multi_head_attention, layer.feed_forward, f"blocks.{index}."
        for kind in ("weight", "bias"):
            copied |= {
                f"{at}attention.query.{kind}": getattr(attention.query, kind),
                f"{at}attention.key_value.{kind}": torch.cat(
                    [getattr(attention.key, kind), getattr(attention.value, kind)]
                ),
                f"{at}attention.output.{kind}": getattr(attention.dense, kind),
                f"{at}attention_norm.{kind}": getattr(attention.LayerNorm, kind),
                f"{at}feed.inner.{kind}": getattr(feed.dense_1, kind),
                f"{at}feed.outer.{kind}": getattr(feed.dense_2, kind),
                f"{at}feed_norm.{kind}": getattr(feed.LayerNorm, kind),
            }
    encoder.load_state_dict(copied)
    items.load_state_dict({"weight": reference.item_embedding.weight})
    return encoder.eval(), items.eval()


def test_forward_pass_equals_recbole_for_its_weights() -> None:
    reference = theirs()
    encoder, items = ours(reference)
    torch.manual_seed(1)
    lengths = torch.tensor([1, 2, 7, 19, LENGTH])
    ids = torch.randint(1, NUM_ITEMS + 1, (5, LENGTH)) * (torch.arange(LENGTH) < lengths[:, None])
    user = encoder(Batch(torch.arange(5), torch.arange(5), ids, lengths), items).user
    torch.testing.assert_close(user, reference(ids, lengths), atol=1e-5, rtol=1e-5)
    vectors = items.output(torch.arange(1, items.num_items + 1))
    scores = reference.full_sort_predict({"item_list": ids, "length": lengths})
    torch.testing.assert_close(user @ vectors.T, scores[:, 1:], atol=1e-5, rtol=1e-5)
