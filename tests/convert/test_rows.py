import numpy as np
import pytest

from fmjax.convert import Row, hf_module, module_path, targets
from fmjax.core.errors import CheckpointError

ROWS = [
    Row("model.embed.weight", "embed/embedding"),
    Row("model.layers.{layer}.attn.q.weight", "layers/attn/q/kernel"),
    Row("model.layers.{layer}.attn.q.bias", "layers/attn/q/bias"),
    Row("lm_head.weight", "embed/embedding", copy=True),
]
STACKED = {
    "embed/embedding": np.zeros((5, 2)),
    "layers/attn/q/kernel": np.zeros((3, 2, 2)),
    "layers/attn/q/bias": np.zeros((3, 2)),
}
UNSTACKED = {"embed/embedding": np.zeros((5, 2))} | {
    f"layers_{i}/attn/q/{leaf}": np.zeros(shape)
    for i in range(3)
    for leaf, shape in (("kernel", (2, 2)), ("bias", (2,)))
}


def test_targets_of_stacked_and_unstacked_layers_name_the_same_tensors():
    stacked, unstacked = targets(ROWS, STACKED), targets(ROWS, UNSTACKED)
    assert [t.path for t in stacked][1:3] == ["layers/attn/q/kernel", "layers/attn/q/bias"]
    assert stacked[1].file_shape == (2, 2)
    assert [k for t in stacked for k in t.keys] == [k for t in unstacked for k in t.keys]
    assert [t.layer for t in unstacked] == [0, 0, 1, 2, 0, 1, 2, 0]


def test_the_stack_may_be_a_deeper_segment():
    rows = [Row("encoder.{layer}.w", "encoder/layers/w")]
    flat = {f"encoder/layers_{i}/w": np.zeros(2) for i in range(2)}
    assert [t.path for t in targets(rows, flat)] == list(flat)


def test_experts_are_stacked_after_layers():
    rows = [Row("m.{layer}.e.{expert}.w", "layers/e/w")]
    (stacked,) = targets(rows, {"layers/e/w": np.zeros((2, 3, 5))})
    apart = targets(rows, {f"layers_{i}/e/w": np.zeros((3, 5)) for i in range(2)})
    assert stacked.keys == tuple(f"m.{i}.e.{e}.w" for i in range(2) for e in range(3))
    assert sum((t.keys for t in apart), ()) == stacked.keys
    assert stacked.file_shape == apart[0].file_shape == (5,)
    assert stacked.index(4) == (1, 1) and stacked.layer_of(4) == 1
    assert apart[1].index(2) == (2,) and apart[1].layer_of(2) == 1


@pytest.mark.parametrize(
    ("rows", "flat", "message"),
    [
        (ROWS[1:], STACKED, "no row of the weights map names parameter 'embed/embedding'"),
        ([*ROWS, Row("x", "extra")], STACKED, "'extra', which the model does not have"),
        ([*ROWS, Row("m.{layer}.x", "blocks/x")], STACKED, "'blocks/x', which the model does not"),
        ([*ROWS, Row("twin", "embed/embedding")], STACKED, "mapped by both 'model.embed.weight'"),
    ],
)
def test_rows_that_do_not_fit_the_model_raise(rows, flat, message):
    with pytest.raises(CheckpointError, match=message):
        targets(rows, flat)


def test_module_names_translate_both_ways():
    assert hf_module(ROWS, "layers/attn/q") == "model.layers.{layer}.attn.q"
    assert hf_module(ROWS, "layers/attn/q", 2) == "model.layers.2.attn.q"
    assert hf_module(ROWS, "layers_12/attn/q") == "model.layers.12.attn.q"
    assert hf_module(ROWS, "embed") == "model.embed"
    assert module_path(ROWS, "model.layers.12.attn.q") == ("layers/attn/q", 12)
    assert module_path(ROWS, "model.embed") == ("embed", None)


def test_unknown_module_names_raise():
    with pytest.raises(CheckpointError, match="no module 'layers/attn' in the weights map"):
        hf_module(ROWS, "layers/attn")
    with pytest.raises(CheckpointError, match="no module 'model.layers.x.attn.q'"):
        module_path(ROWS, "model.layers.x.attn.q")
    with pytest.raises(CheckpointError, match="no module 'lm_head'"):
        module_path(ROWS, "lm_head")
