"""DiffRec reconstructs the interactions of a request, once, and reads the target item's share."""

import json
import logging
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.data.history.sequence_index import SequenceColumns, index_sequences
from cdp_torchrec.interest.base import InterestInput
from cdp_torchrec.interest.cluster_autoencoder import ClusterAutoencoder, kl_loss, multinomial_loss
from cdp_torchrec.interest.config.generative import DiffRecConfig
from cdp_torchrec.interest.diffrec import DiffRecInterest, recency_weights
from cdp_torchrec.interest.sequence_rows import SequenceRows
from cdp_torchrec.keyed_random import epoch_draw, impression_key
from tests.golden_wave import wave
from tests.interest.sequences import take
from tests.paths import GOLDEN

EMIT = ("interest", "interest_item")
SPACES = ["vocabulary", "latent"]


@pytest.fixture
def make_diffrec(dims):
    def make(lacking: str | None = None, **settings: Any) -> DiffRecInterest:
        small: dict[str, Any] = {"num_clusters": 4, "buckets_per_cluster": 16, "emit": EMIT}
        config = DiffRecConfig(kind="diffrec", **small | settings)
        return DiffRecInterest(config, dims if lacking is None else replace(dims, **{lacking: 0}))

    return make


def with_behaviours(
    inputs: InterestInput,
    histories: list[list[int]],
    *,
    sequence: list[int],
    categories: list[list[int]] | None = None,
) -> InterestInput:
    """The inputs with these histories of item codes, oldest first, one second apart."""
    lengths = np.array([len(history) for history in histories])
    items = np.array([*chain(*histories)], dtype=np.int64)
    category = items % 5
    if categories is not None:
        category = np.array([*chain(*categories)], dtype=np.int64)
    ages = np.concatenate([np.arange(length, 0, -1) for length in lengths]).astype(np.float64)
    columns = SequenceColumns(items, category, ages, lengths, np.array(sequence))
    assert inputs.recent is not None
    zeros = torch.zeros(len(items), inputs.recent.item.shape[1])
    recent = replace(
        inputs.recent,
        item=zeros,
        category=zeros,
        action=zeros,
        index=index_sequences(columns, batch_size=len(inputs.key)),
    )
    return replace(inputs, recent=recent)


def state(module: DiffRecInterest, inputs: InterestInput) -> torch.Tensor:
    """x_0 of each impression, [B, V]."""
    assert inputs.recent is not None
    rows = SequenceRows.of(inputs.recent.index)
    return module._interactions(inputs.recent.index, rows)[rows.of_impression]


def test_the_history_is_all_of_it_or_that_in_the_category(make_diffrec):
    assert make_diffrec().config.history == HistoryLookup(recent=True)
    by_category = make_diffrec(history_filter="category").config.history
    assert by_category == HistoryLookup(gated=True)


def test_an_interaction_counts_once_in_the_bucket_of_its_item_and_category(
    make_diffrec, make_inputs
):
    """Fails where repeated behaviours add up, which DiffRec's binary matrix never holds."""
    inputs = with_behaviours(
        make_inputs(batch=3),
        [[3, 40, 3], []],
        sequence=[0, 1, 0],
        categories=[[1, 6, 1], []],
    )
    x_0 = state(make_diffrec(), inputs)
    # Cluster 1 begins at 16 and cluster 6 % 4 = 2 at 32; 40 % 16 = 8.
    assert x_0[0].nonzero().flatten().tolist() == [16 + 3, 32 + 8]
    assert x_0[0].max() == 1.0
    assert torch.equal(x_0[2], x_0[0])
    assert not x_0[1].any()


