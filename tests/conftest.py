"""Fixtures shared by the tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import jaxtyping
import pytest

# The same settings everywhere: no deadline, since examples compile, and no random seed.
hypothesis.settings.load_profile("ci")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The optional folder of real data: $MIMUON_SHARED, else `shared` beside the checkout."""
    folder = Path(os.environ.get("MIMUON_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no optional data: {folder} is not a folder; set MIMUON_SHARED")
    return folder


@pytest.fixture(scope="module", autouse=True)
def dtype_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """Strict, except in files marked ``standard_promotion``."""
    if request.node.get_closest_marker("standard_promotion") is None:
        jax.config.update("jax_numpy_dtype_promotion", "strict")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "standard")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Turns runtime type checks off, so that bad input reaches the library's own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Keeps doctest collection from importing files that are not tests: oracles and scripts."""
    helper = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    return helper or None
