"""Exact ranking metrics over all impressions of all ranks, in bounded memory.

Reading order: `pairs` (what an AUC is), `sums` (UAUC, GAUC, log loss as sums over users), `scores`
(the global AUC), `bootstrap` (intervals), `report`; `spool` and `ranks` are how rows meet.
"""

from cdp_torchrec.metrics.impressions import ImpressionMetrics
from cdp_torchrec.metrics.pairs import GroupedAuc, auc, grouped_auc
from cdp_torchrec.metrics.report import Interval, MetricReport, PointMetrics

__all__ = [
    "GroupedAuc",
    "ImpressionMetrics",
    "Interval",
    "MetricReport",
    "PointMetrics",
    "auc",
    "grouped_auc",
]
