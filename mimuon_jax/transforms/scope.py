"""Roles that a transformation passes on to the pieces inside it.

`partition` and `split_fused` decide what is a matrix; the pieces that they apply must not decide
otherwise. ``init`` and ``update`` of a piece take no such argument, hence a context variable: it is
set while a piece runs (under ``jax.jit``: while it is traced) and read by
`mimuon_jax.transforms.roles.roles` where the piece was built without ``matrices`` of its own.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import jax

from mimuon_jax.transforms.given import Role
from mimuon_jax.types import Matrices, Tree

_passed_on: ContextVar[Matrices] = ContextVar("roles", default=None)


@contextlib.contextmanager
def passing_on(decided: Sequence[Role], tree: Tree) -> Iterator[None]:
    """Gives the roles of a tree's leaves to all pieces that run within."""
    token = _passed_on.set(jax.tree.structure(tree).unflatten(decided))
    try:
        yield
    finally:
        _passed_on.reset(token)


def passed_on(matrices: Matrices) -> Matrices:
    """A piece's own dimension numbers if it has any, else those passed on to it."""
    return _passed_on.get() if matrices is None else matrices
