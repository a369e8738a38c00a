"""Many adapters at once: each row of a batch computes as with its own adapter alone."""

import bank_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bank_cases import (
    BERT,
    HEADS,
    IDS,
    KEY,
    LLAMA,
    ROWS,
    SPECS,
    VOCAB,
    build,
    one_by_one,
    outputs,
    padded,
    trained,
)

import fmjax
from fmjax import peft
from fmjax.core import tree
from fmjax.core.errors import ConfigError, DataError
from fmjax.generate import generate
from fmjax.nn.dense import Dense
from fmjax.nn.stack import unstack
from fmjax.objectives.causal_lm import CausalLM
from fmjax.quant import quantize
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


@pytest.mark.parametrize("options", [{}, {"scan_layers": False}, {"remat": "full"}])
def test_each_row_computes_with_its_own_adapter(llama, adapters, options):
    model = fmjax.build(LLAMA, **options)
    params, bank = llama[1], peft.bank(adapters)
    expected = one_by_one(llama, adapters)
    chosen = peft.select(bank, ROWS)
    if not model.execution.scan_layers:
        params, chosen = unstack(params, "layers", 2), unstack(chosen, "layers", 2)
        # The layers of a model that is not scanned make the same bank.
        apart = peft.select(peft.bank([unstack(a, "layers", 2) for a in adapters]), ROWS)
        assert jax.tree.all(jax.tree.map(np.array_equal, apart, chosen))
    np.testing.assert_allclose(outputs(model, params, chosen), expected, rtol=0, atol=2e-5)
    alone = outputs(*llama, {})
    np.testing.assert_array_equal(outputs(*llama, peft.select(bank, [0] * 4)), alone)
    assert np.abs(expected - alone)[ROWS > 0].max() > 0.05


@pytest.mark.parametrize("scan", [True, False])
def test_copies_differ_by_row(scan):
    base = build(BERT, scan_layers=scan)
    adapters = [trained(base, spec, seed) for seed, spec in enumerate(HEADS)]
    bank = peft.bank(adapters, base[0])
    got = outputs(*base, peft.select(bank, ROWS))
    np.testing.assert_allclose(got, one_by_one(base, adapters), rtol=0, atol=2e-5)
    flat = tree.flatten(bank)
    assert flat["pooler/bias"].shape == (3, 16)
    np.testing.assert_array_equal(flat["pooler/bias_present"], [False, True, False])
    assert flat["classifier/kernel"].shape == (3, 16, 3)
    if scan:
        assert flat["layers/mlp_norm/scale"].shape == (2, 3, 16)
        assert flat["layers/mlp_norm/scale_present"].shape == (2, 3)


def with_magnitude(adapter, seed=5):
    """The adapter as DoRA, magnitudes and biases of the factors drawn at random."""
    rng = np.random.default_rng(seed)
    flat = tree.flatten(adapter)
    for path, b in list(flat.items()):
        module, _, name = path.rpartition("/")
        if name == "lora_b":
            shape = (*b.shape[: flat[f"{module}/lora_scale"].ndim], *b.shape[-1:])
            for leaf, start in (("magnitude", 1.0), ("lora_bias", 0.0)):
                if leaf == "magnitude" or "embed" not in path:
                    flat[f"{module}/{leaf}"] = jnp.asarray(
                        start + rng.uniform(size=shape), jnp.float32
                    )
    return tree.unflatten(flat)


def test_methods_mix(llama):
    factors = trained(llama, peft.IA3())
    dora = with_magnitude(trained(llama, SPECS[0]))
    plain = trained(llama, SPECS[1])
    bank = peft.bank([factors, dora, plain], llama[0])
    rows = np.array([1, 2, 3, 0])
    expected = one_by_one(llama, [factors, dora, plain], rows)
    np.testing.assert_allclose(
        outputs(*llama, peft.select(bank, rows)), expected, rtol=0, atol=5e-5
    )
    for number, own in enumerate((factors, dora, plain), 1):
        assert tree.flatten(peft.take(bank, number)).keys() == tree.flatten(own).keys()

    def loss(adapter):
        out = llama[0].apply({"params": llama[1], "adapter": adapter}, input_ids=IDS).logits
        return jnp.sum(out[..., 0])

    learned, fixed = tree.partition(bank, tree.match_rules(peft.TRAINABLE, bank))
    chosen = lambda x: loss(peft.select(tree.combine(x, fixed), [2] * 4))  # noqa: E731
    grads = jax.jit(jax.grad(chosen))(learned)
    own = tree.flatten(jax.jit(jax.grad(loss))(dora))
    for path, x in tree.flatten(peft.take(tree.combine(grads, fixed), 2)).items():
        if not path.endswith("lora_scale"):
            expected = padded(own[path], x.shape)
            np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-4)
    for path, x in tree.flatten(grads).items():  # of the factors that this row does not have
        assert path.endswith(("ia3_in", "ia3_out")) <= (not x.any())


