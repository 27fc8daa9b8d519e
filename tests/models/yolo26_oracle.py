"""The detector in slow, plain float64 NumPy: channels first, arrays by PyTorch name."""

import numpy as np


class Network:
    """Backbone, neck and heads; in training with the batch's statistics, kept in `after`."""

    def __init__(self, arrays, *, repeats, nested, training):
        self.arrays = {k: np.asarray(v, np.float64) for k, v in arrays.items()}
        self.repeats, self.nested, self.training = repeats, nested, training
        self.after = {}

    def outputs(self, x):
        """Feature maps of layers 0 to 22, and `{"cv2": boxes, "cv3": logits, ...}`, [B, F, N]."""
        maps = []
        for i in range(23):
            x = self.layer(i, x, maps)
            maps.append(x)
        heads = {}
        for name, tower in (("cv2", self.box_tower), ("cv3", self.class_tower)):
            for prefix in ("", "one2one_"):
                rows = [
                    tower(f"model.23.{prefix}{name}.{k}", maps[i])
                    for k, i in enumerate((16, 19, 22))
                ]
                heads[prefix + name] = np.concatenate(
                    [r.reshape(*r.shape[:2], -1) for r in rows], 2
                )
        return maps, heads

    def layer(self, i, x, maps):
        name = f"model.{i}"
        if i in (0, 1, 3, 5, 7, 17, 20):
            return self.conv(name, x, stride=2)
        if i in (2, 4, 6, 8, 13, 16, 19):
            plain = i in (2, 4) and not self.nested
            return self.c3k2(name, x, self.repeats, self.bottleneck if plain else self.c3k)
        if i == 22:
            return self.c3k2(name, x, 1, self.bottleneck_attention)
        if i == 9:
            return self.sppf(name, x)
        if i == 10:
            return self.c2psa(name, x)
        if i in (11, 14):
            return np.kron(x, np.ones((1, 1, 2, 2)))
        first, second = {12: (11, 6), 15: (14, 4), 18: (17, 13), 21: (20, 10)}[i]
        return np.concatenate([maps[first], maps[second]], 1)

    def conv(self, name, x, stride=1, act=True):
        y = convolve(x, self.arrays[f"{name}.conv.weight"], stride)
        y = self.norm(f"{name}.bn", y)
        return y * (1 + np.tanh(y / 2)) / 2 if act else y

    def norm(self, name, x):
        weight, bias, mean, var = (
            self.arrays[f"{name}.{k}"] for k in ("weight", "bias", "running_mean", "running_var")
        )
        if self.training:
            values = x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
            now = values.mean(1), values.var(1)
            self.after[f"{name}.running_mean"] = 0.97 * mean + 0.03 * now[0]
            self.after[f"{name}.running_var"] = 0.97 * var + 0.03 * values.var(1, ddof=1)
            mean, var = now
        per_channel = lambda v: v[None, :, None, None]  # noqa: E731
        normal = (x - per_channel(mean)) / np.sqrt(per_channel(var) + 1e-3)
        return per_channel(weight) * normal + per_channel(bias)

    def bottleneck(self, name, x):
        return x + self.conv(f"{name}.cv2", self.conv(f"{name}.cv1", x))

    def c3k(self, name, x):
        y = self.conv(f"{name}.cv1", x)
        for j in range(2):
            y = self.bottleneck(f"{name}.m.{j}", y)
        return self.conv(f"{name}.cv3", np.concatenate([y, self.conv(f"{name}.cv2", x)], 1))

    def c3k2(self, name, x, count, inner):
        parts = list(np.split(self.conv(f"{name}.cv1", x), 2, 1))
        for j in range(count):
            parts.append(inner(f"{name}.m.{j}", parts[-1]))
        return self.conv(f"{name}.cv2", np.concatenate(parts, 1))

    def bottleneck_attention(self, name, x):
        return self.psa(f"{name}.1", self.bottleneck(f"{name}.0", x))

    def c2psa(self, name, x):
        a, b = np.split(self.conv(f"{name}.cv1", x), 2, 1)
        for j in range(self.repeats):
            b = self.psa(f"{name}.m.{j}", b)
        return self.conv(f"{name}.cv2", np.concatenate([a, b], 1))

    def sppf(self, name, x):
        parts = [self.conv(f"{name}.cv1", x, act=False)]
        for _ in range(3):
            wide = np.pad(parts[-1], ((0, 0), (0, 0), (2, 2), (2, 2)), constant_values=-np.inf)
            windows = np.lib.stride_tricks.sliding_window_view(wide, (5, 5), (2, 3))
            parts.append(windows.max((4, 5)))
        return x + self.conv(f"{name}.cv2", np.concatenate(parts, 1))

    def psa(self, name, x):
        x = x + self.attention(f"{name}.attn", x)
        return x + self.conv(f"{name}.ffn.1", self.conv(f"{name}.ffn.0", x), act=False)

    def attention(self, name, x):
        b, c, h, w = x.shape
        heads = max(c // 64, 1)
        value_dim = c // heads
        key_dim = value_dim // 2
        qkv = self.conv(f"{name}.qkv", x, act=False)
        out, values = np.empty_like(x), np.empty_like(x)
        for i, head in enumerate(np.split(qkv, heads, 1)):
            q, k, v = np.split(head.reshape(b, -1, h * w), [key_dim, 2 * key_dim], 1)
            s = np.exp(np.einsum("bdn,bdm->bnm", q, k) / np.sqrt(key_dim))
            s /= s.sum(2, keepdims=True)
            mine = slice(i * value_dim, (i + 1) * value_dim)
            out[:, mine] = np.einsum("bdm,bnm->bdn", v, s).reshape(b, -1, h, w)
            values[:, mine] = v.reshape(b, -1, h, w)
        return self.conv(
            f"{name}.proj", out + self.conv(f"{name}.pe", values, act=False), act=False
        )

    def box_tower(self, name, x):
        for j in (0, 1):
            x = self.conv(f"{name}.{j}", x)
        return self.last(f"{name}.2", x)

    def class_tower(self, name, x):
        for j in ("0.0", "0.1", "1.0", "1.1"):
            x = self.conv(f"{name}.{j}", x)
        return self.last(f"{name}.2", x)

    def last(self, name, x):
        y = convolve(x, self.arrays[f"{name}.weight"], 1)
        return y + self.arrays[f"{name}.bias"][None, :, None, None]


def convolve(x, weight, stride):
    """Zero-padded convolution; depthwise if the weight has one input channel and `x` has more."""
    size = weight.shape[2]
    wide = np.pad(x, ((0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (size, size), (2, 3))
    windows = windows[:, :, ::stride, ::stride]
    if weight.shape[1] == 1 and x.shape[1] > 1:
        return np.einsum("bchwij,cij->bchw", windows, weight[:, 0])
    return np.einsum("bchwij,ocij->bohw", windows, weight, optimize=True)
