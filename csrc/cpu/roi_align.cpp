// RoIAlign over all levels of a pyramid in one call. Features are channels-last, so that a pixel is one run of C
// numbers. Sums have a fixed order, whatever the number of threads and the instruction set.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <c10/util/BFloat16.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "roi_boxes.h"

namespace maskrcnn_bench {
namespace {

// sums[c] += w0 * a[c] + ... over `count` pixels; four at a time, so that a partial sum is loaded less often.
template <typename T, typename acc_t>
inline __attribute__((always_inline)) void accumulate_pixels(const T* const* pixels, const acc_t* weights, int64_t count, int64_t channels,
                                                             acc_t* __restrict sums) {
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    const T* __restrict a = pixels[k];
    const T* __restrict b = pixels[k + 1];
    const T* __restrict c = pixels[k + 2];
    const T* __restrict d = pixels[k + 3];
    const acc_t wa = weights[k], wb = weights[k + 1], wc = weights[k + 2], wd = weights[k + 3];
    for (int64_t i = 0; i < channels; ++i) {
      sums[i] += (wa * acc_t(a[i]) + wb * acc_t(b[i])) + (wc * acc_t(c[i]) + wd * acc_t(d[i]));
    }
  }
  for (; k < count; ++k) {
    const T* __restrict a = pixels[k];
    const acc_t wa = weights[k];
    for (int64_t i = 0; i < channels; ++i) {
      sums[i] += wa * acc_t(a[i]);
    }
  }
}

CPU_CLONES void accumulate(const float* const* pixels, const float* weights, int64_t count, int64_t channels, float* sums) {
  accumulate_pixels(pixels, weights, count, channels, sums);
}

CPU_CLONES void accumulate(const double* const* pixels, const double* weights, int64_t count, int64_t channels, double* sums) {
  accumulate_pixels(pixels, weights, count, channels, sums);
}

CPU_CLONES void accumulate(const c10::BFloat16* const* pixels, const float* weights, int64_t count, int64_t channels, float* sums) {
  accumulate_pixels(pixels, weights, count, channels, sums);
}

CPU_CLONES void add_scaled(float* __restrict target, const float* __restrict source, float weight, int64_t channels) {
  for (int64_t i = 0; i < channels; ++i) {
    target[i] += weight * source[i];
  }
}

CPU_CLONES void add_scaled(double* __restrict target, const double* __restrict source, double weight, int64_t channels) {
  for (int64_t i = 0; i < channels; ++i) {
    target[i] += weight * source[i];
  }
}

at::Tensor empty_map(at::IntArrayRef shape, const at::TensorOptions& options) {
  return at::empty(shape, options, at::MemoryFormat::ChannelsLast);
}

at::ScalarType accumulation_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

// ---------------------------------------------------------------------------------------------------- forward

template <typename T, typename acc_t>
class Forward {
 public:
  Forward(const RoiBoxes& rois, const std::vector<at::Tensor>& features, at::Tensor& out)
      : rois_(rois), features_(features), channels_(out.size(1)), sums_(channels_), out_(out.mutable_data_ptr<T>()) {}

  void pool(int64_t r) {
    const auto& frame = features_[rois_.level(r)];
    const int64_t frame_h = frame.size(2);
    const int64_t frame_w = frame.size(3);
    const T* image = frame.const_data_ptr<T>() + rois_.image(r) * frame_h * frame_w * channels_;
    rois_.taps(r, frame_h, frame_w, rows_, columns_);
    T* out = out_ + r * rois_.height * rois_.width * channels_;
    for (int64_t bin_y = 0; bin_y < rois_.height; ++bin_y) {
      for (int64_t bin_x = 0; bin_x < rois_.width; ++bin_x, out += channels_) {
        collect(image, frame_w, bin_y, bin_x);
        std::fill(sums_.begin(), sums_.end(), acc_t(0));
        accumulate(pixels_.data(), weights_.data(), int64_t(pixels_.size()), channels_, sums_.data());
        std::copy(sums_.begin(), sums_.end(), out);
      }
    }
  }

 private:
  void collect(const T* image, int64_t frame_w, int bin_y, int bin_x) {
    pixels_.clear();
    weights_.clear();
    for (int y = rows_.begin(bin_y); y < rows_.end(bin_y); ++y) {
      const T* row = image + rows_.pixel(y) * frame_w * channels_;
      for (int x = columns_.begin(bin_x); x < columns_.end(bin_x); ++x) {
        pixels_.push_back(row + columns_.pixel(x) * channels_);
        weights_.push_back(rows_.weight(y) * columns_.weight(x));
      }
    }
  }

