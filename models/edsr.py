"""EDSR (Lim et al., CVPRW 2017): RGB in, RGB out, upscaling inside."""

from functools import partial

import torch
import torch.nn as nn

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
_conv = partial(nn.Conv2d, kernel_size=3, padding=1)


class ResBlock(nn.Module):
    """x + res_scale * conv(relu(conv(x)))."""

    def __init__(self, n_feats, res_scale):
        super().__init__()
        self.body = nn.Sequential(_conv(n_feats, n_feats), nn.ReLU(inplace=True), _conv(n_feats, n_feats))
        self.res_scale = res_scale

    def forward(self, x):
        return x + self.res_scale * self.body(x)


class EDSR(nn.Module):
    """head, body of n_resblocks residual blocks and a convolution with a long skip, tail.

    forward: (B, channels, h, w) in [0, 1], float32 -> (B, channels, scale * h, scale * w), float32, not clipped.
    Inside, values are 0..255 less 255 * mean (one number a channel; by default that of DIV2K for RGB and none for
    luma). So values and names are EDSR-PyTorch's, whose weights serve as they are. config, receptive_field: as VDSR's.
    """

    upscaled_input = False

    def __init__(self, n_resblocks=16, n_feats=64, scale=2, res_scale=1.0, channels=3, mean=None):
        super().__init__()
        self.n_feats, self.res_scale, self.scales, self.channels = n_feats, res_scale, (scale,), channels
        self.head = nn.Sequential(_conv(channels, n_feats))
        blocks = (ResBlock(n_feats, res_scale) for _ in range(n_resblocks))
        self.body = nn.Sequential(*blocks, _conv(n_feats, n_feats))
        up = []  # by pixel shuffle
        for factor in {2: (2,), 3: (3,), 4: (2, 2)}[scale]:
            up += [_conv(n_feats, factor**2 * n_feats), nn.PixelShuffle(factor)]
        self.tail = nn.Sequential(nn.Sequential(*up), _conv(n_feats, channels))
        self.unusual = ({"channels": channels} if channels != 3 else {}) | ({"mean": list(mean)} if mean else {})
        mean = mean or (DIV2K_MEAN if channels == 3 else (0.0,) * channels)
        self.register_buffer("mean", 255 * torch.tensor(mean).reshape(1, channels, 1, 1), persistent=False)

    @property
    def config(self):
        return {"arch": "edsr", "n_resblocks": len(self.body) - 1, "n_feats": self.n_feats,
                "scale": self.scales[0], "res_scale": self.res_scale, **self.unusual}

    @property
    def receptive_field(self):
        return 1 + 2 * (1 + 2 * len(self.body) + len(self.tail[0]) // 2)

    def forward(self, x):
        features = self.head(255 * x - self.mean)
        features = features + self.body(features)
        return (self.tail(features) + self.mean) / 255

    def grow(self, n_resblocks):
        """Insert residual blocks before the body's last convolution until there are n_resblocks; as VDSR.grow."""
        for n in range(len(self.body) - 1, n_resblocks):
            block = ResBlock(self.n_feats, self.res_scale)
            self.body.insert(n, block.to(self.mean, memory_format=torch.channels_last))
