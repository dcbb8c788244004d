"""Config keys of the panoptic models of Hugging Face's transformers."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

__all__ = ["add_transformers_keys"]


def add_transformers_keys(cfg: CN) -> None:
    """Add MODEL.TRANSFORMERS to `cfg`, in place."""
    # Panoptic models of transformers. MODEL.META_ARCHITECTURE TransformersPanoptic reads these
    # keys. INPUT.MIN_SIZE_TEST should be 0 with it: the model's image processor resizes.
    cfg.MODEL.TRANSFORMERS = CN()
    # Folder of `save_pretrained`, or name on the hub, such as "facebook/detr-resnet-50-panoptic".
    # A model of DETR, MaskFormer, Mask2Former, OneFormer, EoMT or EoMT-DINOv3.
    cfg.MODEL.TRANSFORMERS.NAME_OR_PATH = ""
    # Read the weights of NAME_OR_PATH. MODEL.WEIGHTS, if it is given, is loaded after them. False
    # builds the network from its config alone, for checkpoints of a training here.
    cfg.MODEL.TRANSFORMERS.PRETRAINED = True
    # The network's and the image processor's configs as JSON. Empty: those of NAME_OR_PATH. A run
    # writes them into its config.yaml, so that its checkpoints load without NAME_OR_PATH.
    cfg.MODEL.TRANSFORMERS.ARCHITECTURE = ""
    # Task that OneFormer is told: "panoptic", "instance" or "semantic". Other models have none.
    cfg.MODEL.TRANSFORMERS.TASK = "panoptic"
    # Class head: "keep" has the labels of NAME_OR_PATH, which are matched with the data set's names
    # of classes; "new" has the data set's classes, and takes over the weights of labels with the
    # same names; "auto" is "keep" if every class of the data set has a label, else "new".
    cfg.MODEL.TRANSFORMERS.CLASS_HEAD = "auto"
    # Names of the stuff classes if no data set is named. None: by the names of COCO's, Cityscapes'
    # and ADE20K's classes, or as the image processor knows them.
    cfg.MODEL.TRANSFORMERS.STUFF_CLASSES = None
    # Shorter and longer side that images are resized to in testing, pixels. Empty: as the image
    # processor does.
    cfg.MODEL.TRANSFORMERS.SIZE = []
    # Return the panoptic map, "panoptic_seg".
    cfg.MODEL.TRANSFORMERS.PANOPTIC_ON = True
    # Return instances, "instances".
    cfg.MODEL.TRANSFORMERS.INSTANCE_ON = True
    # Return semantic scores, "sem_seg".
    cfg.MODEL.TRANSFORMERS.SEMANTIC_ON = True
    # Rule that makes segments: "transformers" as `post_process_panoptic_segmentation` of the image
    # processor, "published" as the published Mask2Former, at full resolution. EoMT has one rule.
    cfg.MODEL.TRANSFORMERS.POST_PROCESSING = "transformers"
    # Panoptic: queries with a class score (0 to 1) of at most this are discarded. None: the default
    # of `post_process_panoptic_segmentation`.
    cfg.MODEL.TRANSFORMERS.THRESHOLD = None
    # Panoptic: a pixel is in a query's mask from this value (0 to 1) on; by the rule "transformers"
    # the mask is first multiplied by the class score. None: as above.
    cfg.MODEL.TRANSFORMERS.MASK_THRESHOLD = None
    # Panoptic: a segment is discarded if not more than this share of its mask (0 to 1) is left to
    # it after masks compete for each pixel. None: as above.
    cfg.MODEL.TRANSFORMERS.OVERLAP_MASK_AREA_THRESHOLD = None
