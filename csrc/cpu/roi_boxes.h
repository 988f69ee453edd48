// The boxes of RoIAlign: which pixels of a map each bin of a box reads, and with which weight. Bilinear sampling is
// separable, so a bin reads a few rows times a few columns; samples that share a pixel are merged.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "kernel.h"

namespace maskrcnn_bench {

// For every bin along one axis: the pixels it reads and their weights, which sum to the share of samples in the frame.
template <typename acc_t>
class AxisTaps {
 public:
  int begin(int bin) const { return starts_[bin]; }
  int end(int bin) const { return starts_[bin + 1]; }
  int64_t pixel(int tap) const { return pixels_[tap]; }
  acc_t weight(int tap) const { return weights_[tap]; }

  void build(acc_t start, acc_t size, int64_t bins, int64_t sampling_ratio, int64_t extent) {
    pixels_.clear();
    weights_.clear();
    starts_.assign(1, 0);
    const acc_t bin_size = size / bins;
    const int64_t samples = sampling_ratio > 0 ? sampling_ratio : adaptive_samples(bin_size);
    for (int64_t bin = 0; bin < bins; ++bin) {
      const acc_t origin = start + bin * bin_size;
      const auto [first, last] = samples_near_frame(origin, bin_size, samples, extent);
      for (int64_t i = first; i < last; ++i) {
        add_sample(origin + (i + acc_t(.5)) * bin_size / acc_t(samples), extent, acc_t(1) / acc_t(samples));
      }
      starts_.push_back(int(pixels_.size()));
    }
  }

 private:
  static int64_t adaptive_samples(acc_t bin_size) {
    const acc_t most = acc_t(1 << 30);  // keeps the conversion defined for boxes without sense
    return bin_size > 0 ? int64_t(std::min(std::ceil(bin_size), most)) : 0;
  }

  // A superset of the samples inside the frame, so that the cost of a box is bounded by the frame.
  static std::pair<int64_t, int64_t> samples_near_frame(acc_t origin, acc_t bin_size, int64_t samples, int64_t extent) {
    const acc_t step = bin_size / acc_t(samples);
    if (samples <= 16 || !(step > 0)) {
      return {0, samples};
    }
    const acc_t first = std::clamp((acc_t(-1) - origin) / step - acc_t(2), acc_t(0), acc_t(samples));
    const acc_t last = std::clamp((acc_t(extent) - origin) / step + acc_t(2), acc_t(0), acc_t(samples));
    return {int64_t(first), int64_t(last)};
  }

  void add_sample(acc_t position, int64_t extent, acc_t weight) {
    if (!(position >= acc_t(-1) && position <= acc_t(extent))) {
      return;
    }
    position = std::max(position, acc_t(0));
    const auto low = std::min(int64_t(position), extent - 1);
    const acc_t fraction = low < extent - 1 ? position - acc_t(low) : acc_t(0);
    add_pixel(low, weight * (1 - fraction));
    if (low < extent - 1) {
      add_pixel(low + 1, weight * fraction);
    }
  }

  // Samples ascend, so a pixel that was seen before in this bin is the last or the one before it.
  void add_pixel(int64_t pixel, acc_t weight) {
    const int begin = starts_.back();
    for (int tap = int(pixels_.size()) - 1; tap >= begin && pixels_[tap] >= pixel; --tap) {
      if (pixels_[tap] == pixel) {
        weights_[tap] += weight;
        return;
      }
    }
    pixels_.push_back(pixel);
    weights_.push_back(weight);
  }

  std::vector<int> starts_;
  std::vector<int64_t> pixels_;
  std::vector<acc_t> weights_;
};

// The arguments shared by both directions, and the place of each box: its level, its image, its taps.
struct RoiBoxes {
  at::Tensor boxes, image_inds, levels;
  std::vector<double> scales;
  int64_t height, width, sampling_ratio;
  double shift, min_size;

  int64_t count() const { return boxes.size(0); }
  int64_t level(int64_t r) const { return levels.const_data_ptr<int64_t>()[r]; }
  int64_t image(int64_t r) const { return image_inds.const_data_ptr<int64_t>()[r]; }