@pytest.mark.slow
def test_over_a_packed_base_and_on_a_tied_head(llama):
    packed = tree.map_with_path(
        lambda path, w: quantize(w, "nf4", lead=1) if "_proj/kernel" in path else w, llama[1]
    )
    dora = with_magnitude(trained(llama, peft.LoRA(rank=2, targets=("q_proj", "o_proj"))))
    own = [trained(llama, SPECS[1]), dora]
    base = (llama[0], packed)
    got = outputs(*base, peft.select(peft.bank(own), ROWS))
    np.testing.assert_allclose(got, one_by_one(base, own), rtol=0, atol=5e-5)
    tied = build(LLAMA | {"tie_word_embeddings": True})
    specs = [peft.LoRA(rank=r, targets=("lm_head", "embed_tokens")) for r in (1, 3)]
    own = [trained(tied, spec, seed) for seed, spec in enumerate(specs)]
    got = outputs(*tied, peft.select(peft.bank(own), ROWS))
    np.testing.assert_allclose(got, one_by_one(tied, own), rtol=0, atol=5e-5)


def test_a_bank_lies_on_a_mesh_like_its_adapters(llama, adapters):
    mesh = fmjax.make_mesh(data=2, fsdp=2, tensor=2)
    params = fmjax.init_params(llama[0], KEY, mesh=mesh)
    own = [
        jax.tree.map(lambda x, y: jax.device_put(y, x.sharding), like, adapter)
        for adapter, like in (
            (adapters[i], peft.init(KEY, SPECS[i], llama[0], params)) for i in range(2)
        )
    ]
    bank = peft.bank(own)
    got = outputs(llama[0], params, peft.select(bank, ROWS))
    np.testing.assert_allclose(got, one_by_one(llama, adapters), rtol=0, atol=5e-5)
    assert all(x.sharding.device_set == set(mesh.devices.flat) for x in jax.tree.leaves(bank))


def test_decoding_gives_each_row_what_its_adapter_gives(llama, adapters):
    model, params = llama
    bank = peft.bank(adapters)
    prompts = [[3, 4, 5], [6, 7], [8], [9, 10, 11, 12]]

    def decode(adapter, rows):
        variables = {"params": params, "adapter": adapter}
        return generate(model, variables, rows, max_new_tokens=6, eos_token_id=()).tokens

    every = [decode(adapter, prompts) for adapter in ({}, *adapters)]
    got = decode(peft.select(bank, ROWS), prompts)
    np.testing.assert_array_equal(got, [every[row][i] for i, row in enumerate(ROWS)])
    assert len({tuple(tokens[0]) for tokens in every}) == 3


def test_swapping_rows_and_adapters_compiles_nothing(llama, adapters):
    from fmjax.generate import decoding

    model, params = llama
    bank = peft.bank(adapters)
    traces = []

    @jax.jit
    def run(bank, rows):
        traces.append(1)
        variables = {"params": params, "adapter": peft.select(bank, rows)}
        return model.apply(variables, input_ids=IDS).logits

    def decode(bank, rows):
        variables = {"params": params, "adapter": peft.select(bank, rows)}
        return generate(model, variables, IDS[:, :3], max_new_tokens=5, eos_token_id=())

    first = run(bank, jnp.asarray(ROWS))
    decode(bank, ROWS)
    programs = decoding.run._cache_size()
    swapped = peft.insert(peft.insert(bank, 1, None), 2, adapters[0])
    for other, rows in ((bank, ROWS[::-1]), (swapped, ROWS), (swapped, np.array([2, 2, 2, 0]))):
        run(other, jnp.asarray(rows))
        decode(other, rows)
    assert len(traces) == 1 and decoding.run._cache_size() == programs
    np.testing.assert_allclose(
        run(swapped, jnp.asarray([2, 2, 2, 0]))[0], outputs(*llama, adapters[0])[0], atol=2e-5
    )
    assert np.abs(first - run(bank, jnp.asarray(ROWS[::-1]))).max() > 0.05


@pytest.mark.optimised
def test_no_row_has_its_own_copy_of_the_base():
    B, size, rank = 8, 256, 2
    layer = Dense(size, ("embed", "mlp"))
    leaves = {
        "lora_a": jnp.ones((4, size, rank)),
        "lora_b": jnp.ones((4, rank, size)),
        "lora_scale": jnp.ones(4),
        "rows": jnp.arange(B) % 4,
    }
    variables = {"params": {"kernel": jnp.ones((size, size))}, "adapter": leaves}
    x = jnp.ones((B, 4, size))

    def loss(factors):
        own = variables | {"adapter": leaves | factors}
        return layer.apply(own, x).sum()

    factors = {k: leaves[k] for k in ("lora_a", "lora_b")}
    memory = jax.jit(jax.grad(loss)).lower(factors).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * size * size  # one kernel, let alone B of them


