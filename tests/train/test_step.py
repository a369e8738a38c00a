import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_lm
from jax.sharding import NamedSharding, PartitionSpec

import fmjax
from fmjax.core import logical, tree
from fmjax.core.errors import ConfigError, DataError, ShardingError
from fmjax.objectives import CausalLM
from fmjax.parallel import DEFAULT_RULES, make_mesh
from fmjax.train import adamw, evaluate, make_step


def start(optimizer=None, variables=None, objective=None, **kwargs):
    optimizer = optimizer or optax.sgd(0.1)
    step = make_step(toy_lm.apply, objective or CausalLM(), optimizer, **kwargs)
    return step, step.init(variables or {"params": toy_lm.params()}, jax.random.key(0))


def close(a, b, **kwargs):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **kwargs), a, b)


class NoDropout(CausalLM):
    """Whose loss is the same in every split of a batch."""

    def loss(self, apply, variables, extra, batch, rng):
        return super().loss(apply, variables, extra, batch, None)


def masked_batch(rows=8):
    batch = next(toy_lm.Batches(rows))
    labels = batch["input_ids"].copy()
    labels[0, 2:] = -100  # Rows weigh differently.
    return batch | {"labels": labels}


def test_one_update_is_the_optimizers():
    step, state = start(objective=NoDropout(), clip_norm=None)
    batch = masked_batch()

    def mean_loss(params):
        total, weight, _, _ = NoDropout().loss(toy_lm.apply, {"params": params}, {}, batch, None)
        return total / weight

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(toy_lm.params())
    state, metrics = step(state, batch)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, toy_lm.params(), grads)
    close(state.variables["params"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
    assert metrics["tokens"] == 8 * 5 - 4 and int(state.step) == 1


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_equals_the_whole_batch(accumulate):
    one, a = start(objective=NoDropout())
    many, b = start(objective=NoDropout(), accumulate=accumulate)
    for _ in range(3):
        a, in_one = one(a, masked_batch())
        b, in_parts = many(b, masked_batch())
    close(a.variables, b.variables, rtol=1e-5, atol=1e-6)
    close(in_one, in_parts, rtol=1e-5)


def test_accumulation_is_refused_where_it_changes_the_loss():
    class Contrastive(CausalLM):
        decomposes = False

    with pytest.raises(ConfigError, match="Contrastive compares .* accumulate=1 .got 2"):
        make_step(toy_lm.apply, Contrastive(), optax.sgd(1.0), accumulate=2)
    make_step(toy_lm.apply, Contrastive(), optax.sgd(1.0))


def test_clipping_bounds_the_update_and_reports_the_norm_before():
    batch = masked_batch()
    step, state = start(optax.sgd(1.0), objective=NoDropout(), clip_norm=0.01)
    state, metrics = step(state, batch)
    moved = jax.tree.map(jnp.subtract, state.variables["params"], toy_lm.params())
    assert metrics["grad_norm"] > 0.1
    np.testing.assert_allclose(optax.tree.norm(moved), 0.01, rtol=1e-4)


class Poisoned(CausalLM):
    """Counts its calls in extra; the loss is not finite where a batch says so."""

    def init(self, variables):
        return {"calls": jnp.int32(0)}

    def loss(self, apply, variables, extra, batch, rng):
        ids = {"input_ids": batch["input_ids"]}
        total, *rest, _ = super().loss(apply, variables, extra, ids, rng)
        return total * jnp.max(batch["poison"]), *rest, {"calls": extra["calls"] + 1}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("poison", "platform"), [(np.nan, "cpu"), (np.inf, "cpu"), (np.nan, "gpu")]
)
def test_a_not_finite_update_changes_nothing_but_the_counters(
    poison, platform, accumulate, monkeypatch
):
    # On GPUs an update is selected leaf by leaf.
    monkeypatch.setattr(logical, "platform", lambda: platform)
    step, state = start(adamw(0.1), objective=Poisoned(), accumulate=accumulate)
    batch = next(toy_lm.Batches())
    good = batch | {"poison": np.ones(8, np.float32)}
    bad = batch | {"poison": np.full(8, poison, np.float32)}
    state, _ = step(state, good)
    before = jax.device_get((state.variables, state.opt_state, state.extra))
    state, metrics = step(state, bad)
    jax.tree.map(
        np.testing.assert_array_equal, before, (state.variables, state.opt_state, state.extra)
    )
    assert int(state.step) == 2 and int(state.skipped) == 1 and metrics["skipped"] == 1
    state, metrics = step(state, good)
    assert metrics["skipped"] == 1 and int(state.extra["calls"]) == 2 * accumulate
    assert np.isfinite(metrics["loss"])


def test_a_batch_without_targets_is_skipped():
    step, state = start(adamw(0.1))
    batch = next(toy_lm.Batches())
    state, metrics = step(state, batch | {"labels": np.full((8, toy_lm.T), -100, np.int32)})
    assert metrics["skipped"] == 1 and metrics["tokens"] == 0
    jax.tree.map(np.testing.assert_array_equal, state.variables["params"], toy_lm.params())


def test_randomness_follows_from_the_seed_and_the_step():
    def losses(seed):
        step = make_step(toy_lm.apply, CausalLM(), optax.sgd(0.0))
        state = step.init({"params": toy_lm.params()}, jax.random.key(seed))
        out = []
        for _ in range(3):
            state, metrics = step(state, next(toy_lm.Batches()))
            out.append(float(metrics["loss"]))
        return out

    first = losses(0)
    assert len(set(first)) == 3 and first == losses(0) and first != losses(1)


def test_the_reported_rate_is_the_optimizers_count():
    schedule = optax.linear_schedule(0.0, 1.0, 10)
    step, state = start(adamw(schedule), learning_rate=schedule, objective=Poisoned())
    batch = next(toy_lm.Batches())
    rates = []
    for poison in (1, np.nan, 1, 1):
        state, metrics = step(state, batch | {"poison": np.full(8, poison, np.float32)})
        rates.append(float(metrics["learning_rate"]))
    np.testing.assert_allclose(rates, [0, 0.1, 0.1, 0.2], rtol=1e-6)


def test_only_the_adapter_is_trained_and_costs_memory():
    base = toy_lm.params()
    variables = {"params": base, "adapter": toy_lm.adapter()}
    step, state = start(adamw(0.1), variables)
    trained, frozen = step.split(variables)
    assert set(tree.flatten(trained)) == {"adapter/mlp/lora_a", "adapter/mlp/lora_b"}
    assert tree.nbytes(state.opt_state) == 2 * tree.nbytes(trained) + 4
    kernel = base["mlp"]["kernel"]
    for _ in range(2):
        state, _ = step(state, next(toy_lm.Batches()))
    # The base weights are the caller's own arrays still, neither copied nor consumed.
    assert state.variables["params"]["mlp"]["kernel"] is kernel and not kernel.is_deleted()
    assert state.variables["adapter"]["mlp"]["lora_scale"] == 2
    assert state.variables["adapter"]["mlp"]["lora_b"].any()


def test_trainable_rules():
    rules = [(r"^params/head/", True), (r".", False)]
    step, state = start(variables={"params": toy_lm.params()}, trainable=rules)
    state, _ = step(state, next(toy_lm.Batches()))
    changed = {
        path
        for path, x in tree.flatten(state.variables["params"]).items()
        if not np.array_equal(x, tree.flatten(toy_lm.params())[path])
    }
    assert changed == {"head/kernel"}
    with pytest.raises(ConfigError, match="no trainable rule covers parameter 'params/embed"):
        start(trainable=rules[:1])
    with pytest.raises(ConfigError, match="no parameter is trained"):
        start(trainable=rules[1:])
    whole = {"params": toy_lm.params() | {"ids": jnp.arange(3)}}
    with pytest.raises(ConfigError, match="params/ids is not floating point"):
        start(variables=whole)


def test_argument_errors():
    for kwargs, text in (({"accumulate": 0}, "accumulate is 0"), ({"clip_norm": 0}, "clip_norm"),
                         ({"clip_norm": float("nan")}, "clip_norm is nan")):  # fmt: skip
        with pytest.raises(ConfigError, match=text):
            make_step(toy_lm.apply, CausalLM(), optax.sgd(1.0), **kwargs)
    step = make_step(toy_lm.apply, CausalLM(), optax.sgd(1.0))
    with pytest.raises(ConfigError, match="typed key"):
        step.init({"params": toy_lm.params()}, jax.random.PRNGKey(0))


def test_batches_that_do_not_divide():
    step, state = start(mesh=make_mesh(data=2, fsdp=2, tensor=2), accumulate=2)
    with pytest.raises(ShardingError, match=r"12 rows .* data=2 × fsdp=2 × accumulate=2; .* of 8"):
        step(state, next(toy_lm.Batches(12)))
    step, state = start(accumulate=3)
    with pytest.raises(ShardingError, match="8 rows does not divide over accumulate=3"):
        step(state, next(toy_lm.Batches()))
    with pytest.raises(DataError, match="one number of rows"):
        step(state, next(toy_lm.Batches()) | {"labels": np.zeros((4, toy_lm.T), np.int32)})


def test_large_arrays_off_the_mesh_need_axes():
    step = make_step(toy_lm.apply, CausalLM(), optax.sgd(1.0), mesh=make_mesh())
    large = {"params": {"w": np.zeros((1024, 512), np.float32)}}
    with pytest.raises(ShardingError, match=r"params/w \(2,097,152 bytes\) is not on the mesh"):
        step.init(large, jax.random.key(0))


def test_evaluation_is_the_mean_over_all_tokens_and_draws_nothing():
    step, state = start()
    batches = [masked_batch(8), next(toy_lm.Batches(4))]
    means = evaluate(step, state, iter(batches))
    sums = [CausalLM().loss(toy_lm.apply, state.variables, {}, b, None) for b in batches]
    loss = sum(float(s[0]) for s in sums) / sum(float(s[1]) for s in sums)
    assert means["loss"] == pytest.approx(loss, rel=1e-6)
    assert means["perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)
    assert 0 <= means["accuracy"] <= 1
    with pytest.raises(DataError, match="no batch"):
        evaluate(step, state, [])
    empty = next(toy_lm.Batches()) | {"labels": np.full((8, toy_lm.T), -100, np.int32)}
    with pytest.raises(DataError, match="no batch has a target"):
        evaluate(step, state, [empty])


LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def llama_losses(mesh, steps=20, **kwargs):
    model = fmjax.build(LLAMA)
    params = fmjax.init_params(model, jax.random.key(0), mesh=mesh)
    step = make_step(model, CausalLM(), adamw(3e-3), mesh=mesh, **kwargs)
    state = step.init({"params": params}, jax.random.key(1))
    rng = np.random.RandomState(0)
    losses = []
    for _ in range(steps):
        ids = np.cumsum(rng.randint(1, 4, (8, 16)), -1).astype(np.int32) % 64
        state, metrics = step(state, {"input_ids": ids})
        losses.append(metrics["loss"])
    return np.asarray(jax.device_get(losses)), state


def test_eight_devices_learn_what_one_learns():
    one, _ = llama_losses(None)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    eight, state = llama_losses(mesh)
    np.testing.assert_allclose(eight, one, rtol=1e-4)
    assert one[-1] < one[0] - 0.3
    up = state.variables["params"]["layers"]["mlp"]["up_proj"]["kernel"]
    moment = state.opt_state[0].mu["params"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert (
        up.sharding == moment.sharding == NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor"))
    )
    four = make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
    accumulated, _ = llama_losses(four, steps=5, accumulate=2)
    np.testing.assert_allclose(accumulated, one[:5], rtol=1e-4)


def test_lowering_from_shapes_alone():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    model = fmjax.build(LLAMA)
    step = make_step(model, CausalLM(), adamw(1e-3), mesh=mesh, rules=DEFAULT_RULES)
    state = step.abstract_state({"params": fmjax.abstract_params(model)})
    batch = {"input_ids": jax.ShapeDtypeStruct((8, 16), jnp.int32)}
    memory = step.lower(state, batch).compile().memory_analysis()
    small = sum(x.dtype.itemsize for x in jax.tree.leaves(batch)) * 8 * 16 // 4
    # Parameters and both moments are updated in place; only keys, counters and ids are not.
    assert memory.alias_size_in_bytes >= memory.argument_size_in_bytes - small - 64


def test_program_size_does_not_grow_with_depth():
    def size(layers):
        model = fmjax.build(LLAMA | {"num_hidden_layers": layers}, remat="full")
        step = make_step(model, CausalLM(), adamw(1e-3))
        state = step.abstract_state({"params": fmjax.abstract_params(model)})
        batch = {"input_ids": jax.ShapeDtypeStruct((2, 8), jnp.int32)}
        return len(step.lower(state, batch).as_text())

    assert size(48) < 1.05 * size(4)
