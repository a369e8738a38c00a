"""Encoders learn to fill gaps: the loss falls, a stopped run goes on, transformers loads it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import fmjax
from fmjax.core.errors import ConfigError, TokenizerError
from fmjax.data import load_corpus, load_tokenizer, train_sentencepiece, train_wordpiece
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.masked_lm import IGNORE, MaskedLM
from fmjax.recipes import Cadence, Data, Masking, Optimization, Pretrain
from fmjax.recipes.models import resolve
from fmjax.recipes.objective import choose, masked_summary, unigram_baseline
from fmjax.recipes.training import Run
from fmjax.train.flops import matmul_params, train_flops_per_token

pytestmark = pytest.mark.slow

SMALL = (
    "hidden_size=32", "intermediate_size=64", "num_hidden_layers=2", "num_attention_heads=2",
    "max_position_embeddings=40",
)  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "verses.txt"
    path.write_text("\n\n".join(chapter[:400] for chapter in load_corpus("kjv")[:40]))
    return path


@pytest.fixture(scope="module")
def tokenizer_dir(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("wordpiece")
    train_wordpiece([text], out, 300)
    return out


@pytest.fixture
def settings(text, tokenizer_dir, tmp_path):
    return Pretrain(
        model="bert-base",
        out=tmp_path / "run",
        data=Data(data=(str(text),), batch_size=8, sequence_length=32, eval_fraction=0.2),
        tokenizer=str(tokenizer_dir),
        override=SMALL,
        optimization=Optimization(steps=4, learning_rate=3e-3, warmup=1),
        cadence=Cadence(eval_every=2, eval_batches=2, log_every=1, checkpoint_every=2),
    )


def log(settings, *names):
    """Those metrics of a run's log, in order."""
    lines = map(json.loads, (settings.out / "metrics.jsonl").read_text().splitlines())
    return [tuple(line[n] for n in names) for line in lines if names[0] in line]


def changed(settings, **optimization):
    new = dataclasses.replace(settings.optimization, **optimization)
    return dataclasses.replace(settings, optimization=new)


@pytest.fixture(scope="module")
def topics(tmp_path_factory):
    """Documents of one word each, and their tokenizer: a gap follows from the tokens around it."""
    words = "light light heaven earth day night water land grass tree sun moon fish man".split()
    home = tmp_path_factory.mktemp("topics")
    (home / "topics.txt").write_text("\n\n".join(" ".join([word] * 12) for word in words * 12))
    train_wordpiece([home / "topics.txt"], home / "tokenizer", 64)
    return home


@pytest.mark.parametrize("model", ["bert-base", "roberta-base"])
def test_a_run(settings, topics, model, capsys):
    """It beats the unigram in loss and accuracy; transformers computes the same logits."""
    data = dataclasses.replace(settings.data, data=(str(topics / "topics.txt"),))
    settings = dataclasses.replace(
        settings, model=model, data=data, tokenizer=str(topics / "tokenizer")
    )
    long = changed(settings, steps=80, learning_rate=1e-2, warmup=10)
    sparse = Cadence(eval_every=80, eval_batches=4, log_every=40, checkpoint_every=1000)
    long = dataclasses.replace(long, cadence=sparse, masking=Masking(0.2, whole_words=True))
    assert long.run()
    ((loss, accuracy, other, top),) = log(
        long, "eval_loss", "eval_accuracy", "eval_unigram_loss", "eval_unigram_accuracy"
    )
    assert loss < other and 0 < top < accuracy
    said = (
        f"masked accuracy {accuracy:.3f} (most frequent token: {top:.3f}), "
        f"loss {loss:.3f} (unigram {other:.3f})"
    )
    out = capsys.readouterr().out
    assert said in out and "fill-mask" in out
    assert said == masked_summary(
        {"loss": loss, "accuracy": accuracy}, {"loss": other, "accuracy": top}
    )
    # With nothing left to train, the same figures are measured again.
    assert long.run()
    assert said in capsys.readouterr().out

    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    theirs = AutoModelForMaskedLM.from_pretrained(long.out / "model").eval()
    ids = AutoTokenizer.from_pretrained(long.out / "model")("day [MASK] day night")["input_ids"]
    assert ids == load_tokenizer(long.out / "model").encode("day [MASK] day night")
    ours, params = fmjax.from_pretrained(long.out / "model")
    logits = ours.apply({"params": params}, input_ids=np.array([ids])).logits
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([ids])).logits
    np.testing.assert_allclose(logits, expected.numpy(), atol=2e-5)


def test_a_stopped_run_equals_an_unbroken_one(settings, tmp_path):
    """The gaps follow from the step, so that a resumed run hides what the unbroken one would."""
    settings = dataclasses.replace(
        changed(settings, schedule="constant"), masking=Masking(whole_words=True)
    )
    whole = dataclasses.replace(changed(settings, steps=6), out=tmp_path / "whole")
    assert whole.run()
    assert settings.run() and changed(settings, steps=6).run()
    assert log(settings, "loss") == log(whole, "loss")
    assert log(settings, "eval_loss", "eval_accuracy") == log(whole, "eval_loss", "eval_accuracy")
    ours, theirs = (fmjax.from_pretrained(s.out / "model")[1] for s in (settings, whole))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_sharding_changes_nothing(settings, tmp_path):
    settings = changed(settings, steps=2)
    hardware = dataclasses.replace(settings.hardware, mesh="data=2,fsdp=2,tensor=2")
    sharded = dataclasses.replace(settings, hardware=hardware, out=tmp_path / "sharded")
    assert settings.run() and sharded.run()
    names = ("eval_loss", "eval_accuracy", "eval_unigram_loss", "eval_unigram_accuracy")
    np.testing.assert_allclose(log(settings, *names), log(sharded, *names), rtol=1e-5)


