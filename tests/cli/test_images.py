"""Commands on images, with random models against transformers on the same pixels."""

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet
import pytest
import tokenizers
import torch
import transformers
from PIL import Image
from tokenizers import models, pre_tokenizers, processors

import fmjax
from fmjax.cli.main import main
from fmjax.core.errors import DataError
from fmjax.data.images import ImageProcessor
from fmjax.evals.zero_shot import TEMPLATES
from fmjax.models.vit.config import ViTConfig
from fmjax.recipes.vision.classifying import _accuracy, _rows

SIZES = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
WORDS = "a photo of red green blue square the picture drawing".split()
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "resample": 2,
    "size": {"height": 8, "width": 8}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4],
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five images in folders by colour, a file that is none, and files that are passed over."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for colour, channel in (("red", 0), ("blue", 2)):
        (folder / colour).mkdir()
        for i in range(2 + (channel == 0)):
            pixels = rng.integers(0, 120, (12 + i, 10, 3))
            pixels[..., channel] += 130
            Image.fromarray(pixels.astype(np.uint8)).save(folder / colour / f"{i}.png")
    (folder / "red" / "broken.png").write_bytes(b"no image")
    (folder / "red" / "notes.txt").write_text("not looked at")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "0.png").write_bytes(b"not looked at")
    return folder


@pytest.fixture(scope="module")
def names(pictures):
    return [str(pictures / name) for name in
            ("blue/0.png", "blue/1.png", "red/0.png", "red/1.png", "red/2.png")]  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A directory with a random CLIP, its tokenizer and its preprocessing."""
    directory = tmp_path_factory.mktemp("clip")
    special = ["<|startoftext|>", "<|endoftext|>", "[UNK]"]
    vocabulary = {word: i for i, word in enumerate([*WORDS, *special])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(special)
    backend.post_processor = processors.TemplateProcessing(
        f"{special[0]} $A {special[1]}", special_tokens=[(s, vocabulary[s]) for s in special[:2]]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=special[0], eos_token=special[1],
        pad_token=special[1], unk_token="[UNK]",
    ).save_pretrained(directory)  # fmt: skip
    torch.manual_seed(0)
    text = dict(
        vocab_size=len(vocabulary), eos_token_id=vocabulary[special[1]], max_position_embeddings=9
    )
    vision = dict(image_size=8, patch_size=4)
    config = transformers.CLIPConfig(
        text_config=SIZES | text, vision_config=SIZES | vision, projection_dim=12,
        initializer_factor=8.0, logit_scale_init_value=2.0,
    )  # fmt: skip
    transformers.CLIPModel(config).eval().save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return directory


@pytest.fixture(scope="module")
def reference(clip, names):
    """prompts → (image_embeds, text_embeds) of transformers."""
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip)

    def run(prompts):
        ids = tokenizer(prompts, padding=True, return_tensors="pt", truncation=True, max_length=9)
        with torch.no_grad():
            out = model(
                input_ids=ids["input_ids"], attention_mask=ids["attention_mask"],
                pixel_values=pixels(clip, names),
            )  # fmt: skip
        return out.image_embeds.numpy(), out.text_embeds.numpy()

    return run


def pixels(directory, names):
    processor = ImageProcessor.from_pretrained(directory)
    images = [processor.pixels(np.asarray(Image.open(name))) for name in names]
    return torch.tensor(np.stack(images).transpose(0, 3, 1, 2))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A directory with a random classifier of blue and red."""
    directory = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        **SIZES, image_size=8, patch_size=4, head="image-classification",
        id2label=("blue", "red", "white"), initializer_range=0.5,
    )  # fmt: skip
    model = fmjax.build(config)
    fmjax.save_pretrained(directory, model, fmjax.init_params(model, jax.random.key(0)))
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return directory


def run(*arguments):
    assert main([str(a) for a in arguments]) == 0


