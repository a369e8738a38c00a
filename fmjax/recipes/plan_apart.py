"""A plan in a process of its own, which ends when memory is assigned: seconds, not a minute.

TPUs' compiler cannot be stopped, and what it does after that changes no figure of a plan (see
`fmjax.plan.assigned`); its process can be. Importing this module imports no JAX.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fmjax.plan.result import Memory, Plan, write
from fmjax.recipes.options import Adaptation, Optimization
from fmjax.recipes.plan_cases import Case


def plan_apart(case: Case) -> Plan:
    """The same as `fmjax.recipes.plan.plan_case`, but for kernels: that they compile is not proven.

    Raises:
      FmjaxError: as there, and where the process ends without an answer.
    """
    with tempfile.TemporaryDirectory(prefix="fmjax-plan-") as directory:
        (Path(directory) / "case.json").write_text(json.dumps(dataclasses.asdict(case)))
        # What the process prints before it ends is the compiler's, or a traceback.
        paths = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "TMPDIR": directory}
        command = [sys.executable, "-m", __name__, directory]
        ended = subprocess.run(command, env=os.environ | paths, check=False).returncode
        from fmjax.core import errors

        file = Path(directory) / "answer.json"
        if not file.exists():
            raise errors.FmjaxError(
                f"the process that planned {case.model} on {case.topology} ended with exit code "
                f"{ended}; what it said stands above"
            )
        answer = json.loads(file.read_text())
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["said"])
    memory = answer["memory"] and Memory(**answer["memory"])
    tuples = {name: tuple(answer[name]) for name in ("advice", "notes")}
    return Plan(**answer | tuples | {"memory": memory})


def _answer(directory: Path) -> None:
    """Plans `case.json` and writes `answer.json`."""
    from fmjax.plan.environment import prepare

    prepare()
    from fmjax.core import errors
    from fmjax.recipes.plan import plan_case

    try:
        result = plan_case(_case(json.loads((directory / "case.json").read_text())), codegen=False)
        text = result.to_json()
    except errors.FmjaxError as e:
        text = json.dumps({"error": type(e).__name__, "said": str(e)})
    write(directory / "answer.json", text)


def _case(fields: dict[str, Any]) -> Case:
    """From JSON, which has lists for tuples."""

    def of(kind: Any, fields: dict[str, Any]) -> Any:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})

    fields["adaptation"] = of(Adaptation, fields["adaptation"])
    fields["optimization"] = of(Optimization, fields["optimization"])
    return of(Case, fields)


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
    sys.stdout.flush()
    # Threads of the compiler are left where they are.
    os._exit(0)
