"""DINOv2's objective on a real ViT: raw images in, a backbone out that is served alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK

import fmjax
from fmjax.core import tree
from fmjax.data.augment import dinov2
from fmjax.models.vit.config import ViTConfig
from fmjax.nn.projection import ProjectionHead, WithHead
from fmjax.objectives import Augmented, DINOv2
from fmjax.train import adamw, make_step, schedules

CONFIG = ViTConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    image_size=16,
    patch_size=4,
    pooling="cls",
    use_mask_token=True,
    drop_path_rate=0.2,
)


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly():
    """Every program here runs a few times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=QUICK))
        yield


@pytest.mark.slow
def test_a_vit_learns_on_a_mesh_and_its_teacher_is_saved_alone(tmp_path):
    backbone = fmjax.build(CONFIG)
    model = WithHead(backbone, ProjectionHead(32, hidden=16, bottleneck=8))
    mesh = fmjax.make_mesh(data=2, fsdp=2, devices=jax.devices()[:4])
    params = fmjax.init_params(model, jax.random.key(0), mesh=mesh)
    kernel = params["backbone"]["layers"]["attention"]
    assert any("fsdp" in str(x.sharding.spec) for x in jax.tree.leaves(kernel))

    objective = Augmented(
        DINOv2(
            teacher_temperature=schedules.ramp(0.04, 0.07, 2),
            teacher_momentum=schedules.cosine(0.9, 1.0, 8),
            freeze_last_layer=1,
            capacity=0.5,
        ),
        dinov2(16, 8, 2, patch_size=4),
    )
    optimizer = adamw(1e-2, weight_decay=schedules.cosine(0.04, 0.4, 8))
    step = make_step(model, objective, optimizer, mesh=mesh)
    state = step.init({"params": params}, jax.random.key(1))
    before = jax.device_get(state.variables["params"])
    rng = np.random.RandomState(0)
    raw = {
        "image": rng.randint(0, 256, (8, 24, 24, 3)).astype(np.uint8),
        "image_size": np.full((8, 2), [24, 20], np.int32),
    }
    for _ in range(3):
        state, metrics = step(state, raw)
        assert np.isfinite(metrics["loss"]) and metrics["skipped"] == 0
    assert int(state.extra["step"]) == 3

    # The teacher lies on the mesh as the student does, and has moved less.
    student, teacher = state.variables["params"], state.extra["teacher"]["params"]
    jax.tree.map(lambda a, b: _same_layout(a, b), student, teacher)
    moved = tree.flatten(jax.tree.map(lambda a, b: np.abs(a - b).max(), student, before))
    followed = tree.flatten(jax.tree.map(lambda a, b: np.abs(a - b).max(), teacher, before))
    still = {path for path, x in moved.items() if x == 0}
    assert not still, still
    for path in moved:
        assert followed[path] < moved[path], path

    fmjax.save_pretrained(tmp_path, backbone, teacher["backbone"])
    loaded, weights = fmjax.from_pretrained(tmp_path)
    x = jnp.asarray(rng.randn(2, 16, 16, 3), jnp.float32)
    served = loaded.apply({"params": weights}, pixel_values=x).pooler_output
    trained = model.apply({"params": jax.device_get(teacher)}, pixel_values=x).pooler_output
    np.testing.assert_allclose(served, trained, atol=1e-5)


def _same_layout(a, b):
    assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
