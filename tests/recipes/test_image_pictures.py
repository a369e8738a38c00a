"""Sections of reports on image encoders."""

import jax
import numpy as np
import pytest

import fmjax
from fmjax import report
from fmjax.evals import Reconstruction, nearest
from fmjax.models.vit.config import ViTConfig
from fmjax.recipes.vision import pictures


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)


def counts(html):
    """Images by row of the sheet."""
    return [part.count("<img") for part in html.split('<div class="sheet">')[1:]]


def test_attention_and_components(images, tmp_path):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=8, patch_size=4,
    )  # fmt: skip
    model = fmjax.build(config)
    variables = {"params": fmjax.init_params(model, jax.random.key(0))}
    pixels = (images / 255 - 0.5).astype(np.float32)
    attention = pictures.attention_section(model, variables, pixels, images)
    assert counts(attention) == [4, 4, 4] and "head 1" in attention
    run = jax.jit(lambda v, x: model.apply(v, pixel_values=x).last_hidden_state)
    states = run(variables, pixels)
    patches = states[:, 1:].reshape(3, 2, 2, 16)
    components = pictures.components_section(patches, images)
    assert counts(components) == [6] and "% of the variance" in components
    report.write(tmp_path / "page.html", report.page("t", "l", attention, components))


def test_reconstructions(images):
    found = Reconstruction(images, images // 2, images // 3, images // 4)
    assert counts(pictures.reconstruction_section(found)) == [4, 4, 4]
    grid = pictures.reconstruction_grid(found)
    assert grid.shape == (3 * 8 + 2 * 4, 3 * 8 + 2 * 4, 3)
    np.testing.assert_array_equal(grid[:8, 12:20], images[0] // 4)


def test_neighbours_of_another_class_are_faded(images):
    found = nearest([[1.0, 0.1]], np.array([[1.0, 0], [0, 1], [1, 1]]), 3)
    html = pictures.neighbours_section(
        images[:1], images, found, [0], [0, 0, 1], ("a <cat>", "a dog")
    )
    assert counts(html) == [4] and html.count('class="wrong"') == 1
    assert html.index("a dog<br>") > html.index('class="wrong"') and "<cat>" not in html
    plain = pictures.neighbours_section(images[:1], images, found)
    assert "faded" not in plain and 'class="wrong"' not in plain
