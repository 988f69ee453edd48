// The numbers of decoding, and the checks of the arguments. The steps are those of BoxCoder.decode, in its order: to the bit.
#pragma once
#include <ATen/core/Tensor.h>

#include "cpu/kernel.h"
#include "host_device.h"

namespace maskrcnn_bench {

struct DecodeRule {
  float wx, wy, ww, wh, pixel, decode_pixel, lowest, highest, min_size;
  bool clip, strict;

  DecodeRule(c10::ArrayRef<double> weights, c10::ArrayRef<double> range, double pixel_, double decode_pixel_, bool clip_, double min_size_,
             bool strict_)
      : pixel(float(pixel_)), decode_pixel(float(decode_pixel_)), min_size(float(min_size_)), clip(clip_), strict(strict_) {
    TORCH_CHECK_VALUE(weights.size() == 4, "maskrcnn_bench::decode_boxes: weights: expected 4 numbers, got ", weights.size());
    TORCH_CHECK_VALUE(range.size() == 2, "maskrcnn_bench::decode_boxes: log_size_range: expected 2 numbers, got ", range.size());
    wx = float(weights[0]);
    wy = float(weights[1]);
    ww = float(weights[2]);
    wh = float(weights[3]);
    lowest = float(range[0]);
    highest = float(range[1]);
  }

  // NaN stays NaN, as in torch.clamp.
  HOST_DEVICE float limited(float log_size) const { return log_size < lowest ? lowest : log_size > highest ? highest : log_size; }

  HOST_DEVICE float clipped(float position, float extent) const {
    const float limit = extent - pixel;
    const float inside = position < 0 ? 0 : position;
    return clip ? (inside > limit ? limit : inside) : position;
  }

  // Begin and end along one axis, from the reference's begin and end, the offset, and the ratio of the sizes.
  HOST_DEVICE void decode_axis(float ref_begin, float ref_end, float offset, float weight, float ratio, float extent, float& begin,
                               float& end) const {
    const float size = ref_end - ref_begin + pixel;
    const float centre = offset / weight * size + (ref_begin + 0.5f * size);
    const float half = 0.5f * (ratio * size);
    begin = clipped(centre - half, extent);
    end = clipped(centre + half - decode_pixel, extent);
  }

  HOST_DEVICE bool large_enough(float x1, float y1, float x2, float y2) const {
    const float width = x2 - x1 + pixel, height = y2 - y1 + pixel;
    return strict ? width > min_size && height > min_size : width >= min_size && height >= min_size;
  }
};

inline void check_decode(const at::Tensor& regression, const at::Tensor& anchors, const at::Tensor& inds, const at::Tensor& sizes) {
  const int64_t images = inds.dim() == 2 ? inds.size(0) : -1, count = anchors.dim() == 2 ? anchors.size(0) : -1;
  TORCH_CHECK_VALUE(images >= 0, "maskrcnn_bench::decode_boxes: inds: expected shape [N, R], got ", inds.sizes());
  TORCH_CHECK_VALUE(count >= 0, "maskrcnn_bench::decode_boxes: anchors: expected shape [A, 4], got ", anchors.sizes());
  check_shape("decode_boxes", "anchors", anchors, {count, 4});
  check_shape("decode_boxes", "regression", regression, {images, count, 4});
  check_shape("decode_boxes", "sizes", sizes, {images, 2});
  check_dtype("decode_boxes", "inds", inds, at::kLong);
}

}  // namespace maskrcnn_bench
