// The operators' signatures. Kernels are registered for a dispatch key beside their code, in cpu/<op>.cpp and
// cuda/<op>.cu.
// layers/_ops.py repeats the strings for programs that run without this library; a test compares them.
#include <torch/library.h>

TORCH_LIBRARY(maskrcnn_bench, m) {
  m.def("nms(Tensor boxes, Tensor scores, Tensor valid, float threshold, float pixel, int max_keep) -> Tensor");
  m.def(
      "roi_align(Tensor[] features, Tensor boxes, Tensor image_inds, Tensor levels, float[] scales, int height, "
      "int width, int sampling_ratio, float shift, float min_size) -> Tensor");
  m.def(
      "roi_align_backward(Tensor grad, Tensor boxes, Tensor image_inds, Tensor levels, float[] scales, "
      "SymInt[] feature_shape, int sampling_ratio, float shift, float min_size) -> Tensor[]");
  m.def(
      "roi_pool(Tensor[] features, Tensor boxes, Tensor image_inds, Tensor levels, float[] scales, int height, "
      "int width) -> (Tensor, Tensor)");
  m.def("roi_pool_backward(Tensor grad, Tensor places, Tensor image_inds, Tensor levels, SymInt[] feature_shape) -> Tensor[]");
  m.def(
      "deform_psroi_pool(Tensor[] features, Tensor boxes, Tensor image_inds, Tensor levels, float[] scales, "
      "Tensor? offsets, int side, int group_size, int samples) -> Tensor");
  m.def(
      "deform_psroi_pool_backward(Tensor[] features, Tensor grad, Tensor boxes, Tensor image_inds, Tensor levels, "
      "float[] scales, Tensor? offsets, int group_size, int samples) -> (Tensor[], Tensor)");
  m.def(
      "polygon_targets(Tensor vertices, Tensor ring_offsets, Tensor object_offsets, Tensor frames, "
      "Tensor object_inds, int resolution) -> Tensor");
  m.def("bitmap_targets(Tensor bitmaps, Tensor geometry, Tensor boxes, Tensor object_inds, int resolution) -> Tensor");
  m.def(
      "mask_rle(Tensor probs, Tensor boxes, int height, int width, float threshold, str rule, int padding, "
      "bool fused) -> str[]");
  m.def(
      "mask_edge_counts(Tensor probs, Tensor boxes, int height, int width, float threshold, str rule, int padding, "
      "bool fused) -> Tensor");
  m.def(
      "mask_edges(Tensor probs, Tensor boxes, Tensor ends, int total, int height, int width, float threshold, str rule, "
      "int padding, bool fused) -> Tensor");
  m.def(
      "match(Tensor objects, Tensor valid, Tensor boxes, Tensor? rivals, float pixel, float high, float low, "
      "bool low_quality, float least_overlap, bool to_best) -> Tensor");
  m.def(
      "decode_boxes(Tensor regression, Tensor anchors, Tensor inds, Tensor sizes, float[] weights, "
      "float[] log_size_range, float pixel, float decode_pixel, bool clip, float min_size, bool strict) -> (Tensor, Tensor)");
  m.def("sigmoid_focal_loss(Tensor logits, Tensor labels, float gamma, float alpha) -> Tensor");
  m.def("sigmoid_focal_loss_backward(Tensor grad, Tensor logits, Tensor labels, float gamma, float alpha) -> Tensor");
  m.def("resize_means(Tensor image, int height, int width) -> Tensor");
  m.def(
      "resize_fixed_point(Tensor image, Tensor columns, Tensor column_weights, Tensor rows, Tensor row_weights) -> Tensor");
  m.def(
      "resize_looked_up(Tensor image, Tensor table, Tensor columns, Tensor column_shares, Tensor rows, "
      "Tensor row_shares) -> Tensor");
}
