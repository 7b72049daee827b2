"""Training patches, cut on the fly from images that are decoded once and kept in memory.

VDSR's preparation (Kim et al., CVPR 2016), without MATLAB or HDF5: every image at sizes 1, 0.7 and 0.5 (large
ones at 1 alone), cropped to a multiple of the scale; its LR image by bicubic down (and, for networks that want an
upscaled input, up again); patches at random places under a random flip and turn, scales mixed in a batch. RGB
images stay 8-bit throughout, as EDSR's data are: DIV2K takes 8 GB.
"""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from bicubic import imresize
from data.images import luma, read_image
from utils import InputError, random_stream

SIZES = (1, 0.7, 0.5)
LARGE = 1000  # pixels of the shorter side: such an image holds patches enough


@dataclass
class _Plane:
    """Where one image lies in the flat buffer: its first pixel and its size."""

    start: int
    rows: int
    columns: int


class _Buffer:
    """Images one after the other as (channels, pixels), bytes or in half precision, far finer than 8 bits."""

    def __init__(self):
        self.chunks, self.length = [], 0

    def add(self, image):
        """Append (channels, H, W), bytes or in [0, 1]; returns its _Plane."""
        _, rows, columns = image.shape
        plane = _Plane(self.length, rows, columns)
        image = image.reshape(-1, rows * columns)
        self.chunks.append(image if image.dtype == torch.uint8 else image.half())
        self.length += rows * columns
        return plane

    def finish(self, device):
        """All of it on `device`, a tensor (pixels,) for each channel."""
        return torch.cat(self.chunks, dim=1).to(device).unbind()


def _network_input(image, scale, upscaled_input):
    """What the network gets for the HR image (C, H, W), cropped to a multiple of the scale."""
    rows, columns = (n - n % scale for n in image.shape[-2:])
    lr = imresize(image[..., :rows, :columns], 1 / scale)
    return _clip(imresize(lr, scale) if upscaled_input else lr)


def _clip(image):
    return image if image.dtype == torch.uint8 else image.clamp(0, 1)


class TrainingPatches:
    """batch(step) gives the step's patches, a function of (seed, step) alone.

    paths: image files. scales: drawn at random for each patch; a single one where the network upscales.
    patch_size: of the HR patch, in pixels, then a multiple of the scale. channels: 1 (luma) or 3 (RGB).
    upscaled_input: the network's input has the HR size. Images smaller than a patch are left out, which is told.
    disable: tqdm's, and of what is told. Raises InputError on an image that is unreadable, and where none is left.
    """

    def __init__(self, paths, scales, patch_size, seed, device="cpu", channels=1, upscaled_input=True,
                 disable=None):
        self.seed, self.device, self.patch_size = seed, device, patch_size
        self.ratio = 1 if upscaled_input else scales[0]
        input_size = patch_size // self.ratio
        hr_buffer, input_buffer = _Buffer(), _Buffer()
        table, small = [], 0
        for path in tqdm(paths, desc="images", unit="", leave=False, disable=disable):
            rgb = read_image(path)
            if channels == 1:
                image = torch.as_tensor(luma(rgb)[None] / 255, dtype=torch.float32, device=device)
            else:
                image = torch.as_tensor(np.ascontiguousarray(rgb.transpose(2, 0, 1)), device=device)
            small += min(image.shape[-2:]) < max(patch_size, *scales)
            for size in SIZES if min(image.shape[-2:]) < LARGE else (1,):
                resized = _clip(imresize(image, size)) if size != 1 else image
                if min(resized.shape[-2:]) < max(patch_size, *scales):
                    continue
                hr = hr_buffer.add(resized)
                for scale in scales:
                    lr = input_buffer.add(_network_input(resized, scale, upscaled_input))
                    places = (lr.rows - input_size + 1, lr.columns - input_size + 1)
                    if min(places) > 0:
                        table.append((hr.start, hr.columns, lr.start, lr.columns, *places))
        if not table:  # or is so when cropped to a multiple of the scale
            raise InputError(f"{paths[0].parent}: no image is large enough for patches of {patch_size}x{patch_size}")
        if small and disable is None:
            tqdm.write(f"{small} of {len(paths)} training images are left out, smaller than {patch_size}x{patch_size}")
        self.hr, self.inputs = hr_buffer.finish(device), input_buffer.finish(device)
        self.table = torch.tensor(table)
        # Every place where a patch can lie is as likely as any other.
        self.cumulative = (self.table[:, 4] * self.table[:, 5]).double().cumsum(0)

    def batch(self, step, size, share=slice(None)):
        """Patches of step `step`: network input (size, C, p, p) and HR (size, C, P, P), float32 in [0, 1].

        share: the part of them that is wanted.
        """
        stream = random_stream(self.seed, "patches", step)
        place = torch.rand(3, size, generator=stream, dtype=torch.float64)
        entry = torch.searchsorted(self.cumulative, place[0] * self.cumulative[-1], right=True)
        hr_start, hr_width, lr_start, lr_width, rows, columns = self.table[entry].T
        row, column = (place[1] * rows).long(), (place[2] * columns).long()
        turn = torch.randint(8, (size,), generator=stream)
        hr_start, hr_width, lr_start, lr_width, row, column, turn = (
            value[share] for value in (hr_start, hr_width, lr_start, lr_width, row, column, turn))
        lr = self._cut(self.inputs, lr_start, lr_width, row, column, turn, self.patch_size // self.ratio)
        row, column = row * self.ratio, column * self.ratio
        return lr, self._cut(self.hr, hr_start, hr_width, row, column, turn, self.patch_size)

    def _cut(self, buffer, start, width, row, column, turn, size):
        """Patches with their top left at (row, column), flipped and turned, as (n, C, size, size).

        A flip or a quarter turn is a matter of the two steps through memory, so one gather does it all.
        """
        flip_rows, flip_columns, transpose = turn & 1, turn >> 1 & 1, turn >> 2 == 1
        first = start + (row + flip_rows * (size - 1)) * width + column + flip_columns * (size - 1)
        down, right = width * (1 - 2 * flip_rows), 1 - 2 * flip_columns
        down, right = torch.where(transpose, right, down), torch.where(transpose, down, right)
        # 32-bit indices, where they suffice, take half the time.
        kind = torch.int32 if len(buffer[0]) < 2**31 else torch.int64
        places = torch.stack((first, down, right)).to(kind)
        if torch.device(self.device).type == "cuda":  # from pinned memory nothing has to wait for the GPU
            places = places.pin_memory()
        first, down, right = places.to(self.device, non_blocking=True)[..., None, None]
        steps = torch.arange(size, device=self.device, dtype=kind)
        index = (first + down * steps[:, None] + right * steps).flatten()
        patches = [channel.index_select(0, index).reshape(len(turn), size, size) for channel in buffer]
        patches = torch.stack(patches, dim=1)
        return patches.float() / 255 if patches.dtype == torch.uint8 else patches.float()
