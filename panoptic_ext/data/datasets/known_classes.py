"""Classes of built-in data sets, for models that are used where their data set is not.

COCO's and Cityscapes' come with Detectron2. ADE20K and Mapillary Vistas list theirs in files of the
data set; the tables here repeat them for the 150 classes of the scene parsing challenge and the 65
of Mapillary Vistas 1.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

from panoptic_ext.data.coco.categories import Category
from panoptic_ext.data.datasets.builtin import BUILTIN, builtin_names
from panoptic_ext.data.datasets.metadata import ClassesOfModel
from panoptic_ext.errors import DatasetError, quoted

__all__ = ["describe_classes", "known_categories", "set_classes"]

# Of the 150 classes of ADE20K these 50 are stuff; the instances JSON has the other 100.
_ADE20K_STUFF = (
    0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54,
    59, 60, 61, 63, 68, 77, 79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117,
    122, 128, 131, 140, 141, 145,
)  # fmt: skip
# The instances JSON calls a class by the first of its names, and these eight in another way.
_ADE20K_INSTANCES = {
    8: "windowpane",
    37: "bathtub",
    38: "railing",
    87: "streetlight",
    89: "television receiver",
    90: "airplane",
    92: "apparel",
    138: "ashcan",
}
_ADE20K_COLORS = """
    787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d
    787846 08ff33 ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0
    0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06
    ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00
    ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70
    00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99
    ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52
    000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00
    08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff
    9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00
    00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8
    005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""  # in the order of the classes, as the data set's own pictures of labels show them

_MAPILLARY_VISTAS = (
    ("Bird", True, (165, 42, 42)),
    ("Ground Animal", True, (0, 192, 0)),
    ("Curb", False, (196, 196, 196)),
    ("Fence", False, (190, 153, 153)),
    ("Guard Rail", False, (180, 165, 180)),
    ("Barrier", False, (90, 120, 150)),
    ("Wall", False, (102, 102, 156)),
    ("Bike Lane", False, (128, 64, 255)),
    ("Crosswalk - Plain", True, (140, 140, 200)),
    ("Curb Cut", False, (170, 170, 170)),
    ("Parking", False, (250, 170, 160)),
    ("Pedestrian Area", False, (96, 96, 96)),
    ("Rail Track", False, (230, 150, 140)),
    ("Road", False, (128, 64, 128)),
    ("Service Lane", False, (110, 110, 110)),
    ("Sidewalk", False, (244, 35, 232)),
    ("Bridge", False, (150, 100, 100)),
    ("Building", False, (70, 70, 70)),
    ("Tunnel", False, (150, 120, 90)),
    ("Person", True, (220, 20, 60)),
    ("Bicyclist", True, (255, 0, 0)),
    ("Motorcyclist", True, (255, 0, 100)),
    ("Other Rider", True, (255, 0, 200)),
    ("Lane Marking - Crosswalk", True, (200, 128, 128)),
    ("Lane Marking - General", False, (255, 255, 255)),
    ("Mountain", False, (64, 170, 64)),
    ("Sand", False, (230, 160, 50)),
    ("Sky", False, (70, 130, 180)),
    ("Snow", False, (190, 255, 255)),
    ("Terrain", False, (152, 251, 152)),
    ("Vegetation", False, (107, 142, 35)),
    ("Water", False, (0, 170, 30)),
    ("Banner", True, (255, 255, 128)),
    ("Bench", True, (250, 0, 30)),
    ("Bike Rack", True, (100, 140, 180)),
    ("Billboard", True, (220, 220, 220)),
    ("Catch Basin", True, (220, 128, 128)),
    ("CCTV Camera", True, (222, 40, 40)),
    ("Fire Hydrant", True, (100, 170, 30)),
    ("Junction Box", True, (40, 40, 40)),
    ("Mailbox", True, (33, 33, 33)),
    ("Manhole", True, (100, 128, 160)),
    ("Phone Booth", True, (142, 0, 0)),
    ("Pothole", False, (70, 100, 150)),
    ("Street Light", True, (210, 170, 100)),
    ("Pole", True, (153, 153, 153)),
    ("Traffic Sign Frame", True, (128, 128, 128)),
    ("Utility Pole", True, (0, 0, 80)),
    ("Traffic Light", True, (250, 170, 30)),
    ("Traffic Sign (Back)", True, (192, 192, 192)),
    ("Traffic Sign (Front)", True, (220, 220, 0)),
    ("Trash Can", True, (140, 140, 20)),
    ("Bicycle", True, (119, 11, 32)),
    ("Boat", True, (150, 0, 255)),
    ("Bus", True, (0, 60, 100)),
    ("Car", True, (0, 0, 142)),
    ("Caravan", True, (0, 0, 90)),
    ("Motorcycle", True, (0, 0, 230)),
    ("On Rails", False, (0, 80, 100)),
    ("Other Vehicle", True, (128, 64, 64)),
    ("Trailer", True, (0, 0, 110)),
    ("Truck", True, (0, 0, 70)),
    ("Wheeled Slow", True, (0, 0, 192)),
    ("Car Mount", False, (32, 32, 32)),
    ("Ego Vehicle", False, (120, 10, 10)),
)


