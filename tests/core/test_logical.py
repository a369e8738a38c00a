import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from fmjax.core import logical
from fmjax.core.errors import ConfigError, ShardingError
from fmjax.core.execution import Execution
from fmjax.parallel import (
    DEFAULT_RULES,
    RULES,
    batch_sharding,
    make_mesh,
    param_shardings,
    shard_batch,
)


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return make_mesh(data=2, fsdp=2, tensor=2)


def test_spec_follows_the_first_rule_and_drops_axes_of_size_one(mesh) -> None:
    rules = [("mlp", None), *DEFAULT_RULES]
    assert logical.spec(("embed", "mlp"), rules, mesh) == P("fsdp", None)
    assert logical.spec(("batch", "seq"), rules, mesh) == P(("data", "fsdp"), None)


def test_spec_uses_a_mesh_axis_once(mesh) -> None:
    assert logical.spec(("embed", "embed"), DEFAULT_RULES, mesh) == P("fsdp", None)


def test_spec_gives_a_mesh_axis_to_the_dimension_whose_rule_comes_first(mesh) -> None:
    rules = RULES["sequence"]
    assert logical.spec(("batch", "seq", "act_mlp"), rules, mesh)[1:] == (None, "tensor")
    assert logical.spec(("batch", "seq", "act_embed"), rules, mesh)[1:] == ("tensor", None)


def test_spec_replicates_uneven_heads_and_words_and_says_so_once(mesh, caplog) -> None:
    for _ in range(2):
        for axis in sorted(logical.REPLICABLE):
            assert logical.spec((axis,), DEFAULT_RULES, mesh, (7,), f"a/{axis}") == P(None)
    assert len(caplog.messages) == len(logical.REPLICABLE)
    for axis, message in zip(sorted(logical.REPLICABLE), caplog.messages, strict=True):
        assert f"a/{axis}: axis '{axis}' of size 7 does not divide over tensor=2;" in message
        assert "every device along tensor has all of it" in message
    rules = (("vocab", ("data", "tensor")), *DEFAULT_RULES)  # as far as it divides
    assert logical.spec(("vocab",), rules, mesh, (6,), "b") == P("data")
    assert logical.spec(("batch",), DEFAULT_RULES, mesh, (1,)) == P(None)


@pytest.mark.parametrize("axis", ["batch", "embed", "mlp", "expert", "seq"])
def test_spec_names_what_it_cannot_place(mesh, axis) -> None:
    rules = (("seq", "tensor"), ("expert", "tensor"), *DEFAULT_RULES)
    with pytest.raises(ShardingError, match=rf"h/kernel: .*'{axis}' of size 7 .*=2; change"):
        logical.spec((axis,), rules, mesh, (7,), "h/kernel")


def test_spec_names_the_axis_that_has_no_rule(mesh) -> None:
    with pytest.raises(ShardingError, match=r"wte/embedding.*'voc'"):
        logical.spec(("voc",), DEFAULT_RULES, mesh, (8,), "wte/embedding")


def test_constrain_acts_only_inside_use(mesh) -> None:
    x = jnp.zeros((4, 6))
    assert logical.constrain(x, ("batch", "anything")) is x

    @jax.jit
    def f(x):
        with logical.use(mesh, DEFAULT_RULES):
            return logical.constrain(x, ("batch", "act_mlp"))

    assert f(x).sharding.spec == P(("data", "fsdp"), "tensor")


def test_mesh_sizes_must_match_the_devices() -> None:
    assert make_mesh().shape["data"] == 8
    assert dict(make_mesh(data=2, fsdp=-1).shape)["fsdp"] == 4
    with pytest.raises(ShardingError, match="data=3.*8 devices"):
        make_mesh(data=3)
    with pytest.raises(ShardingError, match="fsdp=3"):
        make_mesh(fsdp=3)
    with pytest.raises(ShardingError, match="one of them may be"):
        make_mesh(data=-1, fsdp=-1)


def test_shard_batch_splits_rows_and_refuses_what_does_not_divide(mesh) -> None:
    x = np.arange(16).reshape(8, 2)
    out = shard_batch({"x": x}, mesh, DEFAULT_RULES)["x"]
    assert out.sharding == batch_sharding(mesh, DEFAULT_RULES)
    assert out.addressable_shards[0].data.shape == (2, 2)
    np.testing.assert_array_equal(out, x)
    with pytest.raises(
        ShardingError, match="x: a batch of 6 rows .*data=2 × fsdp=2; use a multiple of 4"
    ):
        shard_batch({"x": x[:6]}, mesh, DEFAULT_RULES)


def test_param_shardings_name_the_parameter(mesh) -> None:
    from fmjax.core.params import ParamSpec

    spec = {"head": {"kernel": ParamSpec((4, 5), jnp.float32, ("vocab", "embed"))}}
    with pytest.raises(ShardingError, match="head/kernel"):
        param_shardings(spec, mesh, DEFAULT_RULES)


def test_execution_reads_dtype_names() -> None:
    assert Execution(dtype="bfloat16").dtype == jnp.bfloat16
    assert hash(Execution()) == hash(Execution())
    with pytest.raises(ConfigError, match="int8"):
        Execution(dtype="int8")
