"""The latent-vector generator of LR images (paper section 3; after DAFL, Chen et al., ICCV 2019)."""

import torch.nn as nn


class Generator(nn.Module):
    """G_s: z (B, latent) from N(0, I) -> x_lr (B, channels, size, size) in [0, 1].

    size: a multiple of 4, at least 8 (the first normalisation needs more than one pixel).
    """

    def __init__(self, latent, size, channels=1):
        super().__init__()
        self.size = size
        self.head = nn.Linear(latent, 128 * (size // 4) ** 2)
        self.body = nn.Sequential(
            nn.InstanceNorm2d(128, affine=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.InstanceNorm2d(128, eps=0.8, affine=True),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 64, 3, padding=1),
            nn.InstanceNorm2d(64, eps=0.8, affine=True),
            nn.LeakyReLU(0.2),
        )
        self.tail = nn.Sequential(nn.Conv2d(64, channels, 3, padding=1), nn.Tanh())
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, z):
        features = self.head(z).reshape(len(z), 128, self.size // 4, self.size // 4)
        return (self.tail(self.body(features)) + 1) / 2
