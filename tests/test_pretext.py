"""The tasks pixel by pixel against direct computations, and that each of them can be learned."""

import itertools

import baseline_tasks
import numpy as np
import pytest
import torch
from cli import InputError

import data
import pretext
from genotypes import load_arch
from image_files import View
from model_eval import Network

TASKS = list(pretext.TASKS)


def make_set(images, labels=None, classes=10):
    masks = images[..., 0] % 5  # five classes, of any shape
    data_set = data.ImageSet(images, labels, [str(c) for c in range(classes)], masks)
    data_set.mask_classes = list("abcde")
    return data_set


def random_set(n=6, size=32):
    images = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8)
    return make_set(images, torch.randint(0, 10, (n,)))


def make_task(name, images, stem="cifar", layers=2):
    return pretext.make_task(name, images, images.size, stem, layers, "cpu")


def batch_of(images, name="rot"):
    view = View(pretext.TASKS[name].targets, "area", images.size)
    return next(data.batches(images, view, len(images), "cpu"))


def normalized(image, images):
    """(3, H, W) float64 of an image (H, W, 3) uint8, as a formula."""
    x = (image.numpy() / 255.0 - np.array(images.mean)) / np.array(images.std)
    return x.transpose(2, 0, 1)


def test_classification_and_rotation():
    images = random_set()
    x, y = make_task("cls", images).prepare(*batch_of(images, "cls"), train=False)
    assert torch.equal(y, images.labels) and x.is_contiguous()
    for k in range(len(images)):
        np.testing.assert_allclose(x[k].numpy(), normalized(images.images[k], images), atol=1e-5)
    x, y = make_task("rot", images).prepare(*batch_of(images), train=False)
    assert x.shape == (24, 3, 32, 32) and y.tolist() == [0, 1, 2, 3] * 6
    assert x.is_contiguous()
    for k, turns in itertools.product(range(len(images)), range(4)):
        expected = np.rot90(normalized(images.images[k], images), turns, axes=(1, 2))
        np.testing.assert_allclose(x[4 * k + turns].numpy(), expected, atol=1e-5)
    # counter-clockwise: what was at the right is now at the top
    assert x[1, :, 0, 0].tolist() == x[0, :, 0, -1].tolist()


def test_crop_reaches_every_offset_and_pads_with_the_mean():
    images = make_set(
        torch.arange(1, 65).view(1, 8, 8, 1).expand(600, 8, 8, 3).to(torch.uint8),
        torch.zeros(600).long(),
    )
    task = make_task("cls", images)
    x, _ = task.prepare(*batch_of(images, "cls"), train=True)
    padded = np.pad(
        normalized(images.images[0], images), ((0, 0), (1, 1), (1, 1))
    )  # zeros, after normalising
    seen = set()
    for sample in x.numpy():
        for dy, dx, flip in itertools.product(range(3), range(3), (False, True)):
            window = padded[:, dy : dy + 8, dx : dx + 8]
            if np.allclose(sample, window[:, :, ::-1] if flip else window, atol=1e-5):
                seen.add((dy, dx, flip))
                break
        else:
            pytest.fail("a sample is no window of the padded image")
    assert len(seen) == 18


def test_colorization_only_mirrors():
    images = make_set(
        torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8).expand(64, 32, 32, 3)
    )
    x, y = make_task("col", images).prepare(*batch_of(images), train=True)
    mirrored = [k for k in range(64) if not torch.equal(x[k], x[0])]
    assert 15 < len(mirrored) < 49
    for k in mirrored:  # and its targets with it
        assert torch.equal(x[k], x[0].flip(-1)) and torch.equal(y[k], y[0].flip(-1))


