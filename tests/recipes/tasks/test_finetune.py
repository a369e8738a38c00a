"""`fmjax finetune --task`: what a run leaves, and that PyTorch's libraries read it alike."""

import json
import math
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers

HEADS = {
    "classification": transformers.AutoModelForSequenceClassification,
    "tagging": transformers.AutoModelForTokenClassification,
    "qa": transformers.AutoModelForQuestionAnswering,
    "embedding": transformers.AutoModel,
}


def load(task: str, directory: Path):
    """The transformers model, nothing missing, left over or newly made."""
    model, info = HEADS[task].from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def logits(model, directory: Path, *texts, **tokenization) -> np.ndarray:
    """Of each text by itself; pairs are two lists."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    rows = []
    for text in zip(*texts, strict=True):
        batch = tokenizer(*text, return_tensors="pt", **tokenization)
        if "type_vocab_size" not in model.config.to_dict():
            batch.pop("token_type_ids", None)
        with torch.no_grad():
            rows.append(model(**batch).logits[0].numpy())
    return np.stack(rows)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def scores(rows: list[dict]) -> np.ndarray:
    return np.array([list(row["scores"].values()) for row in rows])


def check_figures(run: Path, *names: str) -> dict:
    content = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    for value in content["metrics"].values():
        assert value is None or math.isfinite(value)
    for low, high in content["intervals"].values():
        assert low <= high
    assert set(names) <= content["metrics"].keys() and content["intervals"]
    assert "loss" in content["metrics"]
    for name in ("report.html", "picture.png", "model/config.json", "metrics.jsonl"):
        assert (run / name).stat().st_size > 0
    assert (run / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert list(run.glob("**/.incomplete*")) == []
    return content


FIGURES = {
    "classification": ("accuracy", "macro_f1"),
    "tagging": ("f1", "precision", "recall"),
    "qa": ("exact_match", "f1"),
    "embedding": ("mrr", "accuracy@1"),
}


@pytest.mark.parametrize("task", FIGURES)
def test_a_run_leaves_figures_pictures_and_a_model(trained, task):
    run = trained(task)
    content = check_figures(run, *FIGURES[task])
    assert content["task"] == task and content["best_step"] in (3, 6)
    assert content["settings"]["optimization"]["steps"] == 6
    load(task, run / "model")
    assert not (run / "adapter").exists()


def test_labels_are_those_of_the_data(trained):
    config = transformers.AutoConfig.from_pretrained(trained("classification") / "model")
    assert config.id2label == {0: "bad", 1: "good"}
    assert config.label2id == {"bad": 0, "good": 1}
    assert config.problem_type == "single_label_classification"
    config = transformers.AutoConfig.from_pretrained(trained("tagging") / "model")
    assert list(config.id2label.values()) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def test_scores_are_those_of_transformers(trained, files, reviews, predict):
    directory = trained("classification") / "model"
    got = scores(predict(directory, files["classification"]))
    expected = logits(load("classification", directory), directory, [r["text"] for r in reviews])
    np.testing.assert_allclose(got, softmax(expected), atol=1e-4)
    assert np.ptp(got) > 0.1


def test_several_labels(encoder, finetune, write, predict, reviews, tmp_path):
    kinds = {"good": "praise|human", "bad": ["blame"]}
    rows = [{"text": r["text"], "label": kinds[r["label"]]} for r in reviews]
    rows += [{"text": "a house", "label": ""}, {"text": "a sword", "label": []}]
    file = write(tmp_path / "x.jsonl", rows)
    run = finetune("classification", encoder, file, tmp_path / "run", "--problem multi")
    check_figures(run, "micro_f1", "subset_accuracy")
    model = load("classification", run / "model")
    assert list(model.config.id2label.values()) == ["blame", "human", "praise"]
    assert model.config.problem_type == "multi_label_classification"
    expected = logits(model, run / "model", [r["text"] for r in rows])
    answers = predict(run / "model", file, "--threshold", 0.4)
    np.testing.assert_allclose(scores(answers), 1 / (1 + np.exp(-expected)), atol=1e-4)
    for row in answers:
        assert row["label"] == [name for name, p in row["scores"].items() if p >= 0.4]


def test_numbers(encoder, finetune, write, predict, reviews, tmp_path):
    rows = [
        {"text": r["text"], "stars": 4.5 if r["label"] == "good" else i % 3}
        for i, r in enumerate(reviews)
    ]
    file = write(tmp_path / "x.jsonl", rows)
    flags = "--problem regression --label-column stars"
    run = finetune("classification", encoder, file, tmp_path / "run", flags)
    check_figures(run, "spearman", "pearson", "rmse")
    model = load("classification", run / "model")
    assert model.config.num_labels == 1 and model.config.problem_type == "regression"
    expected = logits(model, run / "model", [r["text"] for r in rows])[:, 0]
    got = [row["score"] for row in predict(run / "model", file)]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_pairs_of_texts(encoder, finetune, write, predict, tmp_path):
    rows = [
        {"text": f"{a} king", "second": f"a {b} river", "label": str(a == b).lower()}
        for a in ("good", "evil", "sad", "wise")
        for b in ("good", "evil", "sad", "wise")
    ]
    file = write(tmp_path / "x.jsonl", rows)
    flags = "--pair-column second"
    run = finetune("classification", encoder, file, tmp_path / "run", flags)
    check_figures(run, "accuracy")
    texts = [[r["text"] for r in rows], [r["second"] for r in rows]]
    expected = softmax(logits(load("classification", run / "model"), run / "model", *texts))
    got = scores(predict(run / "model", file, "--pair-column", "second"))
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_tags_are_those_of_transformers(trained, predict, write, verses, tmp_path):
    directory = trained("tagging") / "model"
    model = load("tagging", directory)
    texts = [" ".join(v["tokens"]) for v in verses]
    file = write(tmp_path / "x.jsonl", [{"text": t} for t in texts])
    names = list(model.config.id2label.values())
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    for row in predict(directory, file):
        words = row["text"].split()
        batch = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            found = model(**batch).logits[0].argmax(-1).tolist()
        ids = batch.word_ids(0)
        tags = [names[found[ids.index(i)]] for i in range(len(words))]
        inside = {i for i, tag in enumerate(tags) if tag != "O"}
        begins = np.cumsum([0, *(len(w) + 1 for w in words)])
        covered = {
            i
            for i in range(len(words))
            if any(e["start"] <= begins[i] < e["end"] for e in row["entities"])
        }
        assert covered == inside


def test_scored_pairs(encoder, finetune, write, pairs, tmp_path):
    rows = [
        {"sentence1": r["anchor"], "sentence2": r[k], "score": s}
        for i, r in enumerate(pairs)
        for k, s in (("positive", 5 - i % 3), ("negative", 0.5))
    ]
    file = write(tmp_path / "x.jsonl", rows)
    flags = "--text-column sentence1 --pair-column sentence2 --label-column score"
    run = finetune("embedding", encoder, file, tmp_path / "run", flags)
    check_figures(run, "spearman", "pearson")
    load("embedding", run / "model")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, raised by PEFT
@pytest.mark.parametrize("task", FIGURES)
def test_lora(encoder, decoder, finetune, files, task, tmp_path):
    """The adapter on the base gives what the merged model gives, of PEFT and transformers."""
    model_dir = decoder if task == "classification" else encoder
    flags = "--method lora --rank 2 --learning-rate 0.05"
    run = finetune(task, model_dir, files[task], tmp_path / "run", flags)
    check_figures(run, *FIGURES[task])
    merged = load(task, run / "model")
    labels = {} if task == "embedding" else {"num_labels": merged.config.num_labels}
    base = HEADS[task].from_pretrained(model_dir, **labels)
    if task == "classification":
        base.config.pad_token_id = merged.config.pad_token_id
    adapted = peft.PeftModel.from_pretrained(base, run / "adapter").eval()
    ids = torch.tensor([[5, 9, 17, 30, 41, 8]])
    with torch.no_grad():
        got, expected = adapted(ids), merged(ids)
    for name in ("logits", "start_logits", "end_logits", "last_hidden_state"):
        if name in expected:
            np.testing.assert_allclose(got[name], expected[name], atol=1e-4)
    assert (run / "adapter" / "adapter_model.safetensors").stat().st_size < 60_000
    plain = HEADS["embedding"].from_pretrained(model_dir).eval()
    bare = merged.base_model if task != "embedding" else merged
    with torch.no_grad():
        moved = plain(ids).last_hidden_state - bare(ids).last_hidden_state
    assert moved.abs().max() > 1e-3


@pytest.mark.parametrize("task", ["classification", "tagging", "qa", "embedding"])
def test_decoders(decoder, finetune, files, predict, task, tmp_path):
    run = finetune(task, decoder, files[task], tmp_path / "run", "--learning-rate 0.01")
    check_figures(run, *FIGURES[task])
    model = load(task, run / "model")
    if task == "classification":
        texts = [json.loads(line)["text"] for line in files[task].read_text().splitlines()]
        expected = softmax(logits(model, run / "model", texts))
        got = scores(predict(run / "model", files[task], "--batch-size", 16))
        np.testing.assert_allclose(got, expected, atol=1e-4)
