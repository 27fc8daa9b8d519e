"""Newton-Schulz presets: their images are those in the comments, and always positive."""

import numpy as np
import pytest

from mimuon_jax import PRESETS, Schedule
from tests.test_coefficients import image

# Images of [1e-2, 1] and of [1e-3, 1], as the sources of the presets give them to two digits.
RANGES = {
    "jordan": ((0.68, 1.13), (0.47, 1.20)),
    "dion": ((0.98, 1.03), (0.48, 1.15)),
    "polar_express_8": ((1.0, 1.0), (1.0, 1.0)),
    "modded_nanogpt": ((0.86, 1.14), (0.85, 1.14)),
    "cans": ((0.88, 1.12), (0.88, 1.12)),
    "deepseek_v4": ((1.0, 1.0), (1.0, 1.0)),
    "track_3": ((1.0, 1.0), (1.0, 1.0)),
    "cubic": ((0.77, 1.30), (0.12, 1.30)),
    "turbo_muon": ((0.94, 1.05), (0.15, 1.05)),
}
OLDER_AOL = [
    (4.0098, -7.0585, 2.4635),
    (3.4585, -5.5479, 2.5959),
    (2.7573, -3.2939, 1.4254),
    (2.7215, -3.0494, 1.3169),
]


@pytest.mark.parametrize("name", PRESETS)
def test_singular_values_stay_positive(name):
    schedule = PRESETS[name]
    s = np.concatenate([np.geomspace(1e-12, 1e-2, 5000), np.linspace(1e-2, 1, 50001)])
    assert image(schedule, s / schedule.prescale).min() > 0


@pytest.mark.parametrize("name", RANGES)
def test_images_are_as_published(name):
    schedule = PRESETS[name]
    for low, expected in zip((1e-2, 1e-3), RANGES[name], strict=True):
        s = image(schedule, np.geomspace(low, 1, 50001) / schedule.prescale)
        np.testing.assert_allclose((s.min(), s.max()), expected, atol=0.0101)


def test_the_older_aol_set_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"to -.*rank 1 would have the wrong sign.*older AOL"):
        Schedule(OLDER_AOL)
