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

# Before there was MODEL.MASK_FORMER.TASK, INPUT.PANOPTIC_TARGETS chose the task. All values that
# are not listed here meant "panoptic".
_TASK_OF_TARGETS = {("instances",): "instance", ("sem_seg",): "semantic"}
_STUFF_AREA_THRESHOLD = 4096  # pixels; Detectron2's default for Panoptic FPN


def mask_former_task(cfg: Any) -> str:
    """Check and return MODEL.MASK_FORMER.TASK, the kind of targets of a Mask2Former's queries.

    Raises:
        ConfigError: an unknown task, or INPUT.PANOPTIC_TARGETS asks for another one.
    """
    task, targets = cfg.MODEL.MASK_FORMER.TASK, cfg.INPUT.PANOPTIC_TARGETS
    check_known("MODEL.MASK_FORMER.TASK", task, TASKS)
    if targets is not None:
        meant = _TASK_OF_TARGETS.get(tuple(targets), "panoptic")
        if meant != task:
            # The config of an older run has no TASK. The default would silently change its task.
            raise ConfigError(
                f"MODEL.MASK_FORMER.TASK is {task!r}, but INPUT.PANOPTIC_TARGETS is "
                f"{list(targets)}, which meant the task {meant!r} before there was TASK; set "
                f"MODEL.MASK_FORMER.TASK {meant}, or leave INPUT.PANOPTIC_TARGETS out if the task "
                f"is {task!r}"
            )
    return task


