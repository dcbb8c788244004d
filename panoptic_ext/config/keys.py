"""Every key that panoptic_ext adds to a Detectron2 config.

Detectron2's own keys keep their meaning and default, so that its own models are built as before.
"""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode as CN

from panoptic_ext.config.backbones import add_backbone_keys
from panoptic_ext.config.efficientps import add_efficientps_keys
from panoptic_ext.config.eomt import add_eomt_keys
from panoptic_ext.config.fusion import add_fusion_keys
from panoptic_ext.config.left_out import mark_left_out
from panoptic_ext.config.loggers import add_logger_keys
from panoptic_ext.config.mask_former import add_mask_former_keys
from panoptic_ext.config.pmt import add_pmt_keys
from panoptic_ext.config.training import add_training_keys
from panoptic_ext.config.training_images import add_training_image_keys
from panoptic_ext.config.training_length import add_training_length_keys
from panoptic_ext.config.transformers import add_transformers_keys
from panoptic_ext.config.vit import add_vit_keys

__all__ = ["add_keys", "add_panoptic_ext_config"]

KeyFunction = Callable[[CN], None]
_key_functions: list[KeyFunction] = []


def add_keys(function: KeyFunction) -> KeyFunction:
    """Have `add_panoptic_ext_config`, and so every command, add keys of your own.

    Use it as a decorator in the module of your fusion, decoder or model, which has to be imported
    before a config is read.

    Args:
        function: adds keys, with their defaults, to the config that it gets.
    """
    if function not in _key_functions:
        _key_functions.append(function)
    return function


def add_panoptic_ext_config(cfg: CN) -> None:
    """Add the keys of panoptic_ext to `cfg`, in place.

    Args:
        cfg: a config from `detectron2.config.get_cfg()`. A second call changes nothing.
    """
    if "PANOPTIC" in cfg.DATASETS:
        return
    _add_dataset_keys(cfg)
    _add_input_keys(cfg)
    _add_loader_keys(cfg)
    _add_solver_keys(cfg)
    _add_run_keys(cfg)
    _add_weights_keys(cfg)
    add_training_keys(cfg)
    add_training_length_keys(cfg)
    add_logger_keys(cfg)
    add_mask_former_keys(cfg)
    add_backbone_keys(cfg)
    add_efficientps_keys(cfg)
    add_fusion_keys(cfg)
    add_transformers_keys(cfg)
    add_vit_keys(cfg)
    add_eomt_keys(cfg)
    add_pmt_keys(cfg)
    mark_left_out(cfg)
    for function in _key_functions:
        function(cfg)


def _add_dataset_keys(cfg: CN) -> None:
    # Folders in which relative paths of DATASETS.PANOPTIC are looked up, in this order and after
    # $DETECTRON2_DATASETS. A relative folder is looked up in the current folder and in the
    # project's.
    cfg.DATASETS.SEARCH_PATH = ["datasets"]

    # Data sets in COCO panoptic format, which are registered before the run. Each has a block:
    #   DATASETS.PANOPTIC.<name>.JSON        COCO panoptic JSON (required)
    #   DATASETS.PANOPTIC.<name>.IMAGE_ROOT  folder of the images (required)
    #   DATASETS.PANOPTIC.<name>.PNG_ROOT    folder of the PNG label maps (required)
    #   DATASETS.PANOPTIC.<name>.ENCODING    "rgb" (COCO; default) or "divisor" (Cityscapes)
    #   DATASETS.PANOPTIC.<name>.LABEL_DIVISOR, .IGNORE_LABEL, .EVALUATOR_TYPE  as register_panoptic
    cfg.DATASETS.PANOPTIC = CN(new_allowed=True)

    # Data sets of instances alone, for instance models. Masks are polygons or run lengths. Keys:
    #   DATASETS.INSTANCES.<name>.JSON        COCO instances JSON (required)
    #   DATASETS.INSTANCES.<name>.IMAGE_ROOT  folder of the images (required)
    cfg.DATASETS.INSTANCES = CN(new_allowed=True)

    # The generated data set shapes_panoptic_{train,val}.
    cfg.DATASETS.SHAPES = CN()
    # Height and width of an image, pixels.
    cfg.DATASETS.SHAPES.IMAGE_SIZE = [128, 160]
    # Images in shapes_panoptic_train.
    cfg.DATASETS.SHAPES.NUM_TRAIN = 400
    # Images in shapes_panoptic_val.
    cfg.DATASETS.SHAPES.NUM_VAL = 60
    # Largest number of countable shapes in an image.
    cfg.DATASETS.SHAPES.MAX_OBJECTS = 8
    # Seed of the generated images. The same seed and sizes give the same bytes.
    cfg.DATASETS.SHAPES.SEED = 0
    # Folder that the data set is generated in. "": $PANOPTIC_EXT_CACHE, or else
    # ~/.cache/panoptic_ext.
    cfg.DATASETS.SHAPES.CACHE = ""


