"""Pictures: the images a source draws, and what the networks make of a real one. All are PNG.

    python -m figure.pictures --output=figure/dead_leaves.png        # a sheet of dead leaves
    python -m figure.pictures --runs runs/a runs/b --labels a b --output=drawn.png      # what these runs drew last
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn.functional import avg_pool2d, interpolate, pad

from data.dead_leaves import dead_leaves
from engine.options import Parser, whole
from figure.plots import save_png
from utils import InputError, random_stream, run_script

GAP, TEXT = 4, 18  # pixels: between pictures, height of a line of text
CROP, SHOWN = 64, 256  # pixels: sides of a crop of save_comparison, and of what is shown of it


def grid(images, columns):
    """A PIL image of (B, C, H, W) in [0, 1], `columns` side by side, with white gaps."""
    from torchvision.transforms.functional import to_pil_image  # here: they take a second, which not every
    from torchvision.utils import make_grid                     # command need wait for

    return to_pil_image(make_grid(images.float().cpu().clamp(0, 1), nrow=columns, padding=GAP, pad_value=1))


def write(image, x, y, text):
    """Text around the point (x, y) of a PIL image."""
    ImageDraw.Draw(image).text((x, y), text, "black", ImageFont.load_default(size=13), anchor="mm", align="center")


def save_epoch_samples(path, batches):
    """A strip of the first four images of every batch (B, C, H, W) in [0, 1], enlarged to one size."""
    side = 2 * max(batch.shape[-1] for batch in batches)
    images = torch.cat([interpolate(batch[:4].float(), side) for batch in batches])
    save_png(grid(images, len(images)).save, path)


def stack(labels, files, margin):
    """One PIL image of image files below one another and a line of room, the labels in the left margin."""
    images = [Image.open(file) for file in files]
    width, height = max(image.width for image in images), sum(image.height for image in images)
    sheet, top = Image.new("RGB", (margin + width, TEXT + height), "#e6e8eb"), TEXT
    for label, image in zip(labels, images):
        sheet.paste(image, (margin, top))
        write(sheet, margin // 2, top + image.height // 2, label)
        top += image.height
    return sheet


def save_sample_sheet(folder, path, scales):
    """One sheet of at most ten of the strips in `folder`, evenly from first to last. scales: what they show."""
    files = sorted(Path(folder).glob("epoch_*.png"))
    if not files:  # a finished run was resumed
        return
    files = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, 10).round().astype(int))]
    sheet = stack([f"epoch {int(file.stem.removeprefix('epoch_'))}" for file in files], files, 80)
    for i, scale in enumerate(scales):
        write(sheet, 80 + (2 * i + 1) * (sheet.width - 80) // (2 * len(scales)), TEXT // 2, f"x{scale}")
    save_png(sheet.save, path)


def save_comparison(path, examples):
    """For each of Benchmarks.examples a row of crops where bicubic is most wrong; PSNR and SSIM are the image's."""
    crops, captions = [], []
    for name, scale, image_name, outputs in examples:
        images = torch.stack([torch.as_tensor(image) for image, _ in outputs.values()])[:, None] / 255
        hr, bicubic = images[:2]
        size = min(CROP, *hr.shape[1:])
        error = avg_pool2d((hr - bicubic) ** 2, size, stride=4)[0]
        top, left = (4 * i for i in divmod(error.argmax().item(), error.shape[1]))
        crops.append(interpolate(images[..., top:top + size, left:left + size], SHOWN))
        for label, (_, score) in outputs.items():
            about = f"{score['psnr']:.2f} dB / {score['ssim']:.4f}" if score else f"{name}, {image_name}, x{scale}"
            captions.append(f"{label}\n{about}")
    below, columns = GAP + 2 * TEXT, len(crops[0])  # room for two lines of text
    sheet = grid(pad(torch.cat(crops), (0, 0, 0, below), value=1), columns)
    for i, caption in enumerate(captions):
        row, column = divmod(i, columns)
        write(sheet, GAP + column * (SHOWN + GAP) + SHOWN // 2, (row + 1) * (GAP + SHOWN + below) - TEXT, caption)
    save_png(sheet.crop((0, 0, sheet.width, sheet.height - GAP)).save, path)


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--runs", nargs="+", metavar="SAVE_DIR", help="instead of dead leaves: images of these runs")
    parser.add_argument("--labels", nargs="+", help="of the runs (default: their folders)")
    parser.add_argument("--output", help="the sheet (default: figure/dead_leaves.png or figure/generated.png)")
    parser.add_argument("--seed", type=whole, default=1, help="of all that is random")
    return parser.parse_args(argv)


def main(args):
    if args.runs:
        labels = args.labels or [Path(folder).name for folder in args.runs]
        if len(labels) != len(args.runs):
            raise InputError(f"--labels: {len(labels)} for {len(args.runs)} runs")
        strips = [max(Path(folder, "samples").glob("epoch_*.png"), default=None) for folder in args.runs]
        if None in strips:
            raise InputError(f"{args.runs[strips.index(None)]}: has no samples/epoch_*.png")
        sheet = stack(labels, strips, 200)
    else:  # four rows of luma and four of colour, 48x48 pixels each, enlarged twice
        grey, colour = (dead_leaves(48, 48, channels, random_stream(args.seed, "sheet", channels), "cpu")
                        for channels in (1, 3))
        sheet = grid(interpolate(torch.cat((grey.expand_as(colour), colour)), scale_factor=2), 12)
    output = args.output or f"figure/{'generated' if args.runs else 'dead_leaves'}.png"
    save_png(sheet.save, output)
    print(output)


if __name__ == "__main__":
    run_script(main, parse_arguments())