def known_categories(name: str) -> tuple[Category, ...] | None:
    """The categories of a built-in data set, without its files; None for any other name.

    Args:
        name: such as "coco_panoptic_val", or "ade20k_instance_val", which has things alone.
    """
    if name not in builtin_names():
        return None
    dataset = next(known for known in BUILTIN if name.startswith(known))
    if dataset == "mapillary_vistas":
        rows = enumerate(_MAPILLARY_VISTAS, start=1)  # ids of its panoptic JSON
        return tuple(Category(i, *row) for i, row in rows)
    if dataset != "ade20k":
        return BUILTIN[dataset]("val").classes
    categories = _ade20k()
    if "_instance_" not in name:
        return categories
    names = {c.id: c.name.split(",")[0] for c in categories} | _ADE20K_INSTANCES
    return tuple(c._replace(name=names[c.id]) for c in categories if c.isthing)


def describe_classes(name: str, classes: Mapping[str, Any]) -> None:
    """Give a data set the classes of a model, in MetadataCatalog, unless it has classes already.

    Args:
        name: a data set; its files may be missing, or it may not be registered at all.
        classes: metadata such as `class_attributes` returns.

    Raises:
        DatasetError: the data set has other classes.
    """
    metadata = MetadataCatalog.get(name)
    # A built-in data set has the classes of its table, so that a JSON of 200 MB is not read.
    is_built_in = known_categories(name) is not None
    if "thing_classes" not in metadata.__dict__ and (is_built_in or not _can_be_read(metadata)):
        set_classes(name, classes)
        return
    present, wanted = _rows(metadata), _rows(classes)
    if present != wanted:
        differing = [pair for pair in zip(present, wanted, strict=False) if pair[0] != pair[1]]
        first = (
            f"; class {present.index(differing[0][0])} is {differing[0][0][0]!r} there and "
            f"{differing[0][1][0]!r} in the model"
            if differing
            else ""
        )
        raise DatasetError(
            f"data set {quoted(name)} is registered with {len(present)} classes, and the model has "
            f"{len(wanted)}{first}. Register it under another name, or remove it from "
            "DatasetCatalog and MetadataCatalog"
        )


def set_classes(name: str, classes: Mapping[str, Any]) -> None:
    """Give a data set the classes of a model, whatever it has.

    Args:
        name, classes: as those of `describe_classes`.
    """
    values = {key: value for key, value in classes.items() if key != "name"}
    if name in DatasetCatalog:
        # Not by setattr, which would read the data set to compare with the old value.
        MetadataCatalog.get(name).__dict__.update(values)
    else:
        MetadataCatalog[name] = ClassesOfModel(name=name, **values)


def _can_be_read(metadata: Metadata) -> bool:
    try:
        return metadata.get("thing_classes", None) is not None
    except DatasetError:  # its files are missing
        return False


def _rows(classes: Metadata | Mapping[str, Any]) -> list[tuple[str, bool]]:
    """(name, isthing) of each class; where kinds are missing, all are things."""
    names = classes.get("thing_classes", [])
    kinds = classes.get("isthing", None) or [True] * len(names)
    # ADE20K's own list has a name that ends in a space.
    return [(str(n).strip(), bool(k)) for n, k in zip(names, kinds, strict=True)]


def _ade20k() -> tuple[Category, ...]:
    categories = []
    rows = zip(ADE20K_SEM_SEG_CATEGORIES, _ADE20K_COLORS.split(), strict=True)
    for i, (name, color) in enumerate(rows):
        red, green, blue = bytes.fromhex(color)
        categories.append(Category(i, name.strip(), i not in _ADE20K_STUFF, (red, green, blue)))
    return tuple(categories)
