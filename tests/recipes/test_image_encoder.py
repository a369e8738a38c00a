"""Which vector stands for an image, family by family, against transformers."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from fmjax.core.errors import ConfigError
from fmjax.data.images import ImageProcessor
from fmjax.nn.attention_maps import attention_maps
from fmjax.recipes.vision.encoder import image_vectors, open_encoder, token_rows
from fmjax.recipes.vision.reading import Read, pixel_batches

SIZES = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
VISION = SIZES | dict(image_size=8, patch_size=4)
TEXT = SIZES | dict(vocab_size=20, max_position_embeddings=7, eos_token_id=19, pad_token_id=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def opened(tmp_path):
    """(transformers' model, our encoder) of a random model."""

    def run(cls, config, **options):
        torch.manual_seed(0)
        other = getattr(transformers, cls)(config).eval()
        other.save_pretrained(tmp_path)
        processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
        return other, open_encoder(tmp_path, mesh="", dtype="auto", batch_size=8, **options)

    return run


def compare(encoder, files, expected, pooling=""):
    read, found = encoder.look(image_vectors(encoder.model.config, pooling), files, "looking")
    assert read.numbers == [0, 1, 2] and expected.std() > 0.05
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def pixels(encoder, files):
    images = [encoder.processor.pixels(np.asarray(Image.open(file))) for file in files]
    return torch.tensor(np.stack(images).transpose(0, 3, 1, 2))


def test_a_line_is_left_out(files, tmp_path):
    """Its shorter side resized, it would have a thousand million pixels."""
    line = tmp_path / "line.png"
    Image.new("L", (1, 20_000)).save(line)
    read, processor = Read(), ImageProcessor.for_model("clip")
    (batch,) = pixel_batches([files[0], line, files[1]], processor.pixels, 2, read)
    assert batch["pixel_values"].shape == (2, 224, 224, 3) and read.numbers == [0, 2]
    assert read.unreadable[line].startswith("too many pixels (1 × 20000 with the shorter side")


@torch.no_grad()
def test_classifier(opened, files):
    """The first token, normed, without the head."""
    config = transformers.ViTConfig(**VISION, initializer_range=0.5)
    other, encoder = opened("ViTForImageClassification", config)
    states = other.vit(pixels(encoder, files)).last_hidden_state
    compare(encoder, files, states[:, 0])
    compare(encoder, files, states[:, 1:].mean(1), "mean")


@torch.no_grad()
def test_masked_autoencoder(opened, files):
    """The encoder on all patches, without its decoder."""
    sizes = dict(decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
                 decoder_intermediate_size=8)  # fmt: skip
    config = transformers.ViTMAEConfig(**VISION, **sizes, initializer_range=0.5, mask_ratio=0.5)
    other, encoder = opened("ViTMAEForPreTraining", config)
    other.config.mask_ratio = other.vit.embeddings.config.mask_ratio = 0.0
    order = torch.arange(4.0).repeat(3, 1)
    states = other.vit(pixels(encoder, files), noise=order).last_hidden_state
    compare(encoder, files, states[:, 0])


@torch.no_grad()
def test_dinov2_with_registers(opened, files):
    """The first token; the patches' mean is without the registers. And where the heads look."""
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2)
    config = transformers.Dinov2WithRegistersConfig(
        **sizes, image_size=8, patch_size=4, num_register_tokens=3, initializer_range=0.5,
        layerscale_value=1.0, attn_implementation="eager",
    )  # fmt: skip
    other, encoder = opened("Dinov2WithRegistersModel", config)
    out = other(pixels(encoder, files), output_attentions=True)
    compare(encoder, files, out.pooler_output)
    compare(encoder, files, out.last_hidden_state[:, 4:].mean(1), "mean")
    images = pixels(encoder, files).permute(0, 2, 3, 1).numpy()
    maps = jax.jit(lambda v: attention_maps(encoder.model, v, images))(encoder.variables)
    expected = out.attentions[-1][:, :, 0, 4:].reshape(3, 2, 2, 2)
    np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_resnet(opened, files):
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"
    )
    other, encoder = opened("ResNetForImageClassification", config)
    compare(encoder, files, other.resnet(pixels(encoder, files)).pooler_output[..., 0, 0])
    with pytest.raises(ConfigError, match="resnet has no tokens"):
        image_vectors(encoder.model.config, "cls")


@torch.no_grad()
def test_clip_vision(opened, files):
    config = transformers.CLIPVisionConfig(**VISION, projection_dim=12, initializer_factor=8.0)
    other, encoder = opened("CLIPVisionModelWithProjection", config)
    embeds = other(pixels(encoder, files)).image_embeds
    compare(encoder, files, embeds / embeds.norm(dim=-1, keepdim=True))
    with pytest.raises(ConfigError, match="does not read texts"):
        encoder.texts(["a"])


@torch.no_grad()
def test_siglip_reads_texts_at_their_full_length(opened, files, monkeypatch):
    class Tokenizer:
        """Two tokens and an end; what follows the end is read too."""

        vocab_size, pad_token_id = 20, 1

    rows = np.array([[5, 6, 19, 1, 1, 1, 1], [7, 19, 1, 1, 1, 1, 1]])
    monkeypatch.setattr("fmjax.recipes.vision.encoder.load_tokenizer", lambda _: Tokenizer())
    monkeypatch.setattr("fmjax.recipes.vision.encoder.token_rows", lambda *_: rows)
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)
    other, encoder = opened("SiglipModel", config)
    out = other(input_ids=torch.tensor(rows), pixel_values=pixels(encoder, files))
    compare(encoder, files, out.image_embeds)
    np.testing.assert_allclose(encoder.texts(["a", "b"]), out.text_embeds, rtol=0, atol=1e-5)


def test_rows_of_tokens(monkeypatch):
    class Encoded(list):
        ids = property(list)

    monkeypatch.setattr(
        "fmjax.recipes.vision.encoder.encode_batch",
        lambda tokenizer, texts, pairs, length: [Encoded([3, 4]), Encoded([3] * length)],
    )

    class Tokenizer:
        pad_token_id, eos_token_id = None, 9

    assert token_rows(Tokenizer(), ["a", "b"], 4).tolist() == [[3, 4, 9, 9], [3, 3, 3, 3]]
