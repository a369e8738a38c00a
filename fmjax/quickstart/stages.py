"""The stages of the quickstart: run once each, remembered, resumed."""

import dataclasses
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from fmjax.cli.console import command_line
from fmjax.core.errors import ConfigError
from fmjax.data import load_corpus
from fmjax.generate import Sampling, generate
from fmjax.quickstart import show
from fmjax.quickstart.plan import HEAD, Plan, domains, larger, plan
from fmjax.quickstart.report import write_report
from fmjax.quickstart.settings import Quickstart
from fmjax.recipes.measure import measure, open_subject
from fmjax.recipes.models import open_model
from fmjax.recipes.text import open_text, texts

STATE = "quickstart.json"
OWNED = ("adapt", "pretrain", "text", "tokenizer", STATE, "report.html")
NEW_TOKENS = 48
_TINY_DOCUMENTS = 60


def run(settings: Quickstart) -> bool:
    """Runs every stage that is not finished; False if a signal ended one early."""
    settings = settings.sized()
    _check(settings)
    progress = Progress.open(settings)
    now, again = plan(settings), larger(settings)
    show.opening(settings)
    progress.save()  # marks the directory as the quickstart's before anything else lies in it
    if settings.tiny:
        _write_tiny_text(settings)

    # Name, sub-command, what must be there afterwards, and what to do: gives results, or False if
    # it was stopped.
    stages: list[tuple[str, str, Path, Callable[[], Any]]] = [
        ("tokenizer", "tokenizer", now.tokenizer.out, now.tokenizer.run),
        ("pretrain", "train", now.adapt.model, now.pretrain.run),
        ("adapt", "finetune", now.evaluate.adapter, now.adapt.run),
        ("measure", "eval", progress.path, lambda: _measure(settings, now)),
        ("sample", "generate", progress.path, lambda: _sample(settings, now)),
    ]
    for number, (name, command, product, stage) in enumerate(stages, 1):
        show.stage(number, len(stages) + 1, name, settings, now)
        if progress.finished(name) and product.exists():
            show.finished()
        elif not progress.run(name, stage):
            return False
        if name == "measure":
            show.perplexity(domains(settings), progress.results("measure"))
        if name == "sample":
            show.samples(progress.results("sample"))
        show.again(command_line(command, again.commands()[command]))
    show.stage(len(stages) + 1, len(stages) + 1, "report", settings, now)
    report = write_report(settings, now, again, progress.stages, _machine())
    show.closing(settings, now, report, progress.seconds())
    return True


def _check(settings: Quickstart) -> None:
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            flag = "--" + field.name.replace("_", "-")
            raise ConfigError(f"{flag} {value} must be above 0")
    if settings.hidden_size % HEAD:
        raise ConfigError(f"--hidden-size {settings.hidden_size} is not a multiple of {HEAD}")


@dataclasses.dataclass
class Progress:
    """What is finished, in a file that is replaced as a whole.

    Attributes:
      path: of the file.
      content: {"settings": …, "stages": {name: {"seconds": …, "results": …}}}.
    """

    path: Path
    content: dict[str, Any]

    @classmethod
    def open(cls, settings: Quickstart) -> "Progress":
        """The progress of an earlier run with these settings, or of a new one.

        Raises:
          ConfigError: the directory holds something else.
        """
        out, path = settings.out, settings.out / STATE
        if settings.fresh and path.is_file():
            for name in OWNED:
                if (out / name).is_dir():
                    shutil.rmtree(out / name)
                else:
                    (out / name).unlink(missing_ok=True)
        wanted = dataclasses.asdict(settings)
        for name in ("out", "fresh"):
            del wanted[name]
        if not path.is_file():
            if out.exists() and (not out.is_dir() or any(p.name in OWNED for p in out.iterdir())):
                raise ConfigError(
                    f"{out} holds files that no quickstart left there; choose another --out"
                )
            return cls(path, {"settings": wanted, "stages": {}})
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            before = content["settings"]
        except (ValueError, KeyError, TypeError) as e:
            raise ConfigError(f"{path} is damaged; start over with --fresh") from e
        if not content.get("stages"):  # nothing that would be lost
            return cls(path, {"settings": wanted, "stages": {}})
        for name, value in wanted.items():
            if before.get(name) != value:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"{out} holds a quickstart with {flag} {before.get(name)}, this one has "
                    f"{value}; replace it with --fresh, or choose another --out"
                )
        return cls(path, content)

    @property
    def stages(self) -> dict[str, Any]:
        return self.content["stages"]

    def finished(self, name: str) -> bool:
        return name in self.stages

    def results(self, name: str) -> Any:
        return self.stages[name]["results"]

    def seconds(self) -> float:
        """Of all stages together."""
        return sum(stage["seconds"] for stage in self.stages.values())

    def run(self, name: str, stage: Callable[[], Any]) -> bool:
        """Runs a stage and remembers it; False if it was stopped."""
        started = time.perf_counter()
        results = stage()
        if results is False:
            return False
        self.stages[name] = {"seconds": time.perf_counter() - started, "results": results}
        self.save()
        return True

    def save(self) -> None:
        """Writes the file, all of it or nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{STATE}.part")
        part.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.path)


def _write_tiny_text(settings: Quickstart) -> None:
    """The first documents of both corpora as files, in place of the corpora themselves."""
    for domain, name in zip(domains(settings), ("kjv", "movie_reviews"), strict=True):
        for path, split in ((domain.train, "train"), (domain.held_out, "validation")):
            documents = texts([load_corpus(name, split)[:_TINY_DOCUMENTS]])
            lines = [json.dumps({"text": text[:400]}) for text in documents]
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _measure(settings: Quickstart, now: Plan) -> dict[str, Any]:
    """{"before" and "after" the adaptation: {title of the domain: perplexity}}."""
    shape = (settings.batch_size, settings.sequence_length)
    found: dict[str, Any] = {}
    for label, adapter in (("before", None), ("after", now.evaluate.adapter)):
        subject = open_subject(now.evaluate.model, adapter)
        found[label] = {
            domain.title: measure(
                subject, open_text(domain.held_out, "validation"), *shape
            ).to_dict()
            for domain in domains(settings)
        }
    return found


def _sample(settings: Quickstart, now: Plan) -> dict[str, Any]:
    """{"before" and "after": [[prompt, continuation], …]}, with the same seed."""
    prompts = [prompt for domain in domains(settings) for prompt in domain.prompts]
    found: dict[str, Any] = {}
    for label, adapter in (("before", None), ("after", now.generate.adapter)):
        model, variables, tokenizer = open_model(now.generate.model, adapter)
        output = generate(
            model,
            variables,
            [tokenizer.encode(prompt) for prompt in prompts],
            max_new_tokens=NEW_TOKENS,
            sampling=Sampling(temperature=now.generate.temperature, top_p=now.generate.top_p),
            rng=jax.random.key(0),
            tokenizer=tokenizer,
        )
        found[label] = [list(pair) for pair in zip(prompts, output.texts, strict=True)]
    return found


def _machine() -> str:
    device = jax.devices()[0]
    count = os.cpu_count() if device.platform == "cpu" else len(jax.devices())
    unit = "CPU cores" if device.platform == "cpu" else device.device_kind
    return f"{count} {unit}, JAX {jax.__version__}, Python {platform.python_version()}"
