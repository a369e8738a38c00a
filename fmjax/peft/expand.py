"""From the arrays that are trained to the adapter that the model applies.

Some methods train more than the model sees: the prefix or the prompt is the output of a small
network, which is thrown away in the end. Its parameters stand under the adapter's top-level key
"encoder"; `expand` puts what the network computes in their place.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from fmjax.core import tree
from fmjax.core.adapter import COLLECTION, ENCODER
from fmjax.peft.base import Base
from fmjax.peft.methods import Spec, method_of


def expand(spec: Spec, model: nn.Module, adapter: tree.Tree) -> dict[str, Any]:
    """The adapter as the model applies it and as files hold it: without "encoder".

    Pure, traceable and differentiable. The same adapter where there is no encoder, so that
    expanding twice does no harm.

    Args:
      spec: that the adapter was made from.
      model: under the adapter.
      adapter: from `init` or training.
    """
    return expand_on(spec, Base.of(model), adapter) if ENCODER in adapter else dict(adapter)


def expand_on(spec: Spec, base: Base, adapter: tree.Tree) -> dict[str, Any]:
    """As `expand`, on a model that is surveyed already."""
    if ENCODER not in adapter:
        return dict(adapter)
    rest = {name: subtree for name, subtree in adapter.items() if name != ENCODER}
    return tree.combine(rest, method_of(spec).expand(spec, base, adapter[ENCODER]))


def applied(spec: Spec, model: nn.Module) -> Callable[..., Any]:
    """`model.apply` for adapters that are not expanded yet: what `make_step` is to be given.

    Gradients flow through the encoder to its parameters. For methods without an encoder it is
    `model.apply`.
    """
    base = Base.of(model)

    def apply(variables: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if ENCODER in variables.get(COLLECTION, {}):
            adapter = expand_on(spec, base, variables[COLLECTION])
            variables = {**variables, COLLECTION: adapter}
        return model.apply(variables, *args, **kwargs)

    return apply