  const RoiBoxes& rois_;
  const std::vector<at::Tensor>& features_;
  int64_t channels_;
  AxisTaps<acc_t> rows_, columns_;
  std::vector<const T*> pixels_;
  std::vector<acc_t> weights_, sums_;
  T* out_;
};

template <typename T, typename acc_t>
void pool_all(const RoiBoxes& rois, const std::vector<at::Tensor>& features, at::Tensor& out) {
  const auto order = rois.visiting_order();
  at::parallel_for(0, int64_t(order.size()), 4, [&](int64_t begin, int64_t end) {
    Forward<T, acc_t> forward(rois, features, out);
    for (int64_t i = begin; i < end; ++i) {
      forward.pool(order[i]);
    }
  });
}

at::Tensor roi_align(at::TensorList features, const at::Tensor& boxes, const at::Tensor& image_inds, const at::Tensor& levels,
                     c10::ArrayRef<double> scales, int64_t height, int64_t width, int64_t sampling_ratio, double shift, double min_size) {
  TORCH_CHECK_VALUE(!features.empty(), "maskrcnn_bench::roi_align: features: expected at least one level, got none");
  const auto type = features[0].scalar_type();
  // Half has no fast conversion in every instruction set; whole maps are widened once.
  const auto work = type == at::kHalf ? at::kFloat : type;
  std::vector<at::Tensor> maps;
  std::vector<int64_t> frames;
  for (const auto& feature : features) {
    TORCH_CHECK_VALUE(feature.dim() == 4 && feature.size(0) == features[0].size(0) && feature.size(1) == features[0].size(1),
                      "maskrcnn_bench::roi_align: features: expected [N, C, H, W] with equal N and C, got ", features[0].sizes(), " and ",
                      feature.sizes());
    check_dtype("roi_align", "features", feature, type);
    maps.push_back(feature.to(work).contiguous(at::MemoryFormat::ChannelsLast));
    frames.insert(frames.end(), {feature.size(2), feature.size(3)});
  }
  const auto rois = make_boxes(boxes, image_inds, levels, scales, height, width, sampling_ratio, shift, min_size, accumulation_type(work));
  check_boxes("roi_align", rois, frames, features[0].size(0));
  auto out = empty_map({rois.count(), features[0].size(1), height, width}, features[0].options().dtype(work)).zero_();
  if (work == at::kFloat) {
    pool_all<float, float>(rois, maps, out);
  } else if (work == at::kDouble) {
    pool_all<double, double>(rois, maps, out);
  } else {
    check_dtype("roi_align", "features", features[0], at::kBFloat16);
    pool_all<c10::BFloat16, float>(rois, maps, out);
  }
  return out.to(type);
}

// --------------------------------------------------------------------------------------------------- backward

constexpr int64_t kBoxesAtOnce = 256;

// A thread owns one image and one run of channels, so no two threads write the same number.
struct Share {
  int64_t image, begin, end;
};

std::vector<Share> make_shares(int64_t num_images, int64_t channels) {
  const int64_t wanted = std::max<int64_t>(1, (at::get_num_threads() + num_images - 1) / num_images);
  const int64_t run = std::max<int64_t>(16, (channels + wanted - 1) / wanted + 15) / 16 * 16;
  std::vector<Share> shares;
  for (int64_t image = 0; image < num_images; ++image) {
    for (int64_t begin = 0; begin < channels; begin += run) {
      shares.push_back({image, begin, std::min(channels, begin + run)});
    }
  }
  return shares;
}

// Some boxes, in the order in which they are added, and where the gradient of each stands in `grad`.
struct Part {
  std::vector<int64_t> boxes;
  at::Tensor grad;
  bool copied;