def _add_input_keys(cfg: CN) -> None:
    # Ground truth that the mapper derives from the id map: a list of "instances" and "sem_seg".
    # None: what the model needs. Most models need both. Mask2Former needs neither, because it reads
    # the id map and its table (MODEL.MASK_FORMER.TASK chooses what it learns).
    cfg.INPUT.PANOPTIC_TARGETS = None

    # Scaling and cropping in training. "shortest_edge": INPUT.MIN_SIZE_TRAIN and MAX_SIZE_TRAIN,
    # then INPUT.CROP if it is enabled. "lsj": large-scale jitter (Ghiasi et al., CVPR 2021), then a
    # crop of fixed size.
    cfg.INPUT.AUGMENTATION = "shortest_edge"
    # lsj: side of the square crop, pixels. Also the side of INPUT.TEST_RESIZE "longest_side", of
    # INPUT.PAD_TO_SQUARE and of TEST.SEMANTIC_WINDOWS.
    cfg.INPUT.IMAGE_SIZE = 1024
    # lsj: smallest scale of an image, relative to IMAGE_SIZE.
    cfg.INPUT.MIN_SCALE = 0.1
    # lsj: largest scale of an image, relative to IMAGE_SIZE.
    cfg.INPUT.MAX_SCALE = 2.0
    # lsj: place of the crop in an image that is larger. "diagonal": one random number for both axes
    # (Detectron2's FixedSizeCrop, published Mask2Former). "uniform": one for each axis (EoMT).
    cfg.INPUT.CROP_POSITION = "diagonal"
    # A crop is drawn again (ten times at most) while one category covers more than this share of
    # it, 0 to 1.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Change brightness, contrast, saturation and hue at random, as SSD does (Liu et al., ECCV
    # 2016).
    cfg.INPUT.COLOR_AUG_SSD = False
    # How COLOR_AUG_SSD changes them. "ssd": as PointRend and the published Mask2Former, after the
    # crop. "torchvision": before it, with contrast around the image's mean and half the range of
    # hues (EoMT).
    cfg.INPUT.COLOR_AUG_RULE = "ssd"
    # Pad image (INPUT.PAD_VALUE) and ground truth (void) to a multiple of this many pixels; 0: no
    # padding. Unlike in the published Mask2Former, larger images are not cropped: INPUT.CROP does
    # that.
    cfg.INPUT.SIZE_DIVISIBILITY = 0
    # Pixels that are added right of and below an image. "mean": grey (128) where the data mapper
    # pads, MODEL.PIXEL_MEAN where the model pads a batch, as in Detectron2 and the published
    # Mask2Former. "black": 0 before normalisation in both, as EoMT (Kerssies et al., CVPR 2025).
    # Detectron2's own models and TransformersPanoptic pad batches in their own way.
    cfg.INPUT.PAD_VALUE = "mean"

    # Resizing in testing. "shortest_edge": INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST. "longest_side":
    # the longer side to INPUT.IMAGE_SIZE, up or down (EoMT). Detectron2's DefaultPredictor reads
    # MIN_SIZE_TEST and MAX_SIZE_TEST alone; if both are IMAGE_SIZE, it does the same.
    cfg.INPUT.TEST_RESIZE = "shortest_edge"
    # In testing the model pads images to a square with sides of INPUT.IMAGE_SIZE (EoMT), which must
    # not be exceeded by resized images.
    cfg.INPUT.PAD_TO_SQUARE = False

    # Keep segments that have no pixel after a crop, as targets with empty masks. Most published
    # mappers of Mask2Former do so (docs/mask2former.md). None: as INPUT.DATASET_MAPPER_NAME, or if
    # that is "", no.
    cfg.INPUT.KEEP_EMPTY_SEGMENTS = None

    add_training_image_keys(cfg)

    # How often an image is augmented again, at most, while no segment is left to learn. Crowds do
    # not count, nor does stuff if MODEL.MASK_FORMER.TASK is "instance". EoMT has no limit.
    cfg.INPUT.REDRAW_EMPTY = 0


def _add_loader_keys(cfg: CN) -> None:
    # In training, skip images whose image or label file is missing or damaged. Each file is
    # reported once, and all are counted at the end. A file that can be read but has wrong content
    # is still an error. Evaluation never skips images.
    cfg.DATALOADER.SKIP_CORRUPT = False
    # Share of the images that SAMPLER_TRAIN "RandomSubsetTrainingSampler" takes, 0 to 1. Detectron2
    # reads this key and does not declare it.
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.0


