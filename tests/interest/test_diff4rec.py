"""Diff4Rec: a curriculum from plain training to flagged behaviours that are plausible and past."""

import math
from dataclasses import replace
from itertools import chain

import pytest
import torch
from pydantic import ValidationError

from cdp_torchrec.interest.base import InterestDims, InterestInput
from cdp_torchrec.interest.config.augmentation import Diff4RecConfig
from cdp_torchrec.interest.config.sequential import SasrecConfig
from cdp_torchrec.interest.diff4rec import Augmentation, Diff4RecInterest
from cdp_torchrec.interest.recent_sequence import last_state
from cdp_torchrec.interest.sasrec import SasrecInterest
from cdp_torchrec.interest.sequence import BehaviourSequence
from cdp_torchrec.keyed_random import impression_key
from tests.golden_wave import wave
from tests.interest.sequences import items_only, take

ITEMS_ONLY = InterestDims(user=0, query=0, item=8, item_attributes=0, context=0, scene=0)
SMALL = {"num_clusters": 1, "buckets_per_cluster": 64, "latent_per_cluster": 4}


def make_diff4rec(dims: InterestDims, **settings: object) -> Diff4RecInterest:
    return Diff4RecInterest(Diff4RecConfig.model_validate({"kind": "diff4rec"} | settings), dims)


def histories(*item_ids: list[int]) -> BehaviourSequence:
    """Histories of these items, one impression for each."""
    codes = [*chain(*item_ids)]
    table = wave(60, 8, phase=10.0)
    return items_only(table[codes], [len(ids) for ids in item_ids], item_id=codes)


def augment(
    module: Diff4RecInterest,
    recent: BehaviourSequence,
    stranger: BehaviourSequence,
    *,
    curriculum: float = 1.0,
) -> Augmentation:
    """What is appended where the diffusion finds item i the likelier the larger i is."""
    sequences = len(recent.index.lengths)
    predicted = torch.arange(64.0).expand(sequences, -1)
    return module.augment(predicted, recent.index, stranger, torch.full((sequences,), curriculum))


def allowed(augmentation: Augmentation) -> list[list[int]]:
    """Items that the curriculum allows for each history, the surest first."""
    return [
        ids[kept].tolist()
        for ids, kept in zip(augmentation.item_id, augmentation.allowed, strict=True)
    ]


@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_a_curriculum_of_zero_is_plain_training(make_inputs, dims, progress):
    """Scores, and gradients of encoder and embeddings, bit for bit; fails where the diffusion's
    losses reach the embeddings."""
    module = make_diff4rec(dims, curriculum_start=0.5)
    plain = SasrecInterest(SasrecConfig(kind="sasrec"), dims)
    plain.load_state_dict(module.encoder.state_dict())
    gradients, interests = [], []
    direction = torch.randn(12, 8)
    for encoder in (module, plain):
        inputs = make_inputs(requires_grad=True)
        output = encoder(replace(inputs, progress=torch.full((12,), progress)))
        total = (output.interest * direction).sum()
        for name, loss in output.losses.items():
            total = total + encoder.loss_weights[name] * loss.sum()
        total.backward()
        interests.append(output.interest)
        trained = getattr(encoder, "encoder", encoder)
        gradients.append([p.grad for p in trained.parameters()] + [inputs.recent.item.grad])
    assert torch.equal(*interests)
    for with_diffusion, without in zip(*gradients, strict=True):
        assert torch.equal(with_diffusion, without)
    assert any(p.grad is not None and p.grad.any() for p in module.process.parameters())


def test_the_curriculum_goes_from_the_surest_behaviours_to_more_of_them():
    module = make_diff4rec(ITEMS_ONLY, max_augmented=4, **SMALL)
    recent, stranger = histories([1, 2, 3]), histories([9, 4, 30, 7, 5])
    found = [
        allowed(augment(module, recent, stranger, curriculum=c)) for c in (0, 0.25, 0.5, 0.8, 1)
    ]
    assert found == [[[]], [[30]], [[30, 9]], [[30, 9, 7]], [[30, 9, 7, 5]]]


def test_how_far_the_curriculum_is_follows_from_the_passes_over_the_data():
    module = make_diff4rec(ITEMS_ONLY, curriculum_start=1.0, curriculum_end=3.0)
    found = module.curriculum(torch.tensor([0.0, 1.0, 1.5, 2.0, 3.0, 9.0]))
    assert found.tolist() == [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]


def test_sparse_histories_get_each_new_item_of_the_stranger_once():
    """Fails where own items, repeated ones or padding join, or where rich histories are padded."""
    module = make_diff4rec(ITEMS_ONLY, sparse_below=4, **SMALL)
    recent = histories([1, 2], [1, 2, 3, 4], [], [5], [6])
    stranger = histories([7, 2, 8, 8, 7], [7, 8], [9], [], [6, 6])
    assert allowed(augment(module, recent, stranger)) == [[8, 7], [], [], [], []]


def test_augmented_behaviours_are_read_as_older_ones_before_the_history():
    """Naive reference: SASRec on the joined list. Fails where one stands after the history."""
    module = make_diff4rec(ITEMS_ONLY, **SMALL)
    recent, stranger = histories([1, 2, 3], [4], []), histories([9, 30, 7], [], [8])
    augmentation = augment(module, recent, stranger)
    found = module.read_augmented(recent, stranger, augmentation)
    joined = histories([7, 9, 30, 1, 2, 3], [4])
    with torch.no_grad():
        x = module.encoder.embed(joined, torch.tensor([5, 4, 3, 2, 1, 0, 0]))
        x[:3] += module.flag
        expected = last_state(module.encoder.transform(x, joined), joined.index)
    torch.testing.assert_close(found[:2], expected, rtol=1e-5, atol=1e-6)
    assert not found[2].any()


