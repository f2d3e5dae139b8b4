"""MARM: outputs of past items, computed, cached and read; no gradient goes into them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cdp_torchrec.interest.base import InterestDims, InterestInput
from cdp_torchrec.interest.config.long_sequence import MarmConfig
from cdp_torchrec.interest.marm import MarmInterest
from cdp_torchrec.interest.output import layer_norm
from cdp_torchrec.interest.output_cache import OutputCache
from cdp_torchrec.interest.sequence import BehaviourSequence
from cdp_torchrec.interest.transformer_layer import TransformerLayer
from tests.gradients import in_float64
from tests.interest.conftest import make_sequence

NOW = 1_000_000_000
USER, DIGEST = 5, "sha256:1"
ITEMS_ONLY = InterestDims(
    user=0, query=0, item=8, item_attributes=8, context=0, scene=0, category=8, action=8
)


def make_marm(dims: InterestDims, **settings: object) -> MarmInterest:
    settings = {"kind": "marm", "width": 8, "num_heads": 2} | settings
    module = MarmInterest(MarmConfig.model_validate(settings), dims)
    with torch.no_grad():
        module.slopes.uniform_(0.1, 1.0)
    return module


def plain_target_attention(
    module: MarmInterest, depth: int, x: Tensor, keys: Tensor, action: Tensor, elapsed: Tensor
) -> Tensor:
    """Layer `depth` for one target x [A], over outputs [N, A] of behaviours so long before it."""
    layer = module.layers[depth]
    assert isinstance(layer, TransformerLayer) and module.action is not None
    heads = layer.num_heads
    query = layer.query(layer.attention_norm(x)).view(heads, 1, -1)
    memory = layer.key_value(layer.attention_norm(keys + module.action(action)))
    k, v = memory.view(len(keys), 2, heads, query.shape[2]).permute(1, 2, 0, 3)
    weight = (1 + elapsed.clamp(min=0) / 3600) ** -module.slopes[depth].unsqueeze(1)  # [H, N]
    weights = (query @ k.transpose(1, 2) / k.shape[2] ** 0.5).exp() * weight.unsqueeze(1)
    seen = (weights / weights.sum(dim=2, keepdim=True)) @ v  # zeros over no behaviour
    x = x + layer.out(seen.flatten())
    return x + layer.feed_forward(x)


def plain_tokens(module: MarmInterest, inputs: InterestInput, impression: int) -> Tensor:
    """The token of one candidate; every output it reads is computed alone, in a recursion."""
    recent, n = inputs.recent, module.max_length
    assert recent is not None
    own = (recent.index.owner == recent.index.sequence[impression]).nonzero().flatten().tolist()
    age = recent.index.age

    def start(item: Tensor, category: Tensor) -> Tensor:
        return layer_norm(module.target(torch.cat([item, category]).unsqueeze(0))).squeeze(0)

    def output(depth: int, x: Tensor, before: list[int], at: Tensor | float) -> Tensor:
        """The target's token after `depth` layers, over the n behaviours before it."""
        if depth == 0:
            return x
        seen = before[-n:]
        keys = [as_target(depth - 1, j) for j in seen]
        return plain_target_attention(
            module,
            depth - 1,
            output(depth - 1, x, before, at),
            torch.stack(keys) if keys else x.new_zeros(0, len(x)),
            recent.action[seen],
            age[seen] - at,
        )

    def as_target(depth: int, j: int) -> Tensor:
        before = own[: own.index(j)]
        return output(depth, start(recent.item[j], recent.category[j]), before, age[j])

    category = inputs.item_attributes[impression, : module.num_categories]
    return output(len(module.layers), start(inputs.item[impression], category), own, 0.0)


def test_the_keys_of_a_layer_are_what_the_items_gave_as_targets(make_inputs, dims):
    """Fails when a behaviour sees itself, a later one, or others than the n before it, and when
    time is that to the request instead of that to the target of then."""
    module = make_marm(dims, max_length=3, num_layers=3).double()
    inputs = in_float64(make_inputs(lengths=[0, 1, 4, 10]))
    tokens = module.interest(
        inputs, torch.stack([plain_tokens(module, inputs, b) for b in range(12)])
    )
    torch.testing.assert_close(module(inputs).interest, tokens.interest, rtol=0, atol=1e-12)


def test_no_gradient_goes_into_the_cache(make_inputs, dims):
    """Fails when what is cached is computed with gradient: training would then rely on what no
    cache can give. Only the first layer, whose keys are the items themselves, moves the items."""
    module = make_marm(dims, max_length=10, num_layers=3)
    inputs = make_inputs(requires_grad=True)
    recent = inputs.recent
    assert recent is not None
    outputs = module.outputs(recent)
    assert not any(output.requires_grad for output in outputs)
    cached = tuple(output.clone().requires_grad_() for output in outputs)
    total = module.attend(inputs, recent, cached)[-1].sin().sum()
    leaves = [*cached, recent.item]
    *of_cache, of_item = torch.autograd.grad(total, leaves, allow_unused=True)
    assert of_cache == [None, None]
    assert of_item.any()
    again = module.interest(inputs, module.attend(inputs, recent, cached)[-1]).interest
    (of_training,) = torch.autograd.grad(module(inputs).interest.sin().sum(), recent.item)
    (of_serving,) = torch.autograd.grad(again.sin().sum(), recent.item)
    torch.testing.assert_close(of_training, of_serving, rtol=1e-5, atol=1e-6)


