"""Freezing by path."""

import jax
import numpy as np
import pytest
import toy_lm

from fmjax.core import tree
from fmjax.core.errors import ConfigError
from fmjax.objectives import CausalLM
from fmjax.train import adamw, freeze, make_step


def test_what_is_frozen_has_no_state_and_stands_still():
    step = make_step(toy_lm.apply, CausalLM(), adamw(1e-2), trainable=freeze(r"/embed/", r"bias$"))
    state = step.init({"params": toy_lm.params()}, jax.random.key(0))
    trained, frozen = step.split(state.variables)
    assert set(tree.flatten(frozen)) == {"params/embed/embedding", "params/mlp/bias"}
    state, _ = step(state, next(toy_lm.Batches()))
    before = tree.flatten({"params": toy_lm.params()})
    for path, x in tree.flatten(state.variables).items():
        assert (np.asarray(x) == before[path]).all() == (path in tree.flatten(frozen)), path
    assert tree.count(state.opt_state) == 2 * tree.count(trained) + 1


def test_with_an_adapter_the_rest_is_frozen_anyway():
    variables = {"params": toy_lm.params(), "adapter": toy_lm.adapter()}
    step = make_step(toy_lm.apply, CausalLM(), adamw(1e-2), trainable=freeze(r"lora_a$"))
    assert set(tree.flatten(step.split(variables)[0])) == {"adapter/mlp/lora_b"}


def test_errors():
    variables = {"params": toy_lm.params()}
    split = lambda rules: make_step(toy_lm.apply, CausalLM(), adamw(1.0), trainable=rules).split  # noqa: E731
    with pytest.raises(ConfigError, match="no parameter matches '/wte/'; paths look like 'params/"):
        split(freeze(r"/wte/"))(variables)
    with pytest.raises(ConfigError, match="no parameter is trained"):
        split(freeze(r"."))(variables)
