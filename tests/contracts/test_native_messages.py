import os
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.native_messages import native_messages_withheld, standard_error_in

NOISY = """
import os, sys
os.write(2, b"chatter\\n")
if os.environ.get("BROKEN"):
    raise ImportError("broken")
"""
IMPORTING = """
import sys
from contracts import native_messages
for _ in range(2):
    native_messages.withhold_while_importing("noisy")
import noisy, noisy.part
assert noisy.__spec__.name == "noisy" and noisy.__file__.endswith("__init__.py")
assert not any(type(finder).__name__ == "_Finder" and finder.module == "noisy" for finder in sys.meta_path)
print("later", file=sys.stderr)
"""


def test_what_native_code_says_is_shown_only_when_loading_fails(capfd):
    with native_messages_withheld():
        os.write(2, b"chatter\n")
    assert capfd.readouterr().err == ""
    with pytest.raises(ImportError), native_messages_withheld():
        os.write(2, b"cannot open shared object\n")
        raise ImportError
    assert capfd.readouterr().err == "cannot open shared object\n"
    with pytest.raises(KeyboardInterrupt), native_messages_withheld():
        os.write(2, b"chatter\n")
        raise KeyboardInterrupt
    assert capfd.readouterr().err == ""


def test_standard_error_goes_to_the_file_and_comes_back(tmp_path, capfd):
    with (tmp_path / "log").open("w") as log, standard_error_in(log) as terminal:
        os.write(2, b"native")
        os.write(terminal, b"to the terminal")
    os.write(2, b", afterwards")
    assert (tmp_path / "log").read_text() == "native"
    assert capfd.readouterr().err == "to the terminal, afterwards"


def run(program, *paths, **environment):
    path = os.pathsep.join(map(str, [*paths, Path.cwd()]))
    # A fresh environment: this process has set the variables of TensorFlow already.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=kept | {"PYTHONPATH": path} | environment
    )


def test_what_a_module_writes_while_it_is_imported_is_withheld_unless_the_import_fails(tmp_path):
    (tmp_path / "noisy").mkdir()
    (tmp_path / "noisy" / "__init__.py").write_text(NOISY)
    (tmp_path / "noisy" / "part.py").touch()
    found = run(IMPORTING, tmp_path)
    assert (found.returncode, found.stderr) == (0, "later\n")
    found = run(IMPORTING, tmp_path, BROKEN="1")
    assert found.returncode == 1 and "chatter" in found.stderr and "ImportError: broken" in found.stderr


@pytest.mark.parametrize("module", ["contracts.trajectories", "trainer.board", "trainer.neural"])
def test_tensorflow_writes_nothing_and_keeps_to_keras_2(module):
    program = f"import {module}, tensorflow as tf; tf.config.list_physical_devices(); print(tf.keras.layers.Dense.__module__[:9])"
    found = run(program)
    assert (found.returncode, found.stdout, found.stderr) == (0, "tf_keras.\n", "")
