"""Presets: each one builds, describes itself, and tunes optimizers under their own names."""

import pytest

from models.qwen3 import parameter_count
from train import presets
from train.optimizers import OPTIMIZERS
from train.presets import qwen3_0_6b_wikitext103


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_says_what_it_is_and_builds(name: str):
    preset = presets.load(name)
    assert preset.CONFIG.preset == name
    assert preset.CONFIG.optimizer in preset.OPTIMIZERS.values()
    for optimizer, options in preset.OPTIMIZERS.items():
        assert type(options) is OPTIMIZERS[optimizer]
    assert f"python -m train {name}" in str(preset.__doc__)


def test_the_paper_s_settings_are_those_of_the_paper():
    config, optimizers = qwen3_0_6b_wikitext103.CONFIG, qwen3_0_6b_wikitext103.OPTIMIZERS
    assert parameter_count(config.model) == 596_049_920
    assert (config.data.sequence_length, config.batch_size) == (1024, 16)
    assert {options.warmup_steps for options in optimizers.values()} == {300}
    decays = {name: options.weight_decay for name, options in optimizers.items()}
    assert decays == {
        "adamw": 0.1, "lion": 0.2, "shampoo": 0.1, "muon": 0.1, "musgd": 0.05, "mimuon": 0.08,
    }  # fmt: skip
    rates = {name: optimizers[name].learning_rate for name in ("muon", "musgd", "mimuon")}
    assert rates == {"muon": 0.02, "musgd": 0.015, "mimuon": 0.02}


def test_the_spectral_paper_s_settings_are_those_of_the_paper():
    preset = presets.load("gpt2_124m_openwebtext")
    adam, sgd = preset.OPTIMIZERS["spectral_adam"], preset.OPTIMIZERS["spectral_sgd"]
    assert (adam.learning_rate, adam.p, adam.auxiliary_learning_rate) == (1e-2, 0.5, 3e-4)
    assert (sgd.learning_rate, sgd.p, sgd.auxiliary_learning_rate) == (7e-3, 0, 3e-4)
