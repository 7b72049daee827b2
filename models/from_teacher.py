"""A student made of its teacher's weights, without a training step and without data.

A narrow student that starts from random weights spends nearly all of its training on finding what its teacher
already knows. Here it starts from what the teacher computes: of every layer some channels are kept, and every
convolution is fitted anew by least squares, so that the narrow network gives what the wide one gives on a few hundred
synthetic images.

1. Which channels to keep (keep_channels). Let A (rows, 9 C) hold the 3x3 patches of a layer's C features, one row a
   place, and W the kernel that reads them, so that A W is what the next layer gets. With G = A'A the best kernel for
   all channels is B = inv(G) G W = W; leaving channel c out, with its nine columns, and fitting the others anew
   raises the squared error by

       tr(B_c' inv(inv(G)_cc) B_c),

   and the block formula turns inv(G) and B into those without c. The cheapest channel goes, until enough are gone. This
   runs from the last layer to the first, since only what the next layer's kept channels need is worth keeping.

2. How to weigh them (fit). From the first layer to the last, each kernel is fitted to the teacher's pre-activations of
   its kept channels, on the student's own features: so later layers make good what earlier ones could not represent.
   A ReLU follows, for which any negative value will do where the teacher's is negative: there a few rounds replace the
   target by min(prediction, 0). The ridge pulls towards the teacher's own kernel, so at full width nothing changes.

3. What runs along EDSR's skips, and from its upsampler to its tail, passes through no ReLU. Any basis serves there, so it
   is not channels that are kept but the directions (encoding) that the layers reading them respond to most: the
   reduced-rank regression of what they read.

Relatives. He, Zhang and Sun (Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017) and ThiNet (Luo, Wu
and Lin, ICCV 2017) keep the channels that reconstruct the next layer and refit that layer by least squares, layer by
layer, on training images; weight selection (Xu et al., Initializing Models with Larger Ones, ICLR 2024) starts a small
network from a subset of a large one's weights, without a fit. New here: no data, all layers in one pass each way, the
fit on the student's own features, the ReLU in the target, and directions in the place of channels where all is linear.
"""

import torch
import torch.nn.functional as F
from tqdm import tqdm

from models import build_model

ROWS = 40_000  # places at which a layer is fitted
ROUNDS = 8  # of a fit in front of a ReLU
RIDGE = 1e-5  # of the mean of the normal matrix's diagonal
CHUNK = 32  # images that pass through a layer at once


def student_from_teacher(teacher, images, n_feats, seed=1, disable=None):
    """A student of the teacher's architecture and depth with n_feats channels, which gives about what the teacher gives.

    teacher: a VDSR or EDSR. images: (N, C, H, W) in [0, 1], as the teacher takes them, on its device; 256 of 48x48 serve.
    n_feats: from 1 to the teacher's, at which the student's output is the teacher's. seed: of the places that are
    sampled. disable: tqdm's. Returns the network, on the teacher's device, in evaluation mode.
    Raises ValueError for another architecture or width.
    """
    config = {**teacher.config, "n_feats": n_feats}
    make = {"vdsr": _vdsr, "edsr": _edsr}.get(config["arch"])
    if not make or not 1 <= n_feats <= teacher.n_feats:
        raise ValueError(f"no student of {n_feats} channels can be made of {teacher.config}")
    student = build_model(config).to(images.device).eval()
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        places = Places(len(images), torch.Generator().manual_seed(seed), images.device)
        with tqdm(total=0, desc="student from teacher", unit="layer", leave=False, disable=disable) as progress:
            make(teacher, student, images, places, progress)
    return student


# ---- least squares ---------------------------------------------------------------------------------


