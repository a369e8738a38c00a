"""Donated arrays that a program copies are reported."""

import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
import toy_lm

from fmjax.objectives import CausalLM
from fmjax.train import adamw, make_step
from fmjax.train import step as step_module
from fmjax.train.donation import check_donation

X = jax.ShapeDtypeStruct((256, 256), jnp.float32)


def compiled(f):
    return jax.jit(f, donate_argnums=0).lower(X).compile()


def test_an_update_in_place_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_donation(compiled(lambda x: x + 1), X) == 0


def test_a_dropped_donation_is_named_in_bytes() -> None:
    program = compiled(lambda x: (x + 1).astype(jnp.bfloat16))
    with pytest.warns(UserWarning, match="262,144 of 262,144 donated bytes .* twice"):
        assert check_donation(program, X) == 262144


def test_the_first_call_of_a_step_is_checked_and_compiled_once(monkeypatch) -> None:
    compiled, lost = [], []
    record = lambda name, _, **__: compiled.append(name)  # noqa: E731
    check = lambda *args: lost.append(check_donation(*args))  # noqa: E731
    monkeypatch.setattr(step_module, "check_donation", check)
    step = make_step(toy_lm.apply, CausalLM(), adamw(1e-2))
    state = step.init({"params": toy_lm.params()}, jax.random.key(0))
    batch = {name: jnp.asarray(x) for name, x in next(toy_lm.Batches()).items()}
    jax.monitoring.register_event_duration_secs_listener(record)
    try:
        for _ in range(2):
            state, _ = step(state, batch)
    finally:
        jax.monitoring.unregister_event_duration_listener(record)
    assert lost == [0]
    assert sum("backend_compile" in name for name in compiled) == 1


def test_what_is_offloaded_and_updated_in_place_is_not_reported() -> None:
    # As a TPU's compiler counts them: half of the state in the host's memory.
    memory = SimpleNamespace(alias_size_in_bytes=262144, host_alias_size_in_bytes=262144)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_donation(SimpleNamespace(memory_analysis=lambda: memory), (X, X)) == 0