def stuff_area_threshold(cfg: Any) -> float:
    """Check and return MODEL.MASK_FORMER.TEST.STUFF_AREA_THRESHOLD, pixels.

    Raises:
        ConfigError: Panoptic FPN's key is set in its place, as was done before there was this key.
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
    # Mask2Former: tasks, losses, transformer decoder and outputs.
    cfg.MODEL.MASK_FORMER = CN()
    _add_loss_keys(cfg)
    _add_transformer_decoder_keys(cfg)
    _add_test_keys(cfg)
    _add_pixel_decoder_keys(cfg)
    _add_swin_keys(cfg)
    _add_deeplab_keys(cfg)
    # A published mapper: coco_panoptic_lsj, coco_instance_lsj, mask_former_panoptic,
    # mask_former_instance or mask_former_semantic. It sets INPUT.AUGMENTATION and
    # MODEL.MASK_FORMER.TASK, and if it is None, INPUT.KEEP_EMPTY_SEGMENTS. "" sets nothing.
    cfg.INPUT.DATASET_MAPPER_NAME = ""


def _add_loss_keys(cfg: CN) -> None:
    # Targets that the queries have to find: "panoptic" (every segment), "instance" (things alone;
    # the head may then have the thing classes alone) or "semantic" (one mask for each class of an
    # image). The data mapper follows this key.
    cfg.MODEL.MASK_FORMER.TASK = "panoptic"
    # Also supervise the predictions before the last layer of the transformer decoder.
    cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION = True
    # Weight of the class "no object" in the classification loss, relative to the other classes.
    cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT = 0.1
    # Weight of the classification loss (cross-entropy), in matching and in the loss.
    cfg.MODEL.MASK_FORMER.CLASS_WEIGHT = 2.0
    # Weight of the mask loss (binary cross-entropy at points), in matching and in the loss.
    cfg.MODEL.MASK_FORMER.MASK_WEIGHT = 5.0
    # Weight of the Dice loss, in matching and in the loss.
    cfg.MODEL.MASK_FORMER.DICE_WEIGHT = 5.0
    # Weight of an auxiliary semantic loss on mask_features, by a 1x1 convolution in training only
    # (kMaX-DeepLab, Yu et al., ECCV 2022). Without pretrained weights, mask_features learn faster
    # with it. 0: no such loss. PlacedQueryTransformerDecoder needs it, because it trains the
    # semantic head that stuff is read from.
    cfg.MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT = 0.0
    # How far rare classes weigh more in the classification loss of queries and in the semantic loss
    # (ours), 0 to 1: a query or pixel of a class that has n of them in the batch weighs
    # n ** -CLASS_BALANCE. 0: all weigh the same (published).
    cfg.MODEL.MASK_FORMER.CLASS_BALANCE = 0.0
    # PlacedQueryTransformerDecoder only: weight of the losses of the centres of things and of the
    # boxes around them.
    cfg.MODEL.MASK_FORMER.CENTRE_LOSS_WEIGHT = 5.0
    # Number of points of a mask at which loss and matching compare it with its target.
    cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 12544
    # Candidates that are drawn for each point kept for its uncertainty (PointRend's k).
    cfg.MODEL.MASK_FORMER.OVERSAMPLE_RATIO = 3.0
    # Share of the points of the loss, 0 to 1, that is chosen for its uncertainty (PointRend's
    # beta). The rest is drawn uniformly.
    cfg.MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO = 0.75
    # Share of the points in loss and matching, 0 to 1, that is drawn in each target's box, enlarged
    # three times (ours). The other points are drawn by the published rule. Useful for images with
    # many small objects, on which hardly any points of the published rule fall.
    cfg.MODEL.MASK_FORMER.BOX_SAMPLE_RATIO = 0.0
    # Draw the points of matching once for all outputs of the decoder (ours; as random, and cheaper)
    # instead of once for each output (published).
    cfg.MODEL.MASK_FORMER.SHARED_MATCHING_POINTS = False


def _add_transformer_decoder_keys(cfg: CN) -> None:
    # Transformer decoder: "MultiScaleMaskedTransformerDecoder" (published),
    # "PlacedQueryTransformerDecoder" (ours: queries begin at centres of things in the image), or
    # another name of TRANSFORMER_DECODER_REGISTRY.
    cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    # Features that the decoder takes. No other value is allowed; published files set this one.
    cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"
    # Channels of a query.
    cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 256
    # Number of queries, and so the largest number of segments in an image.
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 100
    # Heads of each attention in the decoder, and in the pixel decoder, unless
    # MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS is given.
    cfg.MODEL.MASK_FORMER.NHEADS = 8
    # Dropout in the decoder, 0 to 1.
    cfg.MODEL.MASK_FORMER.DROPOUT = 0.0
    # Width inside the feed-forward layers, channels.
    cfg.MODEL.MASK_FORMER.DIM_FEEDFORWARD = 2048
    # Encoder layers in front of the decoder. There are none: only 0 is allowed; published files set
    # it.
    cfg.MODEL.MASK_FORMER.ENC_LAYERS = 0
    # Number of predictions: one before the decoder's first layer and one after each. The decoder
    # has one layer fewer.
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 10
    # Normalise what enters a layer instead of what leaves it.
    cfg.MODEL.MASK_FORMER.PRE_NORM = False
    # Project the pixel decoder's features even where their channels agree with HIDDEN_DIM.
    cfg.MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ = False
    # Pad images to a multiple of this many pixels. Negative: of the backbone's divisibility.
    cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY = 32
    # Recompute decoder layers in the backward pass: less memory, about a quarter more time.
    cfg.MODEL.MASK_FORMER.GRADIENT_CHECKPOINTING = False
    # Run pixel decoder and transformer decoder through torch.compile.
    cfg.MODEL.MASK_FORMER.COMPILE = False


def _add_test_keys(cfg: CN) -> None:
    # Inference: the outputs that one forward pass returns, and their thresholds.
    cfg.MODEL.MASK_FORMER.TEST = CN()
    # Return semantic scores, "sem_seg".
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = True
    # Return instances, "instances".
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = False
    # Return the panoptic map, "panoptic_seg".
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
    # Panoptic: queries with a class score (0 to 1) of at most this are discarded.
    cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD = 0.8
    # Panoptic: a segment is discarded if less than this share of its mask (0 to 1) is left to it
    # after masks compete for each pixel.
    cfg.MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD = 0.8
    # PlacedQueryTransformerDecoder only, panoptic: stuff of fewer pixels becomes void, as in
    # Panoptic FPN (MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT).
    cfg.MODEL.MASK_FORMER.TEST.STUFF_AREA_THRESHOLD = _STUFF_AREA_THRESHOLD
    # PlacedQueryTransformerDecoder only, panoptic: fuse the masks of things with the map that stuff
    # is read from, as EfficientPS does (Mohan and Valada, IJCV 2021).
    cfg.MODEL.MASK_FORMER.TEST.HADAMARD_FUSION = False
    # Semantic: resize masks to the output size before the classes of all queries are summed up,
    # instead of after. If another output is on, masks are always resized before.
    cfg.MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False


def _add_pixel_decoder_keys(cfg: CN) -> None:
    # Channels of mask_features and of the mask embedding.
    cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 256
    # Pixel decoder: "BasePixelDecoder" (an FPN), "MSDeformAttnPixelDecoder" (published: multi-scale
    # deformable attention), or another name of PIXEL_DECODER_REGISTRY.
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "BasePixelDecoder"
    # Keep MSDeformAttnPixelDecoder in float32 under mixed precision (published). False: it uses the
    # half type as well, which is a quarter faster and less exact (measured in docs/mask2former.md).
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_FULL_PRECISION = True
    # Layers of deformable attention in MSDeformAttnPixelDecoder.
    cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 6
    # Features of the backbone that deformable attention takes.
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    # Number of points that each head samples in each level.
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    # Heads of deformable attention. 0: as MODEL.MASK_FORMER.NHEADS, the only key that the published
    # code reads for it.
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 0
    # Width inside the feed-forward layers, channels.
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD = 1024
    # Implementation of deformable attention: "auto" (by device), "reference", "cpu" or "triton".
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_BACKEND = "auto"


def _add_swin_keys(cfg: CN) -> None:
    # Swin Transformer (Liu et al., ICCV 2021); the defaults are Swin-T's.
    cfg.MODEL.SWIN = CN()
    # Side of the images of pretraining, pixels: the grid of the absolute position embedding (APE).
    cfg.MODEL.SWIN.PRETRAIN_IMG_SIZE = 224
    # Side of a patch, pixels.
    cfg.MODEL.SWIN.PATCH_SIZE = 4
    # Channels of the first stage; each later stage has twice as many as the one before.
    cfg.MODEL.SWIN.EMBED_DIM = 96
    # Blocks of each stage.
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    # Attention heads of each stage.
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    # Side of a window, patches.
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    # Width of the MLP of a block, relative to its channels.
    cfg.MODEL.SWIN.MLP_RATIO = 4.0
    # Add a bias to query, key and value.
    cfg.MODEL.SWIN.QKV_BIAS = True
    # Factor on the products of queries and keys. None: head dimension ** -0.5.
    cfg.MODEL.SWIN.QK_SCALE = None
    # Dropout after attention and MLP, 0 to 1.
    cfg.MODEL.SWIN.DROP_RATE = 0.0
    # Dropout of attention weights, 0 to 1.
    cfg.MODEL.SWIN.ATTN_DROP_RATE = 0.0
    # Stochastic depth: probability that the last block is skipped; it grows linearly from 0 with
    # depth.
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.3
    # Add an absolute position embedding.
    cfg.MODEL.SWIN.APE = False
    # Normalise the patches' embeddings.
    cfg.MODEL.SWIN.PATCH_NORM = True
    # Features that the backbone returns, named by stride: res2 has stride 4, res5 has 32.
    cfg.MODEL.SWIN.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Recompute blocks in the backward pass: less memory, more time.
    cfg.MODEL.SWIN.USE_CHECKPOINT = False


def _add_deeplab_keys(cfg: CN) -> None:
    """Add keys that published Mask2Former files take from Detectron2's DeepLab project.

    If that project has added them before, its values stay.
    """
    if "POLY_LR_POWER" not in cfg.SOLVER:
        # Exponent of the schedule LR_SCHEDULER_NAME WarmupPolyLR.
        cfg.SOLVER.POLY_LR_POWER = 0.9
    if "POLY_LR_CONSTANT_ENDING" not in cfg.SOLVER:
        # WarmupPolyLR: share of BASE_LR, 0 to 1, at which the learning rate stays in the end.
        cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0
    if "STEM_TYPE" not in cfg.MODEL.RESNETS:
        # Stem of the ResNet: "basic" is the only one of build_resnet_backbone.
        cfg.MODEL.RESNETS.STEM_TYPE = "basic"
    if "RES5_MULTI_GRID" not in cfg.MODEL.RESNETS:
        # Dilations in the last stage: [1, 1, 1] is the only one of build_resnet_backbone.
        cfg.MODEL.RESNETS.RES5_MULTI_GRID = [1, 1, 1]