def test_recency_weights_rise_evenly_in_the_order_of_time(make_inputs, make_diffrec):
    """Fails where weights follow the item code or the place in the batch."""
    inputs = with_behaviours(
        make_inputs(batch=3), [[9, 2, 5, 7], [4], [2, 3, 2]], sequence=[0, 1, 2]
    )
    assert inputs.recent is not None
    weights = recency_weights(inputs.recent.index, oldest_weight=0.1)
    expected = [*np.linspace(0.1, 1.0, 4), 1.0, *np.linspace(0.1, 1.0, 3)]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float32))
    # An item met twice counts as its last time.
    x_0 = state(make_diffrec(interaction_weight="recency", num_clusters=1), inputs)
    assert x_0[2, 2] == 1.0
    assert x_0[2, 3] == pytest.approx(0.55)


@pytest.mark.parametrize("space", SPACES)
def test_the_reconstruction_does_not_know_the_target_item(make_diffrec, make_inputs, space):
    """Fails where x_0 holds the impression that is to be predicted."""
    module, inputs = make_diffrec(space=space).eval(), make_inputs()
    other = replace(inputs, item_id=inputs.item_id + 1, category_id=inputs.category_id + 1)
    before, after = module(inputs).interest, module(other).interest
    assert torch.equal(before[:, :-2], after[:, :-2])
    assert not torch.equal(before[:, -2:], after[:, -2:])


@pytest.mark.parametrize("space", SPACES)
def test_impressions_of_a_request_share_one_reconstruction(make_diffrec, make_inputs, space):
    module, inputs = make_diffrec(space=space, emit=("interest",)).eval(), make_inputs()
    assert inputs.recent is not None
    interest = module(inputs).interest[:, :-2]
    first = inputs.recent.index.first_impression[inputs.recent.index.sequence]
    assert torch.equal(interest, interest[first])


def test_the_scores_are_the_reconstruction_at_the_target_and_in_its_cluster(
    make_diffrec, make_inputs
):
    module, inputs = make_diffrec().eval(), make_inputs()
    reconstruction = module.process.chain(state(module, inputs))
    assert inputs.recent is not None
    for i in range(12):
        item, cluster = inputs.item_id[i].item() % 16, inputs.category_id[i].item() % 4
        own = reconstruction[i, 16 * cluster : 16 * (cluster + 1)]
        expected = torch.stack([own[item], own.mean()])
        if inputs.recent.index.lengths[inputs.recent.index.sequence[i]] == 0:
            expected = torch.zeros(2)
        torch.testing.assert_close(module(inputs).interest[i, -2:], expected)


def test_serving_reverses_all_steps_from_the_clean_state(make_diffrec, make_inputs):
    """Fails where the number of reverse steps is that of corruption, 0 as released."""
    module = make_diffrec().eval()
    assert [step.timestep for step in module.process.steps] == [5, 4, 3, 2, 1]
    inputs = make_inputs()
    torch.testing.assert_close(module(inputs).interest, module.train()(inputs).interest)


@pytest.mark.parametrize("space", SPACES)
def test_an_impression_has_its_score_and_losses_in_any_batch(make_diffrec, make_inputs, space):
    """Fails where a request's noise is named by whichever of its impressions is in the batch."""
    module, inputs = make_diffrec(space=space), make_inputs(batch=4)
    key = impression_key(torch.tensor([0, 1, 1, 2]), inputs.item_id, epoch_draw(0, seed=0))
    inputs = replace(inputs, key=key)
    histories = [[3, 4, 9], [8, 8, 2, 1], [], [5]]
    together = with_behaviours(inputs, histories, sequence=[0, 1, 1, 2])
    alone = take(together, torch.tensor([2, 1]))
    expected, found = module(together), module(alone)
    torch.testing.assert_close(found.interest[0], expected.interest[2])
    for name, loss in expected.losses.items():
        torch.testing.assert_close(found.losses[name][0], loss[2])
        assert loss[1] == loss[2]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("history_filter", ["none", "category"])
