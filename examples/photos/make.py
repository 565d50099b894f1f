"""Draw the pictures and write the files beside them: captions, and judged pairs of text and image and of two images.

    python examples/photos/make.py [FOLDER]

Pillow is all it needs. The four photographs are not drawn: they are there, and LICENSES.md says where they come from.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 224
BLACK, WHITE, RED, GREEN = "#1c1c1c", "#f7f7f2", "#cc2b24", "#3d8b40"


def canvas(color: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIDE, SIDE), color)
    return image, ImageDraw.Draw(image)


def red_square() -> Image.Image:
    image, draw = canvas(WHITE)
    draw.rectangle((52, 52, 172, 172), fill=RED)
    return image


def sunset() -> Image.Image:
    """A gradient, a half sun, and its path on the sea."""
    image, draw = canvas(BLACK)
    horizon, top, low = 140, (58, 46, 110), (250, 140, 60)
    for y in range(horizon):
        part = y / horizon
        draw.line((0, y, SIDE, y), fill=tuple(round(a + (b - a) * part) for a, b in zip(top, low, strict=True)))
    draw.pieslice((72, horizon - 40, 152, horizon + 40), 180, 360, fill="#ffe08a")
    draw.rectangle((0, horizon, SIDE, SIDE), fill="#2b2f5e")
    for row in range(12):
        half = 36 - 2 * row + 6 * (row % 2)
        draw.line((112 - half, horizon + 5 + 7 * row, 112 + half, horizon + 5 + 7 * row), fill="#f5a44c", width=2)
    return image


def draw_house(sky: str, wall: str, window: str, ground: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image, draw = canvas(sky)
    draw.rectangle((0, 176, SIDE, SIDE), fill=ground)
    draw.rectangle((56, 104, 168, 188), fill=wall)
    draw.polygon(((40, 104), (112, 44), (184, 104)), fill="#8c3b2a")
    draw.rectangle((100, 140, 124, 188), fill="#5b3a1e")
    for x in (68, 134):
        draw.rectangle((x, 118, x + 22, 140), fill=window, outline=BLACK)
    return image, draw


def house() -> Image.Image:
    image, draw = draw_house("#9fd0f0", "#f2dfb6", "#cfe6f5", "#6fae55")
    draw.ellipse((176, 16, 212, 52), fill="#ffd84d")
    return image


def house_at_night() -> Image.Image:
    image, draw = draw_house("#141a3a", "#6d6553", "#ffdf6b", "#20381f")
    draw.ellipse((172, 18, 204, 50), fill=WHITE)
    draw.ellipse((162, 14, 192, 44), fill="#141a3a")
    chance = random.Random(1)
    for _ in range(24):
        x, y = chance.randrange(SIDE), chance.randrange(90)
        if image.getpixel((x, y)) == (20, 26, 58):
            draw.point((x, y), fill=WHITE)
    return image


def draw_tree(sky: str, leaves: Sequence[str], ground: str) -> Image.Image:
    image, draw = canvas(sky)
    draw.rectangle((0, 188, SIDE, SIDE), fill=ground)
    draw.polygon(((100, 200), (106, 100), (118, 100), (124, 200)), fill="#6b4526")
    chance = random.Random(2)
    for number in range(160):
        angle, reach = chance.uniform(0, 2 * math.pi), 60 * math.sqrt(chance.random())
        x, y = 112 + reach * math.cos(angle), 84 + reach * math.sin(angle)
        draw.ellipse((x - 11, y - 11, x + 11, y + 11), fill=leaves[number % len(leaves)])
    return image


def tree() -> Image.Image:
    return draw_tree("#bfe0f5", ("#2f7d32", "#3d8b40", "#56a557"), "#7cba5f")


def tree_in_autumn() -> Image.Image:
    return draw_tree("#dfe3e6", ("#d9822b", "#c4452a", "#e8b23a"), "#b98b4a")


def face() -> Image.Image:
    image, draw = canvas("#d5e8e0")
    draw.ellipse((40, 28, 184, 200), fill="#f0c8a0", outline=BLACK, width=2)
    draw.chord((38, 20, 186, 150), 190, 350, fill="#4a2d1a")
    for x in (86, 138):
        draw.ellipse((x - 13, 96, x + 13, 114), fill="white", outline=BLACK)
        draw.ellipse((x - 5, 100, x + 5, 110), fill="#3b6ea5")
    draw.line((112, 112, 106, 138, 116, 140), fill=BLACK, width=2)
    draw.arc((82, 128, 142, 172), 20, 160, fill=RED, width=4)
    return image


def stripes() -> Image.Image:
    image, draw = canvas(WHITE)
    for x in range(0, SIDE, 32):
        draw.rectangle((x, 0, x + 15, SIDE), fill="#2a5b9c")
    return image


def clock() -> Image.Image:
    """Ten past ten."""
    image, draw = canvas("#e9e4d8")
    draw.ellipse((22, 22, 202, 202), fill="white", outline=BLACK, width=5)
    for hand, length, width in ((30 * (10 + 1 / 6), 48, 7), (60, 70, 4), *((30 * hour, 0, 3) for hour in range(12))):
        angle = math.radians(hand)
        start, end = (0, length) if length else (72, 82)
        across, up = math.sin(angle), -math.cos(angle)
        draw.line((112 + start * across, 112 + start * up, 112 + end * across, 112 + end * up), fill=BLACK, width=width)
    draw.ellipse((106, 106, 118, 118), fill=RED)
    return image


def chessboard() -> Image.Image:
    image, draw = canvas("#f0d9b5")
    step = SIDE // 8
    for row in range(8):
        for column in range(1 - row % 2, 8, 2):
            draw.rectangle((column * step, row * step, (column + 1) * step - 1, (row + 1) * step - 1), fill="#8a5a3a")
    return image


DRAWN: dict[str, Callable[[], Image.Image]] = {
    picture.__name__: picture
    for picture in (red_square, sunset, house, house_at_night, tree, tree_in_autumn, face, stripes, clock, chessboard)
}

CAPTIONS = {
    "images/red_square.png": "a red square on a white ground",
    "images/sunset.png": "the sun going down over the sea",
    "images/house.png": "a house under a blue sky",
    "images/house_at_night.png": "a house at night, with lights in its windows",
    "images/tree.png": "a tree with green leaves",
    "images/tree_in_autumn.png": "a tree in autumn colours",
    "images/face.png": "a drawing of a smiling face",
    "images/stripes.png": "blue and white vertical stripes",
    "images/clock.png": "a clock that shows ten past ten",
    "images/chessboard.png": "an empty chessboard",
    "images/camera.jpg": "a black and white photo of a man with a camera on a tripod",
    "images/chelsea.jpg": "a close-up photo of a cat",
    "images/coffee.jpg": "a cup of coffee with a spoon",
    "images/rocket.jpg": "a rocket on a launch pad at night",
}

# two images of one thing, and what each might be taken for
LIKE = (
    ("house", "house_at_night", ("chessboard", "tree", "sunset")),
    ("tree", "tree_in_autumn", ("house", "face", "stripes")),
)


def write_lines(path: Path, rows: Sequence[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def main(folder: Path) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWN.items():
        draw().save(folder / "images" / f"{name}.png", optimize=True)
    write_lines(folder / "photos.jsonl", [{"image": image, "caption": caption} for image, caption in CAPTIONS.items()])
    texts = [
        {"query": caption, "image": image, "label": int(image == own)}
        for own, caption in CAPTIONS.items()
        for image in CAPTIONS
    ]
    write_lines(folder / "text_to_image.jsonl", texts)
    images = [
        {"query_image": f"images/{query}.png", "image": f"images/{name}.png", "label": int(name == like)}
        for one, other, unlike in LIKE
        for query, like in ((one, other), (other, one))
        for name in (like, *unlike)
    ]
    write_lines(folder / "image_to_image.jsonl", images)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