def direct_lab(rgb):
    """CIE Lab of one 8-bit colour, written out."""
    r, g, b = (
        ((v / 255 + 0.055) / 1.055) ** 2.4 if v / 255 > 0.04045 else v / 255 / 12.92 for v in rgb
    )
    X = 0.412453 * r + 0.357580 * g + 0.180423 * b
    Y = 0.212671 * r + 0.715160 * g + 0.072169 * b
    Z = 0.019334 * r + 0.119193 * g + 0.950227 * b
    fx, fy, fz = (
        t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116
        for t in (X / 0.95047, Y, Z / 1.08883)
    )
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def test_colorization():
    assert len(pretext.BINS) == 313 and pretext.BINS == sorted(pretext.BINS)
    images = random_set(3, 16)
    images.images[0] = torch.tensor([200, 30, 40])  # saturated and grey images too
    images.images[1] = torch.arange(256).view(16, 16, 1)
    x, y = make_task("col", images).prepare(*batch_of(images), train=False)
    assert x.shape == (3, 1, 16, 16) and y.shape == (3, 16, 16)
    bins = np.array(pretext.BINS)
    mean, std = np.mean(images.mean), np.mean(images.std)
    for k, i, j in itertools.product(range(3), range(16), range(16)):
        lightness, a, b = direct_lab(images.images[k, i, j].tolist())
        assert y[k, i, j] == ((bins - (a, b)) ** 2).sum(1).argmin()
        assert x[k, 0, i, j].item() == pytest.approx((lightness / 100 - mean) / std, abs=1e-4)


def test_colorization_tells_what_always_grey_would_get():
    images = random_set(4, 16)
    images.images[0] = torch.arange(256).view(16, 16, 1)
    task = make_task("col", images)
    _, y = task.prepare(*batch_of(images), train=False)
    logits = torch.nn.functional.one_hot(y, 313).movedim(-1, 1).float()
    grey = 100 * (y == pretext.BINS.index((0, 0))).float().mean().item()
    assert 25 <= grey < 40
    assert task.metrics(task.score(logits, y)) == pytest.approx({"top1": 100, "grey": grey})
    logits[:, pretext.BINS.index((0, 0))] = 2
    assert task.metrics(task.score(logits, y)) == pytest.approx({"top1": grey, "grey": grey})


def test_baseline_tasks_compute_the_same():
    images = random_set(2)
    x, y = make_task("col", images).prepare(*batch_of(images), train=False)
    turned = [
        make_task("rot", images)
        .prepare(pixels, None, torch.arange(2), train=False)[0]
        .unflatten(0, (2, 4))
        for pixels in (images.images.permute(0, 3, 1, 2), images.images.permute(0, 3, 1, 2).flip(3))
    ]
    tiles, _ = make_task("jig", images).prepare(*batch_of(images), train=False)
    for k, image in enumerate(images.images.numpy()):
        lightness, bins = baseline_tasks.baseline_col(image)
        assert (
            np.corrcoef(lightness.ravel(), x[k].ravel())[0, 1] > 0.9999
            and (bins == y[k].numpy()).all()
        )
        rotated, targets = baseline_tasks.baseline_rot(image)
        assert targets.tolist() == [0, 1, 2, 3] and any(
            np.allclose(rotated, t[k], atol=1e-5) for t in turned
        )
        shuffled, target = baseline_tasks.baseline_jig(image)
        assert shuffled.shape == tiles.unflatten(0, (2, 4))[k].shape and 0 <= target < 24


def test_permutations():
    perms = pretext.permutations(2)
    assert perms.tolist() == [list(p) for p in itertools.permutations(range(4))] and perms[
        0
    ].tolist() == [0, 1, 2, 3]
    perms = pretext.permutations(3)
    assert perms.shape == (1000, 9) and (np.sort(perms, 1) == np.arange(9)).all()
    distance = (perms[:, None] != perms[None]).sum(-1)[np.triu_indices(1000, 1)]
    assert distance.min() >= 2 and distance.mean() >= 8.005 and distance.max() == 9
    counts = np.stack([np.bincount(column, minlength=9) for column in perms.T])
    assert counts.min() > 90 and counts.max() < 135  # nearly uniform


@pytest.mark.parametrize(
    "stem, size, grid, tile",
    [("cifar", 32, 2, 12), ("imagenet", 255, 3, 64), ("imagenet", 321, 3, 81)],
)
def test_jigsaw_tiles(stem, size, grid, tile):
    images = random_set(4, size)
    task = make_task("jig", images, stem)
    assert task.input_size == tile and task.grid == grid
    images_, labels, index = batch_of(images)
    index = torch.tensor([0, 5, 23, 24 + 7])
    x, y = task.prepare(images_, labels, index, train=False)
    assert (
        x.shape == (4 * grid**2, 3, tile, tile)
        and y.tolist() == (index % task.num_classes).tolist()
    )
    patch, perms = size // grid, pretext.permutations(grid)
    gap = (patch - tile) // 2
    for b, k in itertools.product(range(4), range(grid**2)):
        top, left = k // grid * patch + gap, k % grid * patch + gap
        part = normalized(images.images[b], images)[:, top : top + tile, left : left + tile]
        part = (part - part.mean()) / part.std()
        slot = perms[y[b], k]  # tile k goes to slot perm[k]
        np.testing.assert_allclose(x[b * grid**2 + slot].numpy(), part, atol=1e-4)


