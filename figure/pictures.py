"""Pictures: the images a source draws, and what the networks make of a real one. All are PNG.

    python -m figure.pictures --output=figure/dead_leaves.png        # a sheet of dead leaves
"""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn.functional import avg_pool2d, interpolate

from data.dead_leaves import dead_leaves
from engine.options import Parser, whole
from utils import random_stream, run_script, write_atomically

GAP, TEXT = 4, 18  # pixels: between pictures, height of a line of text


def save(image, path):
    """Write a PIL image, atomically."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def grid(images, columns):
    """A PIL image of (B, C, H, W) in [0, 1], `columns` side by side, with white gaps."""
    from torchvision.transforms.functional import to_pil_image  # here: they take a second, which not every
    from torchvision.utils import make_grid                     # command need wait for

    return to_pil_image(make_grid(images.float().cpu().clamp(0, 1), nrow=columns, padding=GAP, pad_value=1))


def write(image, x, y, text):
    """Text around the point (x, y) of a PIL image."""
    ImageDraw.Draw(image).text((x, y), text, fill="black", font=ImageFont.load_default(size=13), anchor="mm")


def save_epoch_samples(path, batches, each=4, zoom=2):
    """A strip of the first images of every batch (B, C, H, W) in [0, 1], enlarged to one size."""
    side = zoom * max(batch.shape[-1] for batch in batches)
    images = torch.cat([interpolate(batch[:each].float(), side, mode="nearest") for batch in batches])
    save(grid(images, len(images)), path)


def save_sample_sheet(folder, path, scales, most=10):
    """One sheet of the strips in `folder`, at most `most` of them, evenly from the first epoch to the last.

    scales: what the strips show, from left to right. Nothing where there are no strips.
    """
    files = sorted(Path(folder).glob("epoch_*.png"))
    if not files:  # nothing was trained here: a finished run was resumed into another folder
        return
    files = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, most).round().astype(int))]
    strips, margin = [Image.open(file) for file in files], 80
    width, height = strips[0].size
    sheet = Image.new("RGB", (margin + width, TEXT + height * len(strips)), "white")
    for i, scale in enumerate(scales):
        write(sheet, margin + (2 * i + 1) * width // (2 * len(scales)), TEXT // 2, f"x{scale}")
    for i, (file, strip) in enumerate(zip(files, strips)):
        sheet.paste(strip, (margin, TEXT + i * height))
        write(sheet, margin // 2, TEXT + i * height + height // 2, f"epoch {int(file.stem.split('_')[1])}")
    save(sheet, path)


def save_comparison(path, examples, size=64, zoom=4):
    """For each of Benchmarks.examples a row of crops, with PSNR and SSIM of the whole image under each.

    The crop is where bicubic is most wrong.
    """
    rows = [comparison(*example, size, zoom) for example in examples]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    for i, row in enumerate(rows):
        sheet.paste(row, (0, sum(row.height for row in rows[:i])))
    save(sheet, path)


def comparison(name, scale, image_name, outputs, size, zoom):
    """A row: HR, bicubic and the networks' outputs, {label: (luma (H, W) in 0..255, its score or None)}."""
    images = torch.stack([torch.as_tensor(image) for image, _ in outputs.values()])[:, None] / 255
    hr, bicubic = images[:2]
    size = min(size, *hr.shape[1:])
    error = avg_pool2d((hr - bicubic) ** 2, size, stride=4)[0]
    row, column = (4 * i for i in divmod(error.argmax().item(), error.shape[1]))
    crops = grid(interpolate(images[..., row:row + size, column:column + size], scale_factor=zoom), len(images))
    sheet = Image.new("RGB", (crops.width, crops.height + 2 * TEXT), "white")
    sheet.paste(crops)
    for i, (label, (_, score)) in enumerate(outputs.items()):
        x = GAP + i * (size * zoom + GAP) + size * zoom // 2
        write(sheet, x, crops.height + TEXT // 2, label)
        write(sheet, x, crops.height + TEXT // 2 + TEXT,
              f"{score['psnr']:.2f} dB / {score['ssim']:.4f}" if score else f"{name}, {image_name}, x{scale}")
    return sheet


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--output", default="figure/dead_leaves.png", help="where the sheet goes")
    parser.add_argument("--seed", type=whole, default=1, help="of all that is random")
    return parser.parse_args(argv)


def main(args):
    """Four rows of luma and four of colour, 48x48 pixels each, enlarged twice."""
    rows = [dead_leaves(48, 48, channels, random_stream(args.seed, "sheet", channels), "cpu").expand(-1, 3, -1, -1)
            for channels in (1, 3)]
    save(grid(interpolate(torch.cat(rows), scale_factor=2), 12), args.output)
    print(args.output)


if __name__ == "__main__":
    run_script(main, parse_arguments())
