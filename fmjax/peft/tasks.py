"""What a model is for, in the PEFT library's words, and which head goes with that."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from fmjax.peft.base import Base
from fmjax.peft.saved import present

# Ends of the architecture names → PEFT's task, and the modules that its model class for this task
# adds to modules_to_save unasked, when it makes an adapter and again when it loads one.
_TASKS = {
    "ForCausalLM": ("CAUSAL_LM", ()),
    "LMHeadModel": ("CAUSAL_LM", ()),
    "ForSequenceClassification": ("SEQ_CLS", ("classifier", "score")),
    "ForTokenClassification": ("TOKEN_CLS", ("classifier", "score")),
    "ForQuestionAnswering": ("QUESTION_ANS", ("qa_outputs",)),
    # PEFT has no task for images: what is to be trained whole must be named.
    "ForImageClassification": (None, ("classifier",)),
    "Model": ("FEATURE_EXTRACTION", ()),
}


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Names for `modules_to_save` of the model's own head, as PEFT takes them for its task.

    ("classifier",), ("score",) or ("qa_outputs",), and () for language models and bare encoders.
    BERT's pooler is not among them: name it too where it is new.
    """
    return _heads(Base.of(model))


def _heads(base: Base) -> tuple[str, ...]:
    _, added = _task(base)
    return tuple(name for name in added if present(name, base))


def _task(base: Base) -> tuple[str | None, tuple[str, ...]]:
    ends = (task for end, task in _TASKS.items() if base.architecture.endswith(end))
    return next(ends, (None, ()))


def task_type(spec: Any, base: Base) -> str | None:
    """PEFT's name for the model's task, or None where it has none.

    None too where PEFT would train a head for that task of which the adapter has no copy: its
    model class for no task in particular adds nothing.
    """
    heads = [name for name in base.modules() if name.endswith(_heads(base))]
    return _task(base)[0] if all(spec.saves(name) for name in heads) else None


def modules_to_save(config: Mapping[str, Any], base: Base) -> Any:
    """Those that an adapter_config.json means: with PEFT's own for the task, where they exist."""
    own = config.get("modules_to_save") or []
    if not isinstance(own, list) or not all(isinstance(name, str) for name in own):
        return own
    added = {t: names for t, names in _TASKS.values() if t}.get(config.get("task_type"), ())
    names = dict.fromkeys([*own, *added])
    return [name for name in names if name not in added or present(name, base)]
