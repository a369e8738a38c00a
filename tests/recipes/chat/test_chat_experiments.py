"""The experiments on conversations, on a tiny model and little text."""

import json
import runpy
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
TINY = "--steps 2 --batch-size 8 --max-length 128 --samples 0 --rank 2"


@pytest.mark.parametrize(
    ("name", "data", "figure", "fields"),
    [
        ("sft_kjv", "verses.jsonl", "exact_match", {"prompt", "completion"}),
        ("dpo_kjv", "pairs.jsonl", "accuracy", {"prompt", "chosen", "rejected"}),
    ],
)
def test_experiments(name, data, figure, fields, decoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    file = EXPERIMENTS / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(file), "--model", str(decoder), *TINY.split()])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(file), run_name="__main__")
    assert stopped.value.code == 0
    out = tmp_path / "runs" / name
    first = json.loads((out / data).read_text(encoding="utf-8").split("\n")[0])
    assert set(first) == fields
    content = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert 0 <= content["metrics"][figure] <= 1 and content["intervals"][figure]
    assert list(out.glob("*/chat_template.jinja"))
