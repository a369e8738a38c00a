"""Pictures with captions: tables, tar shards, and batches of both."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmjax.core.errors import DataError
from fmjax.data import load_tokenizer
from fmjax.data.images import (
    Captions,
    Examples,
    ImageError,
    TableImages,
    TarImages,
    caption_table,
    image_batches,
    image_eval_batches,
    open_images,
)
from fmjax.data.images.labels import number_labels


def png(level: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (4, 4), level).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    """One id a word: <pad> 0, <s> 1, </s> 2."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "cat", "dog", "red", "small"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    directory = tmp_path_factory.mktemp("tokenizer")
    made.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    )
    return load_tokenizer(directory)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(png(i))
    return tmp_path


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def captioned(*captions) -> Examples:
    return Examples([{"image": png(i), "caption": c} for i, c in enumerate(captions)])


def test_batches(tokenizer) -> None:
    source = captioned("a cat", "a small red dog", "dog")
    batches = image_batches(
        source, batch_size=3, image_size=4, shuffle=False, captions=Captions(tokenizer, 5)
    )
    batch = next(batches)
    assert batch["input_ids"].tolist() == [[1, 4, 5, 2, 0], [1, 4, 8, 7, 2], [1, 6, 2, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1] * 5, [1, 1, 1, 0, 0]]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == np.int32
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 1, 2]
    assert "labels" not in batch
    evaluation = image_eval_batches(
        source, batch_size=2, image_size=4, captions=Captions(tokenizer, 5, attention_mask=False)
    )
    last = list(evaluation)[-1]
    assert last["example_weight"].tolist() == [1, 0]
    assert last["input_ids"].tolist() == [[1, 6, 2, 0, 0], [0] * 5]
    assert "attention_mask" not in last


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("", "empty caption"),
        ("  \n", "empty caption"),
        (None, "no caption"),
        (3, "empty caption"),
        ("a \ud83d cat", "unusable caption"),
    ],  # fmt: skip
)
def test_bad_captions_are_replaced_and_counted(tokenizer, caption, reason: str) -> None:
    source = captioned("a cat", caption, "dog")
    batches = image_batches(
        source, batch_size=3, image_size=4, shuffle=False, captions=Captions(tokenizer, 5)
    )
    assert next(batches)["image"][:, 0, 0, 0].tolist() == [0, 2, 2]
    assert batches.skipped == {reason: 1}
    evaluation = image_eval_batches(
        source, batch_size=3, image_size=4, captions=Captions(tokenizer, 5)
    )
    (batch,) = evaluation
    assert batch["example_weight"].tolist() == [1, 0, 1] and evaluation.skipped == {reason: 1}
    strict = image_batches(
        source, batch_size=3, image_size=4, on_bad="error", captions=Captions(tokenizer, 5)
    )
    with pytest.raises(DataError, match=f"example 1: {reason}"):
        next(strict)


def test_one_of_several_captions_an_epoch(tokenizer) -> None:
    source = Examples([{"image": png(0), "captions": ("cat", "dog", "red")}] * 2)

    def read(seed: int) -> list:
        batches = image_batches(
            source,
            batch_size=2,
            image_size=4,
            epochs=12,
            seed=seed,
            captions=Captions(tokenizer, 3),
        )
        return [batch["input_ids"][:, 1].tolist() for batch in batches]

    assert {i for row in read(0) for i in row} == {5, 6, 7}
    assert read(0) == read(0) != read(1)
    evaluation = image_eval_batches(
        source, batch_size=2, image_size=4, captions=Captions(tokenizer, 3)
    )
    assert next(iter(evaluation))["input_ids"][:, 1].tolist() == [5, 5]


def test_a_bad_caption_among_several_is_never_drawn(tokenizer) -> None:
    source = Examples([{"image": png(0), "caption": "", "captions": ("", "cat", None, "dog", 3)}])

    def read(epochs: int) -> tuple[list[int], dict[str, int]]:
        batches = image_batches(
            source, batch_size=1, image_size=4, epochs=epochs, captions=Captions(tokenizer, 3)
        )
        return [batch["input_ids"][0, 1].item() for batch in batches], batches.skipped

    ids, skipped = read(12)
    assert set(ids) == {5, 6} and skipped == {}
    evaluation = image_eval_batches(
        source, batch_size=1, image_size=4, captions=Captions(tokenizer, 3)
    )
    assert next(iter(evaluation))["input_ids"][0, 1] == 5
    # What only the tokenizer refuses has another one in its place.
    source = Examples([{"image": png(0), "captions": ("\ud83d", "dog", "red")}])
    ids, skipped = read(12)
    assert set(ids) == {6, 7} and skipped == {}


def test_a_length_without_room(tokenizer) -> None:
    batches = image_batches(
        captioned("cat"), batch_size=1, image_size=4, captions=Captions(tokenizer, 2)
    )
    with pytest.raises(DataError, match="max_length"):
        next(batches)


