"""Config keys of Mask2Former: names and meaning as in its published configs.

Sources: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR
2022, and its published YAML files, which load as they are.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode as CN

from panoptic_ext.errors import ConfigError, check_known

__all__ = ["TASKS", "add_mask_former_keys", "mask_former_task", "stuff_area_threshold"]

TASKS = ("panoptic", "instance", "semantic")

# INPUT.PANOPTIC_TARGETS chose the task before there was MODEL.MASK_FORMER.TASK; all other values
# meant "panoptic".
_TASK_OF_TARGETS = {("instances",): "instance", ("sem_seg",): "semantic"}
_STUFF_AREA_THRESHOLD = 4096  # pixels; Detectron2's default for Panoptic FPN


def mask_former_task(cfg: Any) -> str:
    """MODEL.MASK_FORMER.TASK, checked: what the queries of a Mask2Former have to find.

    Raises:
        ConfigError: an unknown task, or INPUT.PANOPTIC_TARGETS asks for another one.
    """
    task, targets = cfg.MODEL.MASK_FORMER.TASK, cfg.INPUT.PANOPTIC_TARGETS
    check_known("MODEL.MASK_FORMER.TASK", task, TASKS)
    if targets is not None:
        meant = _TASK_OF_TARGETS.get(tuple(targets), "panoptic")
        if meant != task:
            # A run from before the key has no TASK: the default would silently change its task.
            raise ConfigError(
                f"MODEL.MASK_FORMER.TASK is {task!r}, but INPUT.PANOPTIC_TARGETS is "
                f"{list(targets)}, which meant the task {meant!r} before there was TASK; set "
                f"MODEL.MASK_FORMER.TASK {meant}, or leave INPUT.PANOPTIC_TARGETS out if the task "
                f"is {task!r}"
            )
    return task


def stuff_area_threshold(cfg: Any) -> float:
    """MODEL.MASK_FORMER.TEST.STUFF_AREA_THRESHOLD, checked; pixels.

    Raises:
        ConfigError: Panoptic FPN's key is set in its place, as in configs from before this one.
    """
    threshold = cfg.MODEL.MASK_FORMER.TEST.STUFF_AREA_THRESHOLD
    old = cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT
    if threshold == _STUFF_AREA_THRESHOLD != old:
        raise ConfigError(
            f"MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT is {old}, which is Panoptic FPN's key; "
            f"set MODEL.MASK_FORMER.TEST.STUFF_AREA_THRESHOLD {old} in its place"
        )
    return threshold


def add_mask_former_keys(cfg: CN) -> None:
    """Add the keys of Mask2Former to `cfg`, in place; Detectron2's own keys are left alone."""
    cfg.MODEL.MASK_FORMER = _mask_former_keys()
    _add_pixel_decoder_keys(cfg.MODEL.SEM_SEG_HEAD)
    cfg.MODEL.SWIN = _swin_keys()
    _add_deeplab_keys(cfg)
    # A published mapper, which stands for INPUT.AUGMENTATION and MODEL.MASK_FORMER.TASK, and for
    # INPUT.KEEP_EMPTY_SEGMENTS where that is None: coco_panoptic_lsj, coco_instance_lsj,
    # mask_former_panoptic, mask_former_instance or mask_former_semantic. "" leaves the keys alone.
    cfg.INPUT.DATASET_MAPPER_NAME = ""


