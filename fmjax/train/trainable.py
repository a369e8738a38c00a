"""Which of the variables a step trains."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fmjax.core import adapter, tree
from fmjax.core.errors import ConfigError

PathRules = Sequence[tuple[str, bool]]
Trainable = PathRules | Callable[[Mapping[str, Any]], PathRules]
"""Ordered (regex, trained or not) over paths, or a function of the variables that gives them."""

TRAIN_PARAMS: PathRules = ((r"^params/", True), (r".", False))
TRAIN_ADAPTER: PathRules = ((rf"^(?!{adapter.COLLECTION}/)", False), *adapter.TRAINABLE)


def default_rules(variables: Mapping[str, Any]) -> PathRules:
    """The adapter, without its constants, if there is one; else all of "params"."""
    return TRAIN_ADAPTER if variables.get(adapter.COLLECTION) else TRAIN_PARAMS


def freeze(*patterns: str) -> Trainable:
    """For `make_step(trainable=…)`: trains what is trained by default, but for these paths.

        make_step(model, CausalLM(), adamw(1e-4), trainable=freeze(r"/wte/", r"/wpe/"))

    What is frozen has neither gradient nor optimizer state. The layers of a scanned stack share
    their leaves: the lowest of them are frozen by `fmjax.train.freeze_layers`.

    Args:
      patterns: regexes over paths such as "params/wte/embedding".

    Raises:
      ConfigError: when variables are split, a pattern that none of their paths matches.
    """

    def rules(variables: Mapping[str, Any]) -> PathRules:
        paths = list(tree.flatten(variables))
        for pattern in patterns:
            if not any(re.search(pattern, path) for path in paths):
                raise ConfigError(
                    f"freeze: no parameter matches {pattern!r}; paths look like {paths[0]!r}"
                )
        return (*((pattern, False) for pattern in patterns), *default_rules(variables))

    return rules


def split(
    variables: Mapping[str, Any], trainable: Trainable | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trained, frozen) parts of the variables; None is `default_rules`.

    Raises:
      ConfigError: a path without a rule, or nothing is trained.
    """
    rules = default_rules if trainable is None else trainable
    rules = rules(variables) if callable(rules) else rules
    mask = tree.match_rules(rules, variables, "trainable rule")
    trained, frozen = tree.partition(variables, mask)
    if not trained:
        raise ConfigError("no parameter is trained: the trainable rules select none")
    return trained, frozen
