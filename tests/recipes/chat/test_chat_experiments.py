"""The experiments on conversations, on a tiny model and little text."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from fmjax.data import load_corpus

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
DATA = ("train", "verses")
TINY = "--steps 2 --batch-size 8 --max-length 128 --samples 0 --rank 2"


@pytest.mark.parametrize(
    ("name", "figure", "fields"),
    [
        ("sft_kjv", "exact_match", {"prompt", "completion"}),
        ("dpo_kjv", "accuracy", {"prompt", "chosen", "rejected"}),
    ],
)
def test_experiments(name, figure, fields, decoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def few(name: str, split: str = "all") -> list:
        return load_corpus(name, split)[:12]

    monkeypatch.setattr("fmjax.data.corpora.load_corpus", few)
    file = EXPERIMENTS / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(file), "--model", str(decoder), *TINY.split()])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(file), run_name="__main__")
    assert stopped.value.code == 0
    out = tmp_path / "runs" / name
    written = next(path for path in (tmp_path / "runs").rglob("*.jsonl") if path.stem in DATA)
    first = json.loads(written.read_text(encoding="utf-8").split("\n")[0])
    assert set(first) == fields
    content = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert 0 <= content["metrics"][figure] <= 1 and content["intervals"][figure]
    assert (out / "adapter/chat_template.jinja").is_file()
