"""Roles that a transformation passes on to the transformations inside it.

`partition` and `split_fused` decide which parameters are matrices, and the transformations that
they apply must agree. Their ``init`` and ``update`` do not take roles as an argument, so the roles
are passed in a context variable. It is set while an inner transformation runs (under ``jax.jit``:
while it is traced). `mimuon_jax.transforms.roles.roles` reads it for transformations that were
built without ``matrices``.
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
    """Passes the roles of a tree's leaves on to all transformations that run in this context."""
    token = _passed_on.set(jax.tree.structure(tree).unflatten(decided))
    try:
        yield
    finally:
        _passed_on.reset(token)


def passed_on(matrices: Matrices) -> Matrices:
    """A transformation's own ``matrices`` if it has any, else the roles passed on to it."""
    return _passed_on.get() if matrices is None else matrices
