"""A local text corpus as a TensorFlow Datasets data set, built without TensorFlow."""

import functools
from pathlib import Path

from fmjax.core.errors import DataError
from fmjax.data.corpora import train_validation_split
from fmjax.data.sources import Source, text_of


@functools.cache
def _builder_class():
    # Defined inside a function so that importing this module does not import TFDS.
    import tensorflow_datasets as tfds

    class LocalText(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Documents of a local corpus, one `{"text"}` each."""

        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # no checksum files lie beside this class; spares TFDS the search

        def __init__(self, *, dataset_name: str, splits: dict[str, list[str]], **kwargs):
            # TFDS names a data set after its class; this one is named by the caller.
            self.name = dataset_name
            self._texts = splits
            super().__init__(**kwargs)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description="Documents of a local text corpus.",
                features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            )

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(texts) for name, texts in self._texts.items()}

        def _generate_examples(self, texts):
            for index, text in enumerate(texts):
                yield index, {"text": text}

    return LocalText


def build_text_dataset(
    source: Source,
    data_dir: str | Path,
    *,
    name: str = "local_text",
    validation_fraction: float = 0.05,
    seed: int = 0,
    text_field: str = "text",
) -> Path:
    """Writes a corpus as an ArrayRecord TFDS data set with train and validation splits.

    Read it back with `TfdsSource(path, "train")`, or with TFDS itself.

    Args:
      source: documents: a source, or a list of strings.
      data_dir: parent of the data set's directory.
      name: lower-case letters, digits and underscores.
      validation_fraction: share of documents held out; 0 makes no validation split.
      seed: which documents are held out.

    Returns:
      The builder directory, `data_dir/name/1.0.0`. An earlier one is an error, not overwritten.

    Raises:
      DataError: an empty source, a bad name, or a data set that is already there.
    """
    if not name.isidentifier() or name != name.lower():
        raise DataError(
            f'"{name}" cannot name a data set; use lower-case letters, digits and underscores'
        )
    texts = [text_of(source[i], text_field, i) for i in range(len(source))]
    texts = [text for text in texts if text]
    if not texts:
        raise DataError("an empty corpus; give at least one non-empty document")
    train, validation = train_validation_split(texts, validation_fraction, seed)
    splits = {"train": train} | ({"validation": validation} if validation else {})
    target = Path(data_dir) / name / "1.0.0"
    if target.exists():
        raise DataError(f"{target} exists already; remove it or choose another name")
    try:
        builder = _builder_class()(
            dataset_name=name, splits=splits, data_dir=str(data_dir), file_format="array_record"
        )
        builder.download_and_prepare()
    except OSError as e:
        raise DataError(
            f"{target} cannot be written ({e.strerror}); choose another data_dir"
        ) from e
    return Path(builder.data_dir)