def with_certain_augmentation(inputs: InterestInput) -> InterestInput:
    """Two impressions of a history of two behaviours, whose stranger touched 30 and 31."""
    table = wave(60, 8, phase=10.0)
    recent = items_only(table[[1, 2]], [2], sequence=[0, 0], item_id=[1, 2])
    stranger = items_only(table[[30, 31]], [2], sequence=[0, 0], item_id=[30, 31])
    item_id = torch.tensor([30, 40])
    return replace(
        take(inputs, torch.tensor([0, 0])),
        item=table[item_id],
        item_id=item_id,
        key=impression_key(torch.tensor([5, 5]), item_id, 1),
        recent=recent,
        stranger=stranger,
    )


def test_no_augmented_behaviour_is_the_target(make_inputs):
    """Fails where the candidate itself joins the history, or is a target of the objective."""
    module = make_diff4rec(ITEMS_ONLY, augmented_share=1.0, **SMALL)
    inputs = with_certain_augmentation(make_inputs(ITEMS_ONLY))
    output, plain = module(inputs), module.encoder(inputs).interest
    assert torch.equal(output.interest[0], plain[0])
    assert not torch.equal(output.interest[1], plain[1])
    assert output.losses["objective_loss"][0] == 0 < output.losses["objective_loss"][1]
    assert output.monitors["augmented"] == 0.5 and output.monitors["curriculum"] == 1.0


def test_flags_reach_the_encoder(make_inputs):
    module = make_diff4rec(ITEMS_ONLY, augmented_share=1.0, **SMALL)
    inputs = with_certain_augmentation(make_inputs(ITEMS_ONLY))
    before = module(inputs).interest
    (before[1] * torch.randn(8)).sum().backward()
    assert module.flag.grad is not None and module.flag.grad.any()
    with torch.no_grad():
        module.flag.add_(1.0)
    after = module(inputs).interest
    assert torch.equal(after[0], before[0]) and not torch.equal(after[1], before[1])


def test_the_objective_names_the_augmented_among_all_that_is_offered(make_inputs):
    """Closed form: a state of zero finds all items of the stranger alike."""
    module = make_diff4rec(ITEMS_ONLY, max_augmented=2, **SMALL)
    recent, stranger = histories([1], [2], [3]), histories([7, 8, 9, 8], [5, 6], [])
    augmentation = augment(module, recent, stranger)
    loss = module._objective_loss(torch.zeros(3, 8), recent.index, stranger, augmentation)
    assert loss.tolist() == pytest.approx([math.log(3), math.log(2), 0.0])


@torch.no_grad()
def test_serving_is_the_encoder_alone(make_inputs, dims):
    module = make_diff4rec(dims).eval()
    inputs = make_inputs()
    plain = SasrecInterest(SasrecConfig(kind="sasrec"), dims).eval()
    plain.load_state_dict(module.encoder.state_dict())
    served = module(replace(inputs, stranger=None, progress=None))
    assert not served.losses and not served.monitors
    assert torch.equal(served.interest, plain(inputs).interest)


def test_each_epoch_has_augmentations_of_its_own():
    module = make_diff4rec(ITEMS_ONLY, **SMALL)
    codes, key = torch.zeros(3, 4), torch.tensor([1, 2, 1])
    predicted = module.predict(codes, key)
    assert torch.equal(predicted[0], predicted[2])
    assert not torch.equal(predicted[0], predicted[1])
    assert not predicted.requires_grad


def test_impressions_of_a_request_have_its_augmentation_in_any_batch(make_inputs, dims):
    """Fails where draws are named by an impression: a request may be split between ranks."""
    module = make_diff4rec(dims, augmented_share=0.5)
    inputs = make_inputs()
    request = inputs.recent.index.sequence
    inputs = replace(inputs, key=impression_key(1000 + request, inputs.item_id, 7))
    output = module(inputs)
    for rows in (torch.tensor([7, 2]), torch.tensor([11]), torch.tensor([3, 6, 1])):
        alone = module(take(inputs, rows))
        torch.testing.assert_close(alone.interest, output.interest[rows], rtol=1e-4, atol=1e-6)
        for name, loss in output.losses.items():
            torch.testing.assert_close(alone.losses[name], loss[rows], rtol=1e-4, atol=1e-6)


def test_a_curriculum_that_ends_before_it_begins_is_refused():
    with pytest.raises(ValidationError, match=r"curriculum_start = 2.0 is not below"):
        Diff4RecConfig(kind="diff4rec", curriculum_start=2.0, curriculum_end=1.0)


def test_more_augmented_behaviours_than_a_stranger_has_are_refused():
    with pytest.raises(ValidationError, match=r"max_augmented = 6 is above .*behaviours = 5"):
        Diff4RecConfig(kind="diff4rec", max_augmented=6, num_stranger_behaviours=5)


def test_a_history_that_is_only_cut_short_is_not_taken_for_a_sparse_one():
    """Of a history of any length, max_length behaviours are all that the module sees."""
    with pytest.raises(ValidationError, match=r"sparse_below = 20 is above max_length = 19"):
        Diff4RecConfig(kind="diff4rec", max_length=19)
    module = make_diff4rec(ITEMS_ONLY, max_length=4, sparse_below=4, **SMALL)
    recent, stranger = histories([1, 2, 3], [1, 2, 3, 4]), histories([7], [7])
    assert allowed(augment(module, recent, stranger)) == [[7], []]
