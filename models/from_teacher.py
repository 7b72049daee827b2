"""A student made of its teacher's weights, without a training step and without data.

Of every layer some channels are kept, and every convolution is fitted anew by least squares, so that the narrow network
gives what the wide one gives on a few hundred synthetic images.

1. Which channels to keep (keep_channels). Let A (rows, 9 C) hold the 3x3 patches of a layer's C features, one row a
   place, and W the kernel that reads them, so that A W is what the next layer gets. With G = A'A, leaving channel c
   out, with its nine columns, and fitting the others anew raises the squared error by

       tr(W_c' inv(inv(G)_cc) W_c),

   and the block formula turns inv(G) and W into those without c. The cheapest channel goes, until enough are gone. This
   runs from the last layer to the first, since only what the next layer's kept channels need is worth keeping.

2. How to weigh them (fit). From the first layer to the last, each kernel is fitted to the teacher's pre-activations of
   its kept channels, on the student's own features: so later layers make good what earlier ones could not represent.
   A ReLU follows, for which any negative value will do where the teacher's is negative: there a few rounds replace the
   target by min(prediction, 0). The ridge pulls towards the teacher's own kernel, so at full width nothing changes.

3. What runs along EDSR's skips, and from its upsampler to its tail, passes through no ReLU. Any basis serves there, so
   it is not channels that are kept but the directions (encoding) that the layers reading them respond to most: the
   reduced-rank regression of what they read.

Relatives. He, Zhang and Sun (Channel Pruning, ICCV 2017) and ThiNet (Luo, Wu and Lin, ICCV 2017) keep the channels that
reconstruct the next layer and refit it, on training images; weight selection (Xu et al., ICLR 2024) takes a part of the
large network's weights, without a fit. New here: no data, the fit on the student's own features, the ReLU in the
target, and directions in the place of channels where all is linear.
"""

from functools import partial

import torch
import torch.nn.functional as F
from tqdm import tqdm

from models import build_model

ROWS = 40_000  # places at which a layer is fitted
ROUNDS = 8  # of a fit in front of a ReLU
RIDGE = 1e-5  # of the mean of the normal matrix's diagonal
CHUNK = 32  # images that pass through a layer at once


def student_from_teacher(teacher, images, n_feats, seed=1, disable=None):
    """A student of the teacher's architecture and depth with n_feats channels, which gives nearly what it gives.

    teacher: a VDSR or EDSR. images: (N, C, H, W) in [0, 1], as the teacher takes them, on its device; 256 of 48x48 do.
    n_feats: from 1 to the teacher's, at which the student's output is the teacher's. seed: of the places that are
    sampled. disable: tqdm's. Returns the network, on the teacher's device, in evaluation mode.
    Raises ValueError for another architecture or width.
    """
    config = {**teacher.config, "n_feats": n_feats}
    make = {"vdsr": _vdsr, "edsr": _edsr}.get(config["arch"])
    if not make or not 1 <= n_feats <= teacher.n_feats:
        raise ValueError(f"no student of {n_feats} channels can be made of {teacher.config}")
    student = build_model(config).to(images.device).eval()
    stream = torch.Generator().manual_seed(seed)
    image = torch.randint(len(images), (ROWS,), generator=stream).to(images.device)
    places = partial(_patches, image, torch.rand(2, ROWS, generator=stream).to(images.device))
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        for _ in tqdm(make(teacher, student, images, places), "student from teacher", 2 * config["n_resblocks"] + 3,
                      leave=False, unit="layer", disable=disable):
            pass
    return student