def test_tables(pictures: Path) -> None:
    table = pictures / "data.tsv"
    table.write_text(
        "image\tcaption\tlabel\npictures/2.png\ta cat\tcat\npictures/0.png\ta dog\tdog\n"
        "pictures/2.png\tone more cat\tcat\npictures/1.png\t\t\n"
    )
    source = open_images(table)
    assert len(source) == 3 and source.class_names == ("cat", "dog")
    assert source[0] == {
        "image": pictures / "pictures" / "2.png", "label": 0,
        "caption": "a cat", "captions": ("a cat", "one more cat"),
    }  # fmt: skip
    assert source[2]["caption"] == "" and "label" not in source[2]
    assert source.group(0) == "pictures/2.png"
    batch = next(image_batches(source, batch_size=3, image_size=4, shuffle=False))
    assert batch["image"][:, 0, 0, 0].tolist() == [2, 0, 2]
    assert batch["labels"].tolist() == [0, 1, 0]


def test_json_lines_and_csv(pictures: Path) -> None:
    rows = [
        {"file_name": "pictures/1.png", "captions": ["a", "", "b"], "class": 1},
        {"file_name": "pictures/3.png", "captions": [], "class": 3},
    ]
    table = pictures / "data.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    source = open_images(str(table))
    assert source[0]["captions"] == ("a", "b") and source[1]["caption"] is None
    assert [source[i]["label"] for i in range(2)] == [1, 3]
    assert source.class_names == ("0", "1", "2", "3")
    other = pictures / "data.csv"
    other.write_text('where,what\npictures/0.png,"red, small"\n')
    assert TableImages(other, image_field="where", caption_field="what")[0]["caption"] == (
        "red, small"
    )
    table.rename(pictures / "DATA.JSONL")
    table = pictures / "DATA.JSONL"
    assert open_images(table)[0]["captions"] == ("a", "b")
    both = TableImages([table, table])
    assert len(both) == 2


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("image\tcaption\n\tx\n", {}, "line 2: no picture's path"),
        ("image\ncats/1.png\nhttps://x.org/1.png\n", {}, "line 3: a URL, not a path"),
        ("photo\n1.png\n", {}, r"no column of pictures .it has photo"),
        ("image\n1.png\n", {"caption_field": "words"}, 'no column "words"; it has image'),
        ("image\tlabel\n1.png\tcat\n", {"class_names": ["dog"]}, '"cat" is none of the 1 classes'),
        ("", {}, "empty"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, options: dict, message: str) -> None:
    (tmp_path / "data.tsv").write_text(text)
    with pytest.raises(DataError, match=f"data.tsv.*{message}"):
        TableImages(tmp_path / "data.tsv", **options)


def test_tar_shards(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", {
        "x/000.png": png(5), "x/000.txt": b"a cat\n", "x/000.cls": b"1",
        "x/001.json": b'{"caption": "a dog", "url": ""}', "x/001.PNG": png(6), "x/001.cls": b"0",
        "notes.txt": b"no picture", "._000.png": b"resource fork",
    })  # fmt: skip
    tar(tmp_path / "1.tar", {"000.png": png(7), "000.json": b'{"captions": ["p", "q"]}'})
    source = open_images(str(tmp_path / "*.tar"))
    assert len(source) == 3 and source.without_picture == 1
    assert source.class_names == ("0", "1")
    assert source[0] == {"image": png(5), "label": 1, "caption": "a cat"}
    assert source[1] == {"image": png(6), "label": 0, "caption": "a dog"}
    assert source[2] == {"image": png(7), "caption": "p", "captions": ("p", "q")}
    assert source.name(0) == f"{tmp_path}/0.tar: x/000.png"
    assert len({source.group(i) for i in range(3)}) == 3
    assert len(open_images(str(tmp_path / "*.tar"), "train", held_out=0.3)) == 2


def test_tar_links_and_directories_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("a.png", tarfile.SYMTYPE), ("b.png", tarfile.LNKTYPE),
                           ("c.png", tarfile.DIRTYPE), ("d.png", tarfile.CHRTYPE)):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("../../e.png")
        info.size = len(png(9))
        archive.addfile(info, io.BytesIO(png(9)))
    source = TarImages(path)
    assert len(source) == 1 and source[0]["image"] == png(9)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd.tar"]


def test_broken_tars(tmp_path: Path) -> None:
    whole = tar(tmp_path / "whole.tar", {"0.png": bytes(3000), "1.png": bytes(3000)}).read_bytes()
    for size in (2000, 4000, 5000):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        with pytest.raises(DataError, match="cut.tar: not a readable tar .*copy it again"):
            TarImages(tmp_path / "cut.tar")
    (tmp_path / "text.tar").write_bytes(b"hello" * 200)
    with pytest.raises(DataError, match="text.tar: not a readable tar"):
        TarImages(tmp_path / "text.tar")
    with tarfile.open(tmp_path / "zipped.tar", "w:gz"):
        pass
    with pytest.raises(DataError, match="zipped.tar: .*unpack the compression"):
        TarImages(tmp_path / "zipped.tar")
    with pytest.raises(DataError, match="no such file"):
        TarImages(tmp_path / "none.tar")
    with pytest.raises(DataError, match="no pictures there"):
        TarImages(tar(tmp_path / "texts.tar", {"0.txt": b"x"}))


