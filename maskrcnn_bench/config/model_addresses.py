"""Where the reference projects published their weights. Data only; `paths_catalog.py` makes names of it.

A file name that ends in eight or more hexadecimal digits after a dash begins the SHA-256 of its content so.
"""

from __future__ import annotations

MASKRCNN_BENCHMARK = "https://download.pytorch.org/models/maskrcnn/{}.pth"
MASKRCNN_BENCHMARK_MODELS = (
    "e2e_faster_rcnn_R_50_C4_1x",
    "e2e_faster_rcnn_R_50_FPN_1x",
    "e2e_faster_rcnn_R_101_FPN_1x",
    "e2e_faster_rcnn_X_101_32x8d_FPN_1x",
    "e2e_mask_rcnn_R_50_C4_1x",
    "e2e_mask_rcnn_R_50_FPN_1x",
    "e2e_mask_rcnn_R_101_FPN_1x",
    "e2e_mask_rcnn_X_101_32x8d_FPN_1x",
)
"""Those that its MODEL_ZOO links; the files are named as the configurations."""

DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/{}"
DETECTRON2_MODELS: dict[str, str] = {
    "COCO-Detection/faster_rcnn_R_50_C4_1x": "137257644/model_final_721ade",
    "COCO-Detection/faster_rcnn_R_50_DC5_1x": "137847829/model_final_51d356",
    "COCO-Detection/faster_rcnn_R_50_FPN_1x": "137257794/model_final_b275ba",
    "COCO-Detection/faster_rcnn_R_50_C4_3x": "137849393/model_final_f97cb7",
    "COCO-Detection/faster_rcnn_R_50_DC5_3x": "137849425/model_final_68d202",
    "COCO-Detection/faster_rcnn_R_50_FPN_3x": "137849458/model_final_280758",
    "COCO-Detection/faster_rcnn_R_101_C4_3x": "138204752/model_final_298dad",
    "COCO-Detection/faster_rcnn_R_101_DC5_3x": "138204841/model_final_3e0943",
    "COCO-Detection/faster_rcnn_R_101_FPN_3x": "137851257/model_final_f6e8b1",
    "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x": "139173657/model_final_68b088",
    "COCO-Detection/retinanet_R_50_FPN_1x": "190397773/model_final_bfca0b",
    "COCO-Detection/retinanet_R_50_FPN_3x": "190397829/model_final_5bd44e",
    "COCO-Detection/retinanet_R_101_FPN_3x": "190397697/model_final_971ab9",
    "COCO-Detection/rpn_R_50_C4_1x": "137258005/model_final_450694",
    "COCO-Detection/rpn_R_50_FPN_1x": "137258492/model_final_02ce48",
    "COCO-Detection/fast_rcnn_R_50_FPN_1x": "137635226/model_final_e5f7ce",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x": "137259246/model_final_9243eb",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x": "137260150/model_final_4f86c3",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": "137260431/model_final_a54504",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x": "137849525/model_final_4ce675",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_3x": "137849551/model_final_84107b",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x": "137849600/model_final_f10217",
    "COCO-InstanceSegmentation/mask_rcnn_R_101_C4_3x": "138363239/model_final_a2914c",
    "COCO-InstanceSegmentation/mask_rcnn_R_101_DC5_3x": "138363294/model_final_0464b7",
    "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x": "138205316/model_final_a3ec72",
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x": "139653917/model_final_2d9806",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x": "137261548/model_final_04e291",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x": "137849621/model_final_a6e10b",
    "COCO-Keypoints/keypoint_rcnn_R_101_FPN_3x": "138363331/model_final_997cc7",
    "COCO-Keypoints/keypoint_rcnn_X_101_32x8d_FPN_3x": "139686956/model_final_5ad38f",
    "LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": "144219072/model_final_571f7c",
    "LVISv0.5-InstanceSegmentation/mask_rcnn_R_101_FPN_1x": "144219035/model_final_824ab5",
    "LVISv0.5-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_1x": "144219108/model_final_5e3439",
    "Cityscapes/mask_rcnn_R_50_FPN": "142423278/model_final_af9cf5",
    "PascalVOC-Detection/faster_rcnn_R_50_C4": "142202221/model_final_b1acc2",
    "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5": "138602867/model_final_65c703",
    "Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5": "144998336/model_final_821d0b",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x": "138602847/model_final_e9d89b",
    "Misc/cascade_mask_rcnn_R_50_FPN_3x": "144998488/model_final_480dd8",
    "Misc/mask_rcnn_R_50_FPN_3x_syncbn": "169527823/model_final_3b3c51",
    "Misc/mask_rcnn_R_50_FPN_3x_gn": "138602888/model_final_dc5d9e",
    "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn": "138602908/model_final_01ca85",
    "Misc/scratch_mask_rcnn_R_50_FPN_9x_gn": "183808979/model_final_da7b4c",
    "Misc/scratch_mask_rcnn_R_50_FPN_9x_syncbn": "184226666/model_final_5ce33e",
    "Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv": "18131413/model_0039999_e76410",
    "Detectron1-Comparisons/faster_rcnn_R_50_FPN_noaug_1x": "137781054/model_final_7ab50c",
    "Detectron1-Comparisons/mask_rcnn_R_50_FPN_noaug_1x": "137781281/model_final_62ca52",
    "Detectron1-Comparisons/keypoint_rcnn_R_50_FPN_1x": "137781195/model_final_cce136",
}
"""Its model zoo's configurations of the families that this library has, with the run and the file (.pkl)."""

