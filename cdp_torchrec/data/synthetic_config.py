"""Settings of a synthetic search log."""

from typing import Self

from pydantic import Field, model_validator

from cdp_torchrec.config import Config


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
    """Mean behaviours of a user and day that come from free browsing."""
    num_candidates: int = Field(12, ge=2, le=512)
    """Items on a page, which is the candidate list of a request."""
    click_through_rate: float = Field(0.15, gt=0.0, lt=1.0)
    """Mean click probability of an impression, to which the logits are calibrated."""
    popularity_exponent: float = Field(0.7, ge=0.0, le=3.0)
    """Zipf exponent of items in a category, of queries in a category and of categories."""
    off_category_rate: float = Field(0.15, ge=0.0, lt=1.0)
    """Share of candidates from another category than the query's; they cost one logit."""
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
        if self.num_candidates > self.items_per_category:
            raise ValueError(
                f"num_candidates = {self.num_candidates} must not exceed "
                f"items_per_category = {self.items_per_category}"
            )
        if self.misclick_rate + self.popularity_click_rate > 1.0:
            raise ValueError(
                f"misclick_rate = {self.misclick_rate} and popularity_click_rate = "
                f"{self.popularity_click_rate} must not exceed 1 together"
            )
        return self

    @property
    def num_items(self) -> int:
        """Items of all categories."""
        return self.num_categories * self.items_per_category
