import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.core.errors import DataError
from fmjax.generate.prompts import bucket, left_pad, token_rows


def test_buckets_are_few_and_waste_little():
    sizes = [bucket(n) for n in range(1, 4097)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 28
    assert all(n <= size < n + 16 or n <= size < 1.25 * n for n, size in enumerate(sizes, 1))
    assert [bucket(n) for n in (1, 16, 17, 128, 129, 257, 1024)] == [
        16,
        16,
        32,
        128,
        160,
        320,
        1024,
    ]


def test_prompts_end_in_the_last_slot():
    prompts = left_pad([np.array([4, 5]), np.array([6])], 0)
    assert prompts.ids.shape == (2, 16)
    np.testing.assert_array_equal(prompts.ids[:, -3:], [[0, 4, 5], [0, 0, 6]])
    np.testing.assert_array_equal(prompts.positions()[:, -3:], [[0, 0, 1], [0, 0, 0]])
    valid = np.asarray(prompts.valid(18))
    np.testing.assert_array_equal(valid[:, 13:], [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    assert not valid[:, :13].any()


def test_a_mask_takes_out_padding_wherever_it_stands():
    ids = jnp.array([[1, 2, 3], [4, 5, 6]])
    rows = token_rows(ids, [[0, 1, 1], [1, 0, 1]], 10, None)
    assert [r.tolist() for r in rows] == [[2, 3], [4, 6]]


def test_an_empty_prompt_begins_with_bos():
    rows = token_rows([[], [3]], None, 10, 7)
    assert [r.tolist() for r in rows] == [[7], [3]]


@pytest.mark.parametrize(
    "ids, mask, message",
    [
        ([[1], []], None, "prompt 1 is empty"),
        ([], None, "no rows"),
        ([[1], [2, 10]], None, "prompt 1 has token id 10"),
        ([[-1]], None, "prompt 0 has token id -1"),
        ([[0.5]], None, "prompt 0 is not a row of integer token ids"),
        ([1, 2], None, "prompt 0 is not a row"),
        (["text"], None, "prompt 0 is not a row"),
        ("text", None, "encode texts first"),
        (np.zeros(3, int), None, "batch, length"),
        (np.zeros((1, 3), int), np.ones((1, 2)), "attention_mask"),
        ([[1, 2]], [[1, 1]], "attention_mask"),
        (np.zeros((1, 3), int), np.zeros((1, 3)), "prompt 0 is empty"),
    ],
)
def test_a_bad_prompt_is_named(ids, mask, message):
    with pytest.raises(DataError, match=message):
        token_rows(ids, mask, 10, None)