MMDETECTION = "https://download.openmmlab.com/mmdetection/v2.0/{}.pth"
MMDETECTION_MODELS: dict[str, str] = {
    "faster-rcnn_r50-caffe_c4-1x_coco": "faster_rcnn/faster_rcnn_r50_caffe_c4_1x_coco/{}_20220316_150152-3f885b85",
    "faster-rcnn_r50-caffe-dc5_1x_coco": "faster_rcnn/faster_rcnn_r50_caffe_dc5_1x_coco/{}_20201030_151909-531f0f43",
    "faster-rcnn_r50-caffe_fpn_1x_coco": "faster_rcnn/faster_rcnn_r50_caffe_fpn_1x_coco/{}_bbox_mAP-0.378_20200504_180032-c5925ee5",
    "faster-rcnn_r50_fpn_1x_coco": "faster_rcnn/faster_rcnn_r50_fpn_1x_coco/{}_20200130-047c8118",
    "faster-rcnn_r50_fpn_amp-1x_coco": "fp16/faster_rcnn_r50_fpn_fp16_1x_coco/{}_20200204-d4dc1471",
    "faster-rcnn_r50_fpn_2x_coco": "faster_rcnn/faster_rcnn_r50_fpn_2x_coco/{}_bbox_mAP-0.384_20200504_210434-a5d8aa15",
    "faster-rcnn_r101-caffe_fpn_1x_coco": "faster_rcnn/faster_rcnn_r101_caffe_fpn_1x_coco/{}_bbox_mAP-0.398_20200504_180057-b269e9dd",
    "faster-rcnn_r101_fpn_1x_coco": "faster_rcnn/faster_rcnn_r101_fpn_1x_coco/{}_20200130-f513f705",
    "faster-rcnn_r101_fpn_2x_coco": "faster_rcnn/faster_rcnn_r101_fpn_2x_coco/{}_bbox_mAP-0.398_20200504_210455-1d2dac9c",
    "faster-rcnn_x101-32x4d_fpn_1x_coco": "faster_rcnn/faster_rcnn_x101_32x4d_fpn_1x_coco/{}_20200203-cff10310",
    "faster-rcnn_x101-32x4d_fpn_2x_coco": "faster_rcnn/faster_rcnn_x101_32x4d_fpn_2x_coco/{}_bbox_mAP-0.412_20200506_041400-64a12c0b",
    "faster-rcnn_x101-64x4d_fpn_1x_coco": "faster_rcnn/faster_rcnn_x101_64x4d_fpn_1x_coco/{}_20200204-833ee192",
    "faster-rcnn_x101-64x4d_fpn_2x_coco": "faster_rcnn/faster_rcnn_x101_64x4d_fpn_2x_coco/{}_20200512_161033-5961fa95",
    "faster-rcnn_r50_fpn_iou_1x_coco": "faster_rcnn/faster_rcnn_r50_fpn_1x_coco/faster_rcnn_r50_fpn_iou_1x_coco-fdd207f3",
    "faster-rcnn_r50_fpn_giou_1x_coco": "faster_rcnn/faster_rcnn_r50_fpn_1x_coco/faster_rcnn_r50_fpn_giou_1x_coco-0eada910",
    "faster-rcnn_r50_fpn_bounded-iou_1x_coco": "faster_rcnn/faster_rcnn_r50_fpn_1x_coco/faster_rcnn_r50_fpn_bounded_iou_1x_coco-98ad993b",
    "faster-rcnn_r50-caffe-c4_ms-1x_coco": "faster_rcnn/faster_rcnn_r50_caffe_c4_mstrain_1x_coco/{}_20220316_150527-db276fed",
    "faster-rcnn_r50-caffe-dc5_ms-1x_coco": "faster_rcnn/faster_rcnn_r50_caffe_dc5_mstrain_1x_coco/{}_20201028_233851-b33d21b9",
    "faster-rcnn_r50-caffe-dc5_ms-3x_coco": "faster_rcnn/faster_rcnn_r50_caffe_dc5_mstrain_3x_coco/{}_20201028_002107-34a53b2c",
    "faster-rcnn_r50-caffe_fpn_ms-2x_coco": "faster_rcnn/faster_rcnn_r50_caffe_fpn_mstrain_2x_coco/{}_bbox_mAP-0.397_20200504_231813-10b2de58",  # noqa: E501
    "faster-rcnn_r50-caffe_fpn_ms-3x_coco": "faster_rcnn/faster_rcnn_r50_caffe_fpn_mstrain_3x_coco/{}_20210526_095054-1f77628b",
    "faster-rcnn_r50_fpn_ms-3x_coco": "faster_rcnn/faster_rcnn_r50_fpn_mstrain_3x_coco/{}_20210524_110822-e10bd31c",
    "faster-rcnn_r101-caffe_fpn_ms-3x_coco": "faster_rcnn/faster_rcnn_r101_caffe_fpn_mstrain_3x_coco/{}_20210526_095742-a7ae426d",
    "faster-rcnn_r101_fpn_ms-3x_coco": "faster_rcnn/faster_rcnn_r101_fpn_mstrain_3x_coco/{}_20210524_110822-4d4d2ca8",
    "faster-rcnn_x101-32x4d_fpn_ms-3x_coco": "faster_rcnn/faster_rcnn_x101_32x4d_fpn_mstrain_3x_coco/{}_20210524_124151-16b9b260",
    "faster-rcnn_x101-32x8d_fpn_ms-3x_coco": "faster_rcnn/faster_rcnn_x101_32x8d_fpn_mstrain_3x_coco/{}_20210604_182954-002e082a",
    "faster-rcnn_x101-64x4d_fpn_ms-3x_coco": "faster_rcnn/faster_rcnn_x101_64x4d_fpn_mstrain_3x_coco/{}_20210524_124528-26c63de6",
    "faster-rcnn_r50-caffe_fpn_ms-1x_coco-person": "faster_rcnn/faster_rcnn_r50_fpn_1x_coco-person/{}_20201216_175929-d022e227",
    "faster-rcnn_r50-caffe_fpn_ms-1x_coco-person-bicycle-car": "faster_rcnn/faster_rcnn_r50_fpn_1x_coco-person-bicycle-car/{}_20201216_173117-6eda6d92",  # noqa: E501
    "faster-rcnn_r50-tnr-pre_fpn_1x_coco": "faster_rcnn/faster_rcnn_r50_fpn_tnr-pretrain_1x_coco/{}_20220320_085147-efedfda4",
    "mask-rcnn_r50-caffe_fpn_1x_coco": "mask_rcnn/mask_rcnn_r50_caffe_fpn_1x_coco/{}_bbox_mAP-0.38__segm_mAP-0.344_20200504_231812-0ebd1859",  # noqa: E501
    "mask-rcnn_r50_fpn_1x_coco": "mask_rcnn/mask_rcnn_r50_fpn_1x_coco/{}_20200205-d4b0c5d6",
    "cascade-rcnn_r50_fpn_1x_coco": "cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco/{}_20200316-3dc56deb",
    "cascade-rcnn_r50-caffe_fpn_1x_coco": "cascade_rcnn/cascade_rcnn_r50_caffe_fpn_1x_coco/{}_bbox_mAP-0.404_20200504_174853-b857be87",
    "cascade-rcnn_r101_fpn_1x_coco": "cascade_rcnn/cascade_rcnn_r101_fpn_1x_coco/{}_20200317-0b6a2fbf",
    "cascade-mask-rcnn_r50_fpn_1x_coco": "cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco/{}_20200203-9d4dcb24",
    "retinanet_r50-caffe_fpn_1x_coco": "retinanet/retinanet_r50_caffe_fpn_1x_coco/{}_20200531-f11027c5",
    "retinanet_r50_fpn_1x_coco": "retinanet/retinanet_r50_fpn_1x_coco/{}_20200130-c2398f9e",
    "retinanet_r101-caffe_fpn_1x_coco": "retinanet/retinanet_r101_caffe_fpn_1x_coco/{}_20200531-b428fa0f",
    "retinanet_r101_fpn_1x_coco": "retinanet/retinanet_r101_fpn_1x_coco/{}_20200130-7a93545f",
    "retinanet_x101-32x4d_fpn_1x_coco": "retinanet/retinanet_x101_32x4d_fpn_1x_coco/{}_20200130-5c8b7ec4",
    "retinanet_x101-64x4d_fpn_1x_coco": "retinanet/retinanet_x101_64x4d_fpn_1x_coco/{}_20200130-366f5af1",
}
"""By the names of mmdetection 3's configurations; {} repeats the folder, which has mmdetection 2's name."""

