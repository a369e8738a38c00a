"""Ready rule lists: logical axis → mesh axes.

Print one, or put pairs of your own in front of it: the first pair for a name counts.
"""

from fmjax.core.logical import Rules

# Fully sharded data parallelism with tensor parallelism inside the layers. On a mesh whose
# `tensor` (or `fsdp`) axis has size 1 it is plain FSDP (or tensor parallelism), so one list serves
# every mesh of these axes, a single device included.
DEFAULT_RULES: Rules = (
    # Activations. Outside the layers, the devices of all stages share the batch; `stage` comes
    # first, so that no row moves on its way into the pipeline (`fmjax.nn.pipeline`).
    ("batch", ("stage", "data", "fsdp", "expert")),
    ("seq", "context"),
    ("act_embed", None),
    ("act_heads", "tensor"),
    ("act_kv_heads", "tensor"),
    ("act_mlp", "tensor"),
    ("act_vocab", "tensor"),
    # Parameters.
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("expert", "expert"),
    ("qkv", None),
    ("positions", None),
    ("norm", None),
    ("layers", "stage"),
    ("lora", None),
)

# Every device holds all parameters; only the batch is split.
REPLICATED_RULES: Rules = (
    ("batch", ("stage", "data", "fsdp", "expert")),
    *((name, None) for name, _ in DEFAULT_RULES if name != "batch"),
)
