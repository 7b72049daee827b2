"""Upscale images of any size by a trained network, to PNG files.

    python -m tools.upscale student.pth photo.jpg folder --scale=3 --to out

A network on luma (VDSR) upscales the luma and bicubic the chroma; a network on RGB (EDSR) upscales all three. Bicubic
upscales alpha. The output is a PNG with the input's name, alpha, ICC profile and depth (8 bits, or 16 in grey);
palettes become grey or RGB. EXIF's orientation is applied; the rest of EXIF, and all frames but the first, are lost.
"""

import io
import math
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d
from tqdm import tqdm

from bicubic import imresize
from data.benchmark import choose_scales, run_network
from data.images import EXTENSIONS, list_images, luma, open_image
from engine.options import Parser, positive, threads
from models.pair import load_network
from models.tiles import tiled
from utils import InputError, choose_device, run_script, write_atomically

_TILE = 2**22  # output pixels of a tile with its halo; each takes about a dozen floats
_SPREAD = 32  # how far colours spread under alpha 0, in input pixels: farther than networks look with any weight


def _luma(rgb):
    """(1, h, w) of (3, h, w), both in [0, 1]."""
    return luma(255 * rgb.movedim(0, -1))[None] / 255


def _spread(rgb, alpha):
    """RGB (3, h, w) whose colours where alpha (1, h, w), if any, is 0 are means of the nearest visible ones."""
    known = (alpha > 0).float()
    if known.all():
        return rgb
    for _ in range(_SPREAD):
        near = avg_pool2d(known, 3, 1, 1)
        rgb = torch.where(known > 0, rgb, avg_pool2d(rgb * known, 3, 1, 1) / near.clamp(min=0.1))
        known = (near > 0).float()
    return rgb


@torch.inference_mode()
def upscale_pixels(model, pixels, scale, ensemble=False):
    """(C, scale * h, scale * w) of (C, h, w), both in [0, 1], the result not clipped.

    C is 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha). Bicubic weights colours by their alpha, as Pillow
    does. What a network changes in luma, 255/219 of it is added to each of R, G and B, which leaves chroma as it is
    (YCbCr of BT.601).
    """
    colours = 3 if len(pixels) > 2 else 1
    alpha = pixels[colours:]  # of no or one channel
    rgb, upscaled_alpha = _spread(pixels[:colours].expand(3, -1, -1), alpha), imresize(alpha, scale)
    if model.channels == 3:
        result = run_network(model, rgb, ensemble)
    else:
        upscaled = imresize(rgb, scale)
        if len(alpha):
            weighted = (imresize(rgb * alpha, scale) / upscaled_alpha).clamp(0, 1)
            upscaled = torch.where(upscaled_alpha > 1 / 512, weighted, upscaled)  # less than that rounds to 0
        y = _luma(upscaled)
        network_y = run_network(model, y if model.upscaled_input else _luma(rgb), ensemble)
        result = upscaled + 255 / 219 * (network_y - y)
    if colours == 1:
        result = (_luma(result) * 255 - 16) / 219
    return torch.cat((result, upscaled_alpha))


def upscale_image(model, image, scale, device, ensemble=False):
    """The Pillow image (see open_image) upscaled in tiles, so that only a tile is ever in floating point."""
    dtype, held = (np.uint16, np.int32) if image.mode.startswith("I") else (np.uint8, np.uint8)  # held: torch has it
    x, peak = torch.from_numpy(np.atleast_3d(image).astype(held)).movedim(-1, 0), np.iinfo(dtype).max
    field, halo = getattr(model, "receptive_field", None), 2 + _SPREAD * image.mode.endswith("A")  # 2 for bicubic
    halo += math.ceil((field or 0) // 2 / (scale if model.upscaled_input else 1))
    most = math.isqrt(_TILE) // scale if field is not None else max(image.size)

    def quantised(tile):
        y = peak * upscale_pixels(model, tile.to(device) / peak, scale, ensemble).clamp(0, 1)
        return y.round().to(x.dtype).cpu()

    y = tiled(quantised, x, scale, halo, most, disable=None).movedim(0, -1).numpy()
    return Image.fromarray((y if y.shape[-1] > 1 else y[..., 0]).astype(dtype, copy=False))


def choose_files(names, folder):
    """{folder/NAME.png: path} of the image files that `names` are, or hold directly if they are folders, each once.

    Raises InputError where one is no image, or two would share an output, or one is an input or lies beside it already.
    """
    paths, outputs = {}, {}
    for name in names:
        found = list_images(name) if Path(name).is_dir() else [Path(name)]
        if not (name and found and found[0].is_file() and found[0].suffix.lower() in EXTENSIONS):
            raise InputError(f"'{name}': no such image or folder of images ({', '.join(sorted(EXTENSIONS))})")
        paths |= {os.path.abspath(path): path for path in found}
    inputs = {path.resolve() for path in paths.values()}
    for path in paths.values():
        output = Path(folder, f"{path.stem}.png")
        if output.resolve() in inputs:
            raise InputError(f"--to {folder}: {output} is itself to be upscaled; give another folder")
        if output.exists() and output.resolve().parent == path.resolve().parent:
            raise InputError(f"--to {folder}: {output} is there already, beside {path}; give another folder")
        if outputs.setdefault(output, path) is not path:
            raise InputError(f"--to {folder}: {outputs[output]} and {path} would both become {output}")
    return outputs


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("student", metavar="STUDENT", help="checkpoint of the network that upscales")
    add("images", metavar="IMAGE_OR_FOLDER", nargs="+", help="image files, and folders of them")
    add("--to", metavar="FOLDER", required=True, help="where NAME.png goes")
    add("--scale", type=int, choices=(0, 2, 3, 4), default=0, help="0: the network's, where it has but one")
    add("--self_ensemble", action="store_true", help="the mean of outputs over eight flips and turns")
    add("--model", metavar="FILE.py", help="a file that defines student() of one's own")
    add("--res_scale", type=positive, help="of an EDSR whose file does not say")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--threads", type=threads, default=0, help="CPU threads; 0: as many as cores")
    return parser.parse_args(argv)


def main(args):
    device = choose_device(args.device)
    if args.threads:  # and no set_up_device: memory that is kept would be twice as much for large images
        torch.set_num_threads(args.threads)
    outputs, failed = choose_files(args.images, args.to), []
    model = load_network(args.student, "student", device, args.model, args.res_scale)
    scale, *more = scales = choose_scales(args.scale, model, args.student)
    if more:
        raise InputError(f"--scale 0: {args.student} upscales by {', '.join(map(str, scales))}; say by which")
    Path(args.to).mkdir(parents=True, exist_ok=True)
    if not os.access(args.to, os.W_OK):
        raise InputError(f"--to {args.to}: cannot be written to")
    for output, path in tqdm(outputs.items(), desc=f"x{scale}", unit="image", leave=False, disable=None):
        try:
            image, content = open_image(path), io.BytesIO()
        except InputError as error:
            failed.append(str(error))
            continue
        upscale_image(model, image, scale, device, args.self_ensemble).save(
            content, "PNG", icc_profile=image.info.get("icc_profile"))
        write_atomically(output, content.getbuffer())
    if failed:
        raise InputError(f"{'; '.join(failed)} (of {len(outputs)} images {len(outputs) - len(failed)} were upscaled)")
    print(f"{len(outputs)} image{'s' * (len(outputs) > 1)} upscaled by {scale}: {args.to}")


if __name__ == "__main__":
    run_script(main, parse_arguments())
