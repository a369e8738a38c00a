"""`fmjax embed`: vectors as transformers and sentence-transformers give them."""

import json

import numpy as np
import pytest

from fmjax.cli.main import main
from fmjax.models.bert.config import BertConfig
from fmjax.recipes.tasks.sentences import SentenceModel, write_sentence_model

POOLINGS = ("mean", "cls", "last")


@pytest.fixture
def source(write, pairs, tmp_path):
    """Ten texts of unlike lengths, with a second field."""
    texts = [" ".join([row["anchor"]] * (1 + i % 3)) for i, row in enumerate(pairs[:10])]
    return write(tmp_path / "texts.jsonl", [{"id": i, "text": t} for i, t in enumerate(texts)])


def texts_of(file) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text().splitlines()]


@pytest.fixture
def embed(tmp_path):
    def run(model, source, *flags) -> np.ndarray:
        out = tmp_path / "vectors.npy"
        line = ["embed", "--model", model, "--input", source, "--output", out, *flags]
        assert main([str(word) for word in line]) == 0
        return np.load(out)

    return run


def of_transformers(directory, texts, pooling) -> np.ndarray:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory).eval()
    rows = []
    for text in texts:
        batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
        if model.config.model_type == "llama":
            batch.pop("token_type_ids", None)
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state[0].numpy()
        rows.append({"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling])
    return np.stack(rows)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_those_of_transformers(encoder, embed, source, pooling):
    expected = of_transformers(encoder, texts_of(source), pooling)
    flags = ["--pooling", pooling, "--batch-size", 8]
    long = embed(encoder, source, *flags, "--keep-length")
    assert long.shape == (10, 16) and long.dtype == np.float32
    np.testing.assert_allclose(long, expected, atol=1e-5)
    unit = embed(encoder, source, *flags)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected, axis=-1)[:, None],
                               atol=1e-5)  # fmt: skip


def test_pooling_without_being_asked(encoder, decoder, embed, source, capsys):
    np.testing.assert_array_equal(
        embed(encoder, source), embed(encoder, source, "--pooling", "mean")
    )
    capsys.readouterr()
    ours = embed(decoder, source, "--keep-length")
    assert "(last)" in capsys.readouterr().out
    np.testing.assert_allclose(ours, of_transformers(decoder, texts_of(source), "last"), atol=1e-5)


def test_models_with_a_head_for_another_task(trained, embed, source):
    model = trained("classification") / "model"
    ours = embed(model, source, "--keep-length")
    np.testing.assert_allclose(ours, of_transformers(model, texts_of(source), "mean"), atol=1e-5)


def test_texts_that_are_cut_are_counted(encoder, embed, write, capsys, tmp_path):
    rows = [{"text": "king"}, {"text": "river " * 200}]
    vectors = embed(encoder, write(tmp_path / "x.jsonl", rows))
    assert "2 × 16 (mean; 1 cut at 64 tokens)" in capsys.readouterr().out
    assert np.isfinite(vectors).all()


@pytest.mark.slow
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_model_trained_for_embedding_keeps_its_pooling(
    encoder, finetune, files, embed, source, pooling, capsys, tmp_path
):
    flags = f"--pooling {pooling} --learning-rate 0.01"
    run = finetune("embedding", encoder, files["embedding"], tmp_path / "run", flags)
    capsys.readouterr()
    ours = embed(run / "model", source)
    assert f"({pooling})" in capsys.readouterr().out
    expected = of_transformers(run / "model", texts_of(source), pooling)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("base", ["encoder", "decoder"])
def test_sentence_transformers_gives_the_same(base, request, finetune, files, embed, source,
                                              tmp_path):  # fmt: skip
    library = pytest.importorskip("sentence_transformers")
    model_dir = request.getfixturevalue(base)
    flags = "--learning-rate 0.01 --max-length 24"
    run = finetune("embedding", model_dir, files["embedding"], tmp_path / "run", flags)
    texts = texts_of(source)
    model = library.SentenceTransformer(str(run / "model"), device="cpu")
    theirs = model.encode(texts, batch_size=4)
    ours = embed(run / "model", source, "--max-length", 24)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(theirs, axis=-1), 1, rtol=1e-5)


