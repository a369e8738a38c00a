"""The image processor against those of transformers (PIL backend), pixel for pixel."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from fmjax.core.errors import ConfigError, DataError, FmjaxError
from fmjax.data.images import ImageError, ImageProcessor

NAMES = {
    "ViT": "vit.image_processing_pil_vit",
    "CLIP": "clip.image_processing_pil_clip",
    "Siglip": "siglip.image_processing_pil_siglip",
    "Bit": "bit.image_processing_pil_bit",
    "DeiT": "deit.image_processing_pil_deit",
    "ConvNext": "convnext.image_processing_pil_convnext",
}
SHAPES = [(40, 61), (61, 40), (33, 33), (20, 25), (300, 7)]


def theirs(kind: str):
    import importlib

    module = importlib.import_module(f"transformers.models.{NAMES[kind]}")
    return getattr(module, f"{kind}ImageProcessorPil")


def noise(height: int, width: int) -> np.ndarray:
    return np.random.RandomState(height).randint(0, 256, (height, width, 3)).astype(np.uint8)


CONFIGS = {
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 24}},
    "vit-int": {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "resample": 3},
    "mae": {
        "image_processor_type": "ViTImageProcessorFast", "size": {"height": 37, "width": 37},
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    },
    "vit-no-normalise": {"image_processor_type": "ViTImageProcessor", "size": 16,
                         "do_normalize": False},
    "vit-no-rescale": {"image_processor_type": "ViTImageProcessor", "size": 16,
                       "do_rescale": False},
    "vit-rescale": {"image_processor_type": "ViTImageProcessor", "size": 16,
                    "rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
    "clip": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 30},
             "crop_size": {"height": 30, "width": 30}},
    "clip-int": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 30, "crop_size": 29},
    "clip-wide": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 21},
                  "crop_size": {"height": 24, "width": 41}},
    "clip-no-resize": {"image_processor_type": "CLIPImageProcessor", "do_resize": False,
                       "crop_size": {"height": 32, "width": 32}},
    "siglip": {"image_processor_type": "SiglipImageProcessor",
               "size": {"height": 28, "width": 28}, "resample": 2},
    "siglip-int": {"image_processor_type": "SiglipImageProcessor", "size": 28,
                   "do_center_crop": True, "crop_size": 28},
    "dinov2": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 36},
               "crop_size": {"height": 28, "width": 28}, "resample": 3,
               "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    "deit": {"image_processor_type": "DeiTImageProcessor", "size": 40, "crop_size": 32},
    "resnet": {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 32,
               "crop_pct": 0.875, "resample": 3},
    "convnext-384": {"image_processor_type": "ConvNextImageProcessor",
                     "size": {"shortest_edge": 390}},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers(name: str) -> None:
    config = CONFIGS[name]
    ours = ImageProcessor.from_hf(config)
    # Old files call the class another name, which only transformers' Auto class translates.
    reference = theirs(ours.kind)(**config)
    again = ImageProcessor.from_hf(ours.to_hf())
    assert again == ours
    for shape in SHAPES:
        expected = np.moveaxis(reference(noise(*shape), return_tensors="np").pixel_values[0], 0, -1)
        for processor in (ours, again):
            found = processor(noise(*shape))["pixel_values"]
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found[0], expected, err_msg=f"{shape}")
        if ours.output_size is not None:
            assert found.shape[1:3] == ours.output_size


@pytest.mark.parametrize("kind", NAMES)
def test_defaults_are_those_of_the_class(kind: str) -> None:
    ours = ImageProcessor.from_hf({"image_processor_type": f"{kind}ImageProcessor"})
    expected = theirs(kind)()(noise(40, 61), return_tensors="np").pixel_values[0]
    np.testing.assert_array_equal(
        ours(noise(40, 61))["pixel_values"][0], expected.transpose(1, 2, 0)
    )


@pytest.mark.parametrize("family", ["vit", "dinov2", "resnet", "clip", "siglip"])
def test_old_files_without_a_class_have_that_of_the_model(tmp_path: Path, family: str) -> None:
    from transformers import AutoImageProcessor

    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    content = {"do_resize": True, "do_normalize": True, "size": 30, "image_mean": [0.3, 0.4, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    reference = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    expected = reference(noise(40, 61), return_tensors="np").pixel_values[0]
    found = ImageProcessor.from_pretrained(tmp_path)(noise(40, 61))["pixel_values"][0]
    np.testing.assert_array_equal(found, expected.transpose(1, 2, 0))


@pytest.mark.parametrize(
    "family", ["vit", "vit_mae", "dinov2", "dinov2_with_registers", "resnet", "clip", "siglip"]
)
def test_families(tmp_path: Path, family: str) -> None:
    """Saved, transformers' own Auto class reads it and gives the same pixels."""
    from transformers import AutoImageProcessor

    ours = ImageProcessor.for_model(family, 42)
    assert ours.output_size == (42, 42)
    assert ImageProcessor.for_model(family).output_size == (224, 224)
    ours.save(tmp_path)
    assert ImageProcessor.from_pretrained(tmp_path) == ours
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    reference = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    expected = reference(noise(50, 70), return_tensors="np").pixel_values[0]
    np.testing.assert_array_equal(
        ours(noise(50, 70))["pixel_values"][0], expected.transpose(1, 2, 0)
    )


