"""Turn grey PNGs of classes and of instances into COCO panoptic files.

    python dataset.py street/train street/val

Each folder holds images/, classes/ and instances/; panoptic/ and panoptic.json are added.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from panoptic_ext.data import write_id_map

# "id" is the grey value of the class; 0 is void. isthing: 1 if its objects are counted.
CATEGORIES = [
    {"id": 1, "name": "sky", "isthing": 0},
    {"id": 2, "name": "road", "isthing": 0},
    {"id": 3, "name": "car", "isthing": 1},
]


def convert(folder: Path) -> None:
    """Write the label PNGs and the JSON of one split."""
    (folder / "panoptic").mkdir(exist_ok=True)
    images, annotations = [], []
    for path in sorted((folder / "images").iterdir()):
        name = path.stem + ".png"
        classes = np.asarray(Image.open(folder / "classes" / name)).astype(np.int32)
        instances = np.asarray(Image.open(folder / "instances" / name)).astype(np.int32)
        ids = classes + 256 * instances  # one id for each pair; 0 stays void
        write_id_map(folder / "panoptic" / name, ids)
        segments = [
            {"id": int(value), "category_id": int(value % 256), "area": int(area), "iscrowd": 0}
            for value, area in zip(*np.unique(ids, return_counts=True), strict=True)
            if value
        ]
        height, width = ids.shape
        images.append({"id": path.stem, "file_name": path.name, "height": height, "width": width})
        annotations.append({"image_id": path.stem, "file_name": name, "segments_info": segments})
    content = {"categories": CATEGORIES, "images": images, "annotations": annotations}
    (folder / "panoptic.json").write_text(json.dumps(content))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        convert(Path(argument))
