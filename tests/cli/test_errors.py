"""Bad input: one line that names the thing and the remedy, exit code 2, nothing left behind."""

import dataclasses
import errno
import json
import shutil

import pytest

from fmjax.cli.main import experiment, explain, main
from fmjax.core.errors import CheckpointError


def replaced(arguments, flag, *values):
    """The same command line with other values behind a flag."""
    start = arguments.index(flag) + 1
    end = next((i for i in range(start, len(arguments)) if arguments[i].startswith("--")), None)
    rest = [] if end is None else arguments[end:]
    return [*arguments[:start], *map(str, values), *rest]


@pytest.fixture
def broken_model(model_dir, tmp_path):
    """A copy of the model directory, to be damaged."""
    return shutil.copytree(model_dir, tmp_path / "broken")


def change_config(directory, **changes):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_missing_text(fails, train_args, tmp_path):
    fails(replaced(train_args, "--data", "no.txt"), "no.txt: no such file", "kjv, movie_reviews")
    assert not (tmp_path / "run").exists()


def test_no_text(fails, train_args, tmp_path):
    fails(replaced(train_args, "--data"), "--data names no text")
    fails(["tokenizer", "--data", "--out", tmp_path / "run"], "--data names no text")
    assert not (tmp_path / "run").exists()


def test_empty_text(fails, train_args, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    fails(replaced(train_args, "--data", empty), "empty.txt", "give a file with text")
    fails(["tokenizer", "--data", empty, "--out", tmp_path / "run"], "empty.txt")
    assert not (tmp_path / "run").exists()


def test_broken_json_line(fails, train_args, tmp_path):
    lines = tmp_path / "x.jsonl"
    lines.write_text('{"text": "a"}\n{"text": \n')
    fails(replaced(train_args, "--data", lines), "x.jsonl, line 2: not valid JSON")
    lines.write_text('{"body": "a"}\n')
    fails(replaced(train_args, "--data", lines), 'no field "text"', "body")


@pytest.mark.parametrize("command", ["train", "generate"])
def test_a_seed_of_more_than_64_bits(fails, train_args, command, tmp_path):
    options = {"train": train_args, "generate": ["generate", "--model", "m", "--prompt", "a"]}
    fails([*options[command], "--seed", 2**63], f"--seed {2**63} does not fit into 64 bits")
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit(fails, train_args):
    fails([*train_args, "--weights", 1, 2], "2 weights for 1 sources")


def test_nothing_held_out(fails, train_args, tmp_path):
    one = tmp_path / "one.txt"
    one.write_text("a single document\n")
    fails(replaced(train_args, "--data", one), "--eval-data", "--eval-every 0")


def test_missing_model(fails, tmp_path, text):
    fails(["eval", "--model", tmp_path / "no", "--data", text], "no: no such directory")
    fails(["eval", "--model", "maker/model", "--data", text], "hf download maker/model")
    fails(
        ["train", "--model", "gtp2", "--data", text, "--out", tmp_path / "run"], "gtp2", "gpt2-xl"
    )
    fails(
        ["train", "--model", "gpt2", "--data", text, "--out", tmp_path / "run"],
        "has no tokenizer of its own",
        "--tokenizer DIR",
    )
    assert not (tmp_path / "run").exists()


def test_truncated_weights(fails, broken_model, finetune_args, text, tmp_path):
    file = broken_model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    fails(["eval", "--model", broken_model, "--data", text, "--sequence-length", 16],
          "model.safetensors")  # fmt: skip
    fails(replaced(finetune_args, "--model", broken_model), "model.safetensors")
    fails(["convert", "--model", broken_model, "--out", tmp_path / "out"], "model.safetensors")
    assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()


def test_pickled_weights(fails, broken_model, finetune_args, tmp_path):
    (broken_model / "model.safetensors").rename(broken_model / "pytorch_model.bin")
    fails(replaced(finetune_args, "--model", broken_model), "pickle", "pytorch_model.bin")
    assert not (tmp_path / "run").exists()


def test_unknown_architecture(fails, broken_model, text, tmp_path):
    change_config(broken_model, model_type="perceiver")
    fails(["eval", "--model", broken_model, "--data", text], "perceiver", "fmjax reads")
    config = broken_model / "config.json"
    fails(["train", "--model", config, "--data", text, "--out", tmp_path / "run"], "perceiver")
    assert not (tmp_path / "run").exists()


def test_unsupported_config_value(fails, broken_model, text):
    change_config(broken_model, rope_parameters={"rope_type": "spiral", "rope_theta": 1e4})
    fails(["generate", "--model", broken_model, "--prompt", "x"], "spiral")
    change_config(broken_model, rope_parameters=None, quantization_config={"bits": 4})
    fails(["eval", "--model", broken_model, "--data", text], "quantization_config")


def test_tokenizer_that_does_not_fit(fails, broken_model, finetune_args, train_args, tmp_path):
    from fmjax.data import load_corpus, train_sentencepiece

    other = tmp_path / "other"
    train_sentencepiece(load_corpus("kjv")[:3], other, 400)
    for name in ("tokenizer.json", "tokenizer.model"):
        shutil.copy(other / name, broken_model / name)
    fails(replaced(finetune_args, "--model", broken_model), "400 ids", "vocab_size is 320")
    fails(["generate", "--model", broken_model, "--prompt", "x"], "400 ids")
    override = [*train_args[train_args.index("--override") + 1 :][:5], "vocab_size=300"]
    fails(replaced(train_args, "--override", *override), "320 ids", "vocab_size=320")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "mesh, fragment",
    [
        ("data=3", "does not divide the 8 devices"),
        ("rows=2", "no axis 'rows'; there are stage, data, fsdp"),
        ("data", "write axis=number"),
        ("data=2,stage=4", "'layers' of size 2 does not divide over stage=4"),
    ],
)
def test_mesh(fails, train_args, tmp_path, mesh, fragment):
    fails([*train_args, "--mesh", mesh], fragment)
    assert not (tmp_path / "run").exists()