class Places:
    """Random places in a stack of `count` images, the same for all feature maps of one size."""

    def __init__(self, count, stream, device):
        self.image = torch.randint(count, (ROWS,), generator=stream).to(device)
        self.fraction = torch.rand(2, ROWS, generator=stream).to(device)

    def __call__(self, features, size=1):
        """Rows of what lies there in features (N, C, H, W): patches (ROWS, C * size * size), columns as in a kernel."""
        row, column = ((f * n).long().clamp(max=n - 1) for f, n in zip(self.fraction, features.shape[-2:]))
        padded, around = F.pad(features, [size // 2] * 4), range(size)
        return torch.stack([padded[self.image, :, row + y, column + x] for y in around for x in around], 2).flatten(1)


def normal_matrix(rows):
    """rows' rows, in float64, summed over chunks."""
    return sum(chunk.T @ chunk for chunk in (chunk.double() for chunk in rows.split(4096)))


def _ridge(gram):
    return RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def keep_channels(gram, kernel, n_feats):
    """The n_feats channels, sorted, that best give what `kernel` reads of all of them (backward elimination).

    gram: A'A (9 C, 9 C) of the features' patches. kernel: (9 C, outputs). See this module's first lines.
    """
    inverse = torch.linalg.inv(gram + _ridge(gram))
    best = inverse @ (gram @ kernel.double())
    alive = list(range(len(gram) // 9))
    while len(alive) > n_feats:
        diagonal = inverse.unflatten(1, (-1, 9)).unflatten(0, (-1, 9)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        parts = best.unflatten(0, (-1, 9))
        gone = int((parts * torch.linalg.solve(diagonal, parts)).sum((1, 2)).argmin())
        places = torch.arange(len(best), device=gram.device)
        out, kept = places[places // 9 == gone], places[places // 9 != gone]
        share = inverse[kept][:, out] @ torch.linalg.inv(diagonal[gone])
        best = best[kept] - share @ best[out]
        inverse = inverse[kept][:, kept] - share @ inverse[out][:, kept]
        alive.pop(gone)
    return alive


def fit(rows, target, prior, relu=False):
    """The kernel (columns, outputs) with which `rows` best give `target`, near `prior` where they do not tell.

    rows: (places, columns), target: (places, outputs). relu: only max(target, 0) counts.
    """
    gram, kernel = normal_matrix(rows), prior
    factor = torch.linalg.cholesky(gram + _ridge(gram))
    for i in range(1 + ROUNDS * relu):
        given = rows @ kernel
        missing = torch.where(target < 0, -given.clamp(min=0), target - given) if i else target - given
        kernel = kernel + torch.cholesky_solve((rows.T @ missing).double(), factor).to(kernel)
    return kernel


def encoding(moment, reads, n_feats):
    """(encode (n_feats, C), decode (C, n_feats)): the directions of C features to which `reads` responds most.

    moment: (C, C), the features' second moments. reads: (outputs, C), what later layers take of them. Then
    reads @ decode @ encode is the best approximation of rank n_feats of what is read, in the mean square; at
    n_feats = C decode @ encode is the identity.
    """
    moment, reads = moment.double(), reads.double()
    values, vectors = torch.linalg.eigh(moment + _ridge(moment))
    root = vectors * values.sqrt()
    right = torch.linalg.eigh(root.T @ (reads.T @ reads) @ root).eigenvectors.flip(1)[:, :n_feats]
    size = values.mean().sqrt()  # what is encoded is about as large as the features
    return (size * right.T @ (vectors / values.sqrt()).T).float(), (root @ right / size).float()


# ---- layers ----------------------------------------------------------------------------------------


def _through(layer, features):
    """layer(features), in chunks."""
    return torch.cat([layer(chunk) for chunk in features.split(CHUNK)])


def _prior(conv, outputs=None, inputs=None):
    """The teacher's kernel as of fit, (columns, outputs), the bias in its last row.

    outputs: a matrix (kept or encoded, outputs) that is applied to what it gives; inputs: a matrix (inputs, kept or
    encoded) that makes the student's features the teacher's.
    """
    weight, bias = conv.weight, conv.bias
    if inputs is not None:
        weight = torch.einsum("oiyx,ij->ojyx", weight, inputs)
    if outputs is not None:
        weight, bias = torch.einsum("po,oiyx->piyx", outputs, weight), None if bias is None else outputs @ bias
    kernel = weight.flatten(1).T
    return kernel if bias is None else torch.cat((kernel, bias[None]))


def _refit(conv, rows, target, prior, relu=False):
    """Give the student's conv the kernel and bias that fit() finds."""
    _set(conv, fit(rows if conv.bias is None else F.pad(rows, (0, 1), value=1.0), target, prior, relu))


def _set(conv, kernel):
    if conv.bias is not None:
        conv.bias.copy_(kernel[-1])
        kernel = kernel[:-1]
    conv.weight.copy_(kernel.T.reshape(conv.weight.shape))


def _vdsr(teacher, student, images, places, progress):
    convs = [teacher.head, *teacher.body, teacher.tail]
    progress.reset(2 * len(convs) - 1)
    features, grams = images, []
    for conv in convs[:-1]:
        features = _through(lambda x: F.relu(conv(x)), features)
        grams.append(normal_matrix(places(features, 3)[::2]))
        progress.update()
    selections, reads = [], _prior(teacher.tail)
    for conv, gram in zip(reversed(convs[:-1]), reversed(grams)):
        kept = torch.eye(len(conv.weight), device=images.device)[keep_channels(gram, reads, student.n_feats)]
        selections.insert(0, kept)
        reads = _prior(conv, kept)

    features = own = images
    inputs = None
    for conv, ours, kept in zip(convs, [student.head, *student.body, student.tail], (*selections, None)):
        features = _through(conv, features)
        _refit(ours, places(own, 3), places(features) if kept is None else places(features) @ kept.T,
               _prior(conv, kept, inputs), relu=kept is not None)
        if kept is not None:
            features, own, inputs = features.relu_(), _through(lambda x: F.relu(ours(x)), own), kept.T
        progress.update()


def _edsr(teacher, student, images, places, progress):
    *blocks, last = teacher.body
    *own_blocks, own_last = student.body
    up, tail = teacher.tail
    progress.reset(2 * len(blocks) + len(up) // 2 + 2)
    head = _through(teacher.head, 255 * images - teacher.mean)

    # What runs along the skips, and what the blocks hold between their convolutions.
    moment, grams, stream = 0, [], head
    for block in blocks:
        moment = moment + normal_matrix(places(stream))
        grams.append(normal_matrix(places(_through(block.body[:2], stream), 3)[::2]))
        stream = _through(block, stream)
        progress.update()
    skip = head + _through(last, stream)
    reads = [conv.weight for conv in (*(block.body[0] for block in blocks), last, up[0])]
    encode, decode = encoding(moment + normal_matrix(places(stream)) + normal_matrix(places(skip)),
                              torch.cat([weight.movedim(1, -1).flatten(0, -2) for weight in reads]), student.n_feats)

    _set(student.head[0], _prior(teacher.head[0], encode))
    own_head = own = _through(student.head, 255 * images - teacher.mean)
    stream = head
    for block, ours, gram in zip(blocks, own_blocks, grams):
        first, second = block.body[0], block.body[2]
        kept = torch.eye(teacher.n_feats, device=images.device)[
            keep_channels(gram, _prior(second, encode)[:-1], student.n_feats)]
        _refit(ours.body[0], places(own, 3), places(_through(first, stream)) @ kept.T,
               _prior(first, kept, decode), relu=True)
        stream = _through(block, stream)
        _refit(ours.body[2], places(_through(ours.body[:2], own), 3),
               (places(stream) @ encode.T - places(own)) / block.res_scale, _prior(second, encode, kept.T))
        own = _through(ours, own)
        progress.update()
    _refit(own_last, places(own, 3), places(skip) @ encode.T - places(own_head), _prior(last, encode, decode))
    own = own_head + _through(own_last, own)
    progress.update()
    _edsr_tail(teacher, student, skip, own, decode, places, progress)


def _edsr_tail(teacher, student, features, own, decode, places, progress):
    """Fit the upsampler and the last convolution, all linear, to what the teacher makes of its features."""
    up, tail = teacher.tail
    convs = [*up[::2], tail]
    for i, (conv, shuffle) in enumerate(zip(up[::2], up[1::2])):
        factor = shuffle.upscale_factor
        features = _through(up[2 * i:2 * i + 2], features)
        encode, next_decode = encoding(normal_matrix(places(features)),
                                       convs[i + 1].weight.movedim(1, -1).flatten(0, -2), student.n_feats)
        # Channels and, within each, the factor**2 places that the shuffle gives it.
        outputs = torch.kron(encode, torch.eye(factor**2, device=encode.device))
        encoded = _through(lambda x: F.pixel_unshuffle(F.conv2d(x, encode[..., None, None]), factor), features)
        _refit(student.tail[0][2 * i], places(own, 3), places(encoded), _prior(conv, outputs, decode))
        own, decode = _through(student.tail[0][2 * i:2 * i + 2], own), next_decode
        progress.update()
    _refit(student.tail[1], places(own, 3), places(_through(tail, features)), _prior(tail, None, decode))
    progress.update()
