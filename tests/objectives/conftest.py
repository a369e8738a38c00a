"""Makes `task_cases` importable from the tests of this room."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