def test_jigsaw_training_crops():
    """Every offset within the patch is used, and about 30% of the images are grey."""
    images = make_set(
        torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8).expand(400, 32, 32, 3)
    )
    task = make_task("jig", images)
    x, y = task.prepare(*batch_of(images), train=True)
    x = x.view(400, 4, 3, 12, 12)
    raw = x * torch.tensor(images.std).view(
        3, 1, 1
    )  # grey: R, G and B of a tile differ by constants
    gray = ((raw - raw.mean((3, 4), keepdim=True)).std(2) < 1e-4).flatten(1).all(1)
    assert 0.22 < gray.float().mean() < 0.38
    assert y.unique().numel() == 24
    image = normalized(images.images[0], images)
    tiles = {}
    for flip, dy, dx in itertools.product((False, True), range(5), range(5)):
        part = (image[:, :, ::-1] if flip else image)[
            :, dy : dy + 12, dx : dx + 12
        ]  # of the first patch
        tiles[flip, dy, dx] = (part - part.mean()) / part.std()
    seen = set()
    perms = pretext.permutations(2)
    for b in range(400):
        if not gray[b]:
            first = x[b, perms[y[b], 0]].numpy()
            seen |= {key for key, part in tiles.items() if np.allclose(first, part, atol=1e-3)}
    assert len(seen) == 50


