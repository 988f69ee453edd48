"""Every config key with its default and its meaning.

Units are pixels of the resized image unless a comment says otherwise. Counts are *per image*, *per GPU* or *over all
GPUs*; the comment of each count says which. A process without a GPU counts as one GPU. Keys that maskrcnn-benchmark
has too keep its names and defaults, with one exception: MODEL.DEVICE is "auto" here and "cuda" there.
"""

import os

from .node import CfgNode

POOLER_TYPES = ("ROIAlign", "ROIAlignV1", "ROIAlignV2", "ROIAlignLegacy", "ROIPool", "ROICrop", "ROICropMax", "DeformPSROIPool")

_C = CfgNode()

# ----------------------------------------------------------------------------------------------------------------------
# The network as a whole
# ----------------------------------------------------------------------------------------------------------------------
_C.MODEL = CfgNode()
# Train and test the region proposal network alone.
_C.MODEL.RPN_ONLY = False
# Predict a mask for each detection.
_C.MODEL.MASK_ON = False
# RetinaNet instead of the RPN and all heads.
_C.MODEL.RETINANET_ON = False
# Predict keypoints for each detection.
_C.MODEL.KEYPOINT_ON = False
# Fast R-CNN: no RPN; the regions come from the files that DATASETS.PROPOSAL_FILES_TRAIN and PROPOSAL_FILES_TEST name.
_C.MODEL.LOAD_PROPOSALS = False
# "auto" takes a GPU when torch sees one, else the CPU; or "cpu", "cuda", "cuda:1", ...
_C.MODEL.DEVICE = "auto"
# Name in the registry of detectors.
_C.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
# One box for all classes (plus background) instead of one box for each class.
_C.MODEL.CLS_AGNOSTIC_BBOX_REG = False
# Weights to start from: a file, an http(s) address, or a catalog:// name. "" starts from random numbers.
_C.MODEL.WEIGHT = ""
# Whose small numbers to follow where reference implementations differ and no key says so (config/dialect.py).
_C.MODEL.DIALECT = "maskrcnn_benchmark"
# Fixed shapes without waiting for the device. "auto": on for CUDA and for export; on the CPU padding is dropped instead.
_C.MODEL.STATIC_SHAPES = "auto"
_C.limit("MODEL.STATIC_SHAPES", "auto", True, False)
# torch.compile for the "backbone", or for the whole "model"; each shape of a batch is compiled anew. "" compiles nothing.
_C.MODEL.COMPILE = ""
_C.limit("MODEL.COMPILE", "", "backbone", "model")
# Forget what happens inside the stages of a ResNet, and compute it again for the gradients: less memory, a third more work.
_C.MODEL.CHECKPOINT_ACTIVATIONS = False

# ----------------------------------------------------------------------------------------------------------------------
# Images
# ----------------------------------------------------------------------------------------------------------------------
_C.INPUT = CfgNode()
# Length of the shorter side in training; with several values each image draws one. Pixels.
_C.INPUT.MIN_SIZE_TRAIN = (800,)
_C.within("INPUT.MIN_SIZE_TRAIN", 1, empty=False)
# Largest length of the longer side in training, even if the shorter one then falls below MIN_SIZE_TRAIN. Pixels.
_C.INPUT.MAX_SIZE_TRAIN = 1333
_C.within("INPUT.MAX_SIZE_TRAIN", 1)
# "choice" draws one of MIN_SIZE_TRAIN; "range" any whole number from the first of its two values to the second.
_C.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
_C.limit("INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice", "range")
# Large-scale jitter: (lowest, highest) factor of a square of MAX_SIZE_TRAIN that a training image fits; a square of that size is
# cut out of larger ones. () is off; otherwise MIN_SIZE_TRAIN is not used.
_C.INPUT.SCALE_JITTER = ()
_C.above("INPUT.SCALE_JITTER", 0)
_C.example("INPUT.SCALE_JITTER", (0.1, 2.0))
# Share of the training images that get objects of another one, cut out by their masks, after all other changes. SCALE_JITTER,
# with which it was proposed, varies their sizes.
_C.INPUT.COPY_PASTE = 0.0
_C.within("INPUT.COPY_PASTE", 0, 1)
# (lowest, highest) width divided by height; training images outside this range are cut, as in faster-rcnn.pytorch. () is off.
_C.INPUT.ASPECT_RATIO_RANGE = ()
_C.above("INPUT.ASPECT_RATIO_RANGE", 0)
_C.example("INPUT.ASPECT_RATIO_RANGE", (0.5, 2.0))
# Length of the shorter side in testing. Pixels.
_C.INPUT.MIN_SIZE_TEST = 800
_C.within("INPUT.MIN_SIZE_TEST", 1)
# Largest length of the longer side in testing. Pixels.
_C.INPUT.MAX_SIZE_TEST = 1333
_C.within("INPUT.MAX_SIZE_TEST", 1)
# Channels of the images. 3: any picture becomes RGB of 8 bits. Otherwise files are taken as they are stored, 8 or 16 bits (.npy, a
# TIFF with a page a channel, any picture), PIXEL_MEAN and PIXEL_STD have as many values, in the order and range of the files
# (`maskrcnn-bench data stats` prints them), TO_BGR255 does not matter, and the first convolution is made from one for RGB.
_C.INPUT.CHANNELS = 3
_C.within("INPUT.CHANNELS", 1)
# Subtracted from, then divided into, each channel, in the order and range that TO_BGR255 says.
_C.INPUT.PIXEL_MEAN = [102.9801, 115.9465, 122.7717]
_C.INPUT.PIXEL_STD = [1.0, 1.0, 1.0]
_C.above("INPUT.PIXEL_STD", 0, empty=False)
# True: blue, green, red in 0..255 (weights from Caffe). False: red, green, blue in 0..1 (weights from PyTorch).
_C.INPUT.TO_BGR255 = True
# Photographs whose EXIF data asks for a turn. "auto": turned unless the annotations give the size of the unturned one.
_C.INPUT.ON_EXIF = "auto"
_C.limit("INPUT.ON_EXIF", "auto", "rotate", "ignore")
# Largest relative change of the colours in training; each image draws a factor from [1 - x, 1 + x]. 0 changes nothing.
_C.INPUT.BRIGHTNESS = 0.0
_C.within("INPUT.BRIGHTNESS", 0)
_C.INPUT.CONTRAST = 0.0
_C.within("INPUT.CONTRAST", 0)
_C.INPUT.SATURATION = 0.0
_C.within("INPUT.SATURATION", 0)
# Largest turn of the hue in training, as a share of the colour circle: 0 .. 0.5.
_C.INPUT.HUE = 0.0
_C.within("INPUT.HUE", 0, 0.5)
# Probability per image of a mirror image in training, left-right and top-bottom.
_C.INPUT.HORIZONTAL_FLIP_PROB_TRAIN = 0.5
_C.within("INPUT.HORIZONTAL_FLIP_PROB_TRAIN", 0, 1)
_C.INPUT.VERTICAL_FLIP_PROB_TRAIN = 0.0
_C.within("INPUT.VERTICAL_FLIP_PROB_TRAIN", 0, 1)
# Further transforms in training, of torchvision.transforms.v2 by name: ("RandomRotation(degrees=10)", "GaussianBlur(5)"). In this order,
# after colours and before sizes; boxes, masks and keypoints follow, objects of which nothing is left go. Arguments are plain values.
_C.INPUT.TRANSFORMS = ()
_C.example("INPUT.TRANSFORMS", ("GaussianBlur(5)",))

