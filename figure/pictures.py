"""Pictures a run leaves: the images a source draws, and what the networks make of a real one."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn.functional import avg_pool2d, interpolate

from utils import write_atomically

_GAP = 4  # pixels between pictures
_EACH = 4  # images of a batch that are shown
_SAMPLE = 2  # enlargement of a drawn image
_TEXT = 18  # height of a line of text


def _save(image, path):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def _to_image(pixels):
    """PIL image of (C, H, W) or (H, W) in 0..255."""
    pixels = np.asarray(pixels).round().clip(0, 255).astype(np.uint8)
    if pixels.ndim == 3:
        pixels = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    return Image.fromarray(pixels)


def _label(canvas, position, text):
    ImageDraw.Draw(canvas).text(position, text, fill="black", font=ImageFont.load_default(size=13), anchor="mm")


def save_epoch_samples(path, batches):
    """A strip of the first images of every batch (B, C, H, W) in [0, 1], enlarged to one size."""
    from torchvision.utils import make_grid  # here: it takes seconds, which not every command need wait for

    side = _SAMPLE * max(batch.shape[-1] for batch in batches)
    images = torch.cat([interpolate(batch[:_EACH].float(), side, mode="nearest") for batch in batches])
    grid = make_grid(images, nrow=len(images), padding=_GAP, pad_value=1)
    _save(_to_image(255 * grid.cpu().numpy()), path)


def save_sample_sheet(folder, path, scales, most=10):
    """One sheet of the strips in `folder`, at most `most` of them, evenly from the first epoch to the last.

    scales: what the strips show, from left to right.
    """
    files = sorted(Path(folder).glob("epoch_*.png"))
    if not files:  # nothing was trained here: a finished run was resumed into another folder
        return
    files = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, most).round().astype(int))]
    strips = [Image.open(file) for file in files]
    margin, height = 80, strips[0].height
    width = strips[0].width
    sheet = Image.new("RGB", (margin + width, _TEXT + height * len(strips)), "white")
    for i, scale in enumerate(scales):
        _label(sheet, (margin + (2 * i + 1) * width // (2 * len(scales)), _TEXT // 2), f"x{scale}")
    for i, (file, strip) in enumerate(zip(files, strips)):
        top = _TEXT + i * height
        sheet.paste(strip, (margin, top))
        _label(sheet, (margin // 2, top + height // 2), f"epoch {int(file.stem.split('_')[1])}")
    _save(sheet, path)


def _busiest(error, size):
    """Top left of the size x size window with the largest sum of `error` (H, W)."""
    windows = avg_pool2d(torch.from_numpy(error)[None, None], size, stride=4)[0, 0]
    row, column = divmod(windows.argmax().item(), windows.shape[1])
    return 4 * row, 4 * column


def save_comparison(path, examples, size=64, zoom=4):
    """For each of Benchmarks.examples a row of crops, with PSNR and SSIM of the whole image under each.

    The crop is where bicubic is most wrong.
    """
    rows = [_comparison(*example, size, zoom) for example in examples]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    for i, row in enumerate(rows):
        sheet.paste(row, (0, sum(row.height for row in rows[:i])))
    _save(sheet, path)


def _comparison(name, scale, image_name, outputs, size, zoom):
    """One row: HR, bicubic and the networks' outputs, {label: (luma (H, W) in 0..255, its score or None)}."""
    hr, bicubic = outputs["HR"][0], outputs["bicubic"][0]
    size = min(size, *hr.shape)
    row, column = _busiest((hr - bicubic) ** 2, size)
    side = size * zoom
    sheet = Image.new("RGB", ((side + _GAP) * len(outputs) + _GAP, side + 2 * _GAP + 2 * _TEXT), "white")
    for i, (label, (image, score)) in enumerate(outputs.items()):
        crop = _to_image(image[row:row + size, column:column + size]).resize((side, side), Image.NEAREST)
        left = _GAP + i * (side + _GAP)
        sheet.paste(crop, (left, _GAP))
        below = f"{score['psnr']:.2f} dB / {score['ssim']:.4f}" if score else f"{name}, {image_name}, x{scale}"
        _label(sheet, (left + side // 2, side + _GAP + _TEXT // 2), label)
        _label(sheet, (left + side // 2, side + _GAP + _TEXT // 2 + _TEXT), below)
    return sheet