def test_embed(clip, vit, pictures, names, reference, tmp_path, capsys):
    out = tmp_path / "vectors.parquet"
    run("embed", "--model", clip, "--images", pictures, "--output", out, "--batch-size", 8)
    table = pyarrow.parquet.read_table(out)
    assert table["image"].to_pylist() == names
    expected, _ = reference(["a photo"])
    np.testing.assert_allclose(table["embedding"].to_pylist(), expected, rtol=0, atol=1e-5)
    said = capsys.readouterr()
    assert f"{out}: 5 × 12" in said.out
    assert "1 images could not be read" in said.err and "broken.png (not an image)" in said.err
    # Single files, in the order given; the patches' mean of a vision encoder.
    out, files = tmp_path / "vectors.npy", (names[3], names[0])
    run("embed", "--model", vit, "--images", *files, "--output", out, "--batch-size", 8,
        "--pooling", "mean", "--keep-length")  # fmt: skip
    model = transformers.ViTModel.from_pretrained(vit, add_pooling_layer=False).eval()
    with torch.no_grad():
        states = model(pixels(vit, files)).last_hidden_state
    np.testing.assert_allclose(np.load(out), states[:, 1:].mean(1), rtol=0, atol=1e-5)
    assert (tmp_path / "vectors.txt").read_text().splitlines() == list(files)