# ----------------------------------------------------------------------------------------------------------------------
# Data sets
# ----------------------------------------------------------------------------------------------------------------------
_C.DATASETS = CfgNode()
# Names of the catalog, or folders in a known layout (COCO, VOC, YOLO, ...). Several training sets are joined; test sets are
# tested one by one.
_C.DATASETS.TRAIN = ()
_C.DATASETS.TEST = ()
# One folder for training and testing, as the option --data gives it; used when TRAIN and TEST are empty.
_C.DATASETS.DATA = ""
# Files of proposals for MODEL.LOAD_PROPOSALS, one a data set, in the order of TRAIN and of TEST: the predictions.pth of a tested RPN,
# or a pickle of detectron2 or Detectron; addresses as for MODEL.WEIGHT. The option --data empties both.
_C.DATASETS.PROPOSAL_FILES_TRAIN = ()
_C.DATASETS.PROPOSAL_FILES_TEST = ()
# Best proposals taken from the files, per image.
_C.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN = 2000
_C.within("DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN", 1)
_C.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST = 1000
_C.within("DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST", 1)
# Folder that the relative paths of the catalog start from; the environment variable DATASETS sets the default.
_C.DATASETS.ROOT = os.environ.get("DATASETS") or "datasets"
# Faulty boxes and polygons: "fix" drops and counts them, "error" stops, "ignore" passes them on. A broken file always stops.
_C.DATASETS.ON_FAULT = "fix"
_C.limit("DATASETS.ON_FAULT", "fix", "error", "ignore")
# Train on images without objects as well. maskrcnn-benchmark leaves them out.
_C.DATASETS.KEEP_EMPTY = False
# Names of the classes to use, in this order. () takes all that the annotation file names.
_C.DATASETS.CLASSES = ()

# ----------------------------------------------------------------------------------------------------------------------
# Loading
# ----------------------------------------------------------------------------------------------------------------------
_C.DATALOADER = CfgNode()
# Loading processes, per GPU. 0 loads in the training process itself.
_C.DATALOADER.NUM_WORKERS = 4
_C.within("DATALOADER.NUM_WORKERS", 0)
# Padded height and width are multiples of this, per batch; FPN needs 32. 0 pads only to the largest image. Pixels.
_C.DATALOADER.SIZE_DIVISIBILITY = 0
_C.within("DATALOADER.SIZE_DIVISIBILITY", 0)
# Shapes (height, width) to which batches are padded: the smallest one that holds all images, so that few shapes occur for recordings
# and compilers. A batch larger than all keeps its own. More padding changes features at the border. () is off. Pixels.
_C.DATALOADER.SHAPE_BUCKETS = ()
_C.within("DATALOADER.SHAPE_BUCKETS", 1)
_C.example("DATALOADER.SHAPE_BUCKETS", ((800, 1344), (1344, 800)))
# Room for so many objects an image, at least, for the same purpose. 0: the next power of two of the largest number in a batch.
_C.DATALOADER.TARGET_SLOTS = 0
_C.within("DATALOADER.TARGET_SLOTS", 0)
# Batches hold only upright or only wide images, so that less padding is computed; in testing, only images of one size
# after padding, so that no result depends on the batch.
_C.DATALOADER.ASPECT_RATIO_GROUPING = True
# Images with a class that fewer than this share of the images have occur more often, by the power REPEAT_EXPONENT of the ratio, as in
# LVIS. 0: off.
_C.DATALOADER.REPEAT_THRESHOLD = 0.0
_C.within("DATALOADER.REPEAT_THRESHOLD", 0, 1)
# The power of REPEAT_THRESHOLD: 1 shows every rare class as often as one of that share, 0 changes nothing.
_C.DATALOADER.REPEAT_EXPONENT = 0.5
_C.within("DATALOADER.REPEAT_EXPONENT", 0)
# How often the images of each data set of DATASETS.TRAIN occur in an epoch, one number each: (1.0, 0.25) takes a quarter of the second,
# another one in every epoch. () is once.
_C.DATALOADER.DATASET_REPEATS = ()
_C.above("DATALOADER.DATASET_REPEATS", 0)
_C.example("DATALOADER.DATASET_REPEATS", (1.0, 0.25))
# Keep decoded images: "ram" in memory, in each loading process; "disk" as files in $MASKRCNN_BENCH_CACHE or ~/.cache/maskrcnn_bench, for
# all processes and later runs, where decoding takes longer than reading (large pictures, slow processors).
_C.DATALOADER.CACHE = "none"
_C.limit("DATALOADER.CACHE", "none", "ram", "disk")
# What is kept takes no more than this: in memory of the loading processes of a GPU together, on the disk of all data sets. GB.
_C.DATALOADER.CACHE_GB = 16.0
_C.within("DATALOADER.CACHE_GB", 0)

# ----------------------------------------------------------------------------------------------------------------------
# Backbone
# ----------------------------------------------------------------------------------------------------------------------
_C.MODEL.BACKBONE = CfgNode()
# Name in the registry of backbones: with -C4 or -FPN, VGG-16.
# ResNeXt is chosen by RESNETS.NUM_GROUPS and WIDTH_PER_GROUP. "timm:NAME" takes a trunk of timm, with an FPN;
# "MobileNetV3-Large-FPN" torchvision's one.
_C.MODEL.BACKBONE.CONV_BODY = "R-50-C4"
# File with weights of that trunk as timm has them; "" draws them at random. Nothing is downloaded.
_C.MODEL.BACKBONE.TIMM_WEIGHT = ""
# Stages whose weights stay fixed, counted from the stem: 0 none, 1 the stem, 2 stem and first stage, ... 5 all.
_C.MODEL.BACKBONE.FREEZE_CONV_BODY_AT = 2

