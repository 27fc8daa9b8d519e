"""Fixtures shared by the tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import jaxtyping
import pytest

# The same on a laptop as in continuous integration: no deadline (compiling), no random seed.
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
    """Runtime type checks off: bad input meets the library's own errors, as it does for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Keeps doctest collection from importing what is no test: oracles and scripts beside them."""
    helper = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    return helper or None