OPENXLAB = "https://download.openxlab.org.cn/models/mmdetection/FasterR-CNN/weight/{}"
OPENXLAB_MODELS = (
    "faster-rcnn_r101-caffe_fpn_1x_coco",
    "faster-rcnn_r101-caffe_fpn_ms-3x_coco",
    "faster-rcnn_r101_fpn_1x_coco",
    "faster-rcnn_r101_fpn_2x_coco",
    "faster-rcnn_r101_fpn_ms-3x_coco",
    "faster-rcnn_r50-caffe-c4_1x_coco",
    "faster-rcnn_r50-caffe-dc5_1x_coco",
    "faster-rcnn_r50-caffe_fpn_1x_coco",
    "faster-rcnn_r50-caffe_fpn_ms-2x_coco",
    "faster-rcnn_r50-caffe_fpn_ms-3x_coco",
    "faster-rcnn_r50_fpn_1x_coco",
    "faster-rcnn_r50_fpn_2x_coco",
    "faster-rcnn_r50_fpn_giou_1x_coco",
    "faster-rcnn_r50_fpn_iou_1x_coco",
    "faster-rcnn_x101-32x4d_fpn_1x_coco",
    "faster-rcnn_x101-32x4d_fpn_2x_coco",
    "faster-rcnn_x101-32x4d_fpn_ms-3x_coco",
    "faster-rcnn_x101-32x8d_fpn_ms-3x_coco",
    "faster-rcnn_x101-64x4d_fpn_1x_coco",
    "faster-rcnn_x101-64x4d_fpn_2x_coco",
    "faster-rcnn_x101-64x4d_fpn_ms-3x_coco",
)
"""Further copies that mmdetection's page of Faster R-CNN links."""

