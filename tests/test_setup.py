import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_base_install_pulls_in_nothing_heavy(tmp_path):
    """Beam stages setup.py to its workers, which have Beam already: anything else would be installed on each."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (requires,) = tmp_path.glob("*.egg-info/requires.txt")
    base, _, extras = requires.read_text().partition("[")
    assert base.split() == ["msgspec>=0.19"]
    for part in ("beam", "trainer", "predictor", "orchestration"):
        assert f"{part}]" in extras


def test_every_part_is_packaged(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (packages,) = tmp_path.glob("*.egg-info/top_level.txt")
    assert set(packages.read_text().split()) == {"contracts", "beam_jobs", "trainer", "predictor", "orchestration"}


def test_every_lock_is_made_by_the_makefile():
    """`make lock`, on every file there is: each says who made it, and the recipe writes it."""
    locks = {path.stem: path.read_text() for path in (ROOT / "requirements").glob("*.txt")}
    assert {name for name, text in locks.items() if "#    make lock\n" in text} == locks.keys()
    recipe = subprocess.run(["make", "--dry-run", "lock"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    words = set(recipe.replace("/", " ").replace(".", " ").replace(";", " ").split())
    assert locks.keys() <= words
