"""What an evaluation reports: numbers, intervals, strata; as JSON and as a table for people."""

# K bootstrap replicates

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdp_torchrec.metrics.bootstrap import percentile_interval
from cdp_torchrec.metrics.rows import Stratification
from cdp_torchrec.metrics.scores import AucOverall
from cdp_torchrec.metrics.sums import ImpressionSums, SumsOverUsers
from cdp_torchrec.text_table import aligned_table
from cdp_torchrec.undefined import json_ready, shown


class Interval(NamedTuple):
    """Percentile interval of the user bootstrap; NaN without replicates."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PointMetrics:
    """All metrics of a set of impressions; NaN where one is undefined.

    "Kept" users and requests are those that have both labels; the others have no AUC.
    """

    auc: float
    """Over all impressions, ties counted one half."""
    uauc: float
    """Unweighted mean AUC over the kept users."""
    wuauc: float
    """Impression-weighted mean AUC over the kept users."""
    gauc: float
    """Impression-weighted mean AUC over the kept requests."""
    gauc_unweighted: float
    """Unweighted mean AUC over the kept requests."""
    log_loss: float
    """Mean cross entropy, nats."""
    ne: float
    """Normalized entropy: log loss over the entropy of the CTR."""
    calibration: float
    """Sum of the probabilities over the number of clicks."""
    ctr: float
    num_impressions: int
    num_clicks: int
    num_users: int
    users_kept: int
    user_coverage: float
    """Share of the users kept."""
    user_impression_coverage: float
    """Share of the impressions that the kept users have."""
    num_requests: int
    requests_kept: int
    request_coverage: float
    """Share of the requests kept."""
    request_impression_coverage: float
    """Share of the impressions that the kept requests have."""


@dataclass(frozen=True, kw_only=True)
class MetricReport(PointMetrics):
    """Metrics of all impressions with intervals, and of every stratum; the same on all ranks."""

    auc_interval: Interval
    uauc_interval: Interval
    gauc_interval: Interval
    log_loss_interval: Interval
    confidence: float
    num_bootstrap: int
    bootstrap_seed: int
    strata: Mapping[str, Mapping[str, PointMetrics]]
    """By name of the stratification, then by label of the stratum."""
    replicates: Mapping[str, NDArray[np.float64]]
    """The metrics with an interval under each replicate, [K]; paired between reports whose
    bootstrap_seed and users are the same."""
    strata_replicates: Mapping[str, Mapping[str, NDArray[np.float64]]]
    """GAUC of every stratum under each replicate, [K]."""

    def main_metrics(self) -> dict[str, float]:
        """Those that are logged, and of which one decides on the best checkpoint."""
        return {name: getattr(self, name) for name in ("auc", "uauc", "gauc", "log_loss")}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: undefined values are None, replicates are left out."""
        values = asdict(self)
        del values["replicates"], values["strata_replicates"]
        return json_ready(values)

    def table(self) -> str:
        """Plain-text table for people; undefined values are "-"."""
        users = _kept("users", self.users_kept, self.num_users, self.user_impression_coverage)
        requests = _kept(
            "requests", self.requests_kept, self.num_requests, self.request_impression_coverage
        )
        counts = f"{self.num_impressions:,} impressions, {self.num_clicks:,} clicks"
        rows = [
            ("AUC", self.auc, self.auc_interval, f"{counts}, CTR {shown(self.ctr)}"),
            ("UAUC", self.uauc, self.uauc_interval, users),
            ("WUAUC", self.wuauc, None, users),
            ("GAUC", self.gauc, self.gauc_interval, requests),
            ("GAUC unweighted", self.gauc_unweighted, None, requests),
            ("log loss", self.log_loss, self.log_loss_interval, "nats per impression"),
            ("NE", self.ne, None, "log loss / entropy of the CTR"),
            ("calibration", self.calibration, None, "predicted clicks / clicks"),
        ]
        header = ("metric", "value", f"{self.confidence:.0%} interval", "over")
        cells = [
            (name, shown(value), _interval(bounds), note) for name, value, bounds, note in rows
        ]
        tables = [aligned_table([header, *cells], left=(0, 3))]
        if self.strata:
            tables.append(aligned_table(self._strata_rows(), left=(0, 1)))
        return "\n\n".join(tables)

    def _strata_rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [
            ("strata", "", "impressions", "clicks", "AUC", "UAUC", "GAUC", "log loss")
        ]
        for name, by_label in self.strata.items():
            for index, (label, point) in enumerate(by_label.items()):
                values = (point.auc, point.uauc, point.gauc, point.log_loss)
                rows.append(
                    (
                        name if index == 0 else "",
                        label,
                        f"{point.num_impressions:,}",
                        f"{point.num_clicks:,}",
                        *map(shown, values),
                    )
                )
        return rows


def build_report(
    *,
    sums: SumsOverUsers,
    auc: AucOverall,
    layout: tuple[Stratification, ...],
    confidence: float,
    seed: int,
) -> MetricReport:
    """The report of what the ranks have added up."""
    points = _point_metrics(sums.strata, auc.strata)
    replicates = {
        "auc": auc.replicates,
        "uauc": sums.replicates.uauc,
        "gauc": sums.replicates.gauc,
        "log_loss": sums.replicates.log_loss,
    }

    def interval(name: str) -> Interval:
        return Interval(*percentile_interval(replicates[name], confidence))

    return MetricReport(
        **vars(points[0]),
        auc_interval=interval("auc"),
        uauc_interval=interval("uauc"),
        gauc_interval=interval("gauc"),
        log_loss_interval=interval("log_loss"),
        confidence=confidence,
        num_bootstrap=len(auc.replicates),
        bootstrap_seed=seed,
        strata={
            stratification.name: dict(
                zip(stratification.labels, points[stratification.columns], strict=True)
            )
            for stratification in layout[1:]
        },
        replicates=replicates,
        strata_replicates={
            stratification.name: dict(
                zip(
                    stratification.labels,
                    sums.strata_gauc_replicates[stratification.columns],
                    strict=True,
                )
            )
            for stratification in layout[1:]
        },
    )


def _point_metrics(sums: ImpressionSums, auc: NDArray[np.float64]) -> list[PointMetrics]:
    def of(stratum: int) -> PointMetrics:
        here = ImpressionSums(*(values[stratum] for values in sums))
        return PointMetrics(
            auc=float(auc[stratum]),
            uauc=float(here.uauc),
            wuauc=float(here.wuauc),
            gauc=float(here.gauc),
            gauc_unweighted=float(here.gauc_unweighted),
            log_loss=float(here.log_loss),
            ne=float(here.ne),
            calibration=float(here.calibration),
            ctr=float(here.ctr),
            num_impressions=int(here.impressions),
            num_clicks=int(here.clicks),
            num_users=int(here.users),
            users_kept=int(here.users_kept),
            user_coverage=float(here.user_coverage),
            user_impression_coverage=float(here.user_impression_coverage),
            num_requests=int(here.requests),
            requests_kept=int(here.requests_kept),
            request_coverage=float(here.request_coverage),
            request_impression_coverage=float(here.request_impression_coverage),
        )

    return [of(stratum) for stratum in range(len(auc))]


def _interval(interval: Interval | None) -> str:
    if interval is None or math.isnan(interval.low):
        return "" if interval is None else "-"
    return f"[{interval.low:.4f}, {interval.high:.4f}]"


def _kept(groups: str, kept: int, total: int, impression_coverage: float) -> str:
    return f"{kept:,} of {total:,} {groups}, {impression_coverage:.1%} of the impressions"