@pytest.fixture
def history() -> BehaviourSequence:
    """One user's 14 behaviours, oldest first."""
    history = in_float64(make_sequence(ITEMS_ONLY, 3, [14]))
    age = history.index.age.sort(descending=True).values.round()
    return replace(history, index=replace(history.index, age=age))


def part_of(history: BehaviourSequence, stop: int, at_age: float) -> BehaviourSequence:
    """The first behaviours, as they are seen by a request so long ago."""
    part = make_sequence(ITEMS_ONLY, 1, [stop])
    kept = {name: getattr(history, name)[:stop] for name in ("item", "category", "action")}
    ids = {name: getattr(history.index, name)[:stop] for name in ("item_id", "category_id")}
    return replace(
        part, **kept, index=replace(part.index, **ids, age=history.index.age[:stop] - at_age)
    )


def candidate(item: Tensor, category: Tensor, recent: BehaviourSequence) -> InterestInput:
    nothing, code = item[:, :0], torch.zeros(len(item), dtype=torch.int64)
    return InterestInput(
        user=nothing,
        query=nothing,
        context=nothing,
        scene=nothing,
        key=code,
        item_id=code,
        category_id=code,
        item=item,
        item_attributes=category,
        recent=recent,
    )


def as_keys(
    recent: BehaviourSequence, at_age: float, stop: int | None = None
) -> dict[str, list[int]]:
    """Items and times of behaviours, as a cache knows them."""
    times = NOW - 1000 * (recent.index.age[:stop] + at_age)
    return {"items": recent.index.item_id[:stop].tolist(), "times": times.long().tolist()}


@torch.no_grad()
def test_what_was_cached_as_behaviours_happened_is_what_training_computes(history):
    """Each behaviour is the target once, at its own time, over what is cached of those before it;
    a request that reads the cache then scores as the model does without one."""
    module = make_marm(ITEMS_ONLY, max_length=4, num_layers=3).double().eval()
    cache = OutputCache(checkpoint=DIGEST)
    of = {"user": USER, "checkpoint": DIGEST}
    for place in range(14):
        at_age = float(history.index.age[place])
        before = part_of(history, place, at_age)
        known = tuple(torch.zeros(0, 8).double() for _ in range(2))
        if place:
            known = cache.read(**of, **as_keys(before, at_age))
        here = slice(place, place + 1)
        target = candidate(history.item[here], history.category[here], before)
        tokens = module.attend(target, before, known)
        behaviour = {name: keys[place:] for name, keys in as_keys(history, 0, place + 1).items()}
        cache.write(tokens[:-1], **of, **behaviour)
    assert len(cache) == 14
    cached = cache.read(**of, **as_keys(history, 0))
    torch.testing.assert_close(cached, module.outputs(history), rtol=0, atol=1e-12)
    request = candidate(torch.randn(3, 8).double(), torch.randn(3, 8).double(), history)
    served = module.interest(request, module.attend(request, history, cached)[-1]).interest
    torch.testing.assert_close(served, module(request).interest, rtol=0, atol=1e-12)


def test_behaviours_beyond_what_the_layers_read_change_nothing(make_inputs, dims):
    module = make_marm(dims, max_length=5, num_layers=2).eval()
    inputs = make_inputs()
    changes = []
    for reach in (10, 11):  # of the history of 21: the ten most recent ones are read
        item = inputs.recent.item.clone()
        item[32 - reach] += 1.0
        changed = replace(inputs, recent=replace(inputs.recent, item=item))
        changes.append(not torch.equal(module(changed).interest, module(inputs).interest))
    assert changes == [True, False]


@torch.no_grad()
def test_a_user_without_behaviours_is_read_from_a_cache_as_any_other(history):
    module = make_marm(ITEMS_ONLY, num_layers=3).double().eval()
    cache = OutputCache(checkpoint=DIGEST)
    nothing = {"user": USER, "items": [], "times": [], "checkpoint": DIGEST}
    with pytest.raises(ValueError, match="nothing was written into the cache"):
        cache.read(**nothing)
    nobody = part_of(history, 0, 0.0)
    cache.write(module.outputs(nobody), **nothing)
    request = candidate(torch.randn(3, 8).double(), torch.randn(3, 8).double(), nobody)
    tokens = module.attend(request, nobody, cache.read(**nothing))
    served = module.interest(request, tokens[-1]).interest
    torch.testing.assert_close(served, module(request).interest, rtol=0, atol=1e-12)


def test_a_cache_of_another_checkpoint_is_refused():
    cache = OutputCache(checkpoint=DIGEST)
    outputs, of = [torch.zeros(1, 8)], {"user": USER, "items": [1], "times": [2]}
    message = r"cache is of checkpoint sha256:1, not of sha256:2: .*MarmInterest\.outputs"
    with pytest.raises(ValueError, match=message):
        cache.write(outputs, **of, checkpoint="sha256:2")
    cache.write(outputs, **of, checkpoint=DIGEST)
    with pytest.raises(ValueError, match=message):
        cache.read(**of, checkpoint="sha256:2")
    with pytest.raises(ValueError, match="no output of user 5, item 1 at 3 in the cache"):
        cache.read(user=USER, items=[1], times=[3], checkpoint=DIGEST)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width = 8 is no multiple of num_heads = 3"):
        MarmConfig.model_validate({"kind": "marm", "width": 8, "num_heads": 3})
