"""The guides run here from top to bottom, each in a fresh interpreter: what they tell is what happens."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(900)
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def code_of(path: Path) -> str:
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("name", ["step_by_step", "end_to_end"])
def test_a_guide_runs_from_top_to_bottom(tmp_path, name):
    script = tmp_path / f"{name}.py"
    script.write_text(code_of(NOTEBOOKS / f"{name}.ipynb"))
    done = subprocess.run([sys.executable, str(script)], cwd=NOTEBOOKS, capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_guides_are_kept_without_outputs():
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    assert [path.stem for path in paths] == ["end_to_end", "step_by_step"]
    for path in paths:
        for cell in json.loads(path.read_text())["cells"]:
            assert cell.get("outputs", []) == []
            assert cell.get("execution_count") is None
