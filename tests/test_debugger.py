"""`pytest --pdb` stops in a failing test, although tests run in other processes by default."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_pdb_stops_where_a_test_fails(tmp_path, repository):
    failing = tmp_path / "test_failing.py"
    failing.write_text("def test_it():\n    found = 6 * 7\n    assert found == 43\n")
    options = ["-c", str(repository / "pyproject.toml"), "--pdb", str(failing)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=repository,
        input="p found + 1000\nquit\n",
        capture_output=True,
        text=True,
    )
    assert "(Pdb) 1042" in run.stdout, run.stdout + run.stderr
