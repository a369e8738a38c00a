"""Experiments say what they cost and give, and run with other settings from the command line."""

import ast
import runpy
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[1] / "experiments").glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_docstrings(file):
    doc = ast.get_docstring(ast.parse(file.read_text()))
    assert f"python experiments/{file.name}" in doc
    for line in ("Command: ", "Cost: ", "Figure: "):
        assert f"\n- {line}" in doc


@pytest.mark.slow
def test_both_run_smaller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = "--steps 2 --warmup 1 --batch-size 8 --sequence-length 16 --eval-every 0".split()
    changes = ["hidden_size=32", "intermediate_size=32", "num_hidden_layers=1"]
    by_name = {file.stem: file for file in FILES}
    heads = ["num_attention_heads=4", "num_key_value_heads=4"]
    runs = {
        "pretrain_kjv": ["--override", *changes, *heads],
        "adapt_movie_reviews": ["--method", "dora", "--rank", "2"],
    }
    for name, extra in runs.items():
        monkeypatch.setattr(sys, "argv", [str(by_name[name]), *small, *extra])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(by_name[name]), run_name="__main__")
        assert stopped.value.code == 0
    assert (tmp_path / "runs/pretrain_kjv/model/model.safetensors").is_file()
    assert (tmp_path / "runs/adapt_movie_reviews/dora/adapter/adapter_config.json").is_file()


@pytest.mark.slow
def test_bert_runs_smaller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = next(file for file in FILES if file.stem == "pretrain_bert_kjv")
    small = "--steps 2 --warmup 1 --batch-size 8 --sequence-length 16 --eval-every 0".split()
    changes = ["hidden_size=32", "intermediate_size=32", "num_hidden_layers=1"]
    arguments = [str(file), *small, "--override", *changes, "num_attention_heads=2"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(file), run_name="__main__")
    assert stopped.value.code == 0
    assert (tmp_path / "runs/pretrain_bert_kjv/model/model.safetensors").is_file()