def test_dropout_rates_differ_by_row(llama):
    model, params = llama
    plain = peft.LoRA(rank=2, targets=("q_proj",))
    dropped = peft.LoRA(rank=2, targets=("q_proj",), dropout=0.5)
    adapters = [trained(llama, plain), trained(llama, dropped)]
    chosen = peft.select(peft.bank(adapters), ROWS)

    def run(key=None):
        rngs = None if key is None else {"dropout": jax.random.key(key)}
        variables = {"params": params, "adapter": chosen}
        return np.asarray(model.apply(variables, input_ids=IDS, rngs=rngs).logits)

    different = np.abs(run(0) - run()).max((1, 2)) > 1e-3
    np.testing.assert_array_equal(different, ROWS == 2)


def test_taking_out_what_was_put_in(llama, adapters, tmp_path):
    model, params = llama
    bank = peft.bank([None, adapters[1], adapters[0]])
    for number, i in ((2, 1), (3, 0)):
        back = peft.take(bank, number)
        assert tree.flatten(back).keys() == tree.flatten(adapters[i]).keys()
        np.testing.assert_allclose(
            outputs(*llama, back), outputs(*llama, adapters[i]), rtol=0, atol=1e-5
        )
        peft.save(tmp_path / str(i), SPECS[i], back, model)
        _, loaded = peft.load(tmp_path / str(i), model)
        assert jax.tree.all(jax.tree.map(np.array_equal, loaded, adapters[i]))
    assert peft.take(bank, 1) == {}
    bank = peft.insert(bank, 1, adapters[0])
    assert jax.tree.all(jax.tree.map(np.array_equal, peft.take(bank, 1), peft.take(bank, 3)))
    assert peft.take(peft.insert(bank, 2, None), 2) == {}


def refused(said, function, *args, error=ConfigError, **kwargs):
    with pytest.raises(error, match=said) as e:
        function(*args, **kwargs)
    assert "\n" not in str(e.value)


def test_what_a_bank_refuses(llama, bert, adapters):
    bank = peft.bank(adapters)
    refused("at least one adapter", peft.bank, [None])
    for name in ("prefix_key", "prompt"):
        other = {"embed_tokens": {name: jnp.ones((2, 3))}}
        refused(f"{name}' cannot differ by row", peft.bank, [other])
    refused("'encoder/a' cannot differ", peft.bank, [{"encoder": {"a": jnp.ones(2)}}])
    experts = {k: jnp.ones((2, 3, 4, 5)) for k in ("lora_a", "lora_b")}
    refused("experts", peft.bank, [{"up": experts | {"lora_scale": jnp.ones(2)}}])
    heads = [trained(bert, spec) for spec in HEADS]
    refused("cannot tell the axes of .*pass model=", peft.bank, heads)
    table = {"word_embeddings": {"embedding": jnp.ones((VOCAB, 16))}}
    refused("cannot hold copies of 'word_embeddings/emb", peft.bank, [table], bert[0])
    other = trained(build(LLAMA | {"hidden_size": 32}), SPECS[0])
    refused("adapter 2 has .* a bank holds adapters of one", peft.bank, [adapters[0], other])
    larger = trained(llama, peft.LoRA(rank=4, targets=("q_proj",)))
    refused("adapter 1 has .*room for.* new bank", peft.insert, bank, 1, larger)
    values = trained(llama, peft.LoRA(rank=1, targets=("v_proj",)))
    refused("touches 'layers/self_attn/v_proj/lora_a', which", peft.insert, bank, 1, values)
    refused("adapter 3 is not in this bank", peft.insert, bank, 3, adapters[0])
    refused("adapter 0 is not in this bank", peft.take, bank, 0)
    refused("no bank", peft.take, adapters[0] | {"lm_head": {}}, 1)
    refused("no bank", peft.select, {}, ROWS)


def test_rows_that_do_not_fit(llama, adapters):
    bank = peft.bank(adapters)
    refused("row number 3 is not .* 0 … 2", peft.select, bank, [0, 3], error=DataError)
    refused("row number -1", peft.select, bank, [-1], error=DataError)
    refused("one adapter number for each row", peft.select, bank, [0.5], error=DataError)
    refused("one adapter number for each row", peft.select, bank, [[0]], error=DataError)
    refused("4 rows meets a choice of 2", outputs, *llama, peft.select(bank, [0, 1]))
    traced = jax.jit(lambda rows: outputs_traced(*llama, peft.select(bank, rows)))
    bad = np.isnan(traced(jnp.array([0, 3, -1, 1]))).any((1, 2))
    np.testing.assert_array_equal(bad, [False, True, True, False])
    step = make_step(llama[0], peft.Routed(CausalLM()), optax.sgd(1.0))
    state = step.init({"params": llama[1], "adapter": bank}, KEY)
    refused(
        "no adapter_rows", step.evaluate, state, {"input_ids": np.asarray(IDS)}, error=DataError
    )


def outputs_traced(model, params, adapter):
    return model.apply({"params": params, "adapter": adapter}, input_ids=IDS).logits
