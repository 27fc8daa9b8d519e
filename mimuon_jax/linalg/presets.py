"""Newton-Schulz coefficients in use elsewhere, by name, for `newton_schulz` and faster forms."""

from mimuon_jax.linalg.coefficients import DION, JORDAN, POLAR_EXPRESS, Schedule, polar_express

_STABLE = (2.0, -1.5, 0.5)  # f(1) = 1 and f'(1) = 0

#: Schedules by name. Intervals are images of singular values in [1e-2, 1] and in [1e-3, 1].
PRESETS: dict[str, Schedule] = {
    # 0.68 to 1.13, 0.47 to 1.20: torch, keras, optax.
    "jordan": JORDAN,
    # 0.98 to 1.03, 0.48 to 1.15: Emerging-Optimizers and Megatron ("quintic"), optax ("dion").
    "dion": DION,
    # The default here.
    "polar_express": POLAR_EXPRESS,
    # 1.00, 1.00: Emerging-Optimizers.
    "polar_express_8": polar_express(8),
    # 0.86 to 1.14, 0.85 to 1.14: modded-nanogpt and dion.
    "modded_nanogpt": Schedule(
        (
            (8.156554524902461, -22.48329292557795, 15.878769915207462),
            (4.042929935166739, -2.808917465908714, 0.5000178451051316),
            (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
            (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
            (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        ),
        prescale=1.02,
        source="modded-nanogpt; Polar Express with safety 1.02 and cushion 2",
    ),
    # 0.88 to 1.12, 0.88 to 1.12: Emerging-Optimizers.
    "cans": Schedule(
        (
            (8.4703, -25.1081, 18.6293),
            (4.1828, -3.1087, 0.5806),
            (3.9619, -2.9541, 0.5630),
            (3.2866, -2.4647, 0.5074),
            (2.2737, -1.6447, 0.4162),
        ),
        source="CANS (arXiv 2506.10935)",
    ),
    # 1.00 to 1.001, 1.00 to 1.001: ten steps.
    "deepseek_v4": Schedule(
        (*[JORDAN.triples[0]] * 8, _STABLE, _STABLE), source="DeepSeek-V4, by Emerging-Optimizers"
    ),
    # 1.00, 1.00: twelve steps.
    "track_3": Schedule((_STABLE,) * 12, source="modded-nanogpt, optimization track"),
    # 0.77 to 1.30, 0.12 to 1.30: two products per step instead of three.
    "cubic": Schedule(
        (
            (3.3656576, -3.3420992, 0.0),
            (2.5744352, -1.4957376, 0.0),
            (2.5368962, -1.4312570, 0.0),
            (2.4418906, -1.2764040, 0.0),
            (2.2230472, -0.9630650, 0.0),
        ),
        source="arXiv 2606.00371",
    ),
    # 0.94 to 1.05, 0.15 to 1.05: four steps, made for a rescaling that is not offered here.
    "turbo_muon": Schedule(
        (
            (4.6051, -9.6552, 5.6769),
            (4.7505, -6.0861, 2.1790),
            (2.7763, -2.3190, 0.5523),
            (2.4231, -2.2861, 0.8193),
        ),
        source="Turbo-Muon (arXiv 2512.04632), flash-newton-schulz",
    ),
}
