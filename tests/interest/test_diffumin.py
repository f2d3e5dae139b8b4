"""DiffuMIN: orthogonal channels, each behaviour in its best, a sampler that fits the network."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.config import ConfigError
from cdp_torchrec.interest import DiffuminConfig, DiffuminInterest
from cdp_torchrec.interest.channel_denoiser import ChannelDenoiser
from cdp_torchrec.interest.diffumin import _Calibrator
from cdp_torchrec.interest.interest_channels import InterestChannels, orthonormal
from cdp_torchrec.keyed_random import Stream, further_key, keyed_normal, keyed_timesteps
from tests.gradients import in_float64
from tests.interest.sequences import items_only

WIDTH = 16


@pytest.fixture
def make_diffumin(dims):
    def make(**settings: Any) -> DiffuminInterest:
        ours: dict[str, Any] = {"emit": ("interest",), "embedding_norm": "layernorm"}
        return DiffuminInterest(DiffuminConfig(kind="diffumin", **ours | settings), dims)

    return make


def parts(module: DiffuminInterest, interest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Interests and generated interests [B, K, F], and the short-term one [B, F]."""
    width = module.config.num_channels * WIDTH
    original, generated, short = interest.split([width, width, WIDTH], dim=1)
    return original.unflatten(1, (-1, WIDTH)), generated.unflatten(1, (-1, WIDTH)), short


@pytest.mark.parametrize("apart", [1.0, 1e-5])
def test_channels_are_orthonormal_however_close_their_projections_are(apart):
    """Fails where Gram-Schmidt runs once: close vectors then keep angles of their rounding."""
    vectors = torch.randn(5, 1, 12).double() + apart * torch.randn(5, 4, 12).double()
    basis = orthonormal(vectors)
    eye = torch.eye(4).double().expand(5, 4, 4)
    torch.testing.assert_close(basis @ basis.transpose(1, 2), eye, rtol=0, atol=1e-13)
    q, r = torch.linalg.qr(vectors.transpose(1, 2))
    signs = r.diagonal(dim1=1, dim2=2).sign()
    torch.testing.assert_close(basis, (q * signs.unsqueeze(1)).transpose(1, 2), rtol=0, atol=1e-8)


def test_a_channel_turns_with_its_projection_and_never_flips():
    """Fails for LAPACK's QR, where the first entry's sign decides where a channel points."""
    vectors = torch.randn(1, 2, 6).double()
    vectors[0, 0, 0] = 1e-9
    flipped = vectors.clone()
    flipped[0, 0, 0] = -1e-9
    torch.testing.assert_close(orthonormal(vectors), orthonormal(flipped), rtol=0, atol=1e-8)
    lapack = [torch.linalg.qr(v.transpose(1, 2))[0][0, :, 0] for v in (vectors, flipped)]
    torch.testing.assert_close(lapack[0], -lapack[1], rtol=0, atol=1e-8)


def test_what_the_others_span_has_no_channel_and_no_gradient():
    vectors = torch.randn(3, 3, 6).double()
    vectors[0] = 0.0
    vectors[1, 1] = 2 * vectors[1, 0]
    vectors.requires_grad_()
    basis = orthonormal(vectors)
    lengths = basis.norm(dim=2).round(decimals=9)
    assert lengths.tolist() == [[0, 0, 0], [1, 0, 1], [1, 1, 1]]
    (basis * torch.randn_like(basis)).sum().backward()
    assert vectors.grad is not None and vectors.grad.isfinite().all()
    assert not vectors.grad[0].any()


def routed(
    extractor: InterestChannels, target: Tensor, behaviours: Tensor, *, own_first: bool
) -> Tensor:
    """Interests of one target [F] in loops, [K, F]; `own_first`: a channel chooses of its own."""
    channels = extractor.channels(target.unsqueeze(0))[0]
    relevance = behaviours @ channels.t()
    best = relevance.argmax(dim=1)
    interests = []
    for channel in range(len(channels)):
        chosen = sorted(
            (j for j in range(len(behaviours)) if not own_first or best[j] == channel),
            key=lambda j: -relevance[j, channel],
        )[: extractor.num_kept]
        own = [j for j in chosen if best[j] == channel]
        total = sum((relevance[j, channel] * behaviours[j] for j in own), torch.zeros_like(target))
        interests.append(total / max(len(own), 1))
    return torch.stack(interests)


