"""The table of checks of an appended day; `prepare/day_figures.py` measures the figures.

The log as a whole was judged when it was prepared. A day is compared with it, and nothing about a
day is refused: on some days no click is logged. But nobody shall train on one without being told.
"""

from cdp_torchrec.data.plausibility_checks import DAY_MS, NEVER, Check

DAY_CHECKS = (
    Check(
        "click_rate",
        "{value:.2%} of the {count:,} impressions are clicks: a ranker learns from, and is "
        "measured by, both labels; were all of them logged?",
        warn_below=1e-4,
        warn_above=0.6,
    ),
    Check(
        "click_rate_ratio",
        "the click rate is {value:.3g} times that of the training split",
        warn_below=0.5,
        warn_above=2.0,
        at_least=1000,
    ),
    Check(
        "both_labels",
        "none of the {count:,} requests has candidates with and without a click: GAUC is undefined",
        warn_below=NEVER,
    ),
    Check(
        "one_candidate",
        "{value:.1%} of the {count:,} requests have one candidate only: are the rows of a list "
        "grouped by request?",
        warn_above=0.9,
    ),
    Check(
        "new_users",
        "{value:.1%} of the {count:,} requests are of users that were never seen before: are user "
        "ids written as they were?",
        warn_above=0.9,
    ),
    Check(
        "unknown",
        "{value:.1%} of the {count:,} values of '{of}' were never seen before: are its ids written "
        "as they were?",
        warn_above=0.9,
    ),
    Check(
        "missing_more",
        "'{of}' is missing in {value:.1%} more of the day than of the training split: is it no "
        "longer logged?",
        warn_above=0.3,
    ),
    Check(
        "empty_history",
        "{value:.2%} of the {count:,} requests have no behaviour before them: compare user_id and "
        "timestamp of requests and behaviours",
        warn_above=0.9,
    ),
    Check(
        "gate_passed",
        "{value:.2%} of the {count:,} impressions with a history have a behaviour in the category "
        "of the candidate: are categories written as they were?",
        warn_below=0.02,
        at_least=30,
    ),
    Check(
        "behaviours",
        "there are no behaviours: histories end with the day before",
        warn_below=0.5,
        at_least=0,
    ),
    Check(
        "repeated_requests",
        "{value:.2%} of the {count:,} requests repeat another one (user, moment, candidates and "
        "labels): is a file there twice?",
        warn_above=0.001,
    ),
    Check(
        "gap_days",
        "{value:.1f} days lie between the last moment of the dataset and the first request: are "
        "days missing?",
        warn_above=1.0,
        at_least=1,
    ),
    Check(
        "span",
        "all {count:,} timestamps of requests are the same: the order in time is lost",
        warn_below=1.0,
    ),
    Check(
        "last_time",
        "the last request lies in the future: {date}",
        warn_above=DAY_MS,
        from_now=True,
        at_least=1,
    ),
    Check(
        "leak",
        "{of} alone tells clicks from other impressions with AUC {value:.4f}: it holds the label, "
        "or was written after the click",
        warn_above=0.98,
        at_least=50,
    ),
    Check(
        "order_leak",
        "the place in the candidate list alone tells clicks from other impressions with AUC "
        "{value:.4f}: the lists are sorted by label",
        warn_above=0.98,
        at_least=50,
    ),
    Check(
        "history_leak",
        "whether and when the user last touched the candidate tells clicks from other impressions "
        "with AUC {value:.4f}: the click itself stands among the earlier behaviours",
        warn_above=0.98,
        at_least=50,
    ),
)