def _mask_former_keys() -> CN:
    keys = CN()
    # What the queries have to find, and what the model learns from: "panoptic" (every segment),
    # "instance" (things alone; the head may then count the thing classes alone) or "semantic" (one
    # mask for each class of an image). The mapper of the data follows it.
    keys.TASK = "panoptic"
    # Loss: weights of classification, mask (BCE) and Dice terms; class weight of "no object".
    keys.DEEP_SUPERVISION = True  # also supervise the predictions before the last layer
    keys.NO_OBJECT_WEIGHT = 0.1
    keys.CLASS_WEIGHT = 2.0
    keys.MASK_WEIGHT = 5.0
    keys.DICE_WEIGHT = 5.0
    # Weight of an auxiliary semantic loss on mask_features, a 1x1 convolution in training only
    # (kMaX-DeepLab, Yu et al., ECCV 2022): without pretrained weights they learn faster. 0: none.
    # PlacedQueryTransformerDecoder finds stuff by a head of its own that learns from this loss.
    keys.SEMANTIC_LOSS_WEIGHT = 0.0
    # Points at which masks are compared: their number, candidates per kept point, and the share
    # that is chosen for its uncertainty (PointRend's k and beta).
    keys.TRAIN_NUM_POINTS = 12544
    keys.OVERSAMPLE_RATIO = 3.0
    keys.IMPORTANCE_SAMPLE_RATIO = 0.75
    # Share of the points in loss and matching that is drawn in each target's box, three times
    # enlarged (ours). The published rule draws the rest. For images with many small objects, on
    # which hardly any of the points drawn anywhere fall. 0: none.
    keys.BOX_SAMPLE_RATIO = 0.0
    # Draw the points of matching once for all outputs of the decoder (ours, as random and cheaper)
    # instead of anew for each (published).
    keys.SHARED_MATCHING_POINTS = False

    # Transformer decoder.
    keys.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    # PlacedQueryTransformerDecoder (ours) only, whose queries begin at centres of things that it
    # finds in the image: weight of the loss that teaches it the centres.
    keys.CENTRE_LOSS_WEIGHT = 5.0
    keys.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"  # the only one that it can take
    keys.HIDDEN_DIM = 256  # channels of a query
    keys.NUM_OBJECT_QUERIES = 100
    keys.NHEADS = 8  # also the pixel decoder's, unless its own N_HEADS is given
    keys.DROPOUT = 0.0
    keys.DIM_FEEDFORWARD = 2048
    keys.ENC_LAYERS = 0  # encoder layers in front of it: it has none, so only 0
    keys.DEC_LAYERS = 10  # predictions: one before the first of its layers and one after each
    keys.PRE_NORM = False  # normalise what enters a layer instead of what leaves it
    keys.ENFORCE_INPUT_PROJ = False  # project its features even where their channels agree

    keys.SIZE_DIVISIBILITY = 32  # pad images to a multiple of this; negative: the backbone's
    # Recompute decoder layers in the backward pass: less memory, about a quarter more time.
    keys.GRADIENT_CHECKPOINTING = False
    keys.COMPILE = False  # torch.compile for pixel decoder and transformer decoder

    keys.TEST = CN()
    keys.TEST.SEMANTIC_ON = True  # outputs: which of them one forward pass gives
    keys.TEST.INSTANCE_ON = False
    keys.TEST.PANOPTIC_ON = False
    keys.TEST.OBJECT_MASK_THRESHOLD = 0.8  # panoptic: class scores above this count
    keys.TEST.OVERLAP_THRESHOLD = 0.8  # panoptic: least share of its mask that a segment keeps
    # PlacedQueryTransformerDecoder only, panoptic: stuff of fewer pixels becomes void, as in
    # Panoptic FPN (MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT).
    keys.TEST.STUFF_AREA_THRESHOLD = _STUFF_AREA_THRESHOLD
    # Semantic: resize masks to the output before classes are summed up (else after). With another
    # output on, masks are resized before in any case.
    keys.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False
    return keys


def _add_pixel_decoder_keys(keys: CN) -> None:
    keys.MASK_DIM = 256  # channels of mask_features and of the mask embedding
    keys.PIXEL_DECODER_NAME = "BasePixelDecoder"  # or MSDeformAttnPixelDecoder
    # Under mixed precision MSDeformAttnPixelDecoder stays in float32 (published). False: the half
    # type there as well, a quarter faster and less exact (measured in docs/mask2former.md).
    keys.PIXEL_DECODER_FULL_PRECISION = True
    keys.TRANSFORMER_ENC_LAYERS = 6  # layers of deformable attention in the pixel decoder
    keys.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    keys.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4  # samples of a head in a level
    # 0: as MODEL.MASK_FORMER.NHEADS, which alone counts in the published code.
    keys.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 0
    keys.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD = 1024
    # Who computes deformable attention: "auto" (by device), "reference", "cpu" or "triton".
    keys.DEFORMABLE_TRANSFORMER_ENCODER_BACKEND = "auto"


def _swin_keys() -> CN:
    """Swin Transformer (Liu et al., ICCV 2021); the defaults are Swin-T's."""
    keys = CN()
    keys.PRETRAIN_IMG_SIZE = 224  # pixels; the grid of the absolute position embedding (APE)
    keys.PATCH_SIZE = 4  # pixels
    keys.EMBED_DIM = 96  # channels of the first stage
    keys.DEPTHS = [2, 2, 6, 2]  # blocks of each stage
    keys.NUM_HEADS = [3, 6, 12, 24]
    keys.WINDOW_SIZE = 7  # patches
    keys.MLP_RATIO = 4.0
    keys.QKV_BIAS = True
    keys.QK_SCALE = None  # None: head dimension ** -0.5
    keys.DROP_RATE = 0.0
    keys.ATTN_DROP_RATE = 0.0
    keys.DROP_PATH_RATE = 0.3
    keys.APE = False
    keys.PATCH_NORM = True
    keys.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    keys.USE_CHECKPOINT = False  # recompute blocks in the backward pass
    return keys


def _add_deeplab_keys(cfg: CN) -> None:
    """Keys that published Mask2Former files take from Detectron2's DeepLab project."""
    new = {
        "SOLVER.POLY_LR_POWER": 0.9,  # LR_SCHEDULER_NAME WarmupPolyLR
        "SOLVER.POLY_LR_CONSTANT_ENDING": 0.0,  # share of BASE_LR it stays at in the end
        "MODEL.RESNETS.STEM_TYPE": "basic",  # the only one of build_resnet_backbone
        "MODEL.RESNETS.RES5_MULTI_GRID": [1, 1, 1],  # the only one of build_resnet_backbone
    }
    for name, value in new.items():
        parent, key = name.rsplit(".", 1)
        node = cfg
        for part in parent.split("."):
            node = node[part]
        if key not in node:
            node[key] = value
