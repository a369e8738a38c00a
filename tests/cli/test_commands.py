"""Every command on something small."""

import dataclasses
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from quick import environ

import fmjax
from fmjax import peft
from fmjax.cli.console import command_line
from fmjax.cli.generate import Generate
from fmjax.cli.main import COMMANDS, VARIANTS, _parse, _resolve, main
from fmjax.generate import stream
from fmjax.recipes import Cadence, Data, Optimization, Pretrain


def log(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def with_steps(arguments, steps):
    """The same command line with another number of steps; the last flag counts."""
    return [*arguments, "--steps", str(steps)]


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"fmjax {name}" in text


def undocumented(kind) -> list[str]:
    """Fields of a dataclass, and of those inside it, that its docstring does not explain."""
    found = []
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            found += undocumented(field.type)
        elif f"      {field.name}: " not in kind.__doc__:
            found.append(field.name)
    return found


@pytest.mark.parametrize("place", [*COMMANDS.values(), *VARIANTS.values()])
def test_every_flag_is_explained(place):
    assert not undocumented(_resolve(place))


@pytest.mark.parametrize(("name", "flag"), VARIANTS)
def test_help_of_tasks(name, flag, capsys):
    """The flag alone turns the help to the task's; with a value, too."""
    kind = _resolve(VARIANTS[name, flag])
    value = "mae" if flag == "--objective" else "classification"
    for arguments in ([flag, value], [f"{flag}={value}"]):
        with pytest.raises(SystemExit) as stopped:
            main([name, *arguments, "--help"])
        assert stopped.value.code == 0
        assert " ".join(kind.__doc__.split()[:6]) in " ".join(capsys.readouterr().out.split())


def test_overview_and_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(f"• {name}" in text for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fmjax {fmjax.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["train"], ["train", "--stpes", "3"]])
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err


def test_help_imports_no_jax():
    code = (
        "import sys\nfrom fmjax.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print(sorted({'jax', 'numpy', 'flax', 'matplotlib'} & set(sys.modules)))"
    )
    for arguments in (["--help"], ["train", "--help"], ["quickstart", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]"


def test_exit_codes_of_the_process(tmp_path):
    command = [sys.executable, "-m", "fmjax", "eval", "--model", "no", "--data", "kjv"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_command_lines_parse_to_what_they_were_made_from():
    options = Pretrain(
        model="gpt2",
        out=Path("runs/a b"),
        data=Data(data=("kjv", "my $text.txt"), weights=(0.5, 2.0)),
        override=("n_layer=2",),
        optimization=Optimization(steps=7, schedule="wsd", learning_rate=1e-4),
        cadence=Cadence(tensorboard=True),
    )
    for wrap in (False, True):
        line = command_line("train", options, wrap).replace("\\\n", "")  # as a shell does
        assert _parse(shlex.split(line)[1:]) == options
    generate = Generate(model=Path("m"), prompt=("It's",), adapter=Path("a"), temperature=0.0)
    assert _parse(shlex.split(command_line("generate", generate))[1:]) == generate


def test_tokenizer(text, tmp_path, capsys):
    assert main(f"tokenizer --data {text} --out {tmp_path / 't'} --vocab-size 330".split()) == 0
    assert "330 ids" in capsys.readouterr().out
    assert fmjax.load_tokenizer(tmp_path / "t").vocab_size == 330


def test_tokenizer_of_clip(text, tmp_path, capsys, fails):
    line = ["tokenizer", "--kind", "clip", "--data", text, "--out", tmp_path / "t"]
    fails([*line, "--cased"], "--cased: --kind clip has words in lower case only")
    fails([*line, "--vocab-size", 513], "513 is too small", "514")
    assert not (tmp_path / "t").exists()
    assert main([str(a) for a in [*line, "--vocab-size", 520]]) == 0
    assert "520 ids" in capsys.readouterr().out
    tokenizer = fmjax.load_tokenizer(tmp_path / "t")
    assert tokenizer.vocab_size == 520
    ids = tokenizer.encode("The Day")
    assert ids == tokenizer.encode("the day")
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id) == (518, 519)


@pytest.mark.slow
def test_train_exports_and_goes_on(train_args, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*train_args, "--mesh", "fsdp=2,tensor=1"]) == 0
    out = capsys.readouterr().out
    assert str(run / "model") in out and "data 4 × fsdp 2" in out
    model, params = fmjax.from_pretrained(run / "model")
    assert model.config.hidden_size == 16 and model.config.head_dim == 8
    assert model.config.vocab_size == 320
    assert fmjax.load_tokenizer(run / "model").vocab_size == 320
    records = log(run)
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3]
    assert [r["step"] for r in records if "eval_loss" in r] == [2, 3]
    # The same command again has nothing left to train, on whatever mesh.
    assert main(train_args) == 0
    assert log(run) == records
    # More steps go on from the checkpoint; from the weights alone a new run begins.
    assert main(with_steps(train_args, 5)) == 0
    assert [r["step"] for r in log(run) if "loss" in r] == [1, 2, 3, 4, 5]


def test_train_goes_on_from_a_model_directory(model_dir, text, tmp_path, fails, capsys):
    run = tmp_path / "run"
    arguments = f"""train --model {model_dir} --data {text} movie_reviews --weights 3 1
        --out {run} --batch-size 8 --sequence-length 16 --steps 2 --learning-rate 0
        --eval-batches 1 --dtype bfloat16 --accumulate 1 --schedule constant --tensorboard"""
    assert main(arguments.split()) == 0
    _, before = fmjax.from_pretrained(model_dir)
    _, after = fmjax.from_pretrained(run / "model")
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert list((run / "tensorboard").iterdir())
    # The run itself goes on only from the weights that it began with.
    other, params = tmp_path / "other", jax.tree.map(lambda x: -x, before)
    fmjax.save_pretrained(other, fmjax.from_pretrained(model_dir)[0], params, carry_from=model_dir)
    capsys.readouterr()
    fails(arguments.replace(str(model_dir), str(other)).split(), "weights_at_the_start")
    assert main(arguments.split()) == 0


