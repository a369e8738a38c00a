"""Donated arrays that a program copies are reported."""

import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

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


def test_what_is_offloaded_and_updated_in_place_is_not_reported() -> None:
    # As a TPU's compiler counts them: half of the state in the host's memory.
    memory = SimpleNamespace(alias_size_in_bytes=262144, host_alias_size_in_bytes=262144)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_donation(SimpleNamespace(memory_analysis=lambda: memory), (X, X)) == 0