def test_bad_samples_in_a_tar(tmp_path: Path, tokenizer) -> None:
    path = tar(tmp_path / "a.tar", {
        "0.png": png(0), "0.txt": b"a cat", "1.png": png(1), "1.txt": b"\xff\xfe",
        "2.png": png(2), "2.json": b"{", "3.png": png(3)[:-20], "3.txt": b"dog",
        "4.png": png(4), "4.json": b"[1]",
    })  # fmt: skip
    source = TarImages(path)
    batches = image_batches(
        source, batch_size=5, image_size=4, shuffle=False, captions=Captions(tokenizer, 4)
    )
    assert next(batches)["image"][:, 0, 0, 0].tolist() == [0] * 5
    assert batches.skipped == {"unusable caption": 2, "truncated": 1, "no caption": 1}
    # Who wants the pictures alone has those whose captions are broken too.
    assert caption_table(source)[0] == ["a cat", "dog"]
    batches = image_batches(source, batch_size=5, image_size=4, shuffle=False)
    assert next(batches)["image"][:, 0, 0, 0].tolist() == [0, 1, 2, 0, 4]
    assert batches.skipped == {"truncated": 1}
    with path.open("r+b") as file:  # it was whole when it was opened
        file.truncate(600)
    with pytest.raises(ImageError, match="truncated"):
        source[4]
    with pytest.raises(ImageError, match="a.tar: 4.png: truncated"):
        caption_table(source.select([4]))


def test_several_pictures_in_a_sample_of_a_tar(tmp_path: Path) -> None:
    source = TarImages(tar(tmp_path / "a.tar", {"0.seg.png": png(1), "0.png": png(2),
                                                "1.seg.png": png(3)}))  # fmt: skip
    assert [source[i]["image"] for i in range(2)] == [png(2), png(3)]
    dotted = tar(tmp_path / "b.tar", {"x/Scr 10.0.png": png(0), "x/Scr 10.1.png": png(1)})
    with pytest.raises(DataError, match=r"Scr 10.0.png and x/Scr 10.1.png are one sample"):
        TarImages(dotted)


def test_other_captions_labels_or_words_are_not_resumed(
    pictures: Path, tokenizer, tmp_path_factory
) -> None:
    def batches(captions: Captions | None, *rows: str):
        (pictures / "x.tsv").write_text("image\tcaption\tlabel\n" + "".join(rows))
        source = TableImages(pictures / "x.tsv")
        return image_batches(source, batch_size=2, image_size=4, captions=captions)

    rows = [f"pictures/{i}.png\ta cat\tpet\n" for i in range(3)]
    state = batches(None, *rows).get_state()
    batches(None, *rows).set_state(state)
    for other in ("\ta dog\tpet", "\ta cat\twild"):
        with pytest.raises(DataError, match="checksum was"):
            batches(None, *rows[:2], f"pictures/2.png{other}\n").set_state(state)
    state = batches(Captions(tokenizer, 4), *rows).get_state()
    directory = tmp_path_factory.mktemp("other")
    tokenizer.save(directory)
    words = directory / "tokenizer.json"
    words.write_text(words.read_text().replace('"cat"', '"cow"'))
    with pytest.raises(DataError, match="vocabulary was"):
        batches(Captions(load_tokenizer(directory), 4), *rows).set_state(state)


def test_all_captions() -> None:
    source = Examples([{"captions": ("a", " ", "b")}, {"caption": "c"}, {"caption": ""}, {}])
    texts, owners = caption_table(source)
    assert texts == ["a", "b", "c"] and owners.tolist() == [0, 0, 1]


def test_labels() -> None:
    assert number_labels(["b", None, "a", ""], None, "f") == ([1, None, 0, None], ("a", "b"))
    assert number_labels([2, "0", " 1\n"], None, "f") == ([2, 0, 1], ("0", "1", "2"))
    assert number_labels(["1", "0"], ["cat", "dog"], "f") == ([1, 0], ("cat", "dog"))
    assert number_labels(["7", "3"], ["3", "7"], "f") == ([1, 0], ("3", "7"))
    assert number_labels([None], None, "f") == ([None], ())
    # Identifiers are names.
    huge = "9" * 5000
    assert number_labels(["3000000000", "7"], None, "f") == ([0, 1], ("3000000000", "7"))
    assert number_labels([huge, "7"], None, "f") == ([1, 0], ("7", huge))
    assert number_labels([huge, "7"], ["7", huge], "f")[0] == [1, 0]
    assert len(number_labels(["21841"], None, "f")[1]) == 21842
    assert number_labels(["200000"], ["x"] * 200_001, "f")[0] == [200_000]
    with pytest.raises(DataError, match='"3000000000" is none of the 2 classes'):
        number_labels(["3000000000"], ["cat", "dog"], "f")
    with pytest.raises(DataError, match='f: the label "2" is none of the 2 classes .cat, dog.'):
        number_labels(["0", "2"], ["cat", "dog"], "f")
