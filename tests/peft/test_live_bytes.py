"""An adapter beside its base: what is allocated when one is made, loaded and trained."""

import gc

import jax
import numpy as np
import optax
import pytest

from fmjax import peft
from fmjax.core import tree
from fmjax.objectives import CausalLM
from fmjax.train import make_step

SPECS = {
    "LoRA": peft.LoRA(rank=2, targets="all-linear", dropout=0.1),
    "DoRA": peft.LoRA(rank=2, targets="all-linear", use_dora=True),
    "ranks": peft.LoRA(rank=2, targets=("q_proj",), layers_to_transform=(1,), use_dora=True),
    "biases": peft.LoRA(rank=2, targets=("q_proj",), lora_bias=True),
}


def live():
    """Bytes of the arrays that exist, by buffer: two names of one buffer count once."""
    gc.collect()
    return sum({x.unsafe_buffer_pointer(): x.nbytes for x in jax.live_arrays()}.values())


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


def test_making_and_loading_one_allocates_its_own_bytes_alone(llama, spec, tmp_path):
    key = jax.random.key(0)
    peft.init(key, spec, llama.model, llama.params)  # what JAX keeps of a first call
    before = live()
    adapter = peft.init(key, spec, llama.model, llama.params)
    own = tree.nbytes(peft.abstract(spec, llama.model))
    assert live() - before == own < tree.nbytes(llama.params) / 2
    peft.save(tmp_path, spec, adapter, llama.model)
    before = live()
    loaded = peft.load(tmp_path, llama.model, llama.params)[1]
    assert live() - before == own
    jax.tree.map(np.testing.assert_array_equal, loaded, adapter)


def test_the_optimizer_holds_moments_of_the_adapter_alone(llama, spec, kit):
    adapter = peft.init(jax.random.key(0), spec, llama.model, llama.params)
    variables = {"params": llama.params, "adapter": adapter}
    step = make_step(llama.model, CausalLM(), optax.adam(0.01))
    before = live()
    state = step.init(variables, jax.random.key(1))
    trained = [
        x for path, x in tree.flatten(adapter).items() if not path.endswith(("scale", "dropout"))
    ]
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(x.nbytes for x in moments) == 2 * sum(x.nbytes for x in trained)
    # The rest: the counters, and the adapter's own copy where the state has one.
    assert live() - before < sum(x.nbytes for x in moments) + tree.nbytes(adapter) + 1024
    kernel = "layers/self_attn/q_proj/kernel"
    held = tree.flatten(state.variables["params"])[kernel]
    own = tree.flatten(llama.params)[kernel]
    assert held.unsafe_buffer_pointer() == own.unsafe_buffer_pointer()
