// The boxes of RoIAlign on the device: where a bin samples its map. The formulas are those of cpu/roi_boxes.h.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "kernel.cuh"

namespace maskrcnn_bench {

constexpr int kMostLevels = 8;

// Neighbouring channels, read and written together.
template <typename T, int kPack>
struct alignas(sizeof(T) * kPack) Pack {
  T values[kPack];
};

template <typename T>
struct Levels {
  T* maps[kMostLevels];  // channels-last [N, H, W, C]
  int heights[kMostLevels], widths[kMostLevels];
  double scales[kMostLevels];
  int count;
  int64_t num_images, channels;

  // False for padding, and for indices that leave the pyramid.
  __device__ bool has(int64_t level, int64_t image) const { return level >= 0 && level < count && image >= 0 && image < num_images; }
};

// The samples of one bin along one axis; those certainly outside the frame are left out, so that the frame bounds the
// cost of a box.
template <typename acc_t>
struct BinAxis {
  acc_t origin, bin_size;
  int samples, first, last, extent;

  __device__ BinAxis(acc_t start, acc_t size, int bins, int bin, int sampling_ratio, int frame_extent) : extent(frame_extent) {
    const acc_t most = acc_t(1 << 30);
    bin_size = size / acc_t(bins);
    origin = start + acc_t(bin) * bin_size;
    const acc_t wanted = ::ceil(bin_size);
    samples = sampling_ratio > 0 ? sampling_ratio : bin_size > 0 ? int(wanted < most ? wanted : most) : 0;
    first = 0;
    last = samples;
    const acc_t step = bin_size / acc_t(samples);
    if (samples > 16 && step > 0) {
      first = limited((acc_t(-1) - origin) / step - acc_t(2));
      last = limited((acc_t(extent) - origin) / step + acc_t(2));
    }
  }

  // Whether a sample lies in the frame; its two pixels and the share of the second.
  __device__ bool sample(int i, int& low, int& high, acc_t& share) const {
    acc_t position = origin + (acc_t(i) + acc_t(.5)) * bin_size / acc_t(samples);
    if (!(position >= acc_t(-1) && position <= acc_t(extent))) {
      return false;
    }
    position = position > 0 ? position : acc_t(0);
    low = int(position) < extent - 1 ? int(position) : extent - 1;
    high = low < extent - 1 ? low + 1 : low;
    share = low < extent - 1 ? position - acc_t(low) : acc_t(0);
    return true;
  }

 private:
  __device__ int limited(acc_t index) const { return index > 0 ? int(index < acc_t(samples) ? index : acc_t(samples)) : 0; }
};

template <typename acc_t>
struct Rois {
  const acc_t* boxes;
  const int64_t* image_inds;
  const int64_t* levels;
  int64_t count;
  int height, width, sampling_ratio;
  acc_t shift, min_size;

  __device__ acc_t length(acc_t begin, acc_t end) const {
    const acc_t out = end - begin;
    return min_size > 0 && out < min_size ? min_size : out;
  }

  // Calls `visit(weight, offset)` for each pixel that a bin reads; `offset` counts numbers from the map's beginning.
  // False: the box is padding.
  template <typename T, typename Visit>
  __device__ bool visit_bin(const Levels<T>& pyramid, int64_t r, int bin_y, int bin_x, Visit visit) const {
    const int64_t level = levels[r];
    if (!pyramid.has(level, image_inds[r])) {
      return false;
    }
    const int frame_h = pyramid.heights[level], frame_w = pyramid.widths[level];
    if (frame_h == 0 || frame_w == 0) {
      return false;
    }
    const acc_t* box = boxes + 4 * r;
    const acc_t scale = acc_t(pyramid.scales[level]);
    const acc_t x1 = box[0] * scale - shift, y1 = box[1] * scale - shift;
    const BinAxis<acc_t> rows(y1, length(y1, box[3] * scale - shift), height, bin_y, sampling_ratio, frame_h);
    const BinAxis<acc_t> columns(x1, length(x1, box[2] * scale - shift), width, bin_x, sampling_ratio, frame_w);
    const int64_t image = image_inds[r] * frame_h;
    const acc_t share_of_sample = acc_t(1) / acc_t(rows.samples > 0 ? rows.samples : 1) / acc_t(columns.samples > 0 ? columns.samples : 1);
    for (int i = rows.first; i < rows.last; ++i) {
      int top, bottom;
      acc_t y;
      if (!rows.sample(i, top, bottom, y)) {
        continue;
      }
      const int64_t upper = (image + top) * frame_w, lower = (image + bottom) * frame_w;
      for (int j = columns.first; j < columns.last; ++j) {
        int left, right;
        acc_t x;
        if (columns.sample(j, left, right, x)) {
          const acc_t over = (1 - y) * share_of_sample, under = y * share_of_sample;
          visit(over * (1 - x), (upper + left) * pyramid.channels);
          visit(over * x, (upper + right) * pyramid.channels);
          visit(under * (1 - x), (lower + left) * pyramid.channels);
          visit(under * x, (lower + right) * pyramid.channels);
        }
      }
    }
    return true;
  }
};

// The arguments of both directions on the device, in the dtype of the sums.
struct RoiTensors {
  at::Tensor boxes, image_inds, levels;

