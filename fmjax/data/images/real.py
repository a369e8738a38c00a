"""Real pictures that come with Python packages, so that nothing is downloaded."""

import importlib.util
from pathlib import Path

import numpy as np

from fmjax.core.errors import DataError
from fmjax.data.images.decode import decode_image
from fmjax.data.images.sources import Examples

# Files of scikit-image with what they show, in its own words where it says so.
_PHOTOGRAPHS = {
    "astronaut.png": "a portrait of the astronaut Eileen Collins",
    "brick.png": "a brick wall",
    "camera.png": "a photographer with a camera on a tripod",
    "cell.png": "a cell under a microscope",
    "chelsea.png": "the face of a tabby cat",
    "coffee.png": "a cup of coffee on a table",
    "coins.png": "ancient coins from Pompeii",
    "grass.png": "grass seen from above",
    "gravel.png": "gravel seen from above",
    "hubble_deep_field.jpg": "galaxies in the Hubble deep field",
    "ihc.png": "stained tissue of a colon under a microscope",
    "motorcycle_left.png": "a motorcycle in a garage",
    "moon.png": "the surface of the moon",
    "page.png": "a page of printed text",
    "retina.jpg": "the retina of an eye",
    "rocket.jpg": "the launch of a rocket",
    "text.png": "a handwritten formula",
}


def digits(split: str = "all", side: int | None = None) -> Examples:
    """scikit-learn's handwritten digits: 1,797 grey pictures of 8 × 8 pixels, ten classes.

    Digits of a writer stand together, so the splits, the first and the second half as in
    scikit-learn's own examples, are by different hands.

    Args:
      split: "train", "validation" or "all".
      side: of a larger black picture, in pixels, in which each has a place drawn by chance, always
        the same: a task on which comparing pixels fails. Default: the digits alone.

    Raises:
      DataError: a picture with no room for a digit.

    Source: the test set of "Optical Recognition of Handwritten Digits", UCI (Alpaydin and Kaynak,
    1998), CC BY 4.0.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    # Grey levels 0 … 16 on the full scale.
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    if side is not None:
        images = _anywhere(images, side)
    examples = [
        {"image": image, "label": int(label)}
        for image, label in zip(images, data.target, strict=True)
    ]
    names = [f"digit {i}" for i in range(len(examples))]
    half = len(examples) // 2
    part = {"train": slice(half), "validation": slice(half, None), "all": slice(None)}[split]
    return Examples(examples[part], [str(d) for d in range(10)], names[part])


def _anywhere(images: np.ndarray, side: int) -> np.ndarray:
    """u8[N, side, side]: each of u8[N, H, H] somewhere in a black square."""
    N, height, _ = images.shape
    if side < height:
        raise DataError(f"digits/{side}: a digit has {height} pixels; choose more, as digits/12")
    larger = np.zeros((N, side, side), images.dtype)
    places = np.random.RandomState(0).randint(0, side - height + 1, (N, 2))
    for picture, image, (y, x) in zip(larger, images, places, strict=True):
        picture[y : y + height, x : x + height] = image
    return larger


def photographs(tile: int | None = None) -> Examples:
    """The 17 photographs that lie in the scikit-image package, each a class, with a caption.

    Args:
      tile: cuts each into squares of this many pixels, which do not overlap; what is left over at
        the right and at the bottom falls away. Default: whole.

    Raises:
      DataError: scikit-image is not installed, or no photograph has room for a tile.
    """
    spec = importlib.util.find_spec("skimage")  # found, not imported: its files are all we need
    if spec is None or spec.origin is None:
        raise DataError("photographs need the package scikit-image; pip install 'fmjax[images]'")
    if tile is not None and tile < 1:
        raise DataError(f"tiles of {tile} pixels; choose at least 1")
    examples, names = [], []
    for label, (file, caption) in enumerate(_PHOTOGRAPHS.items()):
        path = Path(spec.origin).parent / "data" / file
        about = {"label": label, "caption": caption}
        if tile is None:
            examples.append({"image": path} | about)
            names.append(file)
            continue
        picture_HWC = decode_image(path)
        for y in range(0, picture_HWC.shape[0] - tile + 1, tile):
            for x in range(0, picture_HWC.shape[1] - tile + 1, tile):
                examples.append({"image": picture_HWC[y : y + tile, x : x + tile]} | about)
                names.append(f"{file}, tile {y // tile}, {x // tile}")
    if not examples:
        raise DataError(f"no photograph has room for a tile of {tile} pixels; choose fewer")
    return Examples(examples, [Path(file).stem for file in _PHOTOGRAPHS], names)
