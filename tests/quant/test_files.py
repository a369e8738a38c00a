"""Files of packed weights that cannot be read are refused by name."""

import json

import numpy as np
import pytest

from fmjax import quant
from fmjax.core.errors import CheckpointError
from fmjax.quant.files import STATE


def file_of(fmt="nf4", shape=(64, 4)):
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return quant.to_file(quant.quantize(w, fmt))


def with_state(tensors, **changes):
    state = json.loads(tensors[STATE].tobytes()) | changes
    return tensors | {STATE: np.frombuffer(json.dumps(state).encode(), np.uint8)}


@pytest.mark.parametrize(
    ("fmt", "change", "message"),
    [
        ("nf4", lambda t: t.pop(STATE), "has no quant_state.bitsandbytes__nf4"),
        ("nf4", lambda t: t.pop(".absmax"), "holds .* belong"),
        ("nf4", lambda t: t.update(other=t[""]), "holds .*other"),
        ("nf4", lambda t: t.update({STATE: t[STATE][:-3]}), "is not JSON"),
        ("nf4", lambda t: t.update(with_state(t, quant_type="fp4")), "is fp4, not nf4"),
        ("nf4", lambda t: t.update(with_state(t, blocksize=63)), "has blocks of 63"),
        ("nf4", lambda t: t.update(with_state(t, shape=[8, 32])), r"has shape \(8, 32\)"),
        ("nf4", lambda t: t.update(with_state(t, nested_blocksize=64)), "nested blocks of 64"),
        ("nf4", lambda t: t.update({".quant_map": t[".quant_map"] * 2}), "quant_map of its own"),
        (
            "nf4",
            lambda t: t.update({".nested_quant_map": t[".nested_quant_map"] * 2}),
            "nested_quant_map of its own",
        ),
        ("nf4", lambda t: t.update({"": t[""][:-1]}), "has 127 bytes of codes, not 128"),
        ("nf4", lambda t: t.update({".absmax": t[".absmax"][:-1]}), "has 3 scales, not 4"),
        (
            "nf4",
            lambda t: t.update({".nested_absmax": np.ones(2, np.float32)}),
            "has 2 nested scales, not 1",
        ),
        ("int8", lambda t: t.update(other=t[""]), "holds .*other"),
        ("int8", lambda t: t.update({".weight_format": np.uint8(2)}), "has weight_format 2"),
        ("int8", lambda t: t.update({"": t[""].T}), r"has shape \(64, 4\), not \(4, 64\)"),
        ("int8", lambda t: t.update({".SCB": t[".SCB"][:-1]}), "has 3 scales, not 4"),
    ],
)
def test_what_cannot_be_read_is_named(fmt, change, message) -> None:
    tensors = file_of(fmt)
    change(tensors)
    with pytest.raises(CheckpointError, match=f"some.weight.*{message}"):
        quant.from_file(tensors, (64, 4), name="some.weight")


def test_codes_may_be_stored_under_another_dtype() -> None:
    tensors = file_of()
    as_float = tensors | {"": tensors[""].reshape(-1, 4).view(np.float32)}
    read = quant.from_file(as_float, (64, 4))
    np.testing.assert_array_equal(quant.to_file(read)[""], tensors[""])


def test_an_int8_file_without_its_layout_is_by_rows() -> None:
    tensors = file_of("int8")
    layout = tensors.pop(".weight_format")
    again = quant.to_file(quant.from_file(tensors, (64, 4), "float32"))
    assert again[".weight_format"] == layout
    np.testing.assert_array_equal(again[""], tensors[""])
