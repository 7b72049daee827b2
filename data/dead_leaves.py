"""Dead leaves: images made without data, a source of student inputs that have what photographs have.

Random shapes fall one over the other, and the number of those of radius r goes as r^-3, as if they were objects at
all distances. Then nothing in the image tells its scale, and its statistics (power going as 1/f^2, mostly small
contrasts and a few large ones) are near those of photographs (Lee, Mumford and Huang, Occlusion models for natural
images, IJCV 2001; without the r^-3, Matheron, 1968). Networks learn from such images to recognise (Baradad et al.,
Learning to see by looking at noise, NeurIPS 2021) and to restore (Achddou, Gousseau and Ladjal, Synthetic images as a
regularity prior for image restoration neural networks, SSVM 2021; with textures, VibrantLeaves, 2025).

An image is LEAVES layers, painted from back to front; the first is the background. A leaf is what lies inside two
conics: a cut ellipse, a parallelogram, a line, a ring or crescent. Its edge is blurred over one pixel or, like what is
out of focus, more. Its paint is a grey or a colour, and on TEXTURED of the leaves one of the image's four textures: two
of noise, stripes, and checks or a grid. No step depends on the values drawn: nothing waits for the device.
"""

import math

import torch

LEAVES = 16  # a multiple of 4, the number of textures
KINDS = (0.35, 0.75, 0.9)  # up to here ellipses, parallelograms and lines; the others are rings
LEAST = (1.5, 8.0)  # pixels; an image's smallest radius is drawn between them
SOFTEST = 4.0  # pixels over which the most blurred edge goes
CONTRAST = (0.3, 1.0)  # an image's range of greys is drawn between them
CHROMA = 0.1  # deviation of a colour's channels from its grey, as a part of the contrast
TEXTURED = 0.6  # part of the leaves
TEXTURE = 0.5  # largest deviation that texture brings, as a part of the contrast
SLOPE = (0.5, 2.0)  # of noise: its amplitude goes as frequency to minus this
PERIOD = (3.0, 16.0)  # pixels; of stripes, checks and grids


def leaf_sizes(pick, uniform, least, most, size):
    """Radii, in pixels, of the leaves that a size x size image meets, in a plane where their number goes as r^-3.

    A leaf of radius r meets the image where its centre is in the square of side size + 2r, so the number goes as
    r^-3 (size + 2r)^2 here: a mixture of r^-3, r^-2 and r^-1. pick and uniform, tensors in [0, 1), choose the power
    and the radius, which least (tensor) and most (number) bound.
    """
    ratio = most / least
    from_cube, from_square = ratio**2 - 1, ratio - 1  # how far r^-2 and r^-1 range, in units of 1 / most
    cubes = (size / most) ** 2 / 2 * from_cube
    not_inverses = cubes + 4 * size / most * from_square
    pick = pick * (not_inverses + 4 * ratio.log())
    by_cube, by_square = (1 + uniform * from_cube).rsqrt(), (1 + uniform * from_square).reciprocal()
    return most * torch.where(pick < cubes, by_cube, torch.where(pick < not_inverses, by_square, ratio**-uniform))


def coverage(x, y, angle, half_u, half_v, width, size):
    """How much of each pixel lies inside both conics of a leaf: (count, leaves, size, size) in [0, 1].

    A conic is a quadratic form of the place; its value over its slope is the distance to the edge. All arguments but
    size are (2, count, leaves), a row for each conic. x, y: its centre, in pixels from the image's. angle: direction of
    its first half axis half_u; where half_v is infinite it is a strip, 2 half_u across. width: pixels over which
    coverage goes from 1 to 0 at the edge (on the narrow side of an ellipse); negative for the outside of the conic.
    """
    # 1 - (distance / half)^2 falls by 2 / half a pixel at the edge; times this gain, by 1 / width.
    gain = torch.minimum(half_u, half_v) / width / 2
    u, v = gain * half_u**-2, gain * half_v**-2
    mean, turned = (u + v) / 2, (u - v) / 2 * torch.stack(((2 * angle).cos(), (2 * angle).sin()))
    xx, yy, xy = mean + turned[0], mean - turned[0], 2 * turned[1]
    pixel = torch.arange(size, dtype=torch.float32, device=x.device) - (size - 1) / 2
    dx, dy = pixel - x[..., None], pixel - y[..., None]
    # 1/2 + gain - xx dx^2 - xy dx dy - yy dy^2, not as a matrix product, which a GPU may round too much.
    row = torch.addcmul(0.5 + gain[..., None], xx[..., None] * dx, dx, value=-1)
    slope, bend = xy[..., None] * dx, yy[..., None] * dy
    inside = torch.addcmul(row[..., None, :], dy[..., None], slope[..., None, :] + bend[..., None], value=-1)
    return torch.minimum(*inside).clamp_(0, 1)


