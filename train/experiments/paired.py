"""Differences from one optimizer, seed by seed: runs of one seed share their batches."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from train.experiments.runs import Outcome
from train.report import Table, mean_and_spread

if TYPE_CHECKING:
    from train.experiments.comparison import Column


def paired_differences(
    chosen: Mapping[str, Sequence[Outcome]], columns: Sequence["Column"], against: str
) -> Table:
    """One row per optimizer: mean and standard deviation of its differences from another.

    Args:
        chosen: the runs of every optimizer, in the order of the seeds.
        columns: what is compared.
        against: the optimizer that is subtracted.
    """
    rows = []
    for label, outcomes in chosen.items():
        if label == against:
            continue
        row: list[str | None] = [label]
        for column in columns:
            pairs = zip(outcomes, chosen[against], strict=True)
            found = [column.value(one) - column.value(other) for one, other in pairs]
            found = [x for x in found if not math.isnan(x)]
            higher = sum(x > 0 for x in found)
            spread = mean_and_spread(found, column.digits) if found else None
            row.append(spread and f"{spread} (higher for {higher} of {len(found)})")
        rows.append(row)
    return Table(
        name=f"differences_from_{against}",
        title=f"Differences from {against}: mean ± standard deviation over seeds",
        columns=["optimizer", *(column.title for column in columns)],
        rows=rows,
        note=f"Each value is that of the optimizer minus that of {against} with the same seed.",
    )
