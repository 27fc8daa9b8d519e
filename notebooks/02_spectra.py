# %% [markdown]
# # What an orthogonalizer does to singular values
#
# Muon replaces the momentum `M = U S V^T` by `U V^T`: every singular value becomes 1. Polynomials
# come close to that without an SVD. The spectral family goes part of the way, to `U S^p V^T`.

# %%
# Installs what is missing. mimuon_jax itself comes from SOURCE: a checkout, a wheel, or "git+" and
# the address of the repository. It is not on PyPI yet.
SOURCE = ".."

import importlib.util
import pathlib
import subprocess
import sys

missing = [name for name in ("matplotlib",) if importlib.util.find_spec(name) is None]
if importlib.util.find_spec("mimuon_jax") is None:
    if SOURCE == ".." and not pathlib.Path("../mimuon_jax").is_dir():
        raise SystemExit("mimuon_jax is not on PyPI yet: set SOURCE above, and run this cell again")
    missing.append(SOURCE)
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing], check=True)

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from mimuon_jax import DION, JORDAN, newton_schulz, polar, power

SIZE = 128

# %% [markdown]
# ## A matrix with a known spectrum
#
# Its singular values are logarithmically spaced from 1 down to 1e-4, its singular vectors are
# random.

# %%
singular = jnp.logspace(0, -4, SIZE)
left, right = (
    jnp.linalg.qr(jax.random.normal(key, (SIZE, SIZE)))[0]
    for key in jax.random.split(jax.random.key(0))
)
matrix = (left * singular) @ right.T


def spectrum(function):
    """The singular values after applying a function, in the order of the original ones."""
    return np.diag(np.asarray(left.T @ function(matrix) @ right))


# %%
ORTHOGONALIZERS = {
    "exact (SVD)": polar,
    "Polar Express, 6 steps (default)": newton_schulz,
    "Dion, 5 steps": functools.partial(newton_schulz, schedule=DION),
    "Jordan, 5 steps": functools.partial(newton_schulz, schedule=JORDAN),
}
POWERS = {"p = 1": 1.0, "p = 1/2": 0.5, "p = 1/4": 0.25}

figure, (orthogonal, powers) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for (name, function), style in zip(ORTHOGONALIZERS.items(), ("k:", "-", "-", "--")):
    orthogonal.plot(singular, spectrum(function), style, label=name)
orthogonal.set(title="orthogonalizers, p = 0", ylim=(-0.05, 1.3))
for name, p in POWERS.items():
    exact = functools.partial(power, p=p, method="svd")
    powers.plot(singular, spectrum(exact), label=name)
newton = functools.partial(power, p=0.5, method="coupled_newton")
powers.plot(singular, spectrum(newton), "k:", label="p = 1/2, coupled Newton")
powers.set(title="spectral powers", yscale="log")
for axes in (orthogonal, powers):
    axes.set(xscale="log", xlabel="singular value before", ylabel="singular value after")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# Jordan's coefficients trade accuracy for speed: singular values end up anywhere between 0.68 and
# 1.2. The default maps those above a few thousandths of the largest one to 1; smaller ones grow,
# but do not reach 1.

# %%
for name, function in ORTHOGONALIZERS.items():
    after = spectrum(function)
    within = singular > 1e-2
    print(f"{name:34} {after[within].min():.3f} .. {after[within].max():.3f} for values above 0.01")
