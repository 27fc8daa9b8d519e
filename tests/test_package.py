"""The content of the wheel, its dependencies, and the public names."""

import inspect
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import mimuon_jax

FUNCTIONS = [n for n in mimuon_jax.__all__ if inspect.isfunction(getattr(mimuon_jax, n))]


@pytest.fixture(scope="module")
def project(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


def test_wheel_holds_the_library_alone(repository, project, tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=repository, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())
    metadata = f"mimuon_jax-{project['version']}.dist-info"
    sources = repository.joinpath("mimuon_jax").rglob("*.py")
    expected = {str(path.relative_to(repository)) for path in sources}
    expected |= {"mimuon_jax/py.typed"}
    expected |= {f"{metadata}/{name}" for name in ("METADATA", "WHEEL", "RECORD")}
    expected |= {f"{metadata}/licenses/LICENSE"}
    assert shipped == expected


def test_the_version_is_that_of_the_project(project):
    assert mimuon_jax.__version__ == project["version"]


def test_import_needs_nothing_but_the_runtime_dependencies(repository):
    program = "import sys, mimuon_jax; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, check=True, capture_output=True, text=True
    )
    unwanted = {"flax", "tensorflow", "torch", "grain", "orbax", "beartype", "models", "train"}
    assert not unwanted & set(run.stdout.split())


def test_every_public_name_is_listed():
    # Submodules are bound by importing them; one that is public is listed all the same.
    bound = {
        n for n, v in vars(mimuon_jax).items() if not n.startswith("_") and not inspect.ismodule(v)
    }
    listed = {n for n in mimuon_jax.__all__ if not inspect.ismodule(getattr(mimuon_jax, n))}
    assert bound == listed


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_carry_an_example(name):
    text = getattr(mimuon_jax, name).__doc__ or ""
    assert "Example:" in text
    assert ">>>" in text
