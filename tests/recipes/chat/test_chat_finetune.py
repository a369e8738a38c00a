"""`fmjax finetune --task sft` and `--task dpo`: what a run leaves, and how it goes on."""

import json
import warnings

import numpy as np
import peft
import pytest
import torch
import transformers

from fmjax.cli.main import main
from fmjax.data import encode_chat, load_tokenizer
from fmjax.data.tasks import read_conversations, stratified_split

pytestmark = pytest.mark.slow

PEOPLE = ("david", "saul", "ruth", "jesse", "joab", "abner", "moses", "aaron")
PLACES = ("bethel", "gibeon", "hebron", "shiloh")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Where everybody lives: an answer to learn, or to prefer to a rude one."""
    room = tmp_path_factory.mktemp("files")
    rows = {"sft": [], "dpo": []}
    for person in PEOPLE:
        for place in PLACES:
            prompt, right = f"where is {person} of {place} ?", f"in {place} ."
            rows["sft"].append({"prompt": prompt, "completion": right})
            rows["dpo"].append({"prompt": prompt, "chosen": right, "rejected": f"go to {place} !"})
    return {task: write(room / f"{task}.jsonl", rows[task]) for task in rows}


@pytest.fixture(scope="module")
def run(decoder, files):
    def run(task, out, flags="", model=None):
        small = "--steps 6 --batch-size 8 --max-length 64 --log-every 1 --valid-fraction 0.25"
        line = f"finetune --task {task} --model {model or decoder} --train {files[task]}"
        line += f" --out {out} {small} --learning-rate 0.02 --samples 2 --max-new-tokens 4 {flags}"
        return main(line.split())

    return run


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.parametrize("task", ["sft", "dpo"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run(task, method, run, decoder, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(task, out, f"--method {method}") == 0
    shown = capsys.readouterr().out
    assert "no chat template; a plain one is used and saved" in shown
    assert "32 rows, none left out" in shown and "8 to measure on" in shown
    content = json.loads((out / "metrics.json").read_text())
    metrics, before = content["metrics"], content["before"]
    assert metrics["loss"] < before["loss"] and len(content["samples"]) == 2
    assert shown.count("before: ") == 2 and "next: fmjax generate" in shown
    if task == "sft":
        np.testing.assert_allclose(metrics["perplexity"], np.exp(metrics["loss"]), rtol=1e-5)
        low, high = content["intervals"]["loss"]
        assert low < metrics["loss"] < high and 0 <= metrics["exact_match"] <= 1
    else:
        np.testing.assert_allclose(before["loss"], np.log(2), rtol=1e-4)
        low, high = content["intervals"]["accuracy"]
        assert 0 <= low <= metrics["accuracy"] <= high <= 1
        assert metrics["margin"] > abs(before["margin"]) + 1e-3
    # What transformers and PEFT make of it.
    target = out / ("model" if method == "full" else "adapter")
    base = target if method == "full" else decoder
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    if method == "lora":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, by peft's own code
            theirs = peft.PeftModel.from_pretrained(theirs, target)
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    prompt = [{"role": "user", "content": content["samples"][0]["prompt"]}]
    ids = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    ours = load_tokenizer(target).apply_chat_template(prompt, add_generation_prompt=True)
    assert ids[0].tolist() == ours
    with torch.no_grad():
        made = theirs.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    said = tokenizer.decode(made[0][len(ours) :], skip_special_tokens=True).strip()
    assert said == content["samples"][0]["after"]
    # And the command that is printed.
    line = ["generate", "--model", base, "--chat", "--prompt", prompt[0]["content"]]
    line += [] if method == "full" else ["--adapter", target]
    capsys.readouterr()
    assert main([str(word) for word in [*line, "--max-new-tokens", 4]]) == 0
    assert capsys.readouterr().out.strip() == said
    if method == "lora":
        line = ["merge", "--model", base, "--adapter", target, "--out", out / "merged"]
        assert main([str(word) for word in line]) == 0
        template = "chat_template.jinja"
        assert (out / "merged" / template).read_text() == (target / template).read_text()


def test_the_loss_is_that_of_transformers_over_each_conversation_alone(run, decoder, tmp_path):
    """With a learning rate of almost nothing, so that the result is the model that it began as."""
    assert run("sft", tmp_path / "run", "--steps 1 --learning-rate 1e-9 --samples 0") == 0
    content = json.loads((tmp_path / "run/metrics.json").read_text())
    rows = read_conversations(content["settings"]["examples"]["train"])
    held_out = rows.select(stratified_split([0] * len(rows), 0.25, 0)[1])
    tokenizer = load_tokenizer(tmp_path / "run/adapter")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(decoder)
    total, number = 0.0, 0
    for messages in held_out.messages:
        chat = encode_chat(tokenizer, messages)
        ids, answers = torch.tensor([chat.ids]), torch.tensor([chat.answers])
        with torch.no_grad():
            loss = theirs(input_ids=ids, labels=ids.where(answers > 0, -100)).loss
        total, number = total + loss.item() * sum(chat.answers), number + sum(chat.answers)
    np.testing.assert_allclose(content["before"]["loss"], total / number, rtol=1e-4)
    np.testing.assert_allclose(content["metrics"]["loss"], total / number, rtol=1e-4)


@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_a_run_goes_on(task, run, tmp_path, monkeypatch):
    assert run(task, tmp_path / "whole", "--eval-every 2") == 0
    from fmjax.train import signals

    class Stop(signals.StopRequest):
        def __call__(self, step):
            return step == 3

    monkeypatch.setattr("fmjax.train.loop.StopRequest", Stop)
    assert run(task, tmp_path / "cut", "--eval-every 2") == 130
    assert not (tmp_path / "cut/adapter").exists()
    monkeypatch.undo()
    assert run(task, tmp_path / "cut", "--eval-every 2") == 0
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for name in ("metrics", "samples", "best_step"):
        a, b = (json.loads((tmp_path / d / "metrics.json").read_text()) for d in ("cut", "whole"))
        assert a[name] == b[name]
    if task == "sft":  # a finished run, again
        assert run(task, tmp_path / "cut", "--eval-every 2") == 0
        again = json.loads((tmp_path / "cut/metrics.json").read_text())
        assert again["metrics"] == a["metrics"]


def test_a_mesh_and_accumulation_change_nothing(run, tmp_path):
    few = "--steps 2 --samples 0"
    assert run("dpo", tmp_path / "one", f"{few} --mesh data=8") == 0
    assert run("dpo", tmp_path / "two", f"{few} --mesh data=2,fsdp=2,tensor=2 --accumulate 2") == 0
    first, second = losses(tmp_path / "one"), losses(tmp_path / "two")
    np.testing.assert_allclose(list(first.values()), list(second.values()), rtol=1e-3)


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        ("sft", "--samples -1", "--samples must be 0 or more"),
        ("sft", "--batch-size 0", "--batch-size 0 must be at least 1"),
        ("sft", "--max-length 4", "within 4 tokens none of 24 conversations"),
        ("dpo", "--max-length 4", "within 4 tokens no pair"),
        ("dpo", "--beta 0", "beta=0.0 must be above 0"),
        ("dpo", "--loss ipo --label-smoothing 0.1", "label_smoothing is not for 'ipo'"),
        ("dpo", "--valid nowhere.jsonl", "nowhere.jsonl: no such file"),
    ],
)
def test_errors(task, flags, message, run, tmp_path, capsys):
    assert run(task, tmp_path / "run", flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error, error
    assert not (tmp_path / "run").exists()


def test_files_of_the_other_task_and_encoders(run, files, tmp_path, capsys):
    assert run("sft", tmp_path / "run", f"--train {files['dpo']}") == 2
    assert "line 1: no conversation among the fields prompt, chosen" in capsys.readouterr().err
    assert run("dpo", tmp_path / "run", f"--train {files['sft']}") == 2
    assert 'no field "chosen"' in capsys.readouterr().err


def test_help(capsys):
    for flags in (["--task=sft"], ["--task", "dpo"]):
        with pytest.raises(SystemExit) as stopped:
            main(["finetune", *flags, "--help"])
        assert stopped.value.code == 0
        shown = capsys.readouterr().out
        assert "--samples" in shown and ("--beta" in shown) == (flags[-1] == "dpo")