def test_pictures_of_any_kind() -> None:
    processor = ImageProcessor.for_model("vit", 8)
    grey = Image.new("L", (9, 9), 255)
    np.testing.assert_array_equal(processor([grey, noise(4, 5)])["pixel_values"][0], 1)
    assert processor(np.zeros((3, 5, 5, 3), np.uint8))["pixel_values"].shape == (3, 8, 8, 3)
    clear = np.zeros((4, 4, 4), np.uint8)  # transparent: white
    np.testing.assert_array_equal(processor(clear)["pixel_values"], 1)


def test_other_fields_are_kept(tmp_path: Path) -> None:
    content = CONFIGS["clip"] | {"processor_class": "CLIPProcessor", "do_convert_rgb": True}
    written = ImageProcessor.from_hf(content).to_hf()
    assert content.items() <= written.items()


def test_it_travels_with_a_model(tmp_path: Path) -> None:
    import fmjax
    from fmjax.models.registry import abstract_params

    model = fmjax.build(
        "vit-ti16", override={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
                              "intermediate_size": 8, "image_size": 16},
    )  # fmt: skip
    params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), abstract_params(model))
    ours = ImageProcessor.for_model("vit", 16)
    fmjax.save_pretrained(tmp_path / "a", model, params, image_processor=ours)
    fmjax.save_pretrained(tmp_path / "b", model, params, carry_from=tmp_path / "a")
    for name in "ab":
        assert ImageProcessor.from_pretrained(tmp_path / name) == ours


def test_combined_files_of_transformers(tmp_path: Path) -> None:
    combined = tmp_path / "processor_config.json"
    combined.write_text(
        json.dumps({"processor_class": "CLIPProcessor", "image_processor": CONFIGS["clip"]})
    )
    processor = ImageProcessor.from_pretrained(tmp_path)
    assert processor.crop_size == (30, 30)
    ImageProcessor.for_model("clip", 16).save(tmp_path)
    assert ImageProcessor.from_pretrained(tmp_path).crop_size == (16, 16)
    assert json.loads(combined.read_text())["processor_class"] == "CLIPProcessor"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"image_processor_type": "DonutImageProcessor"},
            '"DonutImageProcessor" is not understood',
        ),
        ({"size": 3}, "no image_processor_type; add one"),
        (CONFIGS["vit"] | {"do_pad": True}, "do_pad is not supported"),
        (CONFIGS["vit"] | {"size": {"longest_edge": 3}}, "a size with longest_edge"),
        (CONFIGS["vit"] | {"size": "large"}, "large"),
        (CONFIGS["vit"] | {"resample": 17}, "17"),
        (CONFIGS["vit"] | {"image_mean": [0.5]}, "three numbers"),
        (CONFIGS["clip"] | {"crop_size": {"shortest_edge": 3}}, "crop_size 3"),
        (CONFIGS["resnet"] | {"size": {"height": 3, "width": 3}}, "not a shortest_edge"),
    ],
)
def test_files_that_are_not_understood(tmp_path: Path, content: dict, message: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message) as e:
        ImageProcessor.from_pretrained(tmp_path)
    if content:
        assert "preprocessor_config.json: " in str(e.value) and "\n" not in str(e.value)


def test_bad_files_and_pictures(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no preprocessor_config.json; copy it"):
        ImageProcessor.from_pretrained(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "preprocessor_config.json").write_text(text)
        with pytest.raises(ConfigError, match="not (JSON|a JSON object)"):
            ImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match='no image processor for model_type "bert"'):
        ImageProcessor.for_model("bert")
    with pytest.raises(ConfigError, match="cannot be written"):
        ImageProcessor().save(tmp_path / "preprocessor_config.json")
    processor = ImageProcessor.for_model("vit", 8)
    with pytest.raises(ImageError, match="not an image"):
        processor(b"nonsense")
    with pytest.raises(DataError, match="at least one"):
        processor([])
    line = noise(1, 20_000)
    for narrow in (ImageProcessor.for_model("clip"), ImageProcessor.for_model("resnet")):
        with pytest.raises(ImageError, match="too many pixels .20000 × 1 with the shorter side"):
            narrow.pixels(line)
    with pytest.raises(ImageError, match="the limit is 999"):
        ImageProcessor(kind="CLIP", size=10)(noise(5, 50), max_pixels=999)
    assert ImageProcessor.for_model("vit").pixels(line).shape == (224, 224, 3)
    free = ImageProcessor(kind="CLIP", size=8)
    with pytest.raises(FmjaxError, match=r"\(8, 12\) and \(12, 8\) pixels"):
        free([noise(20, 30), noise(30, 20)])