def test_rules(fails, train_args, tmp_path):
    fails([*train_args, "--rules", "fsdp"], "--rules fsdp need a mesh")
    mesh = [*train_args, "--mesh", "fsdp=8"]
    fails([*mesh, "--rules", "fsdb"], "no list 'fsdb'; there are ddp, zero1, fsdp, tensor")
    fails([*mesh, "--rules", "fsdp,mlp=row"], "no mesh axis 'row'; there are stage, data, fsdp")
    fails([*train_args, "--mesh", "tensor=8", "--rules", "fsdp"], "leave tensor of --mesh tensor=8")
    assert not (tmp_path / "run").exists()


def test_batch_that_does_not_divide(fails, train_args, finetune_args, model_dir, text, tmp_path):
    fails(replaced(train_args, "--batch-size", 6), "--batch-size", "multiple of 8")
    fails([*train_args, "--accumulate", 3], "accumulate=3", "multiple of 24")
    fails(replaced(finetune_args, "--batch-size", 6), "multiple of 8")
    fails(["eval", "--model", model_dir, "--data", text, "--batch-size", 6,
           "--sequence-length", 16], "multiple of 8")  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_numbers_out_of_range(fails, train_args, tmp_path):
    fails(replaced(train_args, "--steps", 0), "--steps 0")
    fails(replaced(train_args, "--log-every", 0), "--log-every 0")
    fails([*train_args, "--warmup", 9], "warm-up", "3 steps")
    fails(replaced(train_args, "--sequence-length", 4096), "4096", "context of 2048")
    assert not (tmp_path / "run").exists()


def test_override(fails, train_args, finetune_args, model_dir):
    fails(replaced(train_args, "--override", "hiden_size=16"), "hiden_size", "hidden_size")
    fails(replaced(train_args, "--override", "hidden_size"), "write field=value")
    fails(replaced(train_args, "--model", model_dir), "--override", "config.json")


