"""The `fmjax` command: its sub-commands, its errors, its exit codes.

Exit codes: 0 done, 1 a bug in fmjax, 2 bad input, 130 interrupted (training saves first).
"""

import argparse
import errno
import importlib
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Union

DESCRIPTION = """One functional JAX library for foundation models: load, pretrain, adapt, measure,
ship back to PyTorch files. Start with `fmjax quickstart`.

`fmjax COMMAND --help` explains a command, `fmjax --version` names the version, and `--debug`
anywhere shows the traceback of an error."""

# Sub-command → the dataclass of its options, which has `run()`. None of the modules imports JAX.
COMMANDS = {
    "quickstart": "fmjax.quickstart:Quickstart",
    "tokenizer": "fmjax.cli.tokenizer:TrainTokenizer",
    "train": "fmjax.recipes:Pretrain",
    "finetune": "fmjax.recipes:Finetune",
    "eval": "fmjax.cli.evaluate:Evaluate",
    "predict": "fmjax.recipes:Predict",
    "embed": "fmjax.recipes:Embed",
    "classify": "fmjax.recipes:Classify",
    "retrieve": "fmjax.recipes:Retrieve",
    "generate": "fmjax.cli.generate:Generate",
    "merge": "fmjax.cli.merge:Merge",
    "extract": "fmjax.cli.extract:Extract",
    "convert": "fmjax.cli.convert:Convert",
    "plan": "fmjax.cli.plan:PlanStep",
    "doctor": "fmjax.cli.doctor:Doctor",
}


