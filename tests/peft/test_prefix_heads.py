"""Prefixes under the heads of tasks, encoders included, with whole copies, as in PEFT."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import fmjax
from fmjax import peft
from fmjax.core import tree

P = 3
# Class of transformers → PEFT's task and the modules that it adds for that task.
CASES = {
    "BertForSequenceClassification": ("SEQ_CLS", ["classifier", "score"]),
    "BertForTokenClassification": ("TOKEN_CLS", ["classifier", "score"]),
    "BertForQuestionAnswering": ("QUESTION_ANS", ["qa_outputs"]),
    "RobertaForSequenceClassification": ("SEQ_CLS", ["classifier", "score"]),
    "GPT2ForSequenceClassification": ("SEQ_CLS", ["classifier", "score"]),
    "LlamaForSequenceClassification": ("SEQ_CLS", ["classifier", "score"]),
}
IDS = np.random.default_rng(1).integers(2, 50, (3, 7))
MASK = np.ones_like(IDS)
MASK[1, 4:] = 0
IDS[1, 4:] = 1  # padding, which RoBERTa finds by its id


def make(name, directory):
    import torch
    import transformers

    cls = getattr(transformers, name)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=44)
    if name.startswith("GPT2"):
        sizes = dict(n_embd=32, n_layer=2, n_head=4, n_positions=16)
    elif name.startswith("Llama"):
        sizes |= dict(num_key_value_heads=2)
    config = cls.config_class(
        **sizes,
        vocab_size=50,
        max_position_embeddings=16,
        initializer_range=0.2,
        num_labels=2 if "Question" in name else 3,
        pad_token_id=1,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cls(config).save_pretrained(directory)
    model, params = fmjax.from_pretrained(directory)
    task, own = CASES[name]

    def reference():
        return cls.from_pretrained(directory, attn_implementation="eager").eval()

    return SimpleNamespace(
        dir=directory, model=model, params=params, reference=reference, task=task, own=own
    )


@pytest.fixture(scope="module", params=CASES)
def twin(request, tmp_path_factory):
    return make(request.param, tmp_path_factory.mktemp(request.param))


def answers(out):
    """Logits of any head, of either library, as one array; of padding none."""
    if "start_logits" in dir(out):
        both = np.stack([np.asarray(out.start_logits), np.asarray(out.end_logits)], -1)
        return both[MASK > 0]
    logits = np.asarray(out.logits)
    return logits[MASK > 0] if logits.ndim == 3 else logits


def test_prefixes_and_heads_go_both_ways(twin, kit, tmp_path):
    import torch
    from peft import PrefixTuningConfig, get_peft_model

    config = PrefixTuningConfig(task_type=twin.task, num_virtual_tokens=P)
    theirs = kit.quiet(get_peft_model, twin.reference(), config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    kit.quiet(theirs.save_pretrained, tmp_path / "theirs")
    inputs = dict(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK))
    with torch.no_grad():
        expected = answers(theirs(**inputs))

    spec, adapter = peft.load(tmp_path / "theirs", twin.model, twin.params)
    assert spec.modules_to_save == peft.head_modules(twin.model)
    variables = {"params": twin.params, "adapter": adapter}
    out = jax.jit(twin.model.apply)(variables, jnp.asarray(IDS, jnp.int32), jnp.asarray(MASK))
    np.testing.assert_allclose(answers(out), expected, rtol=0, atol=1e-4)
    assert peft.count(spec, twin.model) == theirs.get_nb_trainable_parameters()[0]

    peft.save(tmp_path / "ours", spec, adapter, twin.model)
    files = [load_file(tmp_path / d / "adapter_model.safetensors") for d in ("theirs", "ours")]
    assert files[0].keys() == files[1].keys() and len(files[0]) > 1
    for key, array in files[0].items():
        np.testing.assert_array_equal(files[1][key], array)
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["task_type"] == twin.task
    with torch.no_grad():
        back = answers(kit.in_peft(twin, tmp_path / "ours")(**inputs))
    np.testing.assert_allclose(back, expected, rtol=0, atol=1e-6)
    again = peft.load(tmp_path / "ours", twin.model, twin.params)
    assert again[0] == spec
    for path, array in tree.flatten(again[1]).items():
        np.testing.assert_array_equal(array, tree.flatten(adapter)[path])


def test_a_projection_and_a_new_head_are_trained_and_filed_together(tmp_path):
    config = dict(
        model_type="bert",
        architectures=["BertForSequenceClassification"],
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=44,
        max_position_embeddings=16,
        initializer_range=0.2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = fmjax.build(config)
    params = fmjax.init_params(model, jax.random.key(0))
    spec = peft.Prefix(P, projection=True, modules_to_save=peft.head_modules(model))
    adapter = peft.init(jax.random.key(1), spec, model, params)
    assert adapter.keys() == {"encoder", "classifier"}
    assert peft.count(spec, model) == tree.count(adapter)
    apply = peft.applied(spec, model)
    ids = jnp.asarray(IDS, jnp.int32)

    @jax.jit
    def gradient(adapter):
        return jax.grad(
            lambda a: jnp.sum(apply({"params": params, "adapter": a}, ids).logits[:, 0])
        )(adapter)

    moved = jax.tree.map(lambda x, g: x - 0.1 * g, adapter, gradient(adapter))
    for path, x in tree.flatten(moved).items():
        assert np.abs(x - tree.flatten(adapter)[path]).max() > 1e-5, path
    peft.save(tmp_path, spec, moved, model)
    again, loaded = peft.load(tmp_path, model)
    assert again == peft.Prefix(P, modules_to_save=("classifier",))
    expected = jax.jit(apply)({"params": params, "adapter": moved}, ids).logits
    found = jax.jit(model.apply)({"params": params, "adapter": loaded}, ids).logits
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