def test_parquet_has_the_fields_of_the_input(encoder, embed, source, tmp_path):
    import pyarrow.parquet

    out = tmp_path / "vectors.parquet"
    assert main(f"embed --model {encoder} --input {source} --output {out}".split()) == 0
    table = pyarrow.parquet.read_table(out)
    assert table.column_names == ["id", "text", "embedding"]
    assert table["id"].to_pylist() == list(range(10))
    assert table["text"].to_pylist() == texts_of(source)
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32),
                                  embed(encoder, source))  # fmt: skip


def test_outputs_that_cannot_be(encoder, source, write, fails, tmp_path):
    line = ["embed", "--model", encoder, "--input", source]
    fails([*line, "--output", tmp_path / "x.txt"], "x.txt", ".npy or .parquet")
    fails([*line, "--output", tmp_path / "x.npy", "--text-column", "body"], "body", "text")
    fails([*line, "--output", tmp_path / "no" / "x.npy"], "no/x.npy: there is no such directory")
    fails([*line, "--output", tmp_path / "x.npy", "--batch-size", 0], "batch")
    fails([*line, "--output", tmp_path / "x.npy", "--max-length", 0], "--max-length 0")
    mixed = write(tmp_path / "mixed.jsonl", [{"text": "a", "x": 1}, {"text": "b", "x": "y"}])
    out = tmp_path / "x.parquet"
    fails(["embed", "--model", encoder, "--input", mixed, "--output", out], "one type", ".npy")
    twice = write(tmp_path / "twice.jsonl", [{"text": "a", "embedding": 1}])
    fails(["embed", "--model", encoder, "--input", twice, "--output", out], '"embedding"')
    assert not out.exists() and not (tmp_path / "x.npy").exists()


def sentence_model(encoder, directory, mode, *more, **options):
    """A model of sentence-transformers, saved as it saves."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    transformer = modules.Transformer(str(encoder), max_seq_length=5)
    pooling = modules.Pooling(transformer.get_embedding_dimension(), pooling_mode=mode)
    model = SentenceTransformer(modules=[transformer, pooling, *more], device="cpu", **options)
    model.save(str(directory))
    return model


@pytest.mark.parametrize("mode", ["mean", "cls"])
@pytest.mark.parametrize("normalised", [True, False])
def test_sentence_transformers_own_directories(
    encoder, embed, source, mode, normalised, capsys, tmp_path
):
    """Pooling, length of the vectors and of the texts, and a prompt, also after a conversion."""
    from sentence_transformers.sentence_transformer import modules

    options = {"prompts": {"query": "in the "}, "default_prompt_name": "query"}
    more = [modules.Normalize()] if normalised else []
    model = sentence_model(encoder, tmp_path / "theirs", mode, *more, **options)
    expected = model.encode(texts_of(source))
    np.testing.assert_allclose(embed(tmp_path / "theirs", source), expected, atol=1e-5)
    assert f"({mode}; " in capsys.readouterr().out  # texts that were cut
    assert main(f"convert --model {tmp_path / 'theirs'} --out {tmp_path / 'ours'}".split()) == 0
    np.testing.assert_allclose(embed(tmp_path / "ours", source), expected, atol=1e-5)
    from sentence_transformers import SentenceTransformer

    again = SentenceTransformer(str(tmp_path / "ours"), device="cpu").encode(texts_of(source))
    np.testing.assert_allclose(again, expected, atol=1e-5)


def test_modules_that_fmjax_lacks_are_refused(encoder, source, capsys, tmp_path):
    from sentence_transformers.sentence_transformer import modules

    sentence_model(encoder, tmp_path / "dense", "cls", modules.Dense(16, 8))
    out = tmp_path / "vectors.npy"
    line = f"embed --model {tmp_path / 'dense'} --input {source} --output {out}"
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert "modules.json: Dense is not supported" in error and not out.exists()


def test_a_tuned_model_has_no_prompt_of_the_one_before(encoder, tmp_path):
    options = {"prompts": {"query": "in the "}, "default_prompt_name": "query"}
    sentence_model(encoder, tmp_path / "theirs", "cls", **options)
    assert SentenceModel.of(tmp_path / "theirs", BertConfig).prompt == "in the "
    write_sentence_model(tmp_path / "theirs", 16, "mean", 24)
    assert SentenceModel.of(tmp_path / "theirs", BertConfig) == SentenceModel("mean", True, 24, "")