def test_streamed_text_has_no_counts_to_compare_with(settings, capsys):
    data = dataclasses.replace(settings.data, streaming=True)
    settings = dataclasses.replace(changed(settings, steps=2), data=data)
    assert settings.run()
    ((loss, accuracy),) = log(settings, "eval_loss", "eval_accuracy")
    assert f"masked accuracy {accuracy:.3f}, loss {loss:.3f}\n" in capsys.readouterr().out
    assert log(settings, "eval_unigram_loss") == []


def test_the_masking_belongs_to_the_run(settings, capsys):
    assert settings.run()
    other = dataclasses.replace(settings, masking=Masking(0.3))
    with pytest.raises(fmjax.core.errors.CheckpointError, match="masking.mask_probability = 0.15"):
        other.run()
    # More steps are no other run, though BERT's warm-up follows from them.
    assert changed(settings, steps=5).run()


def test_a_model_directory_is_trained_on(settings, tmp_path):
    assert settings.run()
    on = dataclasses.replace(
        changed(settings, learning_rate=0.0),
        model=str(settings.out / "model"), override=(), tokenizer="", out=tmp_path / "on",
    )  # fmt: skip
    assert on.run()
    before, after = (fmjax.from_pretrained(s.out / "model")[1] for s in (settings, on))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_the_baseline_is_counted_in_the_same_gaps(settings):
    start = resolve(settings.model, settings.tokenizer, SMALL, ("masked-lm",))
    run = Run.open(settings, start.config, start.tokenizer)
    counts = run.batches.train.token_counts(300)
    found = unigram_baseline(run.objective, counts, run.evaluation, run.mesh)

    from fmjax.objectives.masked_lm import _key_of

    gaps = [run.objective.hide(b, _key_of(b["input_ids"]))[1] for b in run.evaluation()]
    hidden = np.concatenate([np.asarray(g)[np.asarray(g) != IGNORE] for g in gaps])
    share = (counts + 1.0) * ~np.isin(np.arange(300), run.objective.special_ids)
    share /= share.sum()
    assert len(hidden) > 30
    assert found["accuracy"] == pytest.approx(np.mean(hidden == share.argmax()), abs=1e-6)
    assert found["loss"] == pytest.approx(-np.log(share[hidden]).mean(), rel=1e-5)


def test_flops_are_those_of_attention_in_both_directions(settings):
    from fmjax.recipes.training import _flops

    start = resolve(settings.model, settings.tokenizer, SMALL, ("masked-lm",))
    run = Run.open(settings, start.config, start.tokenizer)
    params = fmjax.abstract_params(fmjax.build(start.config))
    # Layers, the prediction head and the tied table; not positions and types.
    n = matmul_params(params)
    sizes = {"layers": 2, "attention_width": 32, "sequence_length": 32}
    per_token = train_flops_per_token(n, **sizes, causal=False)
    assert _flops(run, {"params": params}, False) == per_token * 8 * 32


def test_figures_follow_the_objective():
    given = Optimization(steps=1000)
    bert, gpt = given.completed(masked=True), given.completed(masked=False)
    assert (bert.schedule, bert.warmup, bert.weight_decay, bert.beta2, bert.epsilon) == (
        "linear", 10, 0.01, 0.999, 1e-6,
    )  # fmt: skip
    assert (gpt.schedule, gpt.warmup, gpt.weight_decay, gpt.beta2, gpt.epsilon) == (
        "cosine", 0, 0.1, 0.95, 1e-8,
    )  # fmt: skip
    own = Optimization(schedule="wsd", warmup=0, weight_decay=0.0, beta2=0.9, epsilon=1e-7)
    assert own.completed(masked=True) == own


def test_objective_follows_the_head(tokenizer_dir, tmp_path):
    tokenizer = load_tokenizer(tokenizer_dir)
    start = resolve("bert-base", str(tokenizer_dir), (), ("causal-lm", "masked-lm"))
    objective = choose(start.config, tokenizer, Masking(0.3, True), Optimization())
    assert objective == MaskedLM(4, 300, (0, 1, 2, 3, 4), probability=0.3, whole_words=True)
    with pytest.raises(ConfigError, match="--z-loss"):
        choose(start.config, tokenizer, Masking(), Optimization(z_loss=1e-4))
    spm = train_sentencepiece(load_corpus("kjv")[:3], tmp_path / "spm", 330)
    with pytest.raises(TokenizerError, match="no mask token.*--kind wordpiece"):
        choose(start.config, spm, Masking(), Optimization())
    gpt = resolve("gpt2", str(tmp_path / "spm")).config
    assert isinstance(choose(gpt, spm, Masking(), Optimization()), CausalLM)
    for masking in (Masking(0.2), Masking(whole_words=True)):
        with pytest.raises(ConfigError, match="--mask-probability and --whole-words.*bert-base"):
            choose(gpt, spm, masking, Optimization())
    with pytest.raises(ConfigError, match="probability=0.0 of masking"):
        choose(start.config, tokenizer, Masking(0.0), Optimization())
