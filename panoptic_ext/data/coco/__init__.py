"""The COCO panoptic format: id maps, runs, PNG, RLE, segment tables, reading, writing, checks."""
