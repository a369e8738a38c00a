"""Tiny models with tokenizers, tiny files for every task, and the command line as functions."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import pytest

import fmjax
from fmjax.cli.main import main
from fmjax.data import load_corpus, train_sentencepiece
from fmjax.data.wordpiece import train_wordpiece
from fmjax.models.bert.config import BertConfig
from fmjax.models.llama.config import LlamaConfig

PEOPLE = ("david", "saul", "ruth", "jesse", "joab", "abner")
PLACES = ("bethel", "gibeon", "hebron", "shiloh")
NOUNS = ("king", "house", "vineyard", "river", "altar", "sword")
KEEP_UP = {"good": ("good", "glad", "wise"), "bad": ("evil", "sad", "foolish")}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """Writes rows as JSON lines."""
    return _write


@pytest.fixture(scope="session")
def reviews() -> list[dict[str, Any]]:
    """36 texts of which one word tells the class; all different."""
    return [
        {"text": f"the {word} {noun} of {person}", "label": label}
        for (label, words) in KEEP_UP.items()
        for i, word in enumerate(words)
        for noun, person in zip(NOUNS, PEOPLE[i:] + PEOPLE[:i], strict=True)
    ]


@pytest.fixture(scope="session")
def verses() -> list[dict[str, Any]]:
    """24 sentences with people and places."""
    return [
        {
            "tokens": ["then", person, "went", "to", place, "."],
            "tags": ["O", "B-PER", "O", "O", "B-LOC", "O"],
        }
        for person in PEOPLE
        for place in PLACES
    ]


@pytest.fixture(scope="session")
def questions() -> list[dict[str, Any]]:
    """24 questions, each answered by one word of its context."""
    rows = []
    for i, person in enumerate(PEOPLE):
        for place in PLACES:
            context = f"In those days {person} dwelt in {place}, and {NOUNS[i]} was near."
            answers = {"text": [place], "answer_start": [context.index(place)]}
            rows.append(
                {"question": f"where dwelt {person} ?", "context": context, "answers": answers}
            )
    return rows


@pytest.fixture(scope="session")
def pairs() -> list[dict[str, Any]]:
    """24 pairs of texts that share a person and a place, with a text that does not belong."""
    return [
        {
            "anchor": f"where is {person} of {place}",
            "positive": f"{person} is in {place}",
            "negative": f"a {noun}",
        }
        for person, noun in zip(PEOPLE, NOUNS, strict=True)
        for place in PLACES
    ]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory, reviews, verses, questions, pairs) -> Path:
    """A random BERT for masked words, with its tokenizer; without dropout."""
    out = tmp_path_factory.mktemp("encoder")
    rows = [*reviews, *verses, *questions, *pairs]
    words = " ".join(
        " ".join(v) if isinstance(v, list) else v
        for row in rows
        for v in row.values()
        if not isinstance(v, dict)
    )
    tokenizer = train_wordpiece([words, *load_corpus("kjv")[:3]], None, 320)
    config = BertConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
        head="masked-lm",
    )
    model = fmjax.build(config)
    params = fmjax.init_params(model, jax.random.key(0))
    fmjax.save_pretrained(out, model, params, tokenizer)
    return out


@pytest.fixture(scope="session")
def decoder(tmp_path_factory) -> Path:
    """A random LLaMA with its tokenizer."""
    out = tmp_path_factory.mktemp("decoder")
    tokenizer = train_sentencepiece(load_corpus("kjv")[:8], out / "tokenizer", 320)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = fmjax.build(config)
    params = fmjax.init_params(model, jax.random.key(0))
    fmjax.save_pretrained(out / "model", model, params, tokenizer)
    return out / "model"


@pytest.fixture(scope="session")
def arguments() -> Callable[..., list[str]]:
    """The command line of a small run; the last of equal flags counts."""

    def make(task: str, model: Path, train: Path, out: Path, *flags: Any) -> list[str]:
        small = "--steps 3 --batch-size 8 --max-length 32 --log-every 1 --valid-fraction 0.3"
        line = f"finetune --task {task} --model {model} --train {train} --out {out} {small}"
        return [*line.split(), *(word for flag in flags for word in str(flag).split())]

    return make


@pytest.fixture(scope="session")
def finetune(arguments) -> Callable[..., Path]:
    """Runs it to its end and gives its directory."""

    def run(task: str, model: Path, train: Path, out: Path, *flags: Any) -> Path:
        assert main(arguments(task, model, train, out, *flags)) == 0
        return out

    return run


@pytest.fixture
def predict(tmp_path) -> Callable[..., list[dict[str, Any]]]:
    """Answers to an input, by way of a file."""

    def run(model: Path, source: Path | str, *flags: Any) -> list[dict[str, Any]]:
        out = tmp_path / "answers.jsonl"
        words = [str(word) for word in flags]
        line = ["predict", "--model", model, "--input", source, "--output", out, *words]
        assert main([str(word) for word in line]) == 0
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]

    return run


@pytest.fixture(scope="session")
def files(tmp_path_factory, reviews, verses, questions, pairs) -> dict[str, Path]:
    """A .jsonl file to train on, for each task."""
    room = tmp_path_factory.mktemp("files")
    rows = {"classification": reviews, "tagging": verses, "qa": questions, "embedding": pairs}
    return {task: _write(room / f"{task}.jsonl", rows[task]) for task in rows}


@pytest.fixture(scope="session")
def trained(tmp_path_factory, encoder, files, finetune) -> Callable[[str], Path]:
    """The directory of a finished run of each task, made when it is first asked for."""
    room, runs = tmp_path_factory.mktemp("runs"), {}

    def get(task: str) -> Path:
        if task not in runs:
            flags = "--steps 6 --learning-rate 0.02 --eval-every 3"
            runs[task] = finetune(task, encoder, files[task], room / task, flags)
        return runs[task]

    return get


@pytest.fixture
def fails(capsys) -> Callable[..., None]:
    """Runs a command line that must fail with one line on stderr that holds every fragment."""

    def check(arguments, *fragments: str) -> None:
        capsys.readouterr()  # of runs before it
        assert main([str(a) for a in arguments]) == 2, capsys.readouterr().err
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        for fragment in fragments:
            assert str(fragment) in error, error

    return check
