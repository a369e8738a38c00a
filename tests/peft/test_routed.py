"""Many adapters at once: each learns from its own rows, as if trained alone."""

import bank_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bank_cases import (
    HEADS,
    IDS,
    KEY,
    ROWS,
    outputs,
    padded,
    trained,
)

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import DataError
from fmjax.objectives.causal_lm import CausalLM
from fmjax.train import make_step


@pytest.fixture(scope="module")
def llama():
    return cases.llama()


@pytest.fixture(scope="module")
def bert():
    return cases.bert()


@pytest.fixture(scope="module")
def adapters():
    return cases.adapters()


@pytest.mark.slow
def test_gradients_reach_an_adapter_from_its_rows_only(bert):
    model, params = bert
    adapters = [trained(bert, spec, seed) for seed, spec in enumerate(HEADS)]
    bank = peft.bank(adapters, model)

    def loss(adapter, keep=1.0):
        out = model.apply({"params": params, "adapter": adapter}, input_ids=IDS).logits
        return jnp.sum(keep * (jax.nn.logsumexp(out, -1) - out[:, 0]))

    learned, fixed = tree.partition(bank, tree.match_rules(peft.TRAINABLE, bank))
    grads = jax.jit(jax.grad(lambda x: loss(peft.select(tree.combine(x, fixed), ROWS))))(learned)
    for number, adapter in enumerate(adapters, 1):
        own = jax.jit(jax.grad(loss))(adapter, (number == ROWS).astype(np.float32))
        own = tree.flatten(tree.partition(own, tree.match_rules(peft.TRAINABLE, own))[0])
        got = tree.flatten(peft.take(tree.combine(grads, fixed), number))
        for path, expected in own.items():
            expected = padded(expected, got[path].shape)
            np.testing.assert_allclose(got[path], expected, rtol=0, atol=2e-5)
            assert np.abs(expected).max() > 1e-4
    # "None" learns nothing, and neither does a copy that an adapter does not have.
    flat = tree.flatten(grads)
    for path, x in flat.items():
        assert not np.asarray(x).take(0, axis=int(path.startswith("layers"))).any()
    assert not flat["pooler/kernel"][2].any()


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"mesh": True}])
@pytest.mark.slow
def test_a_step_trains_as_each_adapter_alone(llama, adapters, options):
    """SGD, whose update is linear: the parts of one step are steps by themselves."""
    model, params = llama
    if options.get("mesh"):
        mesh = options["mesh"] = fmjax.make_mesh(data=2, devices=jax.devices()[:2])
        params = fmjax.init_params(model, KEY, mesh=mesh)
    optimizer = optax.sgd(1.0)
    step = make_step(model, peft.Routed(CausalLM()), optimizer, clip_norm=None, **options)
    batch = {"input_ids": np.asarray(IDS), "adapter_rows": ROWS.astype(np.int32)}
    bank = peft.bank([*adapters, None])
    before = tree.flatten(jax.tree.map(np.array, bank))
    state = step.init({"params": params, "adapter": bank}, KEY)
    told = step.evaluate(state, batch)
    state, metrics = step(state, batch)
    after = state.variables["adapter"]
    np.testing.assert_allclose(metrics["loss"], told["loss"][0] / told["loss"][1], rtol=1e-5)
    assert step.objective.summarize({"loss": 0.0})["perplexity"] == 1
    for number, adapter in enumerate(adapters, 1):
        mask = np.asarray(ROWS == number, np.float32)[:, None] * np.ones(IDS.shape)
        alone = make_step(llama[0], CausalLM(), optimizer, clip_norm=None)
        own = alone.init(jax.tree.map(jnp.copy, {"params": llama[1], "adapter": adapter}), KEY)
        share = mask.sum() / mask.size
        own, _ = alone(own, {"input_ids": np.asarray(IDS), "loss_mask": mask.astype(np.float32)})
        got = tree.flatten(peft.take(after, number))
        for path, x in tree.flatten(own.variables["adapter"]).items():
            start = np.asarray(tree.flatten(adapter)[path])
            expected = padded(start + share * (np.asarray(x) - start), got[path].shape)
            np.testing.assert_allclose(got[path], expected, rtol=0, atol=2e-5)
    for path, x in tree.flatten(after).items():
        lead = int(path.startswith("layers/"))
        for number in (0, 3):  # none, and a free place
            np.testing.assert_array_equal(
                np.asarray(x).take(number, axis=lead), before[path].take(number, axis=lead)
            )


def test_objectives_may_make_several_rows_of_one_and_compute_without(llama, adapters):
    """As preferences do: both answers in one pass, against a reference without adapter."""

    class Both(CausalLM):
        def loss(self, apply, variables, extra, batch, rng):
            ids = jnp.stack([batch["input_ids"], batch["input_ids"][:, ::-1]], 1).reshape(-1, 7)
            ours = apply(variables, input_ids=ids).logits
            reference = apply({"params": variables["params"]}, input_ids=ids).logits
            return jnp.sum((ours - reference)[..., 0]), jnp.float32(1), {}, extra

    bank, (model, params) = peft.bank(adapters), llama
    batch = {"input_ids": IDS, "adapter_rows": jnp.asarray(ROWS)}
    total, *_ = peft.Routed(Both()).loss(
        model.apply, {"params": params, "adapter": bank}, {}, batch, None
    )
    expected = 0.0
    for ids in (IDS, IDS[:, ::-1]):
        own = outputs(model, params, peft.select(bank, ROWS), ids)
        expected += np.sum((own - outputs(model, params, {}, ids))[..., 0])
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    short = batch | {"adapter_rows": jnp.zeros(3, jnp.int32)}
    with pytest.raises(DataError, match="3 adapter_rows, and the model sees 8 rows"):
        peft.Routed(Both()).loss(model.apply, {"params": params, "adapter": bank}, {}, short, None)