# A flag, alone or with its value, that turns a sub-command to other work → the dataclass of its
# options then; the first that fits counts.
VARIANTS = {
    ("train", "--objective"): "fmjax.recipes:PretrainImages",
    ("finetune", "--task sft"): "fmjax.recipes:FinetuneSft",
    ("finetune", "--task dpo"): "fmjax.recipes:FinetuneDpo",
    ("finetune", "--task"): "fmjax.recipes:FinetuneTask",
    ("eval", "--test"): "fmjax.recipes:EvaluateTask",
    ("embed", "--images"): "fmjax.recipes:EmbedImages",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Args:
      argv: without the program's name; None reads `sys.argv`.

    Returns:
      The exit code.

    Raises:
      SystemExit: after `--help` (0) and for a command line that cannot be parsed (2).
    """
    arguments, debug = _arguments(argv)
    if arguments == ["--version"]:
        from fmjax import __version__

        print(f"fmjax {__version__}")
        return 0
    return execute(lambda: _ready(_parse(arguments)).run(), debug)


def experiment(
    defaults: Any,
    description: str,
    run: Callable[[Any], Any] = lambda options: options.run(),
    argv: Sequence[str] | None = None,
    scales: Mapping[str, Any] | None = None,
    methods: Mapping[str, Any] | None = None,
) -> int:
    """Runs a file of `experiments/`: its settings, changed by the command line.

    Args:
      defaults: a dataclass instance; its fields become flags.
      description: for `--help`.
      run: what to do with the settings.
      argv: without the program's name; None reads `sys.argv`.
      scales: other defaults by name; `--scale NAME` starts from those.
      methods: likewise for `--method NAME`.

    Returns:
      The exit code, as of `main`.
    """
    import tyro

    from fmjax.cli.console import MARKERS

    arguments, debug = _arguments(argv)
    if scales:
        description += f"\n\n--scale NAME starts from other settings: {', '.join(scales)}."
    if methods:
        description += f"\n\n--method NAME starts from other settings: {', '.join(methods)}."

    def parse() -> Any:
        chosen, rest = _choose("scale", arguments, defaults, scales or {})
        chosen, rest = _choose("method", rest, chosen, methods or {})
        return tyro.cli(
            type(chosen),
            args=rest,
            default=chosen,
            description=description,
            config=MARKERS,
        )

    return execute(lambda: run(_ready(parse())), debug)


def _choose(
    flag: str, arguments: list[str], defaults: Any, choices: Mapping[str, Any]
) -> tuple[Any, list[str]]:
    """The defaults that a flag picks, and the command line without it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{flag}", nargs="?", const="")
    given, rest = parser.parse_known_args(arguments)
    name = getattr(given, flag)
    if name is None or not choices:
        return defaults, arguments
    if name not in choices:
        from fmjax.core.errors import ConfigError

        raise ConfigError(f"--{flag} {name}: no such {flag}; choose one of {', '.join(choices)}")
    return choices[name], rest


def execute(run: Callable[[], Any], debug: bool = False) -> int:
    """Runs something; prints what it raises as one line on standard error.

    Returns:
      The exit code.
    """
    _quieten()
    try:
        # Training says False when a signal ended it early, with its state saved.
        return 130 if run() is False else 0
    except BrokenPipeError:  # the reader of our output left, as `head` does
        # What is still in the buffer would raise again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        from fmjax.cli.hosts import failed

        return failed(0)
    except (Exception, KeyboardInterrupt) as e:
        if debug:
            traceback.print_exc()
        code, message = explain(e)
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        from fmjax.cli.hosts import failed

        return failed(code)


def _ready(options: Any) -> Any:
    """Checked for what all commands share, and joined with the other processes of the run."""
    from fmjax.cli.hosts import join
    from fmjax.core.errors import ConfigError

    seed = getattr(getattr(options, "optimization", options), "seed", 0)
    if not -(2**63) <= seed < 2**63:
        raise ConfigError(f"--seed {seed} does not fit into 64 bits; take a smaller one")
    join(options)
    return options


def _arguments(argv: Sequence[str] | None) -> tuple[list[str], bool]:
    arguments = list(sys.argv[1:] if argv is None else argv)
    return [word for word in arguments if word != "--debug"], "--debug" in arguments


def _quieten() -> None:
    # Libraries under JAX log to standard error unless told otherwise before they are loaded.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def _parse(arguments: list[str]) -> Any:
    import tyro

    from fmjax.cli.console import MARKERS

    if arguments and arguments[0] in COMMANDS:
        name, *rest = arguments
        words = [part for word in rest for part in word.split("=", 1)]
        flags = {*words, *map(" ".join, itertools.pairwise(words))}
        kind = next((k for (n, flag), k in VARIANTS.items() if n == name and flag in flags), None)
        kind = _resolve(kind) if kind else _load(name)
        return tyro.cli(kind, prog=f"fmjax {name}", args=rest, config=MARKERS)
    # Anything else ends in the overview, in which every command has one line.
    kinds = {name: _load(name) for name in COMMANDS}
    named = [
        Annotated[kind, tyro.conf.subcommand(name, description=_summary(kind))]
        for name, kind in kinds.items()
    ]
    return tyro.cli(
        Union[tuple(named)],  # noqa: UP007
        prog="fmjax",
        args=arguments,
        description=DESCRIPTION,
        config=MARKERS,
    )


def _load(name: str) -> Any:
    return _resolve(COMMANDS[name])


def _resolve(place: str) -> Any:
    module, _, kind = place.partition(":")
    return getattr(importlib.import_module(module), kind)


def _summary(kind: Any) -> str:
    return kind.__doc__.partition("\n")[0]


def explain(e: BaseException) -> tuple[int, str]:
    """(exit code, what to tell the user) of an exception."""
    from fmjax.core.errors import FmjaxError

    if isinstance(e, KeyboardInterrupt):
        return 130, "interrupted; a training run goes on from its last checkpoint when run again"
    if isinstance(e, FmjaxError):
        return 2, str(e)
    if isinstance(e, OSError):
        if e.errno == errno.ENOSPC:
            return 2, f"the disk is full ({e.filename or 'while writing'}); make room and run again"
        where = f"{e.filename}: " if e.filename else ""
        return 2, f"{where}{e.strerror or e}; check the path and its permissions"
    text = str(e)
    from fmjax.cli.hosts import lost_another

    if lost_another(e):
        return 1, (
            f"another process of this run has ended, and says why ({text[:150]}); start all of "
            "them again: a training run goes on from its last checkpoint"
        )
    if "RESOURCE_EXHAUSTED" in text or isinstance(e, MemoryError):
        return 2, (
            "out of memory; use a smaller --batch-size or --sequence-length, --accumulate, "
            "--remat full, or a --mesh over more devices"
        )
    return 1, (
        f"unexpected {type(e).__name__}: {text}; this is a bug in fmjax: run again with --debug "
        "and report the traceback"
    )