  template <typename acc_t>
  Rois<acc_t> view(int64_t height, int64_t width, int64_t sampling_ratio, double shift, double min_size) const {
    return {boxes.const_data_ptr<acc_t>(),
            image_inds.const_data_ptr<int64_t>(),
            levels.const_data_ptr<int64_t>(),
            boxes.size(0),
            int(height),
            int(width),
            int(sampling_ratio),
            acc_t(shift),
            acc_t(min_size)};
  }
};

inline RoiTensors make_rois(const char* op, const at::Tensor& boxes, const at::Tensor& image_inds, const at::Tensor& levels,
                            const at::Tensor& first, at::ScalarType acc, int64_t bins) {
  const int64_t count = boxes.size(0);
  check_shape(op, "boxes", boxes, {count, 4});
  check_shape(op, "image_inds", image_inds, {count});
  check_shape(op, "levels", levels, {count});
  check_device(op, "boxes", boxes, first);
  check_device(op, "image_inds", image_inds, first);
  check_device(op, "levels", levels, first);
  TORCH_CHECK_VALUE(bins > 0 && count * bins <= INT32_MAX, "maskrcnn_bench::", op, ": expected 1 to 2^31 bins in all boxes, got ",
                    count * bins);
  return {boxes.to(acc).contiguous(), image_inds.to(at::kLong).contiguous(), levels.to(at::kLong).contiguous()};
}

inline at::ScalarType sum_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

inline bool all_aligned(const std::vector<at::Tensor>& tensors) {
  for (const auto& tensor : tensors) {
    if (!is_aligned(tensor)) {
      return false;
    }
  }
  return true;
}

// The levels of a pyramid [N, C, H, W] in channels-last; copies where they aren't.
inline std::vector<at::Tensor> channels_last_maps(const char* op, at::TensorList features) {
  const auto& first = features[0];
  std::vector<at::Tensor> maps;
  for (const auto& feature : features) {
    TORCH_CHECK_VALUE(feature.dim() == 4 && feature.size(0) == first.size(0) && feature.size(1) == first.size(1), "maskrcnn_bench::", op,
                      ": features: expected [N, C, H, W] with equal N and C, got ", first.sizes(), " and ", feature.sizes());
    check_dtype(op, "features", feature, first.scalar_type());
    check_device(op, "features", feature, first);
    maps.push_back(feature.contiguous(at::MemoryFormat::ChannelsLast));
  }
  return maps;
}

template <typename T>
Levels<T> make_levels(const char* op, const std::vector<at::Tensor>& maps, c10::ArrayRef<double> scales) {
  TORCH_CHECK_VALUE(maps.size() == scales.size() && maps.size() <= kMostLevels, "maskrcnn_bench::", op,
                    ": expected one scale a level and at most ", kMostLevels, " levels, got ", scales.size(), " scales for ", maps.size(),
                    " levels");
  Levels<T> out{};
  out.count = int(maps.size());
  out.num_images = maps[0].size(0);
  out.channels = maps[0].size(1);
  for (size_t i = 0; i < maps.size(); ++i) {
    out.maps[i] = static_cast<T*>(maps[i].data_ptr());
    out.heights[i] = int(maps[i].size(2));
    out.widths[i] = int(maps[i].size(3));
    out.scales[i] = scales[i];
  }
  return out;
}

// A row of a block works on one bin; neighbouring threads of a row on neighbouring channels.
struct BinLaunch {
  dim3 blocks, threads;

  BinLaunch(int64_t bins, int64_t packs) {
    unsigned lanes = 1;
    while (lanes < packs && lanes < kThreads / 2) {
      lanes *= 2;
    }
    threads = dim3(lanes, kThreads / lanes);
    blocks = dim3(unsigned((bins + threads.y - 1) / threads.y));
  }
};

}  // namespace maskrcnn_bench
