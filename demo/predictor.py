"""COCODemo under the path where maskrcnn-benchmark's scripts look for it; the class is maskrcnn_bench.demo.COCODemo."""

from maskrcnn_bench.demo.predictor import COCODemo

__all__ = ["COCODemo"]