  int64_t row(size_t i) const { return copied ? int64_t(i) : boxes[i]; }
};

template <typename acc_t>
void scatter_share(const RoiBoxes& rois, const Part& part, std::vector<at::Tensor>& out, Share share) {
  AxisTaps<acc_t> rows, columns;
  const int64_t channels = part.grad.size(1);
  for (size_t i = 0; i < part.boxes.size(); ++i) {
    const int64_t r = part.boxes[i];
    if (rois.image(r) != share.image) {
      continue;
    }
    auto& map = out[rois.level(r)];
    const int64_t frame_w = map.size(3);
    acc_t* image = map.mutable_data_ptr<acc_t>() + share.image * map.size(2) * frame_w * channels + share.begin;
    const acc_t* bin = part.grad.const_data_ptr<acc_t>() + part.row(i) * rois.height * rois.width * channels + share.begin;
    rois.taps(r, map.size(2), frame_w, rows, columns);
    for (int64_t bin_y = 0; bin_y < rois.height; ++bin_y) {
      for (int64_t bin_x = 0; bin_x < rois.width; ++bin_x, bin += channels) {
        for (int y = rows.begin(bin_y); y < rows.end(bin_y); ++y) {
          for (int x = columns.begin(bin_x); x < columns.end(bin_x); ++x) {
            acc_t* pixel = image + (rows.pixel(y) * frame_w + columns.pixel(x)) * channels;
            add_scaled(pixel, bin, rows.weight(y) * columns.weight(x), share.end - share.begin);
          }
        }
      }
    }
  }
}

template <typename acc_t>
void scatter_part(const RoiBoxes& rois, const Part& part, const std::vector<Share>& shares, std::vector<at::Tensor>& out) {
  at::parallel_for(0, int64_t(shares.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      scatter_share<acc_t>(rois, part, out, shares[i]);
    }
  });
}

// Gradients that aren't in channels-last are copied, a few boxes of every image at a time: little memory, and work for all threads.
template <typename acc_t>
void scatter_all(const RoiBoxes& rois, const at::Tensor& grad, std::vector<at::Tensor>& out) {
  const int64_t num_images = out[0].size(0);
  const auto acc = out[0].scalar_type();
  if (num_images == 0) {
    return;
  }
  const auto shares = make_shares(num_images, grad.size(1));
  if (grad.scalar_type() == acc && grad.is_contiguous(at::MemoryFormat::ChannelsLast)) {
    return scatter_part<acc_t>(rois, {rois.visiting_order(), grad, false}, shares, out);
  }
  std::vector<std::vector<int64_t>> waiting(num_images);
  for (const int64_t r : rois.visiting_order()) {
    waiting[rois.image(r)].push_back(r);
  }
  const size_t step = std::max<int64_t>(kBoxesAtOnce / num_images, 1);
  for (size_t first = 0;; first += step) {
    std::vector<int64_t> boxes;
    for (const auto& own : waiting) {
      boxes.insert(boxes.end(), own.begin() + std::min(first, own.size()), own.begin() + std::min(first + step, own.size()));
    }
    if (boxes.empty()) {
      return;
    }
    const auto rows = grad.index_select(0, at::tensor(boxes, at::kLong)).to(acc).contiguous(at::MemoryFormat::ChannelsLast);
    scatter_part<acc_t>(rois, {std::move(boxes), rows, true}, shares, out);
  }
}

std::vector<at::Tensor> roi_align_backward(const at::Tensor& grad, const at::Tensor& boxes, const at::Tensor& image_inds,
                                           const at::Tensor& levels, c10::ArrayRef<double> scales, at::IntArrayRef feature_shape,
                                           int64_t sampling_ratio, double shift, double min_size) {
  TORCH_CHECK_VALUE(feature_shape.size() >= 4 && feature_shape.size() % 2 == 0,
                    "maskrcnn_bench::roi_align_backward: feature_shape: expected [N, C, H0, W0, H1, W1, ...], got ", feature_shape);
  const int64_t num_images = feature_shape[0];
  const int64_t channels = feature_shape[1];
  const auto frames = feature_shape.slice(2);
  check_shape("roi_align_backward", "grad", grad, {boxes.size(0), channels, grad.size(-2), grad.size(-1)});
  const auto acc = accumulation_type(grad.scalar_type());
  const auto rois = make_boxes(boxes, image_inds, levels, scales, grad.size(2), grad.size(3), sampling_ratio, shift, min_size, acc);
  check_boxes("roi_align_backward", rois, frames, num_images);
  std::vector<at::Tensor> out;
  for (size_t i = 0; i < frames.size(); i += 2) {
    out.push_back(empty_map({num_images, channels, frames[i], frames[i + 1]}, grad.options().dtype(acc)).zero_());
  }
  if (acc == at::kDouble) {
    scatter_all<double>(rois, grad, out);
  } else {
    scatter_all<float>(rois, grad, out);
  }
  for (auto& map : out) {
    map = map.to(grad.scalar_type());
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CPU, m) {
  m.impl("roi_align", TORCH_FN(roi_align));
  m.impl("roi_align_backward", TORCH_FN(roi_align_backward));
}

}  // namespace maskrcnn_bench
