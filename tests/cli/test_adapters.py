"""`fmjax merge` and `fmjax extract` on directories."""

import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import fmjax
from fmjax import peft
from fmjax.cli.main import main
from fmjax.core import tree


def saved(directory, model, params):
    """A LoRA that changes what the model says, made on these params."""
    spec = peft.LoRA(rank=2, targets=("q_proj", "down_proj"))
    adapter = peft.init(jax.random.key(1), spec, model, params)
    adapter = jax.tree.map(lambda x: x + 0.3 if x.ndim > 1 else x, adapter)
    peft.save(directory, spec, adapter, model, params=params)
    return directory, adapter


def test_merging_tells_how_far_the_logits_are(model_dir, tmp_path, capsys):
    adapter, tree_ = saved(tmp_path / "adapter", *fmjax.from_pretrained(model_dir))
    command = f"merge --model {model_dir} --adapter {adapter} --out {tmp_path / 'merged'}"
    assert main([*command.split(), "--prompt", "In the beginning"]) == 0
    said = capsys.readouterr().out
    assert "folded in" in said and "logits differ by at most" in said
    assert "100.00% of" in said
    model, merged = fmjax.from_pretrained(tmp_path / "merged")
    _, params = fmjax.from_pretrained(model_dir)
    for a, b in zip(
        jax.tree.leaves(merged), jax.tree.leaves(peft.merge(model, params, tree_)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_packed_base_is_merged_where_it_is_said(model_dir, tmp_path, capsys, fails, monkeypatch):
    model, packed = fmjax.from_pretrained(model_dir, quantize="nf4")
    adapter, own = saved(tmp_path / "adapter", model, packed)
    out = tmp_path / "merged"
    command = ["merge", "--model", model_dir, "--adapter", adapter, "--out", out]
    fails(command, "made for another base")  # which was not packed
    fails([*command, "--quantize", "nf4"], "say --base-weights dequantized")
    results = {}
    for base in ("dequantized", "original"):
        assert main([str(x) for x in (*command, "--quantize", "nf4", "--base-weights", base)]) == 0
        assert "logits differ by at most" in capsys.readouterr().out
        results[base] = fmjax.from_pretrained(out)[1]
        assert "quantization_config" not in (out / "config.json").read_text()
    _, params = fmjax.from_pretrained(model_dir)
    expected = {
        "dequantized": peft.merge(model, packed, own, base="dequantized"),
        "original": peft.merge(model, params, own),
    }
    for base, merged in results.items():
        for path, x in tree.flatten(merged).items():
            np.testing.assert_allclose(x, tree.flatten(expected[base])[path], rtol=0, atol=1e-6)

    fmjax.save_pretrained(tmp_path / "packed", model, packed)
    command[2] = tmp_path / "packed"
    fails([*command, "--base-weights", "original"], "holds packed weights only")
    shutil.rmtree(out)
    assert main([str(x) for x in (*command, "--base-weights", "dequantized")]) == 0
    capsys.readouterr()
    for path, x in tree.flatten(fmjax.from_pretrained(out)[1]).items():
        np.testing.assert_allclose(x, tree.flatten(results["dequantized"])[path], rtol=0, atol=1e-6)
    plain, _ = saved(tmp_path / "plain", *fmjax.from_pretrained(model_dir))
    command = ["merge", "--model", model_dir, "--adapter", plain, "--out", tmp_path / "no"]
    fails([*command, "--base-weights", "dequantized"], "are not packed; say how", "--quantize nf4")
    nothing = SimpleNamespace(encode=lambda _: [])
    monkeypatch.setattr(fmjax, "load_tokenizer", lambda _: nothing)
    fails([*command, "--prompt", ""], "--prompt has no tokens")
    assert not (tmp_path / "no").exists()


def test_extract_undoes_merge(model_dir, tmp_path, capsys, fails):
    model, params = fmjax.from_pretrained(model_dir)
    _, own = saved(tmp_path / "adapter", model, params)
    merged = peft.merge(model, params, own)
    merged["norm"]["scale"] += 0.5
    fmjax.save_pretrained(tmp_path / "tuned", model, merged)
    out, page = tmp_path / "out", tmp_path / "error.html"
    command = ["extract", "--base", model_dir, "--tuned", tmp_path / "tuned", "--out", out]
    assert main([str(x) for x in (*command, "--rank", "2", "--chart", page)]) == 0
    said = capsys.readouterr().out
    assert "rank    error" in said and "kept    0.0000" in said
    assert "lost: norm/scale (changed by 50.00% of its norm)" in said
    assert "<svg" in page.read_text() and "kept    0.0000" in page.read_text()
    spec, adapter = peft.load(out, model, params)
    assert spec.rank == 2 and spec.targets == ("q_proj", "down_proj")
    got = tree.flatten(peft.merge(model, params, adapter))
    for path in ("q_proj", "o_proj"):
        path = f"layers/self_attn/{path}/kernel"
        np.testing.assert_allclose(got[path], tree.flatten(merged)[path], rtol=0, atol=1e-5)
    whole = (*command, "--energy", "0.999999", "--modules-to-save", "norm", "--targets", "q_proj")
    assert main([str(x) for x in (*whole, "--chart", tmp_path / "error.png")]) == 0
    said = capsys.readouterr().out
    assert "copied whole: norm/scale" in said and "lost: layers/mlp/down_proj/kernel" in said
    assert (tmp_path / "error.png").read_bytes().startswith(b"\x89PNG")
    fails([*command, "--rank", "0"], "rank=0 must be")
    command[4] = model_dir
    fails(command, "do not differ in any matrix")
    bare = fmjax.build(
        {"model_type": "gpt2", "vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 1}
    )
    fmjax.save_pretrained(tmp_path / "gpt2", bare, fmjax.init_params(bare, jax.random.key(0)))
    command[4] = tmp_path / "gpt2"
    fails(command, "is llama with head causal-lm and", "two models of one architecture")