def test_file_names_that_are_no_utf8(vit, names, tmp_path, capsys):
    """JSON and .txt give back the very name; tables and pages show its bytes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    file = folder / os.fsdecode(b"caf\xe9.png")
    shutil.copy(names[0], file)
    model = ["--model", vit, "--images", folder, "--batch-size", 8]
    out = [tmp_path / name for name in ("a.jsonl", "a.html", "a.npy", "a.parquet", "b.html")]
    run("classify", *model, "--output", out[0], "--html", out[1])
    assert json.loads(out[0].read_text(encoding="utf-8"))["image"] == str(file)
    run("embed", *model, "--output", out[2])
    assert (tmp_path / "a.txt").read_bytes() == os.fsencode(file) + b"\n"
    run("embed", *model, "--output", out[3])
    assert pyarrow.parquet.read_table(out[3])["image"].to_pylist() == [f"{folder}/caf\\udce9.png"]
    capsys.readouterr()
    run("retrieve", *model, "--image", names[0], "--json", "--html", out[4])
    assert json.loads(capsys.readouterr().out)["image"] == str(file)
    run("retrieve", *model, "--image", file, names[0])
    assert f"{folder}/caf\\udce9.png\n" in capsys.readouterr().out
    assert all(r"caf\udce9.png" in page.read_text() for page in (out[1], out[4]))


def test_two_classes_of_one_name():
    files, shares = [Path("0.png"), Path("1.png")], np.array([[0.5, 0.2, 0.3], [0.1, 0.2, 0.7]])
    first, second = _rows(["crane", "dog", "crane"], files, shares, 3)
    assert (first["label"], first["score"]) == ("crane", 0.5)
    assert first["scores"] == {"crane": 0.5, "dog": 0.2}
    assert second["score"] == 0.7 and second["scores"] == {"crane": 0.7, "dog": 0.2}


def test_the_truth_is_where_a_picture_lies_and_not_where_it_comes_from(tmp_path):
    for folder in ("store", "cat", "dog"):
        (tmp_path / folder).mkdir()
    (tmp_path / "store" / "a.png").touch()
    links = [tmp_path / "cat" / "1.png", tmp_path / "dog" / "2.png"]
    for link in links:
        link.symlink_to(tmp_path / "store" / "a.png")
    shares = np.array([[0.9, 0.1], [0.8, 0.2]])
    figure = _accuracy(["cat", "dog"], links, shares, [tmp_path])
    assert figure.value == 0.5
    # As in training: the first folder below the one that was given, however deep a picture lies.
    deep = [tmp_path / "cat" / "dog" / "1.png", tmp_path / "dog" / "2020" / "2.png"]
    assert _accuracy(["cat", "dog"], deep, shares, [tmp_path]).value == 0.5
    with pytest.raises(DataError, match="2.png lies in a folder '2020', which is none of"):
        _accuracy(["cat", "dog"], deep, shares, deep)


def test_classify_by_labels(clip, pictures, names, reference, tmp_path, capsys):
    labels, out, page = ("red", "blue"), tmp_path / "out.jsonl", tmp_path / "page.html"
    run("classify", "--model", clip, "--images", pictures, "--labels", *labels, "--measure",
        "--output", out, "--html", page, "--batch-size", 8)  # fmt: skip
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["image"] for row in rows] == names
    prompts = [template.replace("{}", label) for label in labels for template in TEMPLATES]
    images, texts = reference(prompts)
    classes = texts.reshape(2, len(TEMPLATES), -1).mean(1)
    classes /= np.linalg.norm(classes, axis=-1, keepdims=True)
    logits = np.exp(2.0) * images @ classes.T
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for row, expected in zip(rows, shares, strict=True):
        found = [row["scores"][label] for label in labels]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        assert row["label"] == labels[expected.argmax()] and row["score"] == max(found)
    right = np.mean([row["label"] in row["image"].split(os.sep) for row in rows])
    assert f"accuracy {right:.3f} (" in capsys.readouterr().err
    assert page.read_text().count("<img") == 5 and "broken" not in page.read_text()


def test_classify_by_a_head(vit, names, capsys):
    run("classify", "--model", vit, "--images", *names, "--top", 2, "--batch-size", 8)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model = transformers.ViTForImageClassification.from_pretrained(vit).eval()
    with torch.no_grad():
        shares = model(pixels(vit, names)).logits.softmax(-1).numpy()
    for row, expected in zip(rows, shares, strict=True):
        best = np.argsort(-expected)[:2]
        assert list(row["scores"]) == [("blue", "red", "white")[i] for i in best]
        np.testing.assert_allclose(list(row["scores"].values()), expected[best], rtol=0, atol=1e-5)


def test_classify_by_labels_of_which_several_may_fit(vit, names, tmp_path, capsys, fails):
    directory = tmp_path / "several"
    shutil.copytree(vit, directory)
    config = json.loads((vit / "config.json").read_text())
    change = {"problem_type": "multi_label_classification"}
    (directory / "config.json").write_text(json.dumps(config | change))
    run("classify", "--model", directory, "--images", *names, "--top", 3)
    rows = [json.loads(line)["scores"] for line in capsys.readouterr().out.splitlines()]
    pipe = transformers.pipeline("image-classification", str(directory), use_fast=False)
    for name, row in zip(names, rows, strict=True):
        expected = {answer["label"]: answer["score"] for answer in pipe(name)}
        assert row == pytest.approx(expected, abs=1e-5)
    capsys.readouterr()
    (directory / "config.json").write_text(json.dumps(config | {"problem_type": "regression"}))
    fails(["classify", "--model", directory, "--images", *names], "answers with numbers")


def test_retrieve(clip, pictures, names, reference, tmp_path, capsys):
    index, page = tmp_path / "index.npz", tmp_path / "page.html"
    arguments = ["retrieve", "--model", clip, "--images", pictures, "--index", index,
                 "--batch-size", 8]  # fmt: skip
    run(*arguments, "--text", "a red square", "--image", names[1], "--top", 3, "--json",
        "--html", page)  # fmt: skip
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    images, texts = reference(["a red square"])
    scores = {"a red square": images @ texts[0], names[1]: images @ images[1]}
    for query, expected in scores.items():
        found = [row for row in rows if row["query"] == query]
        order = [i for i in np.argsort(-expected) if names[i] != query][:3]
        assert [row["image"] for row in found] == [names[i] for i in order]
        assert [row["rank"] for row in found] == [1, 2, 3]
        np.testing.assert_allclose(
            [row["score"] for row in found], expected[order], rtol=0, atol=1e-5
        )
    assert "0 kept, 5 new (made anew: there is none yet)" in said.err
    # Three and three found, and the image that was looked for.
    assert page.read_text().count("<img") == 7 and "the query" in page.read_text()
    # Once more: nothing is read but what has changed.
    Image.open(names[0]).rotate(90).save(names[0])
    run(*arguments, "--text", "blue", "--top", 1)
    said = capsys.readouterr()
    assert "index: 4 kept, 1 changed" in said.err and said.out.startswith("blue\n  ")
    before = index.stat().st_mtime_ns
    run(*arguments, "--text", "blue")
    assert "index: 5 kept" in capsys.readouterr().err and index.stat().st_mtime_ns == before
    # Without a name the index is a hidden file of the folder.
    run(*arguments[:5], "--batch-size", 8, "--text", "blue")
    (hidden,) = pictures.glob(".fmjax-index-*.npz")
    hidden.unlink()


def test_names_beside_vectors_are_a_line_each(vit, names, tmp_path, fails):
    folder = tmp_path / "two\nlines"
    folder.mkdir()
    shutil.copy(names[0], folder / "a.png")
    arguments = ["embed", "--model", vit, "--images", folder, "--output"]
    fails([*arguments, tmp_path / "v.npy"], "line break in its name", "write .parquet")
    run(*arguments, tmp_path / "v.parquet")


def test_errors(clip, vit, pictures, names, model_dir, tmp_path, fails):
    (tmp_path / "empty").mkdir()
    broken = pictures / "red" / "broken.png"
    find = ["retrieve", "--model", clip, "--images", pictures]
    fails([*find], "give what to look for")
    fails([*find, "--text", " "], "is empty")
    fails([*find, "--text", "a", "--top", 0], "--top 0")
    fails([*find, "--image", "no.png"], "--image no.png: no such file")
    fails(["retrieve", "--model", clip, "--images", "no", "--text", "a"], "no: no such folder")
    fails(["retrieve", "--model", clip, "--images", tmp_path / "empty", "--text", "a"], "no image")
    fails(["retrieve", "--model", vit, "--images", pictures, "--text", "a"], "does not read texts")
    fails([*find, "--image", broken], f"--image {broken}: not an image")
    place = tmp_path / "x" / "i"
    (tmp_path / "x").write_text("a file")
    fails([*find, "--text", "a", "--index", place], f"index {place} cannot be written", "--index")
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    fails([*find, "--text", "a", "--index", notes], f"--index {notes} is a file of another kind")
    assert notes.read_text() == "mine"
    label = ["classify", "--images", pictures, "--model"]
    fails([*label, clip, "--labels", "one"], "give at least two")
    fails([*label, clip, "--labels", "a", "a"], "must be different")
    fails([*label, clip, "--labels", "a", "b", "--templates", "x"], "must each hold one {}")
    fails([*label, vit, "--labels", "a", "b"], "labels of its own (blue, red, white")
    fails([*label, vit, "--top", 0], "--top 0")
    fails([*label, model_dir], "llama does not see images")
    fails(["classify", "--images", names[0], "--model", clip, "--labels", "red", "green",
           "--measure"], "lies in a folder 'blue'")  # fmt: skip
    nowhere, missing = tmp_path / "nodir" / "x.npy", "nodir/x.npy: there is no such directory"
    fails([*label, "no model", "--html", nowhere], "--html", missing)
    fails([*label, "no model", "--output", nowhere], "--output", missing)
    fails([*label, "no model", "--output", tmp_path], "--output", "is a directory")
    fails(["retrieve", "--model", "no", "--images", pictures, "--text", "a", "--html", nowhere],
          "--html", missing)  # fmt: skip
    fails(["embed", "--model", "no", "--images", pictures, "--output", nowhere],
          "--output", missing)  # fmt: skip
    embed = ["embed", "--model", clip, "--output"]
    fails([*embed, tmp_path / "x.txt", "--images", pictures], "end the name in .npy or .parquet")
    fails([*embed, tmp_path / "x.npy", "--images", "no"], "no: no such file or folder")
    fails([*embed, tmp_path / "x.npy", "--images", broken], "no image can be read", broken)
    fails([*embed, tmp_path / "x.npy", "--images", pictures, "--batch-size", 3], "--batch-size")
    assert not (tmp_path / "x.npy").exists() and not list(pictures.glob(".fmjax*"))
