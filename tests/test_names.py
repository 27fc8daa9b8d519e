"""The names that arguments take are types, so that an editor completes them and finds a typo."""

import inspect
import typing

import pytest

import mimuon_jax
from mimuon_jax.linalg.measures import MEASURES, MeasureName
from mimuon_jax.linalg.powers import METHODS, PowerMethodName
from mimuon_jax.transforms.eigenbasis import SIDES, SidesName
from mimuon_jax.transforms.gains import GAINS, GainName
from mimuon_jax.transforms.norms import NORMS, NormName
from mimuon_jax.transforms.orthogonalize import ORTHOGONALIZERS, OrthogonalizerName
from mimuon_jax.transforms.references import REFERENCES, ReferenceName
from mimuon_jax.transforms.units import UNITS, UnitName

FUNCTIONS = [n for n in mimuon_jax.__all__ if inspect.isfunction(getattr(mimuon_jax, n))]


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (GainName, [*GAINS, "unflattened"]),  # which also depends on the dimension numbers
        (MeasureName, MEASURES),
        (NormName, ["spectral", *NORMS]),  # which is an orthogonalizer's
        (OrthogonalizerName, ORTHOGONALIZERS),
        (PowerMethodName, METHODS),
        (ReferenceName, REFERENCES),
        (SidesName, SIDES),
        (UnitName, UNITS),
    ],
)
def test_a_type_has_the_names_of_its_table(names, table):
    assert set(typing.get_args(names)) == set(table)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_argument_with_a_name_as_default_lists_its_names(name):
    signature = inspect.signature(getattr(mimuon_jax, name), eval_str=True)
    for parameter in signature.parameters.values():
        if isinstance(parameter.default, str):
            kinds = typing.get_args(parameter.annotation)
            assert str not in kinds, parameter
            assert parameter.default in kinds or any(
                parameter.default in typing.get_args(kind) for kind in kinds
            ), parameter


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_shows_annotations_as_they_are_written(name):
    shown = str(inspect.signature(getattr(mimuon_jax, name)))
    assert "jaxtyping." not in shown
    assert "collections.abc" not in shown