_C.MODEL.FPN = CfgNode()
# GroupNorm, and ReLU, after the convolutions of the pyramid.
_C.MODEL.FPN.USE_GN = False
_C.MODEL.FPN.USE_RELU = False
# Norm after them. "": none, or as USE_GN says.
_C.MODEL.FPN.NORM = ""
_C.limit("MODEL.FPN.NORM", "", "GN", "BN", "SyncBN")

_C.MODEL.GROUP_NORM = CfgNode()
# Channels per group, or number of groups: one of the two is set and the other is -1.
_C.MODEL.GROUP_NORM.DIM_PER_GP = -1
_C.MODEL.GROUP_NORM.NUM_GROUPS = 32
# Added to the variance before the square root.
_C.MODEL.GROUP_NORM.EPSILON = 1e-5

_C.MODEL.RESNETS = CfgNode()
# Groups of the 3x3 convolutions, and channels per group in the first stage: 1 x 64 is ResNet, 32 x 8 is ResNeXt-32x8d.
_C.MODEL.RESNETS.NUM_GROUPS = 1
_C.MODEL.RESNETS.WIDTH_PER_GROUP = 64
# A stage halves its map in the first 1x1 convolution (MSRA weights) or in the 3x3 one (torchvision and ResNeXt weights).
_C.MODEL.RESNETS.STRIDE_IN_1X1 = True
# Names in the registries of residual blocks and of stems; they fix the norm unless NORM is set.
_C.MODEL.RESNETS.TRANS_FUNC = "BottleneckWithFixedBatchNorm"
_C.MODEL.RESNETS.STEM_FUNC = "StemWithFixedBatchNorm"
# Norm of stem and blocks. "": as TRANS_FUNC and STEM_FUNC say. FixedStatisticsBN learns scales and offsets only.
_C.MODEL.RESNETS.NORM = ""
_C.limit("MODEL.RESNETS.NORM", "", "FrozenBN", "FixedStatisticsBN", "BN", "GN", "SyncBN")
# Dilation of the 3x3 convolutions in stage 5; 2 keeps the map twice as large.
_C.MODEL.RESNETS.RES5_DILATION = 1
# Channels that the backbone (the FPN, where there is one) hands to the heads.
_C.MODEL.RESNETS.BACKBONE_OUT_CHANNELS = 256 * 4
# Channels of the first stage's output (doubled at every stage) and of the stem's; the latter also those of VGG's first block.
_C.MODEL.RESNETS.RES2_OUT_CHANNELS = 256
_C.MODEL.RESNETS.STEM_OUT_CHANNELS = 64
# Stages 2 to 5 with deformable 3x3 convolutions; modulated ones (v2) weigh every sample.
_C.MODEL.RESNETS.STAGE_WITH_DCN = (False, False, False, False)
_C.MODEL.RESNETS.WITH_MODULATED_DCN = False
# Groups of channels that have offsets of their own.
_C.MODEL.RESNETS.DEFORMABLE_GROUPS = 1