OPEN_MMLAB = "https://download.openmmlab.com/pretrain/third_party/{}.pth"
OPEN_MMLAB_MODELS: dict[str, str] = {
    "vgg16_caffe": "vgg16_caffe-292e1171",
    "detectron/resnet50_caffe": "resnet50_caffe-788b5fa3",
    "detectron2/resnet50_caffe": "resnet50_msra-5891d200",
    "detectron/resnet101_caffe": "resnet101_caffe-3ad79236",
    "detectron2/resnet101_caffe": "resnet101_msra-6cc46731",
    "detectron2/resnext101_32x8d": "resnext101_32x8d-1516f1aa",
    "resnext50_32x4d": "resnext50-32x4d-0ab1a123",
    "resnext101_32x4d": "resnext101_32x4d-a5af3160",
    "resnext101_64x4d": "resnext101_64x4d-ee2c6f71",
    "detectron/resnet50_gn": "resnet50_gn-9186a21c",
    "detectron/resnet101_gn": "resnet101_gn-cac0ab98",
}
"""ImageNet weights that mmdetection's configurations call open-mmlab://..."""

TORCHVISION = "https://download.pytorch.org/models/{}.pth"
TORCHVISION_MODELS: dict[str, str] = {
    "fasterrcnn_mobilenet_v3_large_320_fpn/COCO_V1": "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9",
    "fasterrcnn_mobilenet_v3_large_fpn/COCO_V1": "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7",
    "fasterrcnn_resnet50_fpn/COCO_V1": "fasterrcnn_resnet50_fpn_coco-258fb6c6",
    "fasterrcnn_resnet50_fpn_v2/COCO_V1": "fasterrcnn_resnet50_fpn_v2_coco-dd69338a",
    "keypointrcnn_resnet50_fpn/COCO_LEGACY": "keypointrcnn_resnet50_fpn_coco-9f466800",
    "keypointrcnn_resnet50_fpn/COCO_V1": "keypointrcnn_resnet50_fpn_coco-fc266e95",
    "maskrcnn_resnet50_fpn/COCO_V1": "maskrcnn_resnet50_fpn_coco-bf2d0c1e",
    "maskrcnn_resnet50_fpn_v2/COCO_V1": "maskrcnn_resnet50_fpn_v2_coco-73cbd019",
    "retinanet_resnet50_fpn/COCO_V1": "retinanet_resnet50_fpn_coco-eeacb38b",
    "retinanet_resnet50_fpn_v2/COCO_V1": "retinanet_resnet50_fpn_v2_coco-5905b1c5",
    "resnet18/IMAGENET1K_V1": "resnet18-f37072fd",
    "resnet34/IMAGENET1K_V1": "resnet34-b627a593",
    "resnet50/IMAGENET1K_V1": "resnet50-0676ba61",
    "resnet50/IMAGENET1K_V2": "resnet50-11ad3fa6",
    "resnet101/IMAGENET1K_V1": "resnet101-63fe2227",
    "resnet101/IMAGENET1K_V2": "resnet101-cd907fc2",
    "resnet152/IMAGENET1K_V1": "resnet152-394f9c45",
    "resnet152/IMAGENET1K_V2": "resnet152-f82ba261",
    "vgg16/IMAGENET1K_V1": "vgg16-397923af",
    "mobilenet_v3_large/IMAGENET1K_V1": "mobilenet_v3_large-8738ca79",
    "mobilenet_v3_large/IMAGENET1K_V2": "mobilenet_v3_large-5c1a4163",
    "resnext50_32x4d/IMAGENET1K_V1": "resnext50_32x4d-7cdf4587",
    "resnext50_32x4d/IMAGENET1K_V2": "resnext50_32x4d-1a0047aa",
    "resnext101_32x8d/IMAGENET1K_V1": "resnext101_32x8d-8ba56ff5",
    "resnext101_32x8d/IMAGENET1K_V2": "resnext101_32x8d-110c445d",
    "resnext101_64x4d/IMAGENET1K_V1": "resnext101_64x4d-173b62eb",
}
"""torchvision's R-CNN and RetinaNet models and the classifiers that serve as trunks, <model>/<member of its weights>."""