def _add_solver_keys(cfg: CN) -> None:
    # Optimizer: "SGD" or "ADAMW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Number of periodic checkpoints that are kept; 0: all. model_final.pth is always kept.
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 0
    # Learning rate of the backbone's parameters, relative to BASE_LR. A feature pyramid of Panoptic
    # FPN or EfficientPS on it has BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Learning rates that fall from the backbone's last block to its first: block i of n has the
    # factor LAYER_DECAY ** (n - 1 - i), beside BACKBONE_MULTIPLIER. Stem, embedding of patches and
    # positions, class and register tokens have that of block 0, norms behind the last block 1. More
    # than 0, at most 1 (no decay). `panoptic-ext parameter-table --learning-rates` lists the factor
    # of every parameter.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # Number of the backbone's last blocks whose factor is 1 instead; the blocks before them keep
    # theirs. The published EoMT of DINOv3 leaves the blocks free that see the queries.
    cfg.SOLVER.LAYER_DECAY_FREE_BLOCKS = 0
    # Iterations of a second warm-up, of the backbone: its learning rate is 0 for WARMUP_ITERS, in
    # which the other parameters warm up, and grows for so many iterations. Each then has its own
    # curve (LR_SCHEDULER_NAME) from the end of its warm-up to MAX_ITER. Layers of a feature pyramid
    # belong to the others. 0: one warm-up and one curve. The published EoMT has WARMUP_ITERS 500
    # and 1000 here (DINOv3: 2000 and 3000), WARMUP_FACTOR 0.0 and WarmupPolyLR.
    cfg.SOLVER.BACKBONE_WARMUP_ITERS = 0
    # Start the curve LR_SCHEDULER_NAME behind the warm-up, with the full learning rate (published
    # PMT). False: at iteration 0, as in Detectron2, beside the warm-up. With BACKBONE_WARMUP_ITERS
    # it starts behind the warm-ups in any case.
    cfg.SOLVER.CURVE_AFTER_WARMUP = False
    # Weight decay of nn.Embedding. None: as SOLVER.WEIGHT_DECAY.
    cfg.SOLVER.WEIGHT_DECAY_EMBED = None

    # Half type if SOLVER.AMP.ENABLED: "float16" (CUDA only, with a gradient scaler, as in
    # Detectron2) or "bfloat16" (CUDA and CPU; measure the time first, because old processors are
    # slower in it).
    cfg.SOLVER.AMP.DTYPE = "float16"


def _add_run_keys(cfg: CN) -> None:
    # Half type of evaluation and prediction under autocast: "float16" (CUDA only) or "bfloat16".
    # "": full precision, whatever SOLVER.AMP is, as Detectron2's trainers evaluate.
    cfg.TEST.AMP_DTYPE = ""
    # Outputs of the model that are evaluated, if it has them: "panoptic" (PQ), "semantic" (mIoU)
    # and "instance" (AP of boxes and masks).
    cfg.TEST.EVALUATORS = ["panoptic", "semantic", "instance"]
    # Semantic scores from overlapping square windows, with the mean where they overlap (EoMT). The
    # shorter side of an image is resized to INPUT.IMAGE_SIZE, which is also a window's side,
    # whatever INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST are. Any model that gives "sem_seg" alone can
    # do it: windows have no segments in common. Detectron2's DefaultPredictor does not do it.
    cfg.TEST.SEMANTIC_WINDOWS = False
    # Also write predictions as COCO panoptic JSON and PNG files.
    cfg.TEST.WRITE_PREDICTIONS = False
    # Also compute boundary PQ (Cheng et al., CVPR 2021), for the log and panoptic_quality.json: PQ
    # by the smaller one of mask IoU and IoU of outlines. It takes several times as long as PQ.
    cfg.TEST.BOUNDARY_PQ = False
    # The contact sheet shows this many images of the worst PQ, and as many of the best; 0: no
    # sheet.
    cfg.TEST.CONTACT_SHEET = 4

    # True if the model is small enough to train on a CPU: without CUDA, MODEL.DEVICE cuda then
    # falls back to the CPU without a warning.
    cfg.MODEL.MADE_FOR_CPU = False
    # Memory layout of images and feature maps: all channels of a pixel side by side. Results are
    # the same but for rounding. None: on a CPU, where depthwise and 1 x 1 convolutions are several
    # times faster in it (docs/benchmarks.md); True helps half precision on CUDA.
    cfg.MODEL.CHANNELS_LAST = None


def _add_weights_keys(cfg: CN) -> None:
    # Unpickle checkpoints that hold more than tensors, arrays and plain values. Reading such a file
    # can run any code: set this only for files whose author you trust.
    cfg.MODEL.ALLOW_PICKLE = False

    # Weights of other classes (fine-tuning): classes of the same name keep their rows of every
    # head, and the others start fresh. Names are compared without case, and with spaces, hyphens
    # and underscores alike. Which classes the weights have is in checkpoints of panoptic_ext, in
    # the metadata.json beside them, and in the model zoo.
    cfg.MODEL.WEIGHTS_CLASSES = CN()
    # Data set whose classes MODEL.WEIGHTS has, for other files: a built-in one, such as
    # coco_panoptic_train, or a registered one. "": as above.
    cfg.MODEL.WEIGHTS_CLASSES.DATASET = ""
    # Classes with another name in the weights, as "class=class of the weights", such as
    # "window=window-other".
    cfg.MODEL.WEIGHTS_CLASSES.ALIASES = []
