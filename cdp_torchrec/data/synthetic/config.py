"""Settings of a synthetic search log."""

from typing import Self

from pydantic import Field, model_validator

from cdp_torchrec.config import Config, ConfigConflicts

SOURCE = "simulated search log with known click probabilities, configuration: "
"""What the schema of a simulated log calls its source; the configuration as JSON follows."""


class SyntheticConfig(Config):
    """Size, strength of every effect and rate of every noise source of a synthetic search log.

    A `*_strength` is the standard deviation that the effect adds to the click logit, unless its
    text says otherwise. The default size is prepared in about half a minute and trains in minutes.
    """

    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of everything: the same configuration gives the same log, bit for bit."""
    num_users: int = Field(5000, ge=1)
    """Users, in number."""
    num_categories: int = Field(12, ge=2)
    """Item categories, in number; the category is the gate of the history."""
    items_per_category: int = Field(100, ge=2)
    """Items of each category, in number."""
    queries_per_category: int = Field(20, ge=1)
    """Queries of each category, in number."""
    tokens_per_category: int = Field(10, ge=1)
    """Query tokens of each category, in number; 8 tokens more are shared by all categories."""
    num_segments: int = Field(8, ge=1)
    """User segments, in number; users of a segment share a part of their taste."""
    num_attributes: int = Field(3, ge=1)
    """Latent attributes of an item, and so dimensions of a taste, in number."""
    history_days: int = Field(28, ge=1)
    """Days of free browsing before the first request."""
    train_days: int = Field(7, ge=1)
    """Days of requests before the test day, which is the last day of the log."""
    requests_per_day: float = Field(1.0, gt=0.0, le=100.0)
    """Mean requests of a user and day."""
    browses_per_day: float = Field(1.0, ge=0.0, le=100.0)
    """Mean behaviours of a user and day that come from free browsing. Together with history_days
    the dial of behaviours per user: about browses_per_day * (history_days + train_days), and the
    clicks of the requests."""
    num_candidates: int = Field(12, ge=2, le=512)
    """Items on a page, which is the candidate list of a request."""
    click_through_rate: float = Field(0.15, gt=0.0, lt=1.0)
    """Mean click probability of an impression, to which the logits are calibrated."""
    popularity_exponent: float = Field(0.7, ge=0.0, le=3.0)
    """Zipf exponent of items in a category, of queries in a category and of categories."""
    off_category_rate: float = Field(0.15, ge=0.0, lt=1.0)
    """Share of candidates from another category than the query's; they cost one logit."""
    exposure_feedback: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of a user's exposure inside a category that follows what he opened there on earlier
    days, item by item; the rest follows popularity. 0: the engine shows everybody the same. Above
    it, a history tells what was shown as well as what was wanted (it takes num_users times all
    items in memory)."""
    taste_strength: float = Field(1.6, ge=0.0)
    """Taste of the user in the item's category, at the time."""
    shared_taste: float = Field(0.15, ge=0.0, le=1.0)
    """Share of the taste's variance that is the same in all categories and never changes; half
    of it is the segment's."""
    emphasis_strength: float = Field(1.0, ge=0.0)
    """How unevenly query, hour and search source weigh the attributes of a taste: standard
    deviation of the log weights; 0 weighs them equally."""
    intent_strength: float = Field(0.8, ge=0.0)
    """Match of the query's intent and the item."""
    context_strength: float = Field(0.4, ge=0.0)
    """Match of hour and weekday and the item."""
    quality_strength: float = Field(0.5, ge=0.0)
    """Quality of the item, the same for everybody."""
    position_strength: float = Field(0.4, ge=0.0)
    """Logits lost each time the position on the page doubles."""
    taste_drift: float = Field(0.08, ge=0.0, le=1.0)
    """One day's step of a category taste, in standard deviations of tastes; 1 draws it anew."""
    taste_jump_rate: float = Field(0.01, ge=0.0, le=1.0)
    """Probability per day that a user's taste in a category is drawn anew (category drift)."""
    misclick_rate: float = Field(0.1, ge=0.0, le=1.0)
    """Share of behaviours recorded on a random item of the page instead of the chosen one; the
    labels of requests keep the choice."""
    popularity_click_rate: float = Field(0.15, ge=0.0, le=1.0)
    """Share of behaviours on the most popular item of the page, whatever the taste."""
    new_user_rate: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of users who appear on a random day after the browsing days, without a past."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        conflicts = []
        if self.num_candidates > self.items_per_category:
            conflicts.append(
                (
                    "num_candidates",
                    f"must not exceed items_per_category = {self.items_per_category}: a page "
                    "shows an item once",
                )
            )
        if self.misclick_rate + self.popularity_click_rate > 1.0:
            conflicts.append(
                (
                    "misclick_rate",
                    f"must not exceed 1 together with popularity_click_rate = "
                    f"{self.popularity_click_rate}",
                )
            )
        if self.browses_per_day == 0.0 and self.history_days > 1:
            conflicts.append(
                (
                    "browses_per_day",
                    f"leaves the history_days = {self.history_days} days of free browsing empty: "
                    "raise it, or set history_days to 1",
                )
            )
        if conflicts:
            raise ConfigConflicts(conflicts)
        return self

    @property
    def num_items(self) -> int:
        """Items of all categories."""
        return self.num_categories * self.items_per_category


def recorded_config(source: str) -> SyntheticConfig | None:
    """The world that a dataset was simulated in; None if it was not simulated.

    Args:
        source: of the dataset's schema.

    Raises:
        pydantic.ValidationError: another release has recorded settings that this one does not know.
    """
    if not source.startswith(SOURCE):
        return None
    return SyntheticConfig.model_validate_json(source.removeprefix(SOURCE))