FASTER_RCNN_PYTORCH_MODELS: dict[str, str] = {
    "vgg16_voc07": "https://www.dropbox.com/s/6ief4w7qzka6083/faster_rcnn_1_6_10021.pth?dl=1",
    "vgg16_voc07_bs4": "https://www.dropbox.com/s/cpj2nu35am0f9hp/faster_rcnn_1_9_2504.pth?dl=1",
    "vgg16_voc07_bs16": "https://www.dropbox.com/s/1a31y7vicby0kvy/faster_rcnn_1_10_625.pth?dl=1",
    "vgg16_voc07_bs24": "https://www.dropbox.com/s/hkj7i6mbhw9tq4k/faster_rcnn_1_11_416.pth?dl=1",
    "res101_voc07": "https://www.dropbox.com/s/4v3or0054kzl19q/faster_rcnn_1_7_10021.pth?dl=1",
    "res101_voc07_bs4": "https://www.dropbox.com/s/8bhldrds3mf0yuj/faster_rcnn_1_10_2504.pth?dl=1",
    "res101_voc07_bs16": "https://www.dropbox.com/s/5is50y01m1l9hbu/faster_rcnn_1_10_625.pth?dl=1",
    "res101_voc07_bs24": "https://www.dropbox.com/s/cn8gneumg4gjo9i/faster_rcnn_1_12_416.pth?dl=1",
    "res101_coco_ls": "https://www.dropbox.com/s/5if6l7mqsi4rfk9/faster_rcnn_1_6_14657.pth?dl=1",
    "res101_coco_ls_10e": "https://www.dropbox.com/s/be0isevd22eikqb/faster_rcnn_1_10_14657.pth?dl=1",
    "res101_coco": "https://www.dropbox.com/s/y171ze1sdw1o2ph/faster_rcnn_1_6_9771.pth?dl=1",
    "res101_coco_10e": "https://www.dropbox.com/s/dpq6qv0efspelr3/faster_rcnn_1_10_9771.pth?dl=1",
    "vgg16_vg": "http://data.lip6.fr/cadene/faster-rcnn.pytorch/faster_rcnn_1_19_48611.pth",
    "vgg16_caffe": "https://www.dropbox.com/s/s3brpk0bdq60nyb/vgg16_caffe.pth?dl=1",
    "resnet101_caffe": "https://www.dropbox.com/s/iev3tkbz5wyyuz9/resnet101_caffe.pth?dl=1",
}
"""Of the rows of its result tables, by the names of our configurations, and the two Caffe classifiers."""
