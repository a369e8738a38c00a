"""A tiny encoder with DINO's head, in JAX and in torch, and batches of crops."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch

from fmjax.nn.projection import ProjectionHead, WithHead

D, K, PATCH = 6, 10, 2


class Toy(nn.Module):
    """A token for each patch; the first is a nonlinear function of all. No positions."""

    @nn.compact
    def __call__(self, pixel_values, bool_masked_pos=None):
        R, H, W, C = pixel_values.shape
        x = pixel_values.reshape(R, H // PATCH, PATCH, W // PATCH, PATCH, C)
        x = jnp.swapaxes(x, 2, 3).reshape(R, -1, PATCH * PATCH * C)
        x = nn.Dense(D, name="embed", use_bias=False)(x)
        token = self.param("mask_token", nn.initializers.ones, (D,))
        if bool_masked_pos is not None:
            x = jnp.where(bool_masked_pos[..., None], token, x)
        y = jnp.tanh(x + jnp.mean(x, 1, keepdims=True))
        first = nn.Dense(D, name="cls", use_bias=False)(jnp.mean(y, 1, keepdims=True))
        return types.SimpleNamespace(last_hidden_state=jnp.concatenate([jnp.tanh(first), y], 1))


def model(separate=False, features=K):
    def head():
        return ProjectionHead(features, hidden=8, bottleneck=5)

    return WithHead(Toy(), head(), head() if separate else None)


def params(separate=False, seed=0):
    """Larger than they start, so that nothing is nearly linear."""
    inputs = {"pixel_values": jnp.zeros((1, 4, 4, 3)), "patch_index": jnp.zeros((1, 1), int)}
    shapes = jax.eval_shape(lambda: model(separate).init(jax.random.key(0), **inputs))["params"]
    rng = np.random.RandomState(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.randn(*x.shape) * 0.5, jnp.float32), shapes)


def crops(B=4, V=2, L=3, seed=0):
    rng = np.random.RandomState(seed)

    def draw(*shape):
        return rng.randn(*shape).astype(np.float32)

    return {"pixel_values": draw(B, V, 8, 8, 3), "local_pixel_values": draw(B, L, 4, 4, 3)}


def to_torch(tree_, grad=False):
    return jax.tree.map(lambda x: torch.tensor(np.asarray(x), requires_grad=grad), tree_)


def torch_tokens(p, x, mask=None):
    """[R, H, W, C] → [R, 1 + N, D]."""
    p = p["backbone"]
    R, H, W, C = x.shape
    x = x.reshape(R, H // PATCH, PATCH, W // PATCH, PATCH, C).transpose(2, 3)
    x = x.reshape(R, -1, PATCH * PATCH * C) @ p["embed"]["kernel"]
    if mask is not None:
        x = torch.where(mask[..., None], p["mask_token"], x)
    y = torch.tanh(x + x.mean(1, keepdim=True))
    first = torch.tanh(y.mean(1, keepdim=True) @ p["cls"]["kernel"])
    return torch.cat([first, y], 1)


def torch_head(p, x):
    for i in range(3):
        x = x @ p[f"dense_{i}"]["kernel"] + p[f"dense_{i}"]["bias"]
        x = torch.nn.functional.gelu(x) if i < 2 else x
    x = torch.nn.functional.normalize(x, dim=-1)
    return x @ torch.nn.functional.normalize(p["last_layer"]["kernel"], dim=0)


def average(teacher, student, momentum):
    """The teacher moved towards the student."""
    with torch.no_grad():
        return jax.tree.map(lambda t, s: t * momentum + (1 - momentum) * s, teacher, student)


def close(ours, theirs, atol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b.detach().numpy(), rtol=0, atol=atol),
        ours,
        theirs,
    )
