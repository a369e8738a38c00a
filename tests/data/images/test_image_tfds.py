"""Pictures of TFDS data sets, with their labels and captions."""

import io
from pathlib import Path

import pytest
from PIL import Image

from fmjax.core.errors import DataError
from fmjax.data.images import TfdsImages, image_batches, open_images


def png(level: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (4, 4), level).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def tfds_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tensorflow_datasets as tfds

    class Pets(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            features = {
                "picture": tfds.features.Image(encoding_format="png"),
                "species": tfds.features.ClassLabel(names=["cat", "dog"]),
                "caption": tfds.features.Text(),
                "notes": tfds.features.Text(),
                "toys": tfds.features.Sequence(tfds.features.ClassLabel(names=["ball", "mouse"])),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(range(4)),
                "test": self._generate_examples(range(4, 6)),
            }

        def _generate_examples(self, numbers):
            for i in numbers:
                yield i, {
                    "picture": io.BytesIO(png(i)), "species": i % 2, "caption": f"pet {i}",
                    "notes": "", "toys": [0, 1],
                }  # fmt: skip

    builder = Pets(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def test_tfds(tfds_directory: Path) -> None:
    for split, count in {"train": 4, "validation": 2, "all": 6}.items():  # its test for validation
        source = open_images(f"tfds:{tfds_directory}", split)
        assert len(source) == count and source.class_names == ("cat", "dog")
        example = source[0]
        number = int(example["caption"].removeprefix("pet "))
        assert example == {
            "image": png(number), "label": number % 2, "caption": f"pet {number}"
        }  # fmt: skip
    assert len(open_images(f"tfds:{tfds_directory}", class_names=["cat", "dog"])) == 6
    with pytest.raises(DataError, match="the classes 2 × cat, dog, and not 2 × dog, cat"):
        open_images(f"tfds:{tfds_directory}", class_names=["dog", "cat"])
    source = TfdsImages(tfds_directory, "train[:2]", caption_field="notes")
    assert len(source) == 2 and source[0]["caption"] == ""
    assert "train[:2], example 1" in source.name(1)
    with pytest.raises(DataError, match='"toys" has several of each example'):
        TfdsImages(tfds_directory, label_field="toys")
    with pytest.raises(DataError, match='no label feature "breed"'):
        TfdsImages(tfds_directory, label_field="breed")
    batch = next(image_batches(source, batch_size=2, image_size=8))
    assert batch["image_size"].tolist() == [[4, 4]] * 2