def test_each_request_and_epoch_draws_noise_of_its_own(
    make_diffrec, make_inputs, space, history_filter
):
    """Fails where a history is denoised at one level of noise for the whole training."""
    module = make_diffrec(space=space, history_filter=history_filter)
    inputs = with_behaviours(make_inputs(batch=2), [[3, 4], [3, 4]], sequence=[0, 1])
    inputs = replace(inputs, item_id=torch.tensor([3, 3]), gated=inputs.recent)

    def losses(epoch: int) -> Tensor:
        key = impression_key(torch.tensor([5, 6]), inputs.item_id, epoch_draw(epoch, seed=0))
        return module(replace(inputs, key=key)).losses["denoise_loss"]

    found = torch.cat([losses(epoch) for epoch in range(3)])
    assert len(set(found.tolist())) == 6
    assert torch.equal(losses(0), found[:2])


@pytest.mark.parametrize("space", SPACES)
def test_an_empty_history_gives_zeros_and_finite_gradients(make_diffrec, make_inputs, space):
    module = make_diffrec(space=space)
    inputs = with_behaviours(make_inputs(batch=3), [[], [], []], sequence=[0, 1, 2])
    output = module(inputs)
    assert not output.interest.any()
    assert all(not loss.any() for loss in output.losses.values())
    (output.interest.sum() + sum(loss.sum() for loss in output.losses.values())).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("space", SPACES)
def test_without_categories_there_is_one_cluster_and_the_log_says_so(
    make_diffrec, make_inputs, dims, caplog, space
):
    with caplog.at_level(logging.WARNING):
        module = make_diffrec(lacking="category", space=space)
    assert "one cluster of 64 buckets" in caplog.text
    inputs = make_inputs(replace(dims, category=0))
    assert module(inputs).interest.shape == (12, module.interest_dim)
    inputs = with_behaviours(inputs, [[63]], sequence=[0] * 12, categories=[[0]])
    assert state(module, inputs)[0].nonzero().item() == 63


@pytest.mark.parametrize("lacking", ["user", "query", "action", "item_attributes"])
def test_what_diffrec_does_not_use_may_be_missing(make_diffrec, make_inputs, dims, lacking):
    module = make_diffrec(lacking=lacking)
    assert module(make_inputs(replace(dims, **{lacking: 0}))).interest.isfinite().all()


def test_too_wide_a_vocabulary_is_refused():
    with pytest.raises(ValidationError, match=r"64 \* 128 is above 4096"):
        DiffRecConfig(kind="diffrec", num_clusters=64, buckets_per_cluster=128)
    with pytest.raises(ValidationError, match=r"oldest_weight = 2.0 is above 1"):
        DiffRecConfig(kind="diffrec", oldest_weight=2.0)


def test_autoencoder_gives_the_published_codes_logits_and_losses():
    golden = json.loads((GOLDEN / "diffrec.json").read_text())["autoencoder"]
    interactions = torch.tensor(golden["interactions"])
    model = ClusterAutoencoder(num_clusters=2, num_buckets=8, latent_dim=6)

    with torch.no_grad():
        # Published weights are [out, in], ours [in, out] to be multiplied in one batch.
        for cluster in range(2):
            model.encoder_weight[cluster] = wave(6, 4, phase=cluster).t()
            model.encoder_bias[cluster] = wave(6, phase=2 + cluster)
        model.decoder.weight.copy_(wave(8, 6, phase=4))
        model.decoder.bias.copy_(wave(8, phase=5))
    mean, log_variance = model.encode(interactions)
    decoded = model.decode(mean)
    # The published loss is a sum over interactions.
    nll = multinomial_loss(decoded, interactions) * interactions.sum(dim=1)
    found = {
        "mean": mean,
        "log_variance": log_variance,
        "kl": kl_loss(mean, log_variance),
        "decoded": decoded,
        "multinomial_sum": nll,
    }
    for name, values in found.items():
        expected = torch.tensor(golden[name]).view_as(values)
        torch.testing.assert_close(values.detach(), expected, rtol=0, atol=1e-6)
