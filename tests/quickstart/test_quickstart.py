"""The whole path with a tiny model: artifacts that other libraries load, and going on."""

import json
import re
import shlex
import shutil
import time

import numpy as np
import pytest

import fmjax
from fmjax import peft
from fmjax.cli.main import main
from fmjax.quickstart import Quickstart
from fmjax.quickstart.plan import larger, plan
from fmjax.quickstart.stages import Progress

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished quickstart: its directory, and what it said."""
    import contextlib
    import io

    out = tmp_path_factory.mktemp("quickstart") / "run"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["quickstart", "--tiny", "--out", str(out)]) == 0
    return out, said.getvalue()


def ids(out):
    tokenizer = fmjax.load_tokenizer(out / "tokenizer")
    return np.array([tokenizer.encode("And the LORD said unto Moses")])


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, raised by PEFT
def test_transformers_and_peft_load_the_exports(finished):
    import peft as reference_peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, _ = finished
    directory, adapter_dir = out / "pretrain" / "model", out / "adapt" / "adapter"
    x = ids(out)
    assert AutoTokenizer.from_pretrained(directory)("And the LORD said unto Moses")[
        "input_ids"
    ] == list(x[0])
    model, params = fmjax.from_pretrained(directory)
    _, adapter = peft.load(adapter_dir, model, params)
    theirs = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        base = theirs(torch.tensor(x)).logits.numpy()
        adapted = reference_peft.PeftModel.from_pretrained(theirs, adapter_dir)
        adapted = adapted(torch.tensor(x)).logits.numpy()
    ours = model.apply({"params": params}, input_ids=x).logits
    np.testing.assert_allclose(ours, base, atol=1e-4)
    ours = model.apply({"params": params, "adapter": adapter}, input_ids=x).logits
    np.testing.assert_allclose(ours, adapted, atol=1e-4)
    assert np.abs(base - adapted).max() > 1e-3


def test_results_and_report(finished):
    out, said = finished
    stages = json.loads((out / "quickstart.json").read_text())["stages"]
    assert set(stages) == {"tokenizer", "pretrain", "adapt", "measure", "sample"}
    measured = stages["measure"]["results"]
    for figures in measured.values():
        assert set(figures) == {"King James Bible", "movie reviews"}
    assert measured["before"]["King James Bible"]["per_token"] < 400  # of 400 ids
    assert len(stages["sample"]["results"]["after"]) == 4

    page = (out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|<script|<link|src=", page)
    assert page.count("<svg") == 2 and page.count('role="img"') == 2
    assert page.count("<caption>") == page.count("<table>")
    for text in ("movie reviews, bits per byte", "fmjax finetune", str(out / "pretrain/model")):
        assert text in page
    for text in ("1/6 tokenizer", "6/6 report", "again, larger", str(out / "report.html")):
        assert text in said


def test_finished_stages_are_kept(finished, capsys):
    out, _ = finished
    files = [out / "pretrain/model/model.safetensors", out / "adapt/metrics.jsonl"]
    before = [file.stat().st_mtime_ns for file in files]
    page = (out / "report.html").read_text(encoding="utf-8")
    (out / "report.html").unlink()
    assert main(["quickstart", "--tiny", "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("finished in an earlier run") == 5
    assert [file.stat().st_mtime_ns for file in files] == before
    assert (out / "report.html").read_text(encoding="utf-8") == page


def test_what_was_deleted_is_made_again(finished, capsys):
    out, _ = finished
    weights = out / "pretrain/model/model.safetensors"
    before = weights.read_bytes()
    shutil.rmtree(out / "pretrain/model")
    assert main(["quickstart", "--tiny", "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("finished in an earlier run") == 4
    assert weights.read_bytes() == before  # from the last checkpoint


def test_other_settings_need_another_place(finished, capsys):
    out, _ = finished
    assert main(["quickstart", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "--fresh" in error and "--out" in error and error.count("\n") == 1


def test_printed_commands_are_those_that_ran(finished):
    out, said = finished
    from fmjax.cli.main import _parse

    settings = Quickstart(out=out, tiny=True).sized()
    printed = [line for line in said.splitlines() if line.startswith("fmjax ") and " --" in line]
    wanted = larger(settings).commands()
    assert len(printed) == 5
    for line in printed:
        words = shlex.split(line)
        assert _parse(words[1:]) == wanted[words[1]]
    assert plan(settings).pretrain.out == out / "pretrain"


def test_printed_commands_work(finished):
    """All of them in their order, with the smallest numbers put behind."""
    out, _ = finished
    from fmjax.cli.console import command_line

    again = larger(Quickstart(out=out, tiny=True).sized())
    short = ["--steps", "2", "--warmup", "0", "--eval-batches", "1", "--batch-size", "8"]
    extra = {"train": short, "finetune": short, "generate": ["--max-new-tokens", "2"]}
    for name, options in again.commands().items():
        words = shlex.split(command_line(name, options, wrap=True).replace("\\\n", ""))
        assert main([*words[1:], *extra.get(name, [])]) == 0, name
    assert (out / "larger" / "merged" / "model.safetensors").is_file()


def test_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, capsys):
    out = tmp_path / "q"
    real = Progress.run

    def interrupted(self, name, stage):
        if name == "pretrain":
            raise KeyboardInterrupt
        return real(self, name, stage)

    monkeypatch.setattr(Progress, "run", interrupted)
    assert main(["quickstart", "--tiny", "--out", str(out)]) == 130
    monkeypatch.setattr(Progress, "run", lambda self, name, stage: False)  # as after a SIGTERM
    capsys.readouterr()
    assert main(["quickstart", "--tiny", "--out", str(out)]) == 130
    assert capsys.readouterr().out.count("finished in an earlier run") == 1
    assert not (out / "report.html").exists()


def test_fresh_removes_only_its_own(tmp_path):
    out = tmp_path / "q"
    settings = Quickstart(out=out, tiny=True, fresh=True).sized()
    progress = Progress.open(settings)
    progress.run("tokenizer", lambda: None)
    (out / "tokenizer").mkdir()
    (out / "notes.txt").write_text("mine")
    assert Progress.open(settings).stages == {}
    assert sorted(p.name for p in out.iterdir()) == ["notes.txt"]


def test_seconds_add_up(tmp_path):
    progress = Progress.open(Quickstart(out=tmp_path / "q").sized())
    progress.run("tokenizer", lambda: time.sleep(0.01))
    assert progress.seconds() == progress.stages["tokenizer"]["seconds"] >= 0.01
