"""Draw a folder of street scenes and their labels, as an annotation tool might export them.

    python draw_street.py

For each image there is a grey PNG of classes (0 void, 1 sky, 2 road, 3 car) and a grey PNG of
instances (0 for stuff, else the number of the car).
"""

import random
from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, HEIGHT = 160, 120  # pixels


def draw_scene(rng: random.Random) -> tuple[Image.Image, Image.Image, Image.Image]:
    """An RGB image, its classes and its instances."""
    horizon = rng.randint(45, 65)
    sky = (rng.randint(90, 150), rng.randint(150, 200), 230)
    image = Image.new("RGB", (WIDTH, HEIGHT), sky)
    classes = Image.new("L", (WIDTH, HEIGHT), 1)
    instances = Image.new("L", (WIDTH, HEIGHT), 0)
    drawn = [ImageDraw.Draw(picture) for picture in (image, classes, instances)]
    road = (0, horizon, WIDTH, HEIGHT)
    for draw, value in zip(drawn, ((rng.randint(80, 120),) * 3, 2, 0), strict=True):
        draw.rectangle(road, fill=value)
    for number in range(1, rng.randint(2, 5)):
        length = rng.randint(22, 44)
        left, top = rng.randint(0, WIDTH - length), rng.randint(horizon, HEIGHT - 24)
        car = (left, top, left + length, top + length // 2)
        paint = tuple(rng.randint(0, 255) for _ in range(3))
        for draw, value in zip(drawn, (paint, 3, number), strict=True):
            draw.rounded_rectangle(car, radius=5, fill=value)
    return image, classes, instances


def main() -> None:
    rng = random.Random(0)
    for split, count in (("train", 60), ("val", 12)):
        for number in range(count):
            scene = draw_scene(rng)
            for name, picture in zip(("images", "classes", "instances"), scene, strict=True):
                folder = Path("street", split, name)
                folder.mkdir(parents=True, exist_ok=True)
                picture.save(folder / f"{number:03}.png")


if __name__ == "__main__":
    main()
