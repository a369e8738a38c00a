"""LoRA on a ResNet's convolutions: PEFT reads the file and computes the same."""

import jax
import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from quick import QUICK

import fmjax
from fmjax import peft


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_lora_on_convolutions_is_pefts(tmp_path):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=(8, 16), depths=(1, 1), num_labels=3
    )
    hf = transformers.ResNetForImageClassification(config).eval()
    hf.save_pretrained(tmp_path / "base")
    model, params = fmjax.from_pretrained(tmp_path / "base")
    spec = peft.LoRA(rank=2, targets=("convolution",), modules_to_save=("normalization",))
    adapter = peft.init(jax.random.key(0), spec, model, params)
    rng = np.random.RandomState(1)
    adapter = jax.tree.map(
        lambda x: x + np.float32(0.1) * rng.rand(*x.shape) * (x.ndim > 0), adapter
    )
    peft.save(tmp_path / "adapter", spec, adapter, model)
    x = rng.randn(2, 40, 33, 3).astype(np.float32)
    images = torch.tensor(np.moveaxis(x, -1, 1))
    with torch.no_grad():
        plain = hf(pixel_values=images).logits.numpy()
        adapted = PeftModel.from_pretrained(hf, tmp_path / "adapter").eval()
        expected = adapted(pixel_values=images).logits.numpy()
    run = jax.jit(lambda v: model.apply(v, pixel_values=x).logits, compiler_options=QUICK)
    got = run({"params": params, "adapter": adapter})
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    assert np.abs(expected - plain).max() > 0.1
