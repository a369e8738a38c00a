"""Every method of adaptation, from the command line to files that answer as the run did."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from fmjax.cli.main import main
from fmjax.recipes.options import Method

METHODS = Method.__args__
VIRTUAL = ("prefix", "prompt", "ptuning")
FLAGS = {
    "lora": "--bias lora_only --lora-plus 4",
    "qlora": "--targets all-linear --moments int8",
    "prefix": "--projection",
    "prompt": "--prompt-text the",
}


@pytest.fixture
def run(encoder, files, finetune, tmp_path):
    """Trains and measures on the same texts, by a method."""

    def start(method: str, *flags: str) -> Path:
        file = files["classification"]
        tokens = "--virtual-tokens 4" if method in VIRTUAL else ""
        common = f"--valid {file} --steps 4 --eval-every 4 --method {method} {tokens}"
        more = FLAGS.get(method, "")
        return finetune("classification", encoder, file, tmp_path / method, common, more, *flags)

    return start


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.slow
def test_files_answer_as_the_run_did(method, run, files, capsys):
    out = run(method)
    stated = json.loads((out / "metrics.json").read_text())["metrics"]
    capsys.readouterr()
    line = ["eval", "--test", files["classification"], "--model", out / "model", "--json"]
    line += ["--max-length", 32]
    if method in VIRTUAL:
        line += ["--adapter", out / "adapter"]
    assert main([str(word) for word in line]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]
    assert {name: found[name] for name in found if "loss" not in name} == pytest.approx(
        {name: stated[name] for name in found if "loss" not in name}
    )
    assert (out / "adapter").exists() == (method != "full")


@pytest.mark.slow
def test_averaged_weights_are_what_is_saved(run, encoder, tmp_path):
    trained = load_file(run("full", "--ema", "0.9") / "model" / "model.safetensors")
    start = load_file(encoder / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    run("full", f"--out {tmp_path / 'plain'}")
    other = load_file(tmp_path / "plain" / "model" / "model.safetensors")
    assert 0 < abs(trained[name] - start[name]).max() < abs(other[name] - start[name]).max()


@pytest.mark.parametrize(
    ("method", "flags", "dtype"),
    [
        ("qlora", "--dtype bfloat16", "BF16"),
        ("qlora", "--dtype bfloat16 --adapter-dtype float32", "F32"),
        ("qlora", "", "F32"),
        ("lora", "--dtype bfloat16", "F32"),
        ("lora", "--dtype bfloat16 --adapter-dtype bfloat16", "BF16"),
    ],
)
@pytest.mark.slow
def test_the_adapter_is_trained_in_the_precision_asked_for(method, flags, dtype, run):
    file = (run(method, flags) / "adapter" / "adapter_model.safetensors").read_bytes()
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    found = {entry["dtype"] for name, entry in header.items() if "lora_" in name}
    assert found == {dtype}


def test_frozen_parameters_stay(run, encoder):
    out = run("full", "--freeze", "_embeddings", "--freeze-layers", "1")
    before, after = load_file(encoder / "model.safetensors"), load_file(
        out / "model" / "model.safetensors"
    )  # fmt: skip
    query = "bert.encoder.layer.{}.attention.self.query.weight"
    for name in ("bert.embeddings.word_embeddings.weight", query.format(0)):
        assert (before[name] == after[name]).all()
    assert (before[query.format(1)] != after[query.format(1)]).any()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--method full --quantize nf4", ("--quantize nf4", "--method qlora")),
        ("--method prefix --bias all", ("--bias", "--method prefix", "lora")),
        ("--method lora --freeze embed", ("--freeze", "full")),
        ("--method full --adapter-dtype bfloat16", ("--adapter-dtype", "lora")),
        ("--method lora --ema 1", ("--ema 1",)),
        ("--method prompt --virtual-tokens 62", ("--virtual-tokens 62", "64 positions")),
    ],
)
def test_settings_that_do_not_go_together(flags, said, fails, arguments, encoder, files, tmp_path):
    fails(arguments("classification", encoder, files["classification"], tmp_path, flags), *said)


@pytest.mark.slow
def test_comparison(encoder, tmp_path, monkeypatch, capsys):
    from fmjax.data import load_corpus

    monkeypatch.chdir(tmp_path)
    few = lambda name, split="all": load_corpus(name, split)[:60]  # noqa: E731
    monkeypatch.setattr("fmjax.data.corpora.load_corpus", few)
    file = Path(__file__).parents[3] / "experiments" / "compare_methods.py"
    tiny = "--steps 2 --batch-size 8 --max-length 32 --log-every 1 --methods lora ia3"
    monkeypatch.setattr(sys, "argv", [str(file), "--model", str(encoder), *tiny.split()])
    for _ in range(2):  # the second time nothing is left to do
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(file), run_name="__main__")
        assert stopped.value.code == 0
    out = tmp_path / "runs" / "methods"
    lora, ia3 = json.loads((out / "comparison.json").read_text())
    assert (lora["method"], ia3["method"]) == ("lora", "ia3")
    assert 0 < ia3["trained"] < lora["trained"] < 1 and lora["memory"] > 0 and lora["speed"] > 0
    assert "| ia3 |" in (out / "comparison.md").read_text()
    assert capsys.readouterr().out.count("— ia3 —") == 1
    for made in ("comparison.html", "picture.png"):
        assert (out / made).is_file()