def _patches(image, fraction, features, size=1):
    """What lies in features (N, C, H, W) at places (image, fraction of its height, of its width).

    Returns patches (places, C * size * size), columns as in a kernel.
    """
    row, column = ((f * n).long().clamp(max=n - 1) for f, n in zip(fraction, features.shape[-2:]))
    padded, around = F.pad(features, [size // 2] * 4), range(size)
    return torch.stack([padded[image, :, row + y, column + x] for y in around for x in around], 2).flatten(1)


def normal_matrix(rows):
    """rows' rows, in float64, summed over chunks."""
    return sum(chunk.T @ chunk for chunk in (chunk.double() for chunk in rows.split(4096)))


def _ridge(gram):
    return RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def keep_channels(gram, kernel, n_feats):
    """The n_feats channels, sorted, that best give what `kernel` reads of all of them (backward elimination).

    gram: A'A (9 C, 9 C) of the features' patches. kernel: (9 C, outputs).
    """
    inverse = torch.linalg.inv(gram + _ridge(gram))
    best = inverse @ (gram @ kernel.double())  # W, but for the ridge
    alive = list(range(len(gram) // 9))
    while len(alive) > n_feats:
        diagonal = inverse.unflatten(1, (-1, 9)).unflatten(0, (-1, 9)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        parts = best.unflatten(0, (-1, 9))
        gone = int((parts * torch.linalg.solve(diagonal, parts)).sum((1, 2)).argmin())
        out = torch.arange(len(best), device=gram.device) // 9 == gone
        share = inverse[~out][:, out] @ torch.linalg.inv(diagonal[gone])
        best = best[~out] - share @ best[out]
        inverse = inverse[~out][:, ~out] - share @ inverse[out][:, ~out]
        alive.pop(gone)
    return alive


def fit(rows, target, prior, relu=False):
    """The kernel (columns, outputs) with which `rows` best give `target`, near `prior` where they do not tell.

    rows: (places, columns), target: (places, outputs). prior: a kernel; a bias is one more row of it and of the result.
    relu: only max(target, 0) counts.
    """
    rows = F.pad(rows, (0, len(prior) - rows.shape[1]), value=1.0)
    gram, kernel = normal_matrix(rows), prior
    factor = torch.linalg.cholesky(gram + _ridge(gram))
    for i in range(1 + ROUNDS * relu):
        given = rows @ kernel
        missing = torch.where(target < 0, -given.clamp(min=0), target - given) if i else target - given
        kernel = kernel + torch.cholesky_solve((rows.T @ missing).double(), factor).to(kernel)
    return kernel


def encoding(moment, kernels, n_feats):
    """(encode (n_feats, C), decode (C, n_feats)): the directions of C features to which later layers respond most.

    moment: (C, C), the features' second moments. kernels: those that read them. With decode @ encode between, these get
    the best approximation of rank n_feats of what they read, in the mean square; at n_feats = C that is the identity.
    """
    reads = torch.cat([kernel.movedim(1, -1).flatten(0, -2) for kernel in kernels]).double()
    values, vectors = torch.linalg.eigh(moment + _ridge(moment))
    root = vectors * values.sqrt()
    right = torch.linalg.eigh(root.T @ (reads.T @ reads) @ root).eigenvectors.flip(1)[:, :n_feats]
    size = values.mean().sqrt()  # what is encoded is about as large as the features
    return (size * right.T @ (vectors / values.sqrt()).T).float(), (root @ right / size).float()


# The student's features feat_s are encode (n_feats, C) times the teacher's feat_t, and decode (C, n_feats) is the way
# back: where channels are kept, rows of the identity and their transpose; for images and outputs the identity.


def _through(layer, features):
    """layer(features), in chunks."""
    return torch.cat([layer(chunk) for chunk in features.split(CHUNK)])


def _kept(gram, reader, encode, n_feats):
    """encode of the channels that best give what `encode` takes of the convolution `reader`; gram: of its input."""
    kernel = torch.einsum("po,oiyx->piyx", encode, reader.weight).flatten(1).T
    return torch.eye(reader.in_channels, device=gram.device)[keep_channels(gram, kernel, n_feats)]


def _prior(conv, encode, decode):
    """The teacher's kernel as of fit, between features that are decoded and encoded."""
    weight = torch.einsum("po,oiyx->piyx", encode, torch.einsum("oiyx,ij->ojyx", conv.weight, decode))
    kernel = weight.flatten(1).T
    return kernel if conv.bias is None else torch.cat((kernel, (encode @ conv.bias)[None]))


def _set(conv, kernel):
    """Give the student's conv a kernel as of fit."""
    columns = conv.weight[0].numel()
    conv.weight.copy_(kernel[:columns].T.reshape(conv.weight.shape))
    if conv.bias is not None:
        conv.bias.copy_(kernel[columns])


def _vdsr(teacher, student, images, places):
    """Fill the student; yields after every layer, on the way there and back."""
    convs = [teacher.head, *teacher.body, teacher.tail]
    feat_t, grams = images, []
    for conv in convs[:-1]:
        feat_t = _through(lambda x: F.relu(conv(x)), feat_t)
        grams.append(normal_matrix(places(feat_t, 3)[::2]))
        yield
    one = torch.eye(1, device=images.device)
    encodes = [one]
    for gram, reader in zip(reversed(grams), reversed(convs)):
        encodes.insert(0, _kept(gram, reader, encodes[0], student.n_feats))

    feat_t, feat_s, decode = images, images, one
    for conv, conv_s, encode in zip(convs, [student.head, *student.body, student.tail], encodes):
        feat_t, relu = _through(conv, feat_t), conv is not teacher.tail
        _set(conv_s, fit(places(feat_s, 3), places(feat_t) @ encode.T, _prior(conv, encode, decode), relu))
        feat_t, feat_s, decode = feat_t.relu_(), _through(lambda x: F.relu(conv_s(x)), feat_s), encode.T
        yield


def _edsr(teacher, student, images, places):
    """As _vdsr, for an EDSR."""
    *blocks, last = teacher.body
    up, tail = teacher.tail
    x, colours = 255 * images - teacher.mean, torch.eye(teacher.channels, device=images.device)
    head_t = _through(teacher.head, x)

    # What runs along the skips, and what the blocks hold between their convolutions.
    moment, grams, feat_t = 0, [], head_t
    for block in blocks:
        moment = moment + normal_matrix(places(feat_t))
        grams.append(normal_matrix(places(_through(block.body[:2], feat_t), 3)[::2]))
        feat_t = _through(block, feat_t)
        yield
    skip = head_t + _through(last, feat_t)
    moment = moment + normal_matrix(places(feat_t)) + normal_matrix(places(skip))
    kernels = [conv.weight for conv in (*(block.body[0] for block in blocks), last, up[0])]
    encode, decode = encoding(moment, kernels, student.n_feats)

    _set(student.head[0], _prior(teacher.head[0], encode, colours))
    head_s = feat_s = _through(student.head, x)
    feat_t = head_t
    for block, block_s, gram in zip(blocks, student.body, grams):
        (first, _, second), (first_s, _, second_s) = block.body, block_s.body
        kept = _kept(gram, second, encode, student.n_feats)
        target = places(_through(first, feat_t)) @ kept.T
        _set(first_s, fit(places(feat_s, 3), target, _prior(first, kept, decode), relu=True))
        feat_t = _through(block, feat_t)
        target = (places(feat_t) @ encode.T - places(feat_s)) / block.res_scale
        inner = _through(block_s.body[:2], feat_s)
        _set(second_s, fit(places(inner, 3), target, _prior(second, encode, kept.T)))
        feat_s = _through(block_s, feat_s)
        yield
    last_s = student.body[-1]
    _set(last_s, fit(places(feat_s, 3), places(skip) @ encode.T - places(head_s), _prior(last, encode, decode)))
    feat_s = head_s + _through(last_s, feat_s)
    yield

    # The upsampler and the last convolution, all linear.
    feat_t, up_s = skip, student.tail[0]
    for i, reader in zip(range(0, len(up), 2), (*up[2::2], tail)):
        feat_t, factor = _through(up[i:i + 2], feat_t), up[i + 1].upscale_factor
        encode, next_decode = encoding(normal_matrix(places(feat_t)), [reader.weight], student.n_feats)
        # Channels and, within each, the factor**2 places that the shuffle gives it.
        outputs = torch.kron(encode, torch.eye(factor**2, device=encode.device))
        encoded = _through(lambda x: F.pixel_unshuffle(F.conv2d(x, encode[..., None, None]), factor), feat_t)
        _set(up_s[i], fit(places(feat_s, 3), places(encoded), _prior(up[i], outputs, decode)))
        feat_s, decode = _through(up_s[i:i + 2], feat_s), next_decode
    yield
    _set(student.tail[1], fit(places(feat_s, 3), places(_through(tail, feat_t)), _prior(tail, colours, decode)))
    yield
