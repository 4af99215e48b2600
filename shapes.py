"""The embedded data set: objects of ten classes in simple scenes, drawn in seconds.

An object on the ground, under the sky or before a wall, lit from above, in more or less fog.
Orientation shows in sky, ground and shading, colour in what each thing is, layout in where it is.
"""

from functools import lru_cache

import numpy as np
import torch

SHAPES = ["ball", "box", "tent", "tree", "house", "car", "tower", "mushroom", "boat", "flower"]


def object_parts(name, u, v):
    """The parts of an object as (inside, colour) in its own coordinates: u in -1 .. 1 to the right,
    v from 0 at the ground to 2 at the top. `inside` is positive within; the colour is typical."""

    def disk(x, y, r):
        return r - np.hypot(u - x, v - y)

    def rect(x, y, w, h):
        return np.minimum(w - abs(u - x), h - abs(v - y))

    def triangle(y, w, h):  # upright, its base at height y
        return np.minimum(v - y, (1 - (v - y) / h) * w - abs(u))

    # fmt: off
    red, orange, yellow = (0.8, 0.2, 0.15), (0.95, 0.55, 0.1), (0.95, 0.85, 0.2)
    green, blue, brown = (0.15, 0.5, 0.15), (0.2, 0.3, 0.75), (0.45, 0.3, 0.15)
    pink, white, gray = (0.9, 0.45, 0.6), (0.9, 0.88, 0.8), (0.55, 0.55, 0.6)
    black = (0.1, 0.1, 0.1)
    turns = np.arange(5) * 2 * np.pi / 5
    petals = [(disk(0.38 * np.cos(t), 1.35 + 0.38 * np.sin(t), 0.28), pink) for t in turns]
    return {
        "ball": [(disk(0, 0.9, 0.9), orange)],
        "box": [(rect(0, 0.7, 0.8, 0.7), brown)],
        "tent": [(triangle(0, 1.0, 1.7), blue), (triangle(0, 0.35, 0.9), black)],
        "tree": [(rect(0, 0.5, 0.14, 0.5), brown), (disk(0, 1.35, 0.65), green)],
        "house": [(rect(0, 0.55, 0.8, 0.55), white), (triangle(1.1, 1.0, 0.8), red),
                  (rect(0.25, 0.35, 0.18, 0.35), brown)],
        "car": [(rect(0, 0.5, 1.0, 0.28), red), (rect(0.1, 0.95, 0.5, 0.3), gray),
                (disk(-0.55, 0.22, 0.22), black), (disk(0.55, 0.22, 0.22), black)],
        "tower": [(rect(0, 0.8, 0.3, 0.8), gray), (triangle(1.6, 0.42, 0.5), red)],
        "mushroom": [(rect(0, 0.5, 0.2, 0.5), white),
                     (np.minimum(disk(0, 0.9, 0.85), v - 0.9), red)],
        "boat": [(np.minimum(rect(0, 0.25, 1.0, 0.25), 0.6 + v - abs(u)), brown),
                 (np.minimum(triangle(0.55, 0.8, 1.4), u), white)],
        "flower": [(rect(0, 0.5, 0.07, 0.5), green), (disk(0.25, 0.35, 0.2), green), *petals,
                   (disk(0, 1.35, 0.22), yellow)],
    }[name]
    # fmt: on


@lru_cache  # for many trainings in one process
def load_shapes(n, seed, size=32):
    """n images (n, size, size, 3) uint8 of the classes in turn, labels (n,), masks (n, size, size)
    uint8 with 0 for sky, 1 for ground, 2 + class for the object."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[1 : -1 : size * 1j, -1 : 1 : size * 1j]  # y upwards

    def draw(name, m):
        def uniform(low, high, *channels):
            return rng.uniform(low, high, (m, 1, 1, *channels))

        def paint(image, inside, color, shade=1.0):
            cover = np.clip(inside * size / 2 + 0.5, 0, 1)[..., None]  # 1 px wide soft edges
            painted = image * (1 - cover) + cover * color * np.asarray(shade)[..., None]
            return painted, cover[..., 0] > 0.5

        # Half of the scenes are outdoors, half are a wall and a floor of any colour, where
        # orientation is harder to see.
        outdoors = rng.rand(m, 1, 1, 1) < 0.5
        horizon = uniform(-0.45, 0.1)
        height = (y - horizon) / (1 - horizon)  # 0 at the horizon, 1 at the top
        sky = np.array([0.45, 0.65, 0.95]) + uniform(-0.12, 0.12, 3)
        haze = np.array([0.85, 0.88, 0.9]) + uniform(-0.1, 0.1, 3)
        sky = haze + (sky - haze) * np.clip(height, 0, 1)[..., None]
        cloud = 0.35 - np.hypot((x - uniform(-1, 1)) / 1.6, (y - uniform(0.5, 0.95)) / 0.5)
        sky, _ = paint(sky, cloud, np.array([0.97, 0.97, 0.97]))
        image = np.where(outdoors, sky, uniform(0.1, 0.9, 3))
        grounds = np.array([[0.35, 0.55, 0.2], [0.6, 0.5, 0.3], [0.45, 0.45, 0.4]])
        ground = grounds[rng.randint(0, 3, m)][:, None, None] + uniform(-0.08, 0.08, 3)
        texture = 1 + 0.12 * rng.randn(m, size, size) * outdoors[..., 0] - 0.25 * (y + 1)
        ground = np.where(outdoors, ground, uniform(0.1, 0.9, 3))
        image, is_ground = paint(image, horizon - y, ground, texture)
        for _ in range(3):  # stones and bushes, so that colour alone does not give the object away
            px, py, r = uniform(-1, 1), horizon - uniform(0, 0.6), uniform(0.06, 0.2)
            stone = np.minimum(r - np.hypot(x - px, y - py), y - py)
            image, _ = paint(image, stone, uniform(0.05, 0.95, 3), 0.7 + 0.5 * (y - py) / r)
        scale, foot, middle = uniform(0.25, 0.5), uniform(0.05, 0.35), uniform(-0.45, 0.45)
        u, v = (x - middle) / scale, (y - (horizon - foot)) / scale
        shadow = (0.3 - np.hypot((u - 0.1) / 3.6, v / 0.7)) * scale
        image, _ = paint(image, shadow, np.array([0.12, 0.14, 0.1]))
        mask = is_ground.astype(np.uint8)
        for inside, color in object_parts(name, u, v):
            light = 0.65 + 0.25 * np.clip(v, 0, 2)  # from above
            color = np.array(color) + uniform(-0.25, 0.25, 3)
            image, covered = paint(image, inside * scale, color, light)
            mask[covered] = 2 + SHAPES.index(name)
        fog = uniform(0, 0.8, 1)
        image = image * (1 - fog) + fog * uniform(0.3, 0.9, 3)
        return image + 0.07 * rng.randn(m, size, size, 3), mask

    labels = np.arange(n) % len(SHAPES)
    images, masks = np.empty((n, size, size, 3), np.float32), np.empty((n, size, size), np.uint8)
    for c, name in enumerate(SHAPES):
        images[labels == c], masks[labels == c] = draw(name, (labels == c).sum())
    images = torch.from_numpy((images.clip(0, 1) * 255).round().astype(np.uint8))
    return images, torch.from_numpy(labels), torch.from_numpy(masks)