  template <typename acc_t>
  void taps(int64_t r, int64_t frame_h, int64_t frame_w, AxisTaps<acc_t>& rows, AxisTaps<acc_t>& columns) const {
    const acc_t* box = boxes.const_data_ptr<acc_t>() + 4 * r;
    const auto scale = acc_t(scales[level(r)]);
    const auto offset = acc_t(shift);
    const acc_t x1 = box[0] * scale - offset;
    const acc_t y1 = box[1] * scale - offset;
    acc_t box_w = (box[2] * scale - offset) - x1;
    acc_t box_h = (box[3] * scale - offset) - y1;
    if (min_size > 0) {
      box_w = std::max(box_w, acc_t(min_size));
      box_h = std::max(box_h, acc_t(min_size));
    }
    rows.build(y1, box_h, height, sampling_ratio, frame_h);
    columns.build(x1, box_w, width, sampling_ratio, frame_w);
  }

  // By level and image, then from top to bottom: neighbours share cache lines. Ties keep their order.
  std::vector<int64_t> visiting_order() const {
    const auto wide = boxes.to(at::kDouble);
    const auto* box = wide.const_data_ptr<double>();
    std::vector<int64_t> order;
    for (int64_t r = 0; r < count(); ++r) {
      if (level(r) >= 0) {
        order.push_back(r);
      }
    }
    const auto key = [&](int64_t r) { return std::make_tuple(level(r), image(r)); };
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return key(a) != key(b) ? key(a) < key(b) : box[4 * a + 1] < box[4 * b + 1]; });
    return order;
  }
};

inline void check_boxes(const char* op, const RoiBoxes& rois, c10::IntArrayRef frames, int64_t num_images) {
  const int64_t count = rois.count();
  const auto num_levels = int64_t(rois.scales.size());
  check_shape(op, "boxes", rois.boxes, {count, 4});
  check_shape(op, "image_inds", rois.image_inds, {count});
  check_shape(op, "levels", rois.levels, {count});
  TORCH_CHECK_VALUE(int64_t(frames.size()) == 2 * num_levels, "maskrcnn_bench::", op, ": expected one scale a level, got ", num_levels,
                    " scales for ", frames.size() / 2, " levels");
  TORCH_CHECK_VALUE(rois.height > 0 && rois.width > 0, "maskrcnn_bench::", op, ": expected a positive output size, got ", rois.height,
                    " x ", rois.width);
  for (int64_t r = 0; r < count; ++r) {
    TORCH_CHECK_INDEX(rois.level(r) >= -1 && rois.level(r) < num_levels, "maskrcnn_bench::", op, ": levels[", r,
                      "]: expected -1 (padding) to ", num_levels - 1, ", got ", rois.level(r));
    TORCH_CHECK_INDEX(rois.level(r) < 0 || (rois.image(r) >= 0 && rois.image(r) < num_images), "maskrcnn_bench::", op, ": image_inds[", r,
                      "]: expected 0 to ", num_images - 1, ", got ", rois.image(r));
    TORCH_CHECK_INDEX(rois.level(r) < 0 || frames[2 * rois.level(r)] * frames[2 * rois.level(r) + 1] > 0, "maskrcnn_bench::", op,
                      ": levels[", r, "]: level ", rois.level(r), " has no pixels");
  }
}

inline RoiBoxes make_boxes(const at::Tensor& boxes, const at::Tensor& image_inds, const at::Tensor& levels, c10::ArrayRef<double> scales,
                           int64_t height, int64_t width, int64_t sampling_ratio, double shift, double min_size, at::ScalarType acc) {
  TORCH_CHECK_VALUE(boxes.dim() == 2, "maskrcnn_bench::roi_align: boxes: expected [R, 4], got ", boxes.sizes());
  return {boxes.to(acc).contiguous(),
          image_inds.to(at::kLong).contiguous(),
          levels.to(at::kLong).contiguous(),
          scales.vec(),
          height,
          width,
          sampling_ratio,
          shift,
          min_size};
}

}  // namespace maskrcnn_bench