@pytest.mark.parametrize("num_kept", [2, 100])
def test_each_behaviour_counts_in_its_best_channel_which_keeps_its_own_best(num_kept):
    """Fails where a channel's best are chosen among all behaviours, or where padding is counted."""
    extractor = InterestChannels(6, num_channels=3, num_kept=num_kept).double()
    behaviours, targets = torch.randn(20, 6).double(), torch.randn(4, 6).double()
    sequence = items_only(behaviours, [0, 5, 15], sequence=[0, 1, 2, 2])
    found = extractor(targets, behaviours, sequence)
    owned = [behaviours[:0], behaviours[:5], behaviours[5:], behaviours[5:]]
    naive = []
    for target, own, interests in zip(targets, owned, found.interests, strict=True):
        torch.testing.assert_close(interests, routed(extractor, target, own, own_first=True))
        naive.append(routed(extractor, target, own, own_first=False))
    assert torch.allclose(torch.stack(naive), found.interests) == (num_kept == 100)
    assert not found.present[0].any() and not found.interests[0].any()


class Oracle(nn.Module):
    """Predicts the clean interests, whatever it is shown, and remembers where it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.timesteps: list[int] = []
        self.states: list[Tensor] = []

    def forward(self, x_t: Tensor, timesteps: int, *, interests: Tensor, **_: Tensor) -> Tensor:
        self.timesteps.append(timesteps)
        self.states.append(x_t)
        return interests


@pytest.mark.parametrize("steps", [(10, 10), (1000, 7), (300, 1)])
def test_a_denoiser_that_knows_the_interest_generates_exactly_it(make_diffumin, make_inputs, steps):
    """Fails where the sampler takes the prediction of x_0 for noise, or starts from other noise
    than its first step expects."""
    start, count = steps
    module = make_diffumin(start_timestep=start, num_inference_steps=count).double().eval()
    oracle = Oracle()
    module.denoiser = oracle  # type: ignore[assignment]
    inputs = in_float64(make_inputs())
    original, generated, _ = parts(module, module(inputs).interest)
    x_0 = functional.normalize(original, dim=2)
    torch.testing.assert_close(generated, x_0)
    assert oracle.timesteps[0] == start and len(oracle.timesteps) == count
    assert oracle.timesteps == sorted(oracle.timesteps, reverse=True)
    noise = keyed_normal(inputs.key, 4 * WIDTH, Stream.START_NOISE).view_as(x_0)
    signal, sigma = module.schedule.scales(start)
    torch.testing.assert_close(oracle.states[0], signal * x_0 + sigma * noise)
    # The public code's reading: x_0 from a "noise" that is x_0.
    filled = x_0.abs().sum(dim=2) > 0
    misread = (oracle.states[0] - sigma * x_0) / signal
    assert (misread - x_0)[filled].norm(dim=1).min() > 0.02


def test_scores_are_the_same_at_every_call_in_training_and_evaluation(make_diffumin, make_inputs):
    """Fails where noise is drawn anew."""
    module, inputs = make_diffumin(start_timestep=500), make_inputs()
    first, again = module(inputs).interest, module(inputs).interest
    assert torch.equal(first, again)
    torch.testing.assert_close(first, module.eval()(inputs).interest)
    other = module(replace(inputs, key=inputs.key + 1)).interest
    (_, generated, short), (_, moved, still) = parts(module, first), parts(module, other)
    assert not torch.allclose(generated, moved)
    torch.testing.assert_close(short, still)


def test_a_clean_start_needs_no_noise(make_diffumin, make_inputs):
    module, inputs = make_diffumin(start="clean_scaled").eval(), make_inputs()
    other = module(replace(inputs, key=inputs.key + 1)).interest
    assert torch.equal(module(inputs).interest, other)


@pytest.fixture
def denoiser() -> ChannelDenoiser:
    module = ChannelDenoiser(
        6, num_layers=2, num_heads=2, hidden_multiple=2, num_train_timesteps=20
    )
    return module.double()


def test_a_channel_is_restored_under_its_direction_and_its_clean_siblings(denoiser):
    x_t, interests, channels = (torch.randn(2, 3, 6).double() for _ in range(3))
    present = torch.ones(2, 3, dtype=torch.bool)
    shown = {"interests": interests, "channels": channels, "present": present}
    result = denoiser(x_t, 7, **shown)

    def changed(x: Tensor = x_t, **new: Tensor) -> list[bool]:
        other = denoiser(x, 7, **shown | new)
        return [not torch.allclose(other[:, k], result[:, k]) for k in range(3)]

    moved = torch.zeros(2, 3, 6).double()
    moved[:, 0] = 1.0
    # Its own noised state, not those of its siblings; their clean ones, not its own.
    assert changed(x_t + moved) == [True, False, False]
    assert changed(interests=interests + moved) == [False, True, True]
    assert changed(channels=channels + moved) == [True, False, False]
    missing = present.clone()
    missing[:, 0] = False
    hidden = denoiser(x_t, 7, interests=interests, channels=channels, present=missing)
    others = denoiser(x_t, 7, interests=interests + moved, channels=channels, present=missing)
    torch.testing.assert_close(others[:, 1:], hidden[:, 1:])


def test_one_timestep_for_all_equals_the_same_for_each(denoiser):
    x_t, interests, channels = (torch.randn(2, 3, 6).double() for _ in range(3))
    present = torch.ones(2, 3, dtype=torch.bool)
    shown = {"interests": interests, "channels": channels, "present": present}
    each = torch.tensor([[7, 3, 7], [1, 7, 20]])
    result = denoiser(x_t, each, **shown)
    torch.testing.assert_close(result[each == 7], denoiser(x_t, 7, **shown)[each == 7])
    assert not torch.allclose(result[each != 7], denoiser(x_t, 7, **shown)[each != 7])


def test_the_denoising_loss_is_the_error_in_the_interest_at_a_random_step(
    make_diffumin, make_inputs
):
    module, inputs = make_diffumin().double(), in_float64(make_inputs())
    output = module(inputs)
    original, _, _ = parts(module, output.interest)
    x_0 = functional.normalize(original, dim=2)
    present = x_0.abs().sum(dim=2) > 0
    assert not present.all()
    noise = keyed_normal(inputs.key, 4 * WIDTH, Stream.TRAINING_NOISE).view_as(x_0)
    channels = module.extractor.channels(
        torch.cat(
            [
                functional.layer_norm(part, (8,), eps=1e-8)
                for part in (inputs.item, inputs.item_attributes[:, :8])
            ],
            dim=1,
        )
    )
    steps = [
        keyed_timesteps(further_key(inputs.key, k), 1000, Stream.TRAINING_TIMESTEP)
        for k in range(4)
    ]
    timesteps = torch.stack(steps, dim=1)
    alphas = module.schedule.alphas_cumprod.double()[timesteps].unsqueeze(2)
    x_t = alphas.sqrt() * x_0 + (1 - alphas).sqrt() * noise
    shown = {"interests": x_0, "channels": channels, "present": present}
    errors = (module.denoiser(x_t, timesteps, **shown) - x_0).square().mean(dim=2) * present
    torch.testing.assert_close(
        output.losses["denoise_loss"], errors.mean(dim=1), rtol=1e-5, atol=1e-6
    )


def test_the_denoising_loss_leaves_the_embeddings_alone_if_told_to(make_diffumin, make_inputs):
    for detach in (True, False):
        module, inputs = make_diffumin(recon_detach=detach), make_inputs(requires_grad=True)
        module(inputs).losses["denoise_loss"].sum().backward()
        assert (inputs.item.grad is None) == detach
        assert (module.extractor.projection.weight.grad is None) == detach


def test_an_interest_is_told_from_those_of_other_requests_only():
    """Fails where other candidates of the same request, the same user, are pushed apart."""
    calibrator = _Calibrator(6, temperature=0.2).double()
    original, generated = torch.randn(5, 2, 6).double(), torch.randn(5, 2, 6).double()
    present = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1], [0, 1]]).bool()
    request = torch.tensor([0, 0, 1, 2, 3])
    losses = calibrator(original, generated, present, request)
    for b in range(5):
        expected = 0.0
        for channel in range(2):
            if not present[b, channel]:
                continue
            anchor = calibrator.original(original[b, channel])
            others = [
                j for j in range(5) if j == b or (request[j] != request[b] and present[j, channel])
            ]
            cosine = torch.stack(
                [
                    functional.cosine_similarity(
                        anchor, calibrator.generated(generated[j, channel]), dim=0
                    )
                    for j in others
                ]
            )
            expected = expected - (cosine / 0.2).log_softmax(dim=0)[others.index(b)] / 2
        torch.testing.assert_close(losses[b], torch.as_tensor(expected).double())


def test_the_short_term_interest_reads_the_most_recent_behaviours_alone(make_diffumin, make_inputs):
    module, inputs = make_diffumin(short_length=3).eval(), make_inputs(lengths=[8, 2, 0])
    assert inputs.recent is not None
    changed = inputs.recent.item.clone()
    changed[:5] += 1.0  # All but the last three of the first request.
    other = replace(inputs, recent=replace(inputs.recent, item=changed))
    before, after = (parts(module, module(i).interest) for i in (inputs, other))
    torch.testing.assert_close(after[2], before[2])
    assert not torch.allclose(after[0], before[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "num_heads = 3: must divide the width of item and category = 16"),
        ({"num_channels": 17}, "num_channels = 17: must not exceed the width"),
    ],
)
def test_what_does_not_fit_the_width_is_named(make_diffumin, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_diffumin(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start_timestep": 1001}, "start_timestep = 1001 is above"),
        ({"num_inference_steps": 11}, "num_inference_steps = 11 is above start_timestep = 10"),
    ],
)
def test_a_chain_that_cannot_run_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DiffuminConfig(kind="diffumin", **settings)
