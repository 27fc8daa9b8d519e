"""The content of the wheel, its dependencies, and the public names."""

import inspect
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mimuon_jax

REPOSITORY = Path(__file__).resolve().parent.parent
NOTES = runpy.run_path(str(REPOSITORY / ".github" / "release_notes.py"))["notes"]
FUNCTIONS = [n for n in mimuon_jax.__all__ if inspect.isfunction(getattr(mimuon_jax, n))]


def test_wheel_holds_the_library_alone(repository, tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=repository, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
        about = archive.read(f"mimuon_jax-{mimuon_jax.__version__}.dist-info/METADATA").decode()
    assert "\nProvides-Extra:" not in about  # of programs and tests, which it does not hold
    metadata = f"mimuon_jax-{mimuon_jax.__version__}.dist-info"
    sources = repository.joinpath("mimuon_jax").rglob("*.py")
    expected = {str(path.relative_to(repository)) for path in sources}
    expected |= {"mimuon_jax/py.typed"}
    expected |= {f"{metadata}/{name}" for name in ("METADATA", "WHEEL", "RECORD")}
    expected |= {f"{metadata}/licenses/LICENSE"}
    assert shipped == expected


SOURCE = '"""Text."""\n\n__version__ = "0.2.0"\n'
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-01-01\n\nFaster.\n\n## [0.1.0]\n"


def test_the_notes_of_a_release_are_its_section_of_the_changelog(repository):
    assert NOTES("v0.2.0", SOURCE, CHANGELOG) == "Faster."
    source = repository.joinpath("mimuon_jax", "__init__.py").read_text()
    version = mimuon_jax.__version__
    changelog = repository.joinpath("CHANGELOG.md").read_text()
    released = changelog.replace("## [Unreleased]", f"## [{version}]")
    assert NOTES(f"v{version}", source, released).startswith("To become")


@pytest.mark.parametrize(
    ("tag", "source", "changelog", "said"),
    [
        ("v0.3.0", SOURCE, CHANGELOG, "the tag is 'v0.3.0', but __version__"),
        ("0.2.0", SOURCE, CHANGELOG, "or tag v0.2.0"),
        ("v0.2.0", SOURCE, "## [Unreleased]\n\nFaster.\n", "rename its section Unreleased"),
        ("v0.1.0", SOURCE.replace("0.2", "0.1"), CHANGELOG, "nothing under ## [0.1.0]"),
    ],
)
def test_a_tag_that_nothing_describes_is_refused(tag, source, changelog, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        NOTES(tag, source, changelog)


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