def test_lora_that_fits_nothing(fails, finetune_args, tmp_path):
    fails([*finetune_args, "--targets", "c_attn"], "c_attn", "q_proj")
    fails([*finetune_args, "--rank", 0], "rank 0")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_checkpoint_of_another_run(fails, train_args, tmp_path, capsys):
    assert main(train_args) == 0
    capsys.readouterr()
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert main([*train_args, "--learning-rate", "0.5"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "optimization.learning_rate = 0.0003" in error and "another directory" in error
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert main(train_args) == 0  # the run itself is intact


def test_run_directory_that_is_a_file(fails, train_args, tmp_path):
    (tmp_path / "run").write_text("mine")
    fails(train_args, "is a file")
    assert (tmp_path / "run").read_text() == "mine"


def test_generation_settings(fails, model_dir):
    prompt = ["generate", "--model", model_dir, "--prompt", "In"]
    fails([*prompt, "--top-p", 2], "top_p")
    fails([*prompt, "--samples", 0], "--samples 0")
    fails([*prompt, "--max-new-tokens", 0], "max_new_tokens")
    fails([*prompt, "--chat"], "no chat template")
    fails([*prompt, "--adapter", model_dir], "adapter_config.json")


def test_quickstart_settings(fails, tmp_path):
    out = tmp_path / "q"
    fails(["quickstart", "--out", out, "--hidden-size", 100], "multiple of 32")
    fails(["quickstart", "--out", out, "--steps", 0], "--steps 0")
    assert not out.exists()
    (out / "pretrain").mkdir(parents=True)
    fails(["quickstart", "--out", out], "no quickstart left there", "--out")


def test_other_exceptions_are_one_line_too():
    full = OSError(errno.ENOSPC, "No space left on device", "x/y")
    assert explain(full) == (2, "the disk is full (x/y); make room and run again")
    code, text = explain(PermissionError(errno.EACCES, "Permission denied", "x"))
    assert code == 2 and text.startswith("x: Permission denied")
    code, text = explain(RuntimeError("RESOURCE_EXHAUSTED: out of memory"))
    assert code == 2 and "--batch-size" in text
    assert explain(KeyboardInterrupt())[0] == 130
    code, text = explain(ZeroDivisionError("division by zero"))
    assert code == 1 and "bug" in text and "--debug" in text


def test_full_disk_while_exporting(train_args, monkeypatch, capsys, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fmjax.hub.files.write_weights", full)
    assert main(train_args) == 2
    assert "cannot write" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.undo()
    assert main(train_args) == 0  # only the export is left to do
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_debug_shows_the_traceback(capsys, tmp_path, text):
    command = ["eval", "--model", str(tmp_path / "no"), "--data", str(text)]
    assert main(command) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main([*command, "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and CheckpointError.__name__ in error
    assert error.splitlines()[-1].startswith("error: ")


@dataclasses.dataclass(frozen=True)
class _Settings:
    size: int = 1


@pytest.mark.parametrize(
    "words, size",
    [
        ("", 1),
        ("--scale large", 9),
        ("--scale=large", 9),
        ("--size 3 --scale large", 3),
        ("--scale small --size 3", 3),
    ],
)
def test_scales(words, size):
    seen = []
    scales = {"small": _Settings(2), "large": _Settings(9)}
    assert experiment(_Settings(), "Says.", seen.append, words.split(), scales) == 0
    assert seen == [_Settings(size)]


@pytest.mark.parametrize("words", ["--scale huge", "--scale=huge", "--scale", "--scale --size 3"])
def test_unknown_scale(words, capsys):
    seen = []
    assert experiment(_Settings(), "Says.", seen.append, words.split(), {"large": _Settings()}) == 2
    assert "no such scale; choose one of large" in capsys.readouterr().err and not seen


def test_scales_are_in_the_help(capsys):
    with pytest.raises(SystemExit):
        experiment(_Settings(), "Says.", print, ["--help"], {"v5e-8": _Settings()})
    assert "--scale NAME" in (out := capsys.readouterr().out) and "v5e-8" in out
    # Without scales it is a flag like any other that does not exist.
    with pytest.raises(SystemExit):
        experiment(_Settings(), "Says.", print, ["--scale", "v5e-8"])
