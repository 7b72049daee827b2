"""VDSR (Kim et al., CVPR 2016), without biases: adds the detail that is missing to the luma upscaled by bicubic."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def _conv(in_channels, out_channels):
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / (9 * out_channels)))
    return conv


class VDSR(nn.Module):
    """head 1 -> n_feats, body of n_resblocks convolutions, tail n_feats -> 1, ReLU between.

    forward: (B, 1, H, W) upscaled luma in [0, 1], float32 -> (B, 1, H, W), float32, not clipped. One network serves
    every scale. The paper's teacher is VDSR(18, 64), its student VDSR(18, 32).
    """

    scales = (2, 3, 4)
    upscaled_input = True
    channels = 1

    def __init__(self, n_resblocks=18, n_feats=64):
        super().__init__()
        self.n_feats = n_feats
        self.head = _conv(1, n_feats)
        self.body = nn.Sequential(*(_conv(n_feats, n_feats) for _ in range(n_resblocks)))
        self.tail = _conv(n_feats, 1)

    @property
    def config(self):
        """What build_model needs to make this network again."""
        return {"arch": "vdsr", "n_resblocks": len(self.body), "n_feats": self.n_feats}

    @property
    def receptive_field(self):
        """Side of the square of input pixels on which an output pixel depends."""
        return 1 + 2 * (2 + len(self.body))

    def forward(self, x):
        features = F.relu(self.head(x), inplace=True)
        for conv in self.body:
            features = F.relu(conv(features), inplace=True)
        return x + self.tail(features)

    def grow(self, n_resblocks):
        """Append random body convolutions until there are n_resblocks; what is trained is kept."""
        for _ in range(n_resblocks - len(self.body)):
            conv = _conv(self.n_feats, self.n_feats)
            self.body.append(conv.to(self.head.weight, memory_format=torch.channels_last))
