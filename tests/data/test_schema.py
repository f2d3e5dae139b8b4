"""A schema says what a dataset is, and a wrong one is refused with its reason."""

from pathlib import Path

import numpy as np
import pytest

from cdp_torchrec.data.history.behaviour_attributes import LARGEST_DEVIATION
from cdp_torchrec.data.schema import (
    DatasetError,
    Entity,
    Feature,
    HistorySchema,
    Level,
    Schema,
    Split,
    load_schema,
)


def make_schema(**changes: object) -> Schema:
    split = Split(requests=1, impressions=2, clicks=1, first_timestamp=0, last_timestamp=9)
    features = (
        Feature(name="item_id", role="item", level="candidate", kind="id", entity="item"),
        Feature(name="category_id", role="item", level="candidate", kind="id", entity="category"),
        Feature(name="hour", role="context", level="request", kind="id", entity="hour"),
        Feature(name="price", role="item", level="candidate", kind="number", mean=1.0, std=2.0),
    )
    values: dict[str, object] = {
        "name": "test",
        "source": "a test",
        "entities": {name: Entity(num_ids=5) for name in ("item", "category", "hour")},
        "features": features,
        "history": HistorySchema(category_entity="category"),
        "splits": {"train": split, "test": split},
    }
    return Schema(**values | changes)  # pyrefly: ignore[bad-argument-type]


def test_a_schema_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    schema = make_schema(bayes={"auc": 0.9})
    schema.save(tmp_path)
    assert load_schema(tmp_path) == schema


def test_a_number_is_standardised_to_something_that_stays_finite() -> None:
    price = make_schema().feature("price")  # mean 1, deviation 2
    raw = np.array([1.0, 5.0, -3.0, np.nan, np.inf, -np.inf, 1.7e308, -1.7e308, 1e4])
    most = LARGEST_DEVIATION
    expected = [0.0, 2.0, -2.0, 0.0, most, -most, most, -most, most]
    np.testing.assert_array_equal(price.standardise(raw), expected)


@pytest.mark.parametrize("wrong", [{"std": 0.0}, {"std": float("inf")}, {"mean": float("nan")}])
def test_a_scale_that_cannot_be_divided_by_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Feature.model_validate(
            {"name": "price", "role": "item", "level": "candidate", "kind": "number"} | wrong
        )


@pytest.mark.parametrize(("clicks", "rate"), [(2, 0.1), (0, 0.025), (20, 0.975)])
def test_a_click_rate_lies_between_none_and_all(clicks: int, rate: float) -> None:
    split = Split(requests=1, impressions=20, clicks=clicks, first_timestamp=0, last_timestamp=9)
    assert split.click_rate == pytest.approx(rate)


def test_another_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    make_schema().save(tmp_path)
    path = tmp_path / "schema.toml"
    path.write_text(path.read_text().replace("version = 2", "version = 7"))
    with pytest.raises(
        DatasetError, match=r"version 7, this release reads version 2.*prepare_data"
    ):
        load_schema(tmp_path)


def test_a_directory_without_a_schema_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"is no dataset directory: schema\.toml is missing"):
        load_schema(tmp_path)


def test_broken_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "schema.toml").write_text("version = ")
    with pytest.raises(DatasetError, match=r"schema\.toml: not valid TOML"):
        load_schema(tmp_path)


def test_features_of_undeclared_entities_are_refused() -> None:
    with pytest.raises(ValueError, match=r"entities \['hour'\] are used by features"):
        make_schema(entities={name: Entity(num_ids=5) for name in ("item", "category")})


def test_the_gate_is_the_candidate_feature_with_the_category() -> None:
    assert make_schema().gate_feature() == "category_id"
    assert make_schema(history=HistorySchema()).gate_feature() is None


def test_the_domain_is_the_first_request_feature_of_role_scene_that_is_an_id() -> None:
    assert make_schema().domain_feature() is None

    def of_scene(name: str, level: Level) -> Feature:
        return Feature(name=name, role="scene", level=level, kind="id", entity="hour")

    load = Feature(name="load", role="scene", level="request", kind="number")
    others = (of_scene("slot", "candidate"), load)
    domains = (of_scene("client", "request"), of_scene("source", "request"))
    schema = make_schema(features=make_schema().features + others)
    assert schema.domain_feature() is None
    schema = make_schema(features=schema.features + domains)
    assert schema.domain_feature() == "client"
    assert schema.without(["client"]).domain_feature() == "source"


def test_excluded_features_are_gone_and_change_the_fingerprint() -> None:
    schema = make_schema()
    smaller = schema.without(["hour"])
    assert [f.name for f in smaller.features] == ["item_id", "category_id", "price"]
    assert smaller.fingerprint() != schema.fingerprint()
    with pytest.raises(KeyError, match="'category_id' is needed by the history"):
        schema.without(["category_id"])
    with pytest.raises(KeyError, match="no feature 'hours'; it has"):
        schema.without(["hours"])