def test_cutout():
    x = pretext.cutout(torch.ones(300, 3, 16, 16), 6)
    zeros = (x == 0).flatten(1).sum(1) / 3
    assert (
        zeros.max() == 36 and zeros.min() == 9
    )  # whole inside; a centre in a corner leaves a quarter
    assert torch.equal(x[:, 0], x[:, 2])
    assert (x == 0).any(0).all()  # every pixel is hit at times


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("stem, size", [("cifar", 32), ("imagenet", 160)])
def test_input_shape_is_that_of_the_inputs(name, stem, size):
    images = random_set(2, size)
    task = make_task(name, images, stem)
    x, y = task.prepare(*batch_of(images, name), train=True)
    assert (len(x) // len(y), *x.shape[1:]) == task.input_shape
    crop, base = "window" if name == "jig" else "area", 1.0 if name == "seg" else 0.5
    assert task.view == View(task.targets, crop, size, base)


@pytest.mark.parametrize("name", TASKS)
def test_evaluation_depends_on_nothing_but_the_image(name):
    images = random_set(5)
    task = make_task(name, images)
    whole_x, whole_y = task.prepare(*batch_of(images, name), train=False)
    parts = [
        task.prepare(*batch, train=False) for batch in data.batches(images, task.view, 2, "cpu")
    ]
    torch.testing.assert_close(torch.cat([x for x, _ in parts]), whole_x)
    assert torch.equal(torch.cat([y for _, y in parts]), whole_y)


def small_network(task):
    return Network(
        load_arch("darts_v2"), 8, 2, "cifar", task.head, task.in_channels, task.reductions
    )


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("color", [0, 127, 255])
def test_constant_images_stay_finite(name, color):
    images = make_set(torch.full((2, 32, 32, 3), color, dtype=torch.uint8), torch.tensor([0, 1]))
    task = make_task(name, images)
    network = small_network(task)
    x, y = task.prepare(*batch_of(images, name), train=True)
    loss = task.loss(network(x), y)
    loss.backward()
    assert x.isfinite().all() and loss.isfinite()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", TASKS)
def test_overfits_eight_images(name):
    if (
        name == "col"
    ):  # a colour that lightness gives away: the head's upsampling cannot follow single pixels
        colors = torch.tensor(
            [
                [20, 20, 90],
                [200, 30, 30],
                [30, 120, 30],
                [250, 240, 100],
                [120, 200, 230],
                [80, 60, 40],
                [160, 90, 160],
                [255, 255, 255],
            ]
        )
        images = make_set(colors.view(8, 1, 1, 3).expand(8, 32, 32, 3).to(torch.uint8))
    else:
        images = data.load("shapes", limit=8)[0]
        images.labels = torch.arange(8)
    task = make_task(name, images)
    network = small_network(task)
    x, y = task.prepare(*batch_of(images, name), train=False)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(200):
        logits = network(x)
        loss = task.loss(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.02:
            break
    assert loss < 0.02
    scores = task.score(logits, y)
    assert task.metrics(scores)[task.metric] >= (
        90 if name == "seg" else 100
    )  # of thin parts, few pixels are much
    assert scores[-1] == (y != 255).sum()


def test_segmentation_flips_image_and_mask_together():
    images = random_set(40)
    images.masks = (images.images[..., 1] // 52).clone()  # a mask painted into the image
    task = make_task("seg", images)
    x, y = task.prepare(*batch_of(images, "seg"), train=True)
    green = (x[:, 1] * task.std[1] + task.mean[1]) * 255
    assert torch.equal(green.round().long() // 52, y)
    flipped = (y != images.masks).flatten(1).any(1)
    assert 5 < flipped.sum() < 35
    x, y = task.prepare(*batch_of(images, "seg"), train=False)
    assert x.shape == (40, 3, 33, 33) and (y[:, -1] == 255).all() and (y[:, :, -1] == 255).all()
    assert torch.equal(y[:, :-1, :-1], images.masks.long())


def test_miou_against_a_direct_computation():
    images = random_set(2)
    task = make_task("seg", images)  # of five classes
    target = torch.randint(0, 4, (2, 16, 16))  # the last occurs nowhere as truth
    target[0, :4] = 255
    logits = torch.randn(2, 5, 16, 16)
    logits[:, 4] = -9  # nor as prediction
    task.num_classes = 5
    scores = task.score(logits[:1], target[:1]) + task.score(logits[1:], target[1:])
    prediction, valid = logits.argmax(1), target != 255
    expected = []
    for c in range(4):
        a, b = (prediction == c) & valid, target == c
        expected.append(100 * (a & b).sum().item() / (a | b).sum().item())
    result = task.metrics(scores)
    assert result["iou"][:4] == pytest.approx(expected) and result["iou"][4] is None
    assert result["miou"] == pytest.approx(sum(expected) / 4) and scores[-1] == valid.sum()
    nothing = torch.full((1, 4, 4), 255)
    assert task.loss(torch.randn(1, 5, 4, 4), nothing) == 0


@pytest.mark.slow
def test_counts_of_many_pixels_are_exact():
    """2^25 pixels of one class: beyond 2^24, sums of ones in float32 stand still."""
    task = make_task("seg", random_set(2))
    logits = torch.zeros(1, 2, 1, 1)
    logits[:, 1] = 1
    target = torch.ones(1, 1, 1, dtype=torch.long).expand(1, 4096, 8192)
    task.num_classes = 2
    scores = task.score(logits.expand(1, 2, 4096, 8192), target)
    assert scores.tolist() == [0, 0, 0, 2**25, 2**25]


def test_color_jitter():
    x = torch.full((2000, 3, 1, 2), 0.5)
    moved = (pretext.color_jitter(x, 0.1) - x).permute(0, 2, 3, 1)
    assert torch.equal(moved[:, :, 0], moved[:, :, 1])  # one colour an image
    components = torch.tensor(pretext.COLOR_AXES)
    amounts = moved[:, 0, 0] @ components
    torch.testing.assert_close(components.T @ components, torch.eye(3), rtol=0, atol=2e-3)
    torch.testing.assert_close(
        amounts.std(0), 0.1 * torch.tensor(pretext.COLOR_STD), rtol=0.05, atol=1e-5
    )


def test_refusals():
    with pytest.raises(InputError, match="needs masks"):
        images = make_set(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
        images.masks = None
        make_task("seg", images)
    with pytest.raises(InputError, match="needs labels"):
        make_task("cls", make_set(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)))
    with pytest.raises(InputError, match="--size 3"):
        make_task("rot", random_set(2, 3))
    with pytest.raises(InputError, match="3 pixels"):
        make_task("jig", random_set(2, 12), layers=6, stem="imagenet")