@pytest.mark.slow
def test_lora_then_merge_eval_and_generate(finetune_args, model_dir, text, tmp_path, capsys):
    adapter, merged = tmp_path / "run" / "adapter", tmp_path / "merged"
    assert main(finetune_args) == 0
    assert main(f"merge --model {model_dir} --adapter {adapter} --out {merged}".split()) == 0
    capsys.readouterr()
    figures = []
    for choice in (f"{model_dir} --adapter {adapter}", f"{merged}", f"{model_dir}"):
        command = f"eval --model {choice} --data {text} --sequence-length 16 --json"
        assert main(command.split()) == 0
        figures.append(json.loads(capsys.readouterr().out)[str(text)])
    with_adapter, folded, base = figures
    assert with_adapter["per_token"] == pytest.approx(folded["per_token"], rel=1e-5)
    assert with_adapter["nats"] < base["nats"] - 1e-3
    assert base["nbytes"] == sum(len(part) for part in text.read_text().rstrip("\n").split("\n\n"))

    model, params = fmjax.from_pretrained(model_dir)
    tokenizer = fmjax.load_tokenizer(model_dir)
    _, loaded = peft.load(adapter, model, params)
    variables, ids = {"params": params, "adapter": loaded}, tokenizer.encode("In the")
    settings = {"max_new_tokens": 6, "tokenizer": tokenizer}
    expected = fmjax.generate(model, variables, [ids], **settings).texts[0]
    streamed = "".join(stream(model, variables, ids, **settings))
    command = f"generate --model {model_dir} --adapter {adapter} --max-new-tokens 6".split()
    assert main([*command, "--prompt", "In the"]) == 0
    assert capsys.readouterr().out == f"In the{streamed}\n"
    assert main([*command, "--json", "--samples", "2", "--prompt", "In the", "God"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["prompt"] for r in rows] == ["In the", "In the", "God", "God"]
    assert rows[0]["text"] == expected


def test_full_finetuning(finetune_args, model_dir, tmp_path):
    assert main([*finetune_args, "--method", "full"]) == 0
    _, before = fmjax.from_pretrained(model_dir)
    _, after = fmjax.from_pretrained(tmp_path / "run" / "model")
    assert not np.array_equal(
        before["embed_tokens"]["embedding"], after["embed_tokens"]["embedding"]
    )


def test_eval_table(model_dir, text, capsys):
    arguments = f"eval --model {model_dir} --data {text} --sequence-length 16"
    assert main(arguments.split()) == 0
    assert "bits per byte" in " ".join(capsys.readouterr().out.split())


def test_prompt_from_standard_input(model_dir, monkeypatch, capsys):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("And God"))
    assert main(f"generate --model {model_dir} --max-new-tokens 2".split()) == 0
    assert capsys.readouterr().out.startswith("And God")


def test_convert(model_dir, tmp_path, capsys):
    out = tmp_path / "half"
    assert main(f"convert --model {model_dir} --out {out} --dtype bfloat16".split()) == 0
    assert "bfloat16" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert fmjax.load_tokenizer(out).vocab_size == 320


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "8 × cpu" in text and "GFLOP/s" in text and f"jax {jax.__version__}" in text


@pytest.mark.slow
def test_a_stopped_run_saves_and_goes_on(train_args, tmp_path):
    run = tmp_path / "run"
    arguments = with_steps(train_args, 100_000)
    arguments += ["--eval-every", "0", "--schedule", "constant"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fmjax", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ(8),
    )  # fmt: skip
    deadline = time.time() + 120
    while not (run / "metrics.jsonl").exists() or len(log(run)) < 3:
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "goes on from there" in out
    assert not (run / "model").exists()
    last = log(run)[-1]["step"]
    assert main(with_steps(arguments, last + 2)) == 0
    assert [r["step"] for r in log(run)] == list(range(1, last + 3))
    assert (run / "model" / "config.json").is_file()


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param("--method qlora --moments int8", marks=pytest.mark.slow),
        "--method dora",
        "--method prefix --virtual-tokens 3 --projection",
        "--method prompt --virtual-tokens 3 --prompt-text In",
        "--method ptuning --virtual-tokens 3",
        "--method ia3",
    ],
)
def test_methods(flags, finetune_args, model_dir, text, tmp_path, capsys):
    assert main([*finetune_args, *flags.split()]) == 0
    next_line = capsys.readouterr().out.partition("next: fmjax ")[2].splitlines()[0]
    words = [word for word in next_line.split() if not word.startswith('"')]
    words = [word for word in words if word not in ("--temperature", "0.8")]
    assert main([*words, "In the", "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out.startswith("In the")
    adapted = f"{model_dir} --adapter {tmp_path / 'run' / 'adapter'}"
    adapted += " --quantize nf4" if "qlora" in flags else ""
    nats = []
    for choice in (adapted, f"{model_dir}"):
        command = f"eval --model {choice} --data {text} --sequence-length 16 --json"
        assert main(command.split()) == 0
        nats.append(json.loads(capsys.readouterr().out)[str(text)]["nats"])
    assert nats[0] != nats[1]
    if "--virtual-tokens" in flags:
        limit = fmjax.hub.read_config(model_dir)["max_position_embeddings"]
        command = f"eval --model {adapted} --data {text} --sequence-length {limit - 2}"
        assert main(command.split()) == 2
        assert f"beside 3 virtual tokens; use {limit - 3} or less" in capsys.readouterr().err