# ----------------------------------------------------------------------------------------------------------------------
# Region proposal network
# ----------------------------------------------------------------------------------------------------------------------
_C.MODEL.RPN = CfgNode()
# One set of anchors on each level of a pyramid instead of all on one map.
_C.MODEL.RPN.USE_FPN = False
# Side of the square anchors, one size a level with FPN, all sizes on the one map without. Pixels.
_C.MODEL.RPN.ANCHOR_SIZES = (32, 64, 128, 256, 512)
_C.above("MODEL.RPN.ANCHOR_SIZES", 0, empty=False)
# Distance of neighbouring anchors, one value a level. Pixels.
_C.MODEL.RPN.ANCHOR_STRIDE = (16,)
_C.within("MODEL.RPN.ANCHOR_STRIDE", 1, empty=False)
# Height divided by width; every size comes in each of them.
_C.MODEL.RPN.ASPECT_RATIOS = (0.5, 1.0, 2.0)
_C.above("MODEL.RPN.ASPECT_RATIOS", 0, empty=False)
# Anchors further outside the image than this do not train; negative lets all train. Pixels.
_C.MODEL.RPN.STRADDLE_THRESH = 0
# An anchor is positive at this IoU with an object (>=) and negative below the other one (<); between them it is ignored.
_C.MODEL.RPN.FG_IOU_THRESHOLD = 0.7
_C.within("MODEL.RPN.FG_IOU_THRESHOLD", 0, 1)
_C.MODEL.RPN.BG_IOU_THRESHOLD = 0.3
_C.within("MODEL.RPN.BG_IOU_THRESHOLD", 0, 1)
# Anchors that train, per image, and the largest share of positive ones among them.
_C.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 256
_C.within("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 1)
_C.MODEL.RPN.POSITIVE_FRACTION = 0.5
_C.within("MODEL.RPN.POSITIVE_FRACTION", 0, 1)
# Best proposals that enter NMS, per image and level.
_C.MODEL.RPN.PRE_NMS_TOP_N_TRAIN = 12000
_C.within("MODEL.RPN.PRE_NMS_TOP_N_TRAIN", 1)
_C.MODEL.RPN.PRE_NMS_TOP_N_TEST = 6000
_C.within("MODEL.RPN.PRE_NMS_TOP_N_TEST", 1)
# Best proposals that leave NMS, per image and level.
_C.MODEL.RPN.POST_NMS_TOP_N_TRAIN = 2000
_C.within("MODEL.RPN.POST_NMS_TOP_N_TRAIN", 1)
_C.MODEL.RPN.POST_NMS_TOP_N_TEST = 1000
_C.within("MODEL.RPN.POST_NMS_TOP_N_TEST", 1)
# A proposal is dropped when its IoU with a better one is larger.
_C.MODEL.RPN.NMS_THRESH = 0.7
_C.within("MODEL.RPN.NMS_THRESH", 0, 1)
# Proposals with a shorter side are dropped before NMS. Pixels.
_C.MODEL.RPN.MIN_SIZE = 0.0
_C.within("MODEL.RPN.MIN_SIZE", 0)
# Proposals with a lower probability are dropped before NMS. 0 .. 1.
_C.MODEL.RPN.SCORE_THRESH = 0.0
_C.within("MODEL.RPN.SCORE_THRESH", 0, 1)
# Proposals kept of all levels together: in training over all images of one GPU when FPN_POST_NMS_PER_BATCH, else per
# image; in testing always per image. With FPN_POST_NMS_PER_BATCH, a training that sets no FPN_POST_NMS_TOP_N_TRAIN, in
# file or command, takes 1000 times the images of one GPU.
_C.MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN = 2000
_C.within("MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN", 1)
_C.MODEL.RPN.FPN_POST_NMS_TOP_N_TEST = 2000
_C.within("MODEL.RPN.FPN_POST_NMS_TOP_N_TEST", 1)
# True: the images of one GPU compete for the training proposals, so a busy image takes from a quiet one.
_C.MODEL.RPN.FPN_POST_NMS_PER_BATCH = True
# Name in the registry of RPN heads.
_C.MODEL.RPN.RPN_HEAD = "SingleConvRPNHead"
# Channels of the head's 3x3 convolutions, 0 keeps those of its input; and how many there are.
_C.MODEL.RPN.CONV_CHANNELS = 0
_C.MODEL.RPN.NUM_CONVS = 1
# What the boxes learn by: "smooth_l1" and "l1" compare codes, "iou", "giou" and "bounded_iou" the boxes that they mean; and its factor.
_C.MODEL.RPN.BOX_REG_LOSS = "smooth_l1"
_C.limit("MODEL.RPN.BOX_REG_LOSS", "smooth_l1", "l1", "iou", "giou", "bounded_iou")
_C.MODEL.RPN.BOX_REG_LOSS_WEIGHT = 1.0
_C.within("MODEL.RPN.BOX_REG_LOSS_WEIGHT", 0)
# Where smooth L1 of the boxes turns from a parabola to a line; 0 is L1, negative as the dialect has it.
_C.MODEL.RPN.SMOOTH_L1_BETA = -1.0

# ----------------------------------------------------------------------------------------------------------------------
# What the heads on regions share
# ----------------------------------------------------------------------------------------------------------------------
_C.MODEL.ROI_HEADS = CfgNode()
# Regions are read from the pyramid level that fits their size.
_C.MODEL.ROI_HEADS.USE_FPN = False
# A proposal is positive at this IoU with an object (>=) and background below the other one (<).
_C.MODEL.ROI_HEADS.FG_IOU_THRESHOLD = 0.5
_C.within("MODEL.ROI_HEADS.FG_IOU_THRESHOLD", 0, 1)
_C.MODEL.ROI_HEADS.BG_IOU_THRESHOLD = 0.5
_C.within("MODEL.ROI_HEADS.BG_IOU_THRESHOLD", 0, 1)
# A positive proposal that an object overlaps most belongs to that object, even when it overlaps another one more.
_C.MODEL.ROI_HEADS.MATCH_BEST_PROPOSALS = False
# Factors of (dx, dy, dw, dh) in the box targets.
_C.MODEL.ROI_HEADS.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_C.above("MODEL.ROI_HEADS.BBOX_REG_WEIGHTS", 0, empty=False)
# Proposals that train, per image, and the largest share of positive ones among them.
_C.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 512
_C.within("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 1)
_C.MODEL.ROI_HEADS.POSITIVE_FRACTION = 0.25
_C.within("MODEL.ROI_HEADS.POSITIVE_FRACTION", 0, 1)
# Detections with a lower probability are dropped. 0 .. 1.
_C.MODEL.ROI_HEADS.SCORE_THRESH = 0.05
_C.within("MODEL.ROI_HEADS.SCORE_THRESH", 0, 1)
# A detection is dropped when its IoU with a better one of its class is larger.
_C.MODEL.ROI_HEADS.NMS = 0.5
_C.within("MODEL.ROI_HEADS.NMS", 0, 1)
# Best detections of all classes together, per image.
_C.MODEL.ROI_HEADS.DETECTIONS_PER_IMG = 100
_C.within("MODEL.ROI_HEADS.DETECTIONS_PER_IMG", 1)

# ----------------------------------------------------------------------------------------------------------------------
# Box head
# ----------------------------------------------------------------------------------------------------------------------
_C.MODEL.ROI_BOX_HEAD = CfgNode()
# Name in the registry of box feature extractors.
_C.MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR = "ResNet50Conv5ROIFeatureExtractor"
# Name in the registry of box predictors.
_C.MODEL.ROI_BOX_HEAD.PREDICTOR = "FastRCNNPredictor"
# Rows and columns of bins in a pooled region.
_C.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 14
_C.within("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 1)
# Kind of pooling. ROIAlign follows MODEL.DIALECT; ROIAlignV1 pools at least one cell, ROIAlignV2 is shifted by half a cell instead;
# ROIAlignLegacy is faster-rcnn.pytorch's. ROIPool takes maxima, ROICrop samples a grid (ROICropMax: maxima of 2 x 2 samples),
# DeformPSROIPool learns where its bins lie.
_C.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIAlign"
_C.limit("MODEL.ROI_BOX_HEAD.POOLER_TYPE", *POOLER_TYPES)
# Samples per bin and axis; 0 takes as many as a bin has feature cells.
_C.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 0
# Feature cells per pixel, one value a level.
_C.MODEL.ROI_BOX_HEAD.POOLER_SCALES = (1.0 / 16,)
# Classes with the background; 0 takes the number from the training data.
_C.MODEL.ROI_BOX_HEAD.NUM_CLASSES = 81
_C.within("MODEL.ROI_BOX_HEAD.NUM_CLASSES", 0)
# What the boxes learn by: "smooth_l1" and "l1" compare codes, "iou", "giou" and "bounded_iou" the boxes that they mean; and its factor.
_C.MODEL.ROI_BOX_HEAD.BOX_REG_LOSS = "smooth_l1"
_C.limit("MODEL.ROI_BOX_HEAD.BOX_REG_LOSS", "smooth_l1", "l1", "iou", "giou", "bounded_iou")
_C.MODEL.ROI_BOX_HEAD.BOX_REG_LOSS_WEIGHT = 1.0
_C.within("MODEL.ROI_BOX_HEAD.BOX_REG_LOSS_WEIGHT", 0)
# Where smooth L1 of the boxes turns from a parabola to a line; 0 is L1, negative as the dialect has it.
_C.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA = -1.0
# Width of the fully connected layers.
_C.MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM = 1024
# GroupNorm after the layers of the head.
_C.MODEL.ROI_BOX_HEAD.USE_GN = False
# Norm after the convolutions of the convolutional head. "": none, or as USE_GN says. BN counts only regions in use.
_C.MODEL.ROI_BOX_HEAD.NORM = ""
_C.limit("MODEL.ROI_BOX_HEAD.NORM", "", "GN", "BN")
# The convolutional head: dilation, channels and number of its convolutions.
_C.MODEL.ROI_BOX_HEAD.DILATION = 1
_C.MODEL.ROI_BOX_HEAD.CONV_HEAD_DIM = 256
_C.MODEL.ROI_BOX_HEAD.NUM_STACKED_CONVS = 4

_C.MODEL.ROI_BOX_CASCADE_HEAD = CfgNode()
# Cascade R-CNN: box heads in a row, each of which starts from the boxes of the one before.
_C.MODEL.ROI_BOX_CASCADE_HEAD.ENABLED = False
# Of each head: from which IoU with an object a box is positive, and the factors of (dx, dy, dw, dh) in its targets. These
# take the place of ROI_HEADS.FG_IOU_THRESHOLD, BG_IOU_THRESHOLD and BBOX_REG_WEIGHTS.
_C.MODEL.ROI_BOX_CASCADE_HEAD.IOUS = (0.5, 0.6, 0.7)
_C.within("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", 0, 1, empty=False)
_C.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS = [[10.0, 10.0, 5.0, 5.0], [20.0, 20.0, 10.0, 10.0], [30.0, 30.0, 15.0, 15.0]]
# Factors of the heads' losses, those of their masks included where each has its own.
_C.MODEL.ROI_BOX_CASCADE_HEAD.LOSS_WEIGHTS = (1.0, 1.0, 1.0)
_C.within("MODEL.ROI_BOX_CASCADE_HEAD.LOSS_WEIGHTS", 0)

# ----------------------------------------------------------------------------------------------------------------------
# Mask head
# ----------------------------------------------------------------------------------------------------------------------
_C.MODEL.ROI_MASK_HEAD = CfgNode()
# Name in the registry of mask feature extractors.
_C.MODEL.ROI_MASK_HEAD.FEATURE_EXTRACTOR = "ResNet50Conv5ROIFeatureExtractor"
# Name in the registry of mask predictors.
_C.MODEL.ROI_MASK_HEAD.PREDICTOR = "MaskRCNNC4Predictor"
# Rows and columns of bins in a pooled region.
_C.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
_C.within("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 1)
# Kind of pooling. ROIAlign follows MODEL.DIALECT; ROIAlignV1 pools at least one cell, ROIAlignV2 is shifted by half a cell instead;
# ROIAlignLegacy is faster-rcnn.pytorch's. ROIPool takes maxima, ROICrop samples a grid (ROICropMax: maxima of 2 x 2 samples),
# DeformPSROIPool learns where its bins lie.
_C.MODEL.ROI_MASK_HEAD.POOLER_TYPE = "ROIAlign"
_C.limit("MODEL.ROI_MASK_HEAD.POOLER_TYPE", *POOLER_TYPES)
# Samples per bin and axis; 0 takes as many as a bin has feature cells.
_C.MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO = 0
# Feature cells per pixel, one value a level.
_C.MODEL.ROI_MASK_HEAD.POOLER_SCALES = (1.0 / 16,)
# Width of fully connected layers, for heads that have some; the shipped mask heads have none.
_C.MODEL.ROI_MASK_HEAD.MLP_HEAD_DIM = 1024
# Channels of each 3x3 convolution.
_C.MODEL.ROI_MASK_HEAD.CONV_LAYERS = (256, 256, 256, 256)
# Rows and columns of a predicted mask: twice POOLER_RESOLUTION on an FPN (28 of 14), POOLER_RESOLUTION itself with the features of a C4
# model. Anything else is an error in training.
_C.MODEL.ROI_MASK_HEAD.RESOLUTION = 14
_C.within("MODEL.ROI_MASK_HEAD.RESOLUTION", 1)
# One mask for whatever class an object has, instead of one a class.
_C.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = False
# Reuse the features of the box head (C4) instead of pooling again.
_C.MODEL.ROI_MASK_HEAD.SHARE_BOX_FEATURE_EXTRACTOR = True
# Return masks pasted into the image instead of masks of RESOLUTION, and the probability from which a pixel belongs to one.
_C.MODEL.ROI_MASK_HEAD.POSTPROCESS_MASKS = False
_C.MODEL.ROI_MASK_HEAD.POSTPROCESS_MASKS_THRESHOLD = 0.5
# Dilation of the 3x3 convolutions.
_C.MODEL.ROI_MASK_HEAD.DILATION = 1
# GroupNorm after the convolutions of the head.
_C.MODEL.ROI_MASK_HEAD.USE_GN = False
# Norm after them. "": none, or as USE_GN says. BN counts only regions in use.
_C.MODEL.ROI_MASK_HEAD.NORM = ""
_C.limit("MODEL.ROI_MASK_HEAD.NORM", "", "GN", "BN")

# ----------------------------------------------------------------------------------------------------------------------
# Keypoint head
# ----------------------------------------------------------------------------------------------------------------------
_C.MODEL.ROI_KEYPOINT_HEAD = CfgNode()
# Name in the registry of keypoint feature extractors.
_C.MODEL.ROI_KEYPOINT_HEAD.FEATURE_EXTRACTOR = "KeypointRCNNFeatureExtractor"
# Name in the registry of keypoint predictors.
_C.MODEL.ROI_KEYPOINT_HEAD.PREDICTOR = "KeypointRCNNPredictor"
# Rows and columns of bins in a pooled region.
_C.MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION = 14
_C.within("MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION", 1)
# Kind of pooling. ROIAlign follows MODEL.DIALECT; ROIAlignV1 pools at least one cell, ROIAlignV2 is shifted by half a cell instead;
# ROIAlignLegacy is faster-rcnn.pytorch's. ROIPool takes maxima, ROICrop samples a grid (ROICropMax: maxima of 2 x 2 samples),
# DeformPSROIPool learns where its bins lie.
_C.MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE = "ROIAlign"
_C.limit("MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE", *POOLER_TYPES)
# Samples per bin and axis; 0 takes as many as a bin has feature cells.
_C.MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO = 0
# Feature cells per pixel, one value a level.
_C.MODEL.ROI_KEYPOINT_HEAD.POOLER_SCALES = (1.0 / 16,)
# Width of fully connected layers, for heads that have some; the shipped keypoint head has none.
_C.MODEL.ROI_KEYPOINT_HEAD.MLP_HEAD_DIM = 1024
# Channels of each 3x3 convolution.
_C.MODEL.ROI_KEYPOINT_HEAD.CONV_LAYERS = (512, 512, 512, 512, 512, 512, 512, 512)
# Rows and columns of a predicted heat map. The shipped head makes 4 times POOLER_RESOLUTION, so write 56 for 14; the original's default
# does not fit it, and anything else is an error in training.
_C.MODEL.ROI_KEYPOINT_HEAD.RESOLUTION = 14
_C.within("MODEL.ROI_KEYPOINT_HEAD.RESOLUTION", 1)
# Kinds of keypoints of an object, not of objects.
_C.MODEL.ROI_KEYPOINT_HEAD.NUM_CLASSES = 17
_C.within("MODEL.ROI_KEYPOINT_HEAD.NUM_CLASSES", 1)
# What the points are called; () is a person's where there are 17. A training takes it from the data where it is not set, with
# NUM_CLASSES and the next two.
_C.MODEL.ROI_KEYPOINT_HEAD.NAMES = ()
# Pairs of NAMES that change places in a mirror: (("left_eye", "right_eye"),). Test-time augmentation turns its mirrored maps back by them.
_C.MODEL.ROI_KEYPOINT_HEAD.FLIP_PAIRS = ()
# Pairs of NAMES that a line joins in pictures.
_C.MODEL.ROI_KEYPOINT_HEAD.SKELETON = ()
# Reuse the features of the box head instead of pooling again.
_C.MODEL.ROI_KEYPOINT_HEAD.SHARE_BOX_FEATURE_EXTRACTOR = True

# ----------------------------------------------------------------------------------------------------------------------
# RetinaNet
# ----------------------------------------------------------------------------------------------------------------------
_C.MODEL.RETINANET = CfgNode()
# Classes with the background, although the head has no output for it.
_C.MODEL.RETINANET.NUM_CLASSES = 81
_C.within("MODEL.RETINANET.NUM_CLASSES", 0)
# Side of the square anchors, one value a level. Pixels.
_C.MODEL.RETINANET.ANCHOR_SIZES = (32, 64, 128, 256, 512)
_C.above("MODEL.RETINANET.ANCHOR_SIZES", 0, empty=False)
# Height divided by width; every size comes in each of them.
_C.MODEL.RETINANET.ASPECT_RATIOS = (0.5, 1.0, 2.0)
_C.above("MODEL.RETINANET.ASPECT_RATIOS", 0, empty=False)
# Distance of neighbouring anchors, one value a level. Pixels.
_C.MODEL.RETINANET.ANCHOR_STRIDES = (8, 16, 32, 64, 128)
_C.within("MODEL.RETINANET.ANCHOR_STRIDES", 1, empty=False)
# Kept for the original's files; anchors train wherever they lie, as there. Pixels.
_C.MODEL.RETINANET.STRADDLE_THRESH = 0
# Each size comes SCALES_PER_OCTAVE times, evenly spaced in the logarithm up to a factor of OCTAVE.
_C.MODEL.RETINANET.OCTAVE = 2.0
_C.MODEL.RETINANET.SCALES_PER_OCTAVE = 3
_C.within("MODEL.RETINANET.SCALES_PER_OCTAVE", 1)
# Compute the level P6 from the backbone's C5, or from P5.
_C.MODEL.RETINANET.USE_C5 = True
# 3x3 convolutions in each of the two towers, and GroupNorm after each.
_C.MODEL.RETINANET.NUM_CONVS = 4
_C.MODEL.RETINANET.USE_GN = False
# The box loss is divided by this; and the width of the quadratic part of its smooth L1.
_C.MODEL.RETINANET.BBOX_REG_WEIGHT = 4.0
_C.above("MODEL.RETINANET.BBOX_REG_WEIGHT", 0)
_C.MODEL.RETINANET.BBOX_REG_BETA = 0.11
# What the boxes learn by, as RPN.BOX_REG_LOSS has it.
_C.MODEL.RETINANET.BOX_REG_LOSS = "smooth_l1"
_C.limit("MODEL.RETINANET.BOX_REG_LOSS", "smooth_l1", "l1", "iou", "giou", "bounded_iou")
# Best candidates that enter NMS, per image and level.
_C.MODEL.RETINANET.PRE_NMS_TOP_N = 1000
_C.within("MODEL.RETINANET.PRE_NMS_TOP_N", 1)
# Positive at this IoU with an object (>=), negative below the other one (<).
_C.MODEL.RETINANET.FG_IOU_THRESHOLD = 0.5
_C.within("MODEL.RETINANET.FG_IOU_THRESHOLD", 0, 1)
_C.MODEL.RETINANET.BG_IOU_THRESHOLD = 0.4
_C.within("MODEL.RETINANET.BG_IOU_THRESHOLD", 0, 1)
# The focal loss: weight of positives, and exponent that quietens easy anchors.
_C.MODEL.RETINANET.LOSS_ALPHA = 0.25
_C.within("MODEL.RETINANET.LOSS_ALPHA", 0, 1)
_C.MODEL.RETINANET.LOSS_GAMMA = 2.0
_C.within("MODEL.RETINANET.LOSS_GAMMA", 0)
# Probability of an object with which the classifier's bias starts.
_C.MODEL.RETINANET.PRIOR_PROB = 0.01
# Detections with a lower probability are dropped before NMS, and NMS drops above this IoU.
_C.MODEL.RETINANET.INFERENCE_TH = 0.05
_C.within("MODEL.RETINANET.INFERENCE_TH", 0, 1)
_C.MODEL.RETINANET.NMS_TH = 0.4
_C.within("MODEL.RETINANET.NMS_TH", 0, 1)

# ----------------------------------------------------------------------------------------------------------------------
# FBNet
# ----------------------------------------------------------------------------------------------------------------------
_C.MODEL.FBNET = CfgNode()
# Name of a built-in architecture, or the whole architecture as JSON text, which wins.
_C.MODEL.FBNET.ARCH = "default"
_C.MODEL.FBNET.ARCH_DEF = ""
# Norm of the blocks.
_C.MODEL.FBNET.BN_TYPE = "bn"
# Factor of all channel counts, which are then rounded to a multiple of WIDTH_DIVISOR.
_C.MODEL.FBNET.SCALE_FACTOR = 1.0
_C.MODEL.FBNET.WIDTH_DIVISOR = 1
# Leave out norm and ReLU after depthwise convolutions.
_C.MODEL.FBNET.DW_CONV_SKIP_BN = True
_C.MODEL.FBNET.DW_CONV_SKIP_RELU = True
# Box, keypoint and mask heads: factor of the last channels, blocks instead of the architecture's own, first stride.
# An empty list, and a stride of 0, keep what the architecture says.
_C.MODEL.FBNET.DET_HEAD_LAST_SCALE = 1.0
_C.MODEL.FBNET.DET_HEAD_BLOCKS = []
_C.MODEL.FBNET.DET_HEAD_STRIDE = 0
_C.MODEL.FBNET.KPTS_HEAD_LAST_SCALE = 0.0
_C.MODEL.FBNET.KPTS_HEAD_BLOCKS = []
_C.MODEL.FBNET.KPTS_HEAD_STRIDE = 0
_C.MODEL.FBNET.MASK_HEAD_LAST_SCALE = 0.0
_C.MODEL.FBNET.MASK_HEAD_BLOCKS = []
_C.MODEL.FBNET.MASK_HEAD_STRIDE = 0
# How many of the RPN's blocks to use (0: all), and their norm ("": BN_TYPE).
_C.MODEL.FBNET.RPN_HEAD_BLOCKS = 0
_C.MODEL.FBNET.RPN_BN_TYPE = ""

# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------
_C.SOLVER = CfgNode()
# Length of the training in iterations. MAX_EPOCHS > 0 replaces it by passes over the data and moves STEPS in proportion.
_C.SOLVER.MAX_ITER = 40000
_C.within("SOLVER.MAX_ITER", 0)
_C.SOLVER.MAX_EPOCHS = 0.0
_C.within("SOLVER.MAX_EPOCHS", 0)
# "sgd", "adamw", or NVIDIA apex's fused SGD where apex is installed.
_C.SOLVER.OPTIMIZER = "sgd"
_C.limit("SOLVER.OPTIMIZER", "sgd", "adamw", "apex_fused_sgd")
# Replay a step that was recorded once for the shapes of its batch (a CUDA graph) instead of launching it anew. "auto": where
# there is a GPU and the step can be recorded; True: or else it is an error. See also DATALOADER.SHAPE_BUCKETS.
_C.SOLVER.CUDA_GRAPH = False
_C.limit("SOLVER.CUDA_GRAPH", False, True, "auto")
# Learning rate after the warm-up, for a step of IMS_PER_BATCH images; biases take it times BIAS_LR_FACTOR.
_C.SOLVER.BASE_LR = 0.001
_C.within("SOLVER.BASE_LR", 0)
_C.SOLVER.BIAS_LR_FACTOR = 2.0
_C.within("SOLVER.BIAS_LR_FACTOR", 0)
# Share of the last step's direction that a step of SGD keeps.
_C.SOLVER.MOMENTUM = 0.9
_C.within("SOLVER.MOMENTUM", 0, 1)
# Pull of weights, and of biases, towards 0: added to the gradient as this times the value.
_C.SOLVER.WEIGHT_DECAY = 0.0005
_C.within("SOLVER.WEIGHT_DECAY", 0)
_C.SOLVER.WEIGHT_DECAY_BIAS = 0.0
_C.within("SOLVER.WEIGHT_DECAY_BIAS", 0)
# The same for both parameters of norms; negative: as for others of their name.
_C.SOLVER.WEIGHT_DECAY_NORM = -1.0
# "multistep" multiplies the learning rate by GAMMA at each of STEPS (iterations); "cosine" brings it down to 0.
_C.SOLVER.LR_SCHEDULE = "multistep"
_C.limit("SOLVER.LR_SCHEDULE", "multistep", "cosine")
_C.SOLVER.GAMMA = 0.1
_C.within("SOLVER.GAMMA", 0)
_C.SOLVER.STEPS = (30000,)
# Instead of iterations, a number of epochs: "8e".
_C.allow_epochs("SOLVER.STEPS", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.TEST_PERIOD")
# The first WARMUP_ITERS iterations start at BASE_LR times WARMUP_FACTOR: rising in a line, or staying there.
_C.SOLVER.WARMUP_FACTOR = 1.0 / 3
_C.within("SOLVER.WARMUP_FACTOR", 0)
_C.SOLVER.WARMUP_ITERS = 500
_C.within("SOLVER.WARMUP_ITERS", 0)
_C.SOLVER.WARMUP_METHOD = "linear"
_C.limit("SOLVER.WARMUP_METHOD", "linear", "constant")
# A checkpoint every so many iterations; of these the last KEEP_LAST stay (0: all). Best and last always stay.
_C.SOLVER.CHECKPOINT_PERIOD = 2500
_C.within("SOLVER.CHECKPOINT_PERIOD", 1)
_C.SOLVER.KEEP_LAST = 3
_C.within("SOLVER.KEEP_LAST", 0)
# Test every so many iterations; 0 tests only at the end.
_C.SOLVER.TEST_PERIOD = 0
_C.within("SOLVER.TEST_PERIOD", 0)
# Images per optimizer step, over all GPUs and all ACCUMULATE parts.
_C.SOLVER.IMS_PER_BATCH = 16
# Backward passes per optimizer step; each takes IMS_PER_BATCH / ACCUMULATE images over all GPUs.
_C.SOLVER.ACCUMULATE = 1
# When the batch differs from REFERENCE_IMS_PER_BATCH, scale learning rate, warm-up, steps and length with it, as far
# as the command line does not set them.
_C.SOLVER.AUTO_SCALE = True
# Images per step, over all GPUs, that the schedule is meant for; 0: the IMS_PER_BATCH of the config file.
_C.SOLVER.REFERENCE_IMS_PER_BATCH = 0
_C.within("SOLVER.REFERENCE_IMS_PER_BATCH", 0)
# Largest L2 norm of the whole gradient; 0 does not clip.
_C.SOLVER.CLIP_GRADIENTS = 0.0
_C.within("SOLVER.CLIP_GRADIENTS", 0)
# The metric that decides which checkpoint is best (of a loss, "val/loss", the smallest), and how many tests in a row may bring no better
# one (0: no limit).
_C.SOLVER.BEST_METRIC = "bbox/AP"
_C.SOLVER.PATIENCE = 0
_C.within("SOLVER.PATIENCE", 0)
# Decay per step of an averaged copy of the weights, e.g. 0.9998; tests and best checkpoint use it. 0: no copy.
_C.SOLVER.EMA = 0.0
_C.within("SOLVER.EMA", 0, 1)
# A line of the log every so many iterations.
_C.SOLVER.LOG_PERIOD = 20
_C.within("SOLVER.LOG_PERIOD", 1)
# Show the numbers, and at each test some detections beside the ground truth, in TensorBoard: OUTPUT_DIR/tensorboard.
_C.SOLVER.TENSORBOARD = False

# ----------------------------------------------------------------------------------------------------------------------
# Testing
# ----------------------------------------------------------------------------------------------------------------------
_C.TEST = CfgNode()
# Numbers that the results are compared with at the end: [[task, metric, mean, standard deviation], ...].
_C.TEST.EXPECTED_RESULTS = []
_C.example("TEST.EXPECTED_RESULTS", [["bbox", "AP", 0.38, 0.01]])
# How many standard deviations a result may be away.
_C.TEST.EXPECTED_RESULTS_SIGMA_TOL = 4.0
_C.within("TEST.EXPECTED_RESULTS_SIGMA_TOL", 0)
# Images per batch, over all GPUs.
_C.TEST.IMS_PER_BATCH = 8
_C.within("TEST.IMS_PER_BATCH", 1)
# Measure the losses on the data of each test too (val/loss and its parts); they need a second pass over the images.
_C.TEST.LOSSES = False
# The same as SOLVER.CUDA_GRAPH for testing.
_C.TEST.CUDA_GRAPH = False
_C.limit("TEST.CUDA_GRAPH", False, True, "auto")
# Best detections that are evaluated, per image.
_C.TEST.DETECTIONS_PER_IMG = 100
_C.within("TEST.DETECTIONS_PER_IMG", 1)
# Who computes COCO's numbers: "auto" takes hotcoco when it passes a short self-test, else pycocotools.
_C.TEST.EVALUATOR = "auto"
_C.limit("TEST.EVALUATOR", "auto", "hotcoco", "pycocotools")
# IoU above which a detection goes when a better one, of whatever class, covers it; 0: only those of one class compete.
_C.TEST.CLASS_AGNOSTIC_NMS = 0.0
_C.within("TEST.CLASS_AGNOSTIC_NMS", 0, 1)
# Detections that score above other numbers than MODEL.ROI_HEADS.SCORE_THRESH (or RETINANET.INFERENCE_TH), by the names of their
# classes: [["person", 0.3], ["traffic light", 0.6]].
_C.TEST.CLASS_SCORE_THRESH = []
_C.example("TEST.CLASS_SCORE_THRESH", [["person", 0.3]])
_C.TEST.SOFT_NMS = CfgNode()
# Instead of dropping boxes that overlap a better one of their class, lower their scores: "linear" times 1 - IoU above the IoU that
# MODEL.ROI_HEADS.NMS (or RETINANET.NMS_TH) names, "gaussian" times exp(-IoU^2 / SIGMA). "" drops them.
_C.TEST.SOFT_NMS.METHOD = ""
_C.limit("TEST.SOFT_NMS.METHOD", "", "linear", "gaussian")
# SIGMA of "gaussian": the larger, the less it lowers scores.
_C.TEST.SOFT_NMS.SIGMA = 0.5
_C.above("TEST.SOFT_NMS.SIGMA", 0)
# Boxes whose score falls to this or below are dropped.
_C.TEST.SOFT_NMS.MIN_SCORE = 0.001
_C.within("TEST.SOFT_NMS.MIN_SCORE", 0, 1)
# Draw the confusion matrix and precision over recall, as PNG files beside the results.
_C.TEST.PICTURES = False
# Least score of a detection, and least IoU with an object, that count in the confusion matrix.
_C.TEST.CONFUSION_SCORE = 0.5
_C.within("TEST.CONFUSION_SCORE", 0, 1)
_C.TEST.CONFUSION_IOU = 0.5
_C.within("TEST.CONFUSION_IOU", 0, 1)

_C.TEST.BBOX_AUG = CfgNode()
# Test on several versions of each image and join their boxes: mirrored, at other lengths of the shorter side (pixels),
# those mirrored as well; MAX_SIZE limits the longer side (pixels).
_C.TEST.BBOX_AUG.ENABLED = False
_C.TEST.BBOX_AUG.H_FLIP = False
_C.TEST.BBOX_AUG.SCALES = ()
_C.within("TEST.BBOX_AUG.SCALES", 1)
_C.example("TEST.BBOX_AUG.SCALES", (400, 1200))
_C.TEST.BBOX_AUG.MAX_SIZE = 4000
_C.within("TEST.BBOX_AUG.MAX_SIZE", 1)
_C.TEST.BBOX_AUG.SCALE_H_FLIP = False

# ----------------------------------------------------------------------------------------------------------------------
# The run
# ----------------------------------------------------------------------------------------------------------------------
# Where logs, checkpoints and results go.
_C.OUTPUT_DIR = "."
# Every random choice follows from this number, the iteration and the image.
_C.SEED = 0
# Python file with the classes DatasetCatalog and ModelCatalog.
_C.PATHS_CATALOG = os.path.join(os.path.dirname(os.path.abspath(__file__)), "paths_catalog.py")
# Arithmetic of the network: "float16" and "bfloat16" switch mixed precision on. Boxes, NMS and losses stay in float32.
_C.DTYPE = "float32"
_C.limit("DTYPE", "float32", "float16", "bfloat16")
# Take the operations of torch that give the same bits every time, and name those that have no such form. Costs time on a GPU,
# where the gradient of RoIAlign has one only with the compiled kernels.
_C.DETERMINISTIC = False
# Seconds that a process of several waits for the others before it ends with an error that names them. While the first one computes
# metrics, the others wait. At the start it is at least two minutes; on a GPU, NCCL itself waits twice as long.
_C.PROCESS_TIMEOUT = 1800.0
# Log the loss scale of float16 and every skipped step.
_C.AMP_VERBOSE = False

# The config of a program; libraries take a config as an argument instead.
cfg = _C


def get_defaults() -> CfgNode:
    """A fresh, changeable config with every key at its default, whatever was merged into `cfg`."""
    return _DEFAULTS.clone()


_DEFAULTS = _C.clone()
