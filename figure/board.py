"""What a run logs, for TensorBoard, an optional package."""

from pathlib import Path

import numpy as np
from PIL import Image


def writer(folder):
    """A SummaryWriter in `folder`/tensorboard."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(Path(folder) / "tensorboard"))


def log_epoch(folder, epoch, losses, psnr):
    """The epoch's mean losses, its validation PSNR, and the pictures it left."""
    with writer(folder) as board:
        for name, value in losses.items():
            board.add_scalar(f"loss/{name}", value, epoch)
        for scale, value in psnr.items():
            board.add_scalar(f"PSNR/x{scale}", value, epoch)
        _add_picture(board, Path(folder) / f"samples/epoch_{epoch:04d}.png", "samples", epoch)


def log_result(folder, epoch, results):
    """The final scores and the crops beside one another."""
    with writer(folder) as board:
        for name, by_scale in results.items():
            for scale, row in by_scale.items():
                for network, score in row.items():
                    board.add_scalar(f"{name} x{scale}/{network}", score["psnr"], epoch)
        _add_picture(board, Path(folder) / "comparison.png", "comparison", epoch)


def _add_picture(board, path, name, epoch):
    if path.is_file():
        board.add_image(name, np.array(Image.open(path).convert("RGB")), epoch, dataformats="HWC")
