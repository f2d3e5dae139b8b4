"""The figures of a summary, against loops over the rows of a log full of ties."""

from collections import Counter
from pathlib import Path

import pytest

from cdp_torchrec.data.prepare.staging import build_dataset
from cdp_torchrec.data.prepare.summarise import summarise
from cdp_torchrec.data.schema import DatasetError
from tests.data.staged_log import SPEC, Rows, behaviour, random_log, stage


def share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)


@pytest.mark.parametrize("seed", range(2))
def test_figures_are_those_of_the_rows(tmp_path: Path, seed: int) -> None:
    requests, behaviours = random_log(seed)
    for row in behaviours:
        row["category"] = None if row["item"] == "i3" else f"c{int(row['item'][1:]) % 7}"
    # Neighbours in the store that did the same at the same time, which repeats nothing.
    behaviours += [behaviour(user_id=user, item="i1", category="c1") for user in ("v1", "v2")]
    staging = stage(tmp_path / "staging", requests, behaviours)
    schema = build_dataset(staging, tmp_path / "data", SPEC)
    found = summarise(tmp_path / "data", schema)
    users = {b["user_id"] for b in behaviours}

    def before(request: dict) -> Rows:
        own = [b for b in behaviours if b["user_id"] == request["user_id"]]
        return [b for b in own if b["timestamp"] < request["timestamp"]]

    for name in ("train", "test"):
        rows = [r for r in requests if (r["timestamp"] >= SPEC.test_from) == (name == "test")]
        known = [r for r in rows if r["user_id"] in users]
        clicks = [sum(r["label"]) for r in rows]
        gated = [
            any(c is not None and b["category"] == c for b in before(r))
            for r in rows
            for c in r["category_id"]
            if before(r)
        ]
        expected = {
            "requests": len(rows),
            "impressions": sum(len(r["label"]) for r in rows),
            "click_rate": sum(clicks) / sum(len(r["label"]) for r in rows),
            "one_candidate": share([len(r["label"]) == 1 for r in rows]),
            "both_labels": share(
                [0 < n < len(r["label"]) for n, r in zip(clicks, rows, strict=True)]
            ),
            "known_users": share([r["user_id"] in users for r in rows]),
            "empty_history": share([not before(r) for r in rows]),
            "late_behaviours": share([not before(r) for r in known]),
            "gate_passed": share(gated),
        }
        values = {figure: found.value(figure, name) for figure in expected}
        assert values == pytest.approx(expected), name
    last = max(r["timestamp"] for r in requests)
    shown = {item for r in requests for item in r["item_id"]}
    categories = {c for r in requests for c in r["category_id"]}
    with_category = [b for b in behaviours if b["category"] is not None]
    same = Counter((b["user_id"], b["timestamp"], b["item"], b["action"]) for b in behaviours)
    expected = {
        "after_last_request": share([b["timestamp"] >= last for b in behaviours]),
        "behaviour_items": share([b["item"] in shown for b in behaviours]),
        "behaviour_categories": share([b["category"] in categories for b in with_category]),
        "repeated_behaviours": sum(n - 1 for n in same.values()) / len(behaviours),
    }
    values = {figure: found.value(figure, "behaviours") for figure in expected}
    assert values == pytest.approx(expected)


def test_a_behaviour_without_a_category_is_in_none_of_a_candidate(tmp_path: Path) -> None:
    requests, behaviours = random_log(0)
    for row in behaviours:  # other categories than those of the candidates, or none
        row["category"] = row["category"] and f"other {row['category']}"
    known = sum(row["category"] is not None for row in behaviours)
    assert known < len(behaviours)
    staging = stage(tmp_path / "staging", requests, behaviours)
    with pytest.raises(DatasetError, match=f"0.00% of the {known} behaviours that have a category"):
        build_dataset(staging, tmp_path / "data", SPEC)
