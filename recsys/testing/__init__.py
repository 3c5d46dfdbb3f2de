"""Conformance checks, one per protocol, for parts of your own: call one from a test, it says what is wrong."""

from recsys.testing.conformance import DIM as DIM
from recsys.testing.conformance import NUM_ITEMS as NUM_ITEMS
from recsys.testing.conformance import check_augmentation as check_augmentation
from recsys.testing.conformance import check_auxiliary as check_auxiliary
from recsys.testing.conformance import check_encoder as check_encoder
from recsys.testing.conformance import check_metric as check_metric
from recsys.testing.conformance import check_objective as check_objective
from recsys.testing.conformance import check_ranker as check_ranker
from recsys.testing.conformance import check_targets as check_targets
from recsys.testing.conformance import toy_batch as toy_batch
from recsys.testing.conformance import toy_context as toy_context
from recsys.testing.conformance import toy_split as toy_split
from recsys.testing.data import check_negatives as check_negatives
from recsys.testing.data import check_splitter as check_splitter
from recsys.testing.data import check_weighting as check_weighting
from recsys.testing.items import check_items as check_items
from recsys.testing.sequences import check_sequence_objective as check_sequence_objective
from recsys.testing.sources import check_source as check_source
