"""The table of checks of a log as a whole: what is measured, the thresholds, and what to say.

Beyond an error threshold no sane log lies; a warning says a figure that a sane log may have, but
seldom has. `prepare/summarise.py` measures the figures, `plausibility.py` judges them.
"""

from dataclasses import dataclass

NEVER = 1e-9
"""A share below it is none at all."""
DAY_MS = 24 * 3600 * 1000.0


@dataclass(frozen=True)
class Check:
    """A figure, its thresholds, and what to say beyond them."""

    figure: str
    """Name in `summary.toml`; every figure of that name is checked."""
    sentence: str
    """May name {value}, {of}, {count}, {example} and, where the value is a moment, {date}."""
    warn_below: float = -float("inf")
    warn_above: float = float("inf")
    error_below: float = -float("inf")
    error_above: float = float("inf")
    from_now: bool = False
    """The value is a moment, and its thresholds are milliseconds after that of the judgement."""
    at_least: int = 20
    """Measured on fewer things, the figure says nothing."""
    only: tuple[str, ...] = ()
    """What the figure must be of; empty: anything."""


_EMPTY_HISTORY = (
    "{value:.2%} of the requests of the {of} split have no behaviour before them: "
    "compare user_id and timestamp of requests and behaviours"
)

CHECKS = (
    # Clocks
    Check(
        "wrong_clock",
        "{value:.2%} of the {count:,} timestamps of {of} are not in milliseconds: {example}",
        warn_above=0.0,
        error_above=0.001,
        at_least=1,
    ),
    Check(
        "after_2100",
        "{value:.2%} of the {count:,} timestamps of {of} lie after the year 2100",
        warn_above=0.0,
        error_above=0.001,
        at_least=1,
    ),
    Check(
        "before_1990",
        "{value:.2%} of the {count:,} timestamps of {of} lie before the year 1990: are they "
        "milliseconds since 1970?",
        warn_above=0.0,
    ),
    Check(
        "last_time",
        "the last timestamp of {of} lies in the future: {date}",
        warn_above=DAY_MS,
        error_above=2 * 365 * DAY_MS,
        from_now=True,
        at_least=1,
    ),
    Check(
        "clock_ratio",
        "the timestamp of the last behaviour is {value:.3g} times that of the last request: two "
        "clocks, or two units",
        error_below=0.01,
        error_above=100.0,
    ),
    Check(
        "span",
        "all {count:,} timestamps of {of} are the same: the order in time is lost",
        warn_below=1.0,
        only=("train", "test"),
    ),
    Check(
        "span",
        "all {count:,} timestamps of {of} are the same: the order in time is lost",
        error_below=1.0,
        only=("behaviours",),
    ),
    Check(
        "gap_between_splits",
        "the test split does not begin after the end of the training split: {value:,.0f} ms lie "
        "between them",
        error_below=1.0,
        at_least=1,
    ),
    Check(
        "after_last_request",
        "{value:.1%} of the {count:,} behaviours happened after the last request, so that they "
        "never count",
        warn_above=0.5,
        error_above=0.99,
    ),
    Check(
        "behaviours_lag",
        "the last behaviour lies before the last request by {value:.0%} of the time that requests "
        "span: what users did since is missing, so histories are older than their requests",
        warn_above=0.5,
    ),
    # Labels
    Check(
        "click_rate",
        "{value:.2%} of the {count:,} impressions of the {of} split are clicks: a ranker learns "
        "from, and is measured by, both labels",
        error_below=NEVER,
        warn_below=1e-4,
        warn_above=0.6,
        error_above=0.99,
    ),
    Check(
        "both_labels",
        "no request of the {of} split has candidates with and without a click: GAUC is undefined",
        warn_below=NEVER,
    ),
    Check(
        "one_candidate",
        "{value:.1%} of the {count:,} requests of the {of} split have one candidate only: are the "
        "rows of a list grouped by request?",
        warn_above=0.9,
    ),
    Check(
        "leak",
        "{of} alone tells clicks from other impressions with AUC {value:.4f} in the training "
        "split: it holds the label, or was written after the click",
        warn_above=0.98,
        error_above=0.999,
        at_least=50,
    ),
    Check(
        "order_leak",
        "the place in the candidate list alone tells clicks from other impressions with AUC "
        "{value:.4f}: the lists are sorted by label, or the log has a candidate to each click",
        warn_above=0.98,
        at_least=50,
    ),
    Check(
        "history_leak",
        "whether and when the user last touched the candidate tells clicks from other impressions "
        "with AUC {value:.4f}: the click itself stands among the earlier behaviours",
        warn_above=0.98,
        error_above=0.999,
        at_least=50,
    ),
    # Who meets whom
    Check(
        "behaviours",
        "the log has no behaviours: only models without a history learn anything",
        warn_below=0.5,
        at_least=0,
    ),
    Check(
        "known_users",
        "{value:.2%} of the requests of the {of} split are of a user who has behaviours "
        "at any time: compare the user ids of both, {example}",
        error_below=NEVER,
        warn_below=0.1,
        at_least=10,
    ),
    Check(
        "empty_history",
        _EMPTY_HISTORY,
        warn_above=0.9,
        only=("train",),
        at_least=10,
    ),
    Check(
        "empty_history",
        _EMPTY_HISTORY,
        warn_above=0.9,
        error_above=0.999,
        only=("test",),
        at_least=10,
    ),
    Check(
        "late_behaviours",
        "{value:.2%} of the requests of the {of} split whose user has behaviours have "
        "none before them: the two clocks differ",
        warn_above=0.9,
        error_above=0.99,
        only=("test",),
        at_least=10,
    ),
    Check(
        "gate_passed",
        "{value:.2%} of the {count:,} impressions of the {of} split with a history have a "
        "behaviour in the category of the candidate: are the categories of behaviours and "
        "candidates written alike ({example})?",
        error_below=NEVER,
        warn_below=0.02,
        at_least=30,
    ),
    Check(
        "no_gate_feature",
        "behaviours have a category, but no candidate feature is of its entity '{of}', so the "
        "category gate is off",
        warn_above=0.0,
        at_least=0,
    ),
    Check(
        "behaviour_items",
        "{value:.2%} of the {count:,} behaviours are on an item that is a candidate anywhere: "
        "compare item and item_id, {example}",
        error_below=NEVER,
        warn_below=0.02,
    ),
    Check(
        "behaviour_categories",
        "{value:.2%} of the {count:,} behaviours that have a category are in one that a candidate "
        "has: compare the categories of both, {example}",
        error_below=NEVER,
        warn_below=0.02,
    ),
    Check(
        "similar_ids",
        "{value:.2%} of the {count:,} ids of entity '{of}' differ from another one in leading "
        "zeros, blanks or '.0' only: {example}",
        warn_above=0.0,
        error_above=0.05,
        at_least=10,
    ),
    # Repetition
    Check(
        "repeated_requests",
        "{value:.2%} of the {count:,} requests of the {of} split repeat another one (user, "
        "moment, candidates and labels): is a file there twice?",
        warn_above=0.001,
        error_above=0.2,
    ),
    Check(
        "repeated_behaviours",
        "{value:.2%} of the {count:,} behaviours repeat another one (user, moment, item and "
        "action): is a file there twice?",
        warn_above=0.2,
    ),
    Check(
        "largest_user",
        "{value:.2%} of the {count:,} {of} are of one user, {example}: is it the id of all who "
        "have none?",
        warn_above=0.3,
        error_above=0.8,
        at_least=50,
    ),
    Check(
        "users_of_one_request",
        "{value:.2%} of the {count:,} users of the training split have one request: is user_id "
        "the id of a session?",
        warn_above=0.99,
    ),
    # Columns
    Check(
        "constant",
        "'{of}' has the same value, or none, in all of the training split, so that it says "
        "nothing (data.exclude_features leaves features out)",
        warn_above=0.0,
    ),
    Check(
        "missing_in_train",
        "'{of}' is missing in {value:.1%} of the training split",
        warn_above=0.95,
    ),
    Check(
        "missing_only_in_test",
        "'{of}' is missing in {value:.1%} more of the test split than of the training split: it "
        "is known too late, or no longer logged",
        warn_above=0.3,
        error_above=0.9,
    ),
    Check(
        "unknown_in_test",
        "{value:.1%} of the {count:,} values of '{of}' in the test split never occur in training",
        warn_above=0.9,
        at_least=10,
    ),
    Check(
        "largest_number",
        "'{of}' has values up to {value:.3g}: is it an id, or a mark for something missing?",
        warn_above=1e15,
    ),
    Check(
        "farthest_number",
        "one value of '{of}', {example}, makes {value:.1%} of its variance, so that all others "
        "look alike: is it a mark for something missing?",
        warn_above=0.5,
        at_least=50,
    ),
)
