"""Sequential recommenders: parts that combine, ranked honestly, served through FAISS.

The public names load on first use, so ``import recsys`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_HOMES = {
    "load": "recsys.data.cards",
    "Dataset": "recsys.data.dataset",
    "read_items": "recsys.data.item_text",
    "LeaveLast": "recsys.data.split",
    "GlobalTime": "recsys.data.split",
    "Given": "recsys.data.split",
    "Split": "recsys.data.split",
    "Vectors": "recsys.data.vectors",
    "NextItem": "recsys.data.targets",
    "LastItem": "recsys.data.targets",
    "MaskedItems": "recsys.data.targets",
    "OneTarget": "recsys.data.targets",
    "IdItems": "recsys.items",
    "TextItems": "recsys.items",
    "SumItems": "recsys.items",
    "FrozenItems": "recsys.items",
    "cold_items": "recsys.data.cold",
    "SASRec": "recsys.encoders.sasrec",
    "GRU4Rec": "recsys.encoders.gru4rec",
    "BERT4Rec": "recsys.encoders.bert4rec",
    "Mamba4Rec": "recsys.encoders.mamba4rec",
    "SIGMA": "recsys.encoders.sigma",
    "UniRec": "recsys.encoders.unirec",
    "ReaRec": "recsys.encoders.rearec",
    "Recformer": "recsys.encoders.recformer",
    "RecformerItems": "recsys.encoders.recformer",
    "FullSoftmax": "recsys.objectives.softmax",
    "BPR": "recsys.objectives.bpr",
    "Coupled": "recsys.objectives.coupled",
    "InversePropensity": "recsys.objectives.propensity",
    "PopularityPropensity": "recsys.objectives.propensity",
    "GivenPropensity": "recsys.objectives.propensity",
    "SampledSoftmax": "recsys.objectives.sampled",
    "BCE": "recsys.objectives.bce",
    "GBCE": "recsys.objectives.gbce",
    "CL4SRec": "recsys.augment.pairs",
    "CoSeRec": "recsys.augment.pairs",
    "DuoRec": "recsys.augment.pairs",
    "IntentContrast": "recsys.augment.intents",
    "TripletContrast": "recsys.augment.triplet",
    "SemanticContrast": "recsys.augment.semantic",
    "UniformNegatives": "recsys.data.negatives",
    "InBatchNegatives": "recsys.data.negatives",
    "History": "recsys.ranker",
    "Recommender": "recsys.recommender",
    "Popularity": "recsys.baselines.popularity",
    "ItemKNN": "recsys.baselines.itemknn",
    "EASE": "recsys.baselines.ease",
    "RelMF": "recsys.baselines.relmf",
    "Markov": "recsys.baselines.markov",
    "embed": "recsys.llm.embed",
    "Backbone": "recsys.llm.backbone",
    "SLMRec": "recsys.llm.slmrec",
    "Distillation": "recsys.llm.distil",
    "profiles": "recsys.llm.profiles",
    "Run": "recsys.train.run",
    "Stage": "recsys.train.settings",
    "fit": "recsys.train.fit",
    "load_run": "recsys.saved",
    "evaluate": "recsys.eval.evaluate",
    "compare": "recsys.eval.compare",
    "Index": "recsys.index",
    "export": "recsys.serve.bundle",
    "Bundle": "recsys.serve.bundle",
    "DataError": "recsys.errors",
    "LeakageError": "recsys.errors",
}

__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from recsys.augment.intents import IntentContrast as IntentContrast
    from recsys.augment.pairs import CL4SRec as CL4SRec
    from recsys.augment.pairs import CoSeRec as CoSeRec
    from recsys.augment.pairs import DuoRec as DuoRec
    from recsys.augment.semantic import SemanticContrast as SemanticContrast
    from recsys.augment.triplet import TripletContrast as TripletContrast
    from recsys.baselines.ease import EASE as EASE
    from recsys.baselines.itemknn import ItemKNN as ItemKNN
    from recsys.baselines.markov import Markov as Markov
    from recsys.baselines.popularity import Popularity as Popularity
    from recsys.baselines.relmf import RelMF as RelMF
    from recsys.data.cards import load as load
    from recsys.data.cold import cold_items as cold_items
    from recsys.data.dataset import Dataset as Dataset
    from recsys.data.item_text import read_items as read_items
    from recsys.data.negatives import InBatchNegatives as InBatchNegatives
    from recsys.data.negatives import UniformNegatives as UniformNegatives
    from recsys.data.split import Given as Given
    from recsys.data.split import GlobalTime as GlobalTime
    from recsys.data.split import LeaveLast as LeaveLast
    from recsys.data.split import Split as Split
    from recsys.data.targets import LastItem as LastItem
    from recsys.data.targets import MaskedItems as MaskedItems
    from recsys.data.targets import NextItem as NextItem
    from recsys.data.targets import OneTarget as OneTarget
    from recsys.data.vectors import Vectors as Vectors
    from recsys.encoders.bert4rec import BERT4Rec as BERT4Rec
    from recsys.encoders.gru4rec import GRU4Rec as GRU4Rec
    from recsys.encoders.mamba4rec import Mamba4Rec as Mamba4Rec
    from recsys.encoders.rearec import ReaRec as ReaRec
    from recsys.encoders.recformer import Recformer as Recformer
    from recsys.encoders.recformer import RecformerItems as RecformerItems
    from recsys.encoders.sasrec import SASRec as SASRec
    from recsys.encoders.sigma import SIGMA as SIGMA
    from recsys.encoders.unirec import UniRec as UniRec
    from recsys.errors import DataError as DataError
    from recsys.errors import LeakageError as LeakageError
    from recsys.eval.compare import compare as compare
    from recsys.eval.evaluate import evaluate as evaluate
    from recsys.index import Index as Index
    from recsys.items import FrozenItems as FrozenItems
    from recsys.items import IdItems as IdItems
    from recsys.items import SumItems as SumItems
    from recsys.items import TextItems as TextItems
    from recsys.llm.backbone import Backbone as Backbone
    from recsys.llm.distil import Distillation as Distillation
    from recsys.llm.embed import embed as embed
    from recsys.llm.profiles import profiles as profiles
    from recsys.llm.slmrec import SLMRec as SLMRec
    from recsys.objectives.bce import BCE as BCE
    from recsys.objectives.bpr import BPR as BPR
    from recsys.objectives.coupled import Coupled as Coupled
    from recsys.objectives.gbce import GBCE as GBCE
    from recsys.objectives.propensity import GivenPropensity as GivenPropensity
    from recsys.objectives.propensity import InversePropensity as InversePropensity
    from recsys.objectives.propensity import PopularityPropensity as PopularityPropensity
    from recsys.objectives.sampled import SampledSoftmax as SampledSoftmax
    from recsys.objectives.softmax import FullSoftmax as FullSoftmax
    from recsys.ranker import History as History
    from recsys.recommender import Recommender as Recommender
    from recsys.saved import load_run as load_run
    from recsys.serve.bundle import Bundle as Bundle
    from recsys.serve.bundle import export as export
    from recsys.train.fit import fit as fit
    from recsys.train.run import Run as Run
    from recsys.train.settings import Stage as Stage


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recsys' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
