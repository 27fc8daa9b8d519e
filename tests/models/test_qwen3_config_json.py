"""Qwen3 architectures from and to config.json, and what is refused."""

import re

import pytest

from models.qwen3 import (
    Qwen3Config,
    RotaryScaling,
    config_from_hugging_face,
    config_to_hugging_face,
    qwen3_0_6b,
)

# What is published as config.json of Qwen/Qwen3-0.6B.
PUBLISHED = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
OF = "original_max_position_embeddings"


def test_the_published_configuration_is_the_constructor_of_that_size():
    assert config_from_hugging_face(PUBLISHED) == qwen3_0_6b()
    newer = PUBLISHED | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    del newer["rope_theta"], newer["rope_scaling"]
    assert config_from_hugging_face(newer) == qwen3_0_6b()
    ours = config_to_hugging_face(qwen3_0_6b())
    differing = {name for name, value in PUBLISHED.items() if ours.get(name) != value}
    without_effect = {"torch_dtype", "transformers_version", "use_cache", "max_window_layers"}
    assert differing == without_effect | {"bos_token_id", "eos_token_id"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size=None is not a size"),
        (
            {"model_type": "llama", "hidden_act": "gelu"},
            "asks for model_type='llama', hidden_act='gelu', which this Qwen3 does not do",
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "rope_type='llama3'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_type='dynamic'"),
        ({"rope_parameters": {"rope_type": "yarn", "x": 1}}, "x=1 of the rotation"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "factor=0.5 is out of range"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "a sliding window"),
        ({"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 9}, "a sliding"),
        ({"use_sliding_window": True, "max_window_layers": 27, "sliding_window": 9}, "a sliding"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
        ({"num_key_value_heads": 5}, "not a multiple of num_key_value_heads=5"),
    ],
)
def test_a_configuration_that_means_something_else_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        config_from_hugging_face(PUBLISHED | change)
    assert len(str(error.value)) < 250  # what is around it in training names the folder


def test_a_configuration_without_a_kind_of_model_is_refused():
    with pytest.raises(ValueError, match=r"config.json has no model_type"):
        config_from_hugging_face({})


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": {"type": "default", "factor": 1.0}},
        {"partial_rotary_factor": 1.0, "rope_parameters": {"partial_rotary_factor": 1}},
        {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 28},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"use_sliding_window": True, "layer_types": ["full_attention"] * 28},
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
    ],
)
def test_another_way_to_write_the_same_architecture_is_read(change):
    assert config_from_hugging_face(PUBLISHED | change) == qwen3_0_6b()


def test_values_that_are_left_out_have_the_defaults_of_transformers():
    short = {"model_type": "qwen3", "num_attention_heads": 16, "num_key_value_heads": None}
    config = config_from_hugging_face(short)
    assert config == Qwen3Config(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=22016,
        num_hidden_layers=32,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=128,
        rope_theta=10000.0,
        tie_word_embeddings=False,
    )


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("rotation", "expected"),
    [
        (YARN, RotaryScaling(**YARN)),
        ({"type": "yarn", "factor": 4.0}, RotaryScaling(**YARN | {OF: 40960})),
        ({"type": "yarn", OF: 10240}, RotaryScaling(**YARN | {OF: 10240})),
        (YARN | {"beta_fast": None, "beta_slow": 2}, RotaryScaling(**YARN, beta_slow=2.0)),
        (YARN | {"truncate": False}, RotaryScaling(**YARN, truncate=False)),
        (
            YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
            RotaryScaling(**YARN, attention_factor=1.0),
        ),
        ({"rope_type": "linear", "factor": 8}, RotaryScaling(rope_type="linear", factor=8.0)),
    ],
)
def test_scaled_rotations_are_read_and_written(rotation, expected):
    config = config_from_hugging_face(PUBLISHED | {"rope_scaling": rotation})
    assert config.rope_scaling == expected
    assert config_from_hugging_face(config_to_hugging_face(config)) == config