def shapes(count, size, stream, device):
    """Random leaves, all but the background, for `count` images: what coverage takes, but the size."""
    pick, radius, x, y, turn, kind, flat, bent, thin, soft, least = torch.rand(
        11, count, LEAVES - 1, generator=stream, device=device)
    r = leaf_sizes(pick, radius, LEAST[0] * (LEAST[1] / LEAST[0]) ** least[:, :1], float(size), size)
    x, y = (x - 0.5) * (size + 2 * r), (y - 0.5) * (size + 2 * r)
    angle = math.pi * turn
    width = 1 + (SOFTEST - 1) * soft**4
    ellipse, ring, line = kind < KINDS[0], kind >= KINDS[2], (kind >= KINDS[1]) & (kind < KINDS[2])

    # The first conic: ellipse, disc, or the strip that ends a parallelogram or line.
    across = torch.where(line, 0.5 + thin, r * (0.25 + 0.75 * flat))
    half_u = torch.where(line, 3 * r, r)
    half_v = torch.where(ellipse, across, torch.where(ring, r, math.inf))
    # The second: the strip that cuts the ellipse or is the parallelogram's other sides, or the disc's hole.
    side = angle + math.pi / 2 + (bent - 0.5) * ~line
    hole = r * (0.3 + 0.6 * thin)
    half = torch.where(ring, hole, torch.where(ellipse, r, across))
    shift = torch.where(ring, flat * (r - hole), r * thin / 2 * ellipse)
    first = x, y, angle, half_u, half_v, width
    second = (x + shift * side.cos(), y + shift * side.sin(), side, half, torch.where(ring, hole, math.inf),
              torch.where(ring, -width, width))
    return torch.stack((*first, *second)).unflatten(0, (2, -1)).unbind(1)


def noise(count, size, stream, device):
    """Two fields of Gaussian noise an image, (count, 2, size, size), of mean 0 and variance 1.

    Amplitude goes as a power of the frequency, faster in one direction where the noise has a grain.
    """
    slope, angle, grain = torch.rand(3, count, 2, 1, 1, generator=stream, device=device)
    rows, columns = torch.fft.fftfreq(size, device=device)[:, None], torch.fft.rfftfreq(size, device=device)
    cos, sin = (math.pi * angle).cos(), (math.pi * angle).sin()
    grain = 4 ** (2 * grain - 1).clamp_min(0)
    along, across = cos / grain * columns + sin / grain * rows, cos * grain * rows - sin * grain * columns
    squared = along.square() + across.square()
    squared[..., 0, 0] = math.inf  # no mean
    amplitude = squared ** (-(SLOPE[0] + (SLOPE[1] - SLOPE[0]) * slope) / 2)
    white = torch.randn(amplitude.shape, dtype=torch.complex64, generator=stream, device=device)
    field = torch.fft.irfft2(amplitude * white, s=(size, size))
    return field * (size / torch.linalg.vector_norm(field, dim=(-2, -1), keepdim=True))


def patterns(count, size, stream, device):
    """Stripes, and checks or a grid, for each image: (count, 2, size, size) in [-1, 1].

    Two waves in directions about square to one another, some of them cut off to bars with sharp edges.
    """
    period, angle, bent, phase, hard, duty, kind = torch.rand(7, count, 2, 1, 1, generator=stream, device=device)
    second = torch.arange(2, dtype=torch.float32, device=device)[:, None, None]
    period = PERIOD[0] * (PERIOD[1] / PERIOD[0]) ** period[:, :1] * (0.8 + 0.4 * period[:, 1:]) ** second
    angle = math.pi * angle[:, :1] + (math.pi / 2 + 0.4 * (bent - 0.5)) * second
    pixel = torch.arange(size, dtype=torch.float32, device=device) - (size - 1) / 2
    step = 2 * math.pi / period
    wave = (step * angle.cos() * pixel + 2 * math.pi * phase) + step * angle.sin() * pixel[:, None]
    gain = 1 + hard * (period / math.pi - 1).clamp_min(0)  # no edge goes from -1 to 1 in less than a pixel
    stripes, across = (gain * (wave.cos() + duty - 0.5)).clamp(-1, 1).split(1, dim=1)
    crossed = torch.where(kind[:, :1] < 0.5, stripes * across, torch.maximum(stripes, across))
    return torch.cat((stripes, crossed), dim=1)


def paints(count, size, channels, stream, device):
    """Paint of every layer of `count` images: (count, LEAVES, channels, size, size), about [0, 1]."""
    textures = torch.cat((noise(count, size, stream, device), patterns(count, size, stream, device)), dim=1)
    grey, strength, textured = torch.rand(3, count, LEAVES, 1, generator=stream, device=device)
    contrast, middle = torch.rand(2, count, 1, 1, generator=stream, device=device)
    contrast = CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * contrast
    colour = middle + contrast * (grey - middle)
    if channels == 3:
        colour = colour + CHROMA * contrast * torch.randn(count, LEAVES, 3, generator=stream, device=device)
    strength = TEXTURE * contrast * strength**2 * (textured < TEXTURED)
    # Leaf k has texture k % 4.
    colour, strength = (value.unflatten(1, (-1, 4))[..., None, None] for value in (colour, strength))
    return torch.addcmul(colour, strength, textures[:, None, :, None]).flatten(1, 2)


def paint_over(paint, cover):
    """The image (count, C, H, W) of paint (count, 1 + n, C, H, W), a layer over the other; cover (count, n, H, W)."""
    image, *layers = paint.unbind(1)
    for layer, covered in zip(layers, cover.unbind(1)):
        image = torch.lerp(image, layer, covered[:, None])
    return image


def dead_leaves(count, size, channels, stream, device):
    """HR images (count, channels, size, size), float32, which depend on a torch.Generator on `device` alone.

    channels: 3 (RGB in [0, 1]) or 1 (luma in [16/255, 235/255], where that of photographs lies).
    """
    paint = paints(count, size, channels, stream, device)
    image = paint_over(paint, coverage(*shapes(count, size, stream, device), size)).clamp(0, 1)
    return image if channels == 3 else image * (219 / 255) + 16 / 255
