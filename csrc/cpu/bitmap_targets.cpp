// Mask targets from bitmaps: the average of bilinear samples in each bin of a box, about one sample a pixel. Sums run
// in the order of torchvision.ops.roi_align, so that a threshold on the result decides alike.
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernel.h"

namespace maskrcnn_bench {
namespace {

constexpr int64_t kMostSamples = 1 << 12;  // along an axis of a bin; bounds what a box without sense costs

// One sample along an axis: two neighbours in the crop (-1: outside, zero) and the share of the second.
struct Sample {
  int64_t low, high;
  float fraction;
};

struct Axis {
  int64_t per_bin;
  std::vector<Sample> samples;

  Axis(float begin, float end, int64_t bins, int64_t origin, int64_t extent) {
    const float start = begin - .5f;
    const float bin_size = (end - .5f - start) / float(bins);
    const float wanted = std::ceil(bin_size);
    per_bin = wanted > 0 ? int64_t(std::min(wanted, float(kMostSamples))) : 0;
    samples.reserve(bins * per_bin);
    for (int64_t bin = 0; bin < bins; ++bin) {
      for (int64_t i = 0; i < per_bin; ++i) {
        add(start + float(bin) * bin_size + (float(i) + .5f) * bin_size / float(per_bin), origin, extent);
      }
    }
  }

 private:
  void add(float position, int64_t origin, int64_t extent) {
    if (!(std::abs(position) < 1e9f)) {
      samples.push_back({-1, -1, 0});
      return;
    }
    const float floor = std::floor(position);
    const int64_t low = int64_t(floor) - origin;
    const auto inside = [&](int64_t pixel) { return pixel >= 0 && pixel < extent ? pixel : -1; };
    samples.push_back({inside(low), inside(low + 1), position - floor});
  }
};

struct Crop {
  const uint8_t* pixels;
  int64_t x0, y0, width, height;

  float at(int64_t y, int64_t x) const { return y < 0 || x < 0 ? 0.f : float(pixels[y * width + x]); }

  float blend(const Sample& y, const Sample& x) const {
    const float hy = 1.f - y.fraction, hx = 1.f - x.fraction;
    return hy * hx * at(y.low, x.low) + hy * x.fraction * at(y.low, x.high) + y.fraction * hx * at(y.high, x.low) +
           y.fraction * x.fraction * at(y.high, x.high);
  }

  void average(const float* box, int64_t resolution, float* out) const {
    const Axis columns(box[0], box[2], resolution, x0, width);
    const Axis rows(box[1], box[3], resolution, y0, height);
    const auto count = float(std::max<int64_t>(rows.per_bin * columns.per_bin, 1));
    for (int64_t bin_y = 0; bin_y < resolution; ++bin_y) {
      for (int64_t bin_x = 0; bin_x < resolution; ++bin_x) {
        out[bin_y * resolution + bin_x] = sum(rows, columns, bin_y, bin_x) / count;
      }
    }
  }

 private:
  float sum(const Axis& rows, const Axis& columns, int64_t bin_y, int64_t bin_x) const {
    float total = 0;
    for (int64_t i = 0; i < rows.per_bin; ++i) {
      const Sample& y = rows.samples[bin_y * rows.per_bin + i];
      if (y.low < 0 && y.high < 0) {
        continue;
      }
      for (int64_t j = 0; j < columns.per_bin; ++j) {
        total += blend(y, columns.samples[bin_x * columns.per_bin + j]);
      }
    }
    return total;
  }
};

void check_geometry(const at::Tensor& geometry, int64_t num_pixels) {
  check_shape("bitmap_targets", "geometry", geometry, {geometry.size(0), 5});
  const auto* row = geometry.const_data_ptr<int64_t>();
  for (int64_t g = 0; g < geometry.size(0); ++g, row += 5) {
    const bool empty = row[3] == 0 || row[4] == 0;
    TORCH_CHECK_INDEX(empty || (row[3] > 0 && row[4] > 0 && row[0] >= 0 && row[4] <= (num_pixels - row[0]) / row[3]),
                      "maskrcnn_bench::bitmap_targets: geometry[", g, "]: expected (offset, x0, y0, width, height) inside ", num_pixels,
                      " pixels, got offset ", row[0], ", width ", row[3], ", height ", row[4]);
  }
}

at::Tensor bitmap_targets(const at::Tensor& bitmaps, const at::Tensor& geometry, const at::Tensor& boxes, const at::Tensor& object_inds,
                          int64_t resolution) {
  const int64_t count = object_inds.size(0);
  check_shape("bitmap_targets", "bitmaps", bitmaps, {bitmaps.numel()});
  check_dtype("bitmap_targets", "bitmaps", bitmaps, at::kByte);
  check_shape("bitmap_targets", "boxes", boxes, {count, 4});
  TORCH_CHECK_VALUE(resolution > 0, "maskrcnn_bench::bitmap_targets: resolution: expected > 0, got ", resolution);
  const auto bitmaps_ = bitmaps.contiguous();
  const auto geometry_ = geometry.to(at::kLong).contiguous();
  const auto boxes_ = boxes.to(at::kFloat).contiguous();
  const auto inds = object_inds.to(at::kLong).contiguous();
  check_geometry(geometry_, bitmaps.numel());
  const auto* ind = inds.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < count; ++r) {
    TORCH_CHECK_INDEX(ind[r] >= -1 && ind[r] < geometry_.size(0), "maskrcnn_bench::bitmap_targets: object_inds[", r,
                      "]: expected -1 (none) to ", geometry_.size(0) - 1, ", got ", ind[r]);
  }
  auto out = at::zeros({count, resolution, resolution}, boxes_.options());
  const auto* geometry_row = geometry_.const_data_ptr<int64_t>();
  const auto* pixels = bitmaps_.const_data_ptr<uint8_t>();
  const auto* box = boxes_.const_data_ptr<float>();
  auto* target = out.mutable_data_ptr<float>();
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t* row = geometry_row + 5 * std::max<int64_t>(ind[r], 0);
      if (ind[r] >= 0 && row[3] > 0 && row[4] > 0) {
        const Crop crop{pixels + row[0], row[1], row[2], row[3], row[4]};
        crop.average(box + 4 * r, resolution, target + r * resolution * resolution);
      }
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CPU, m) { m.impl("bitmap_targets", TORCH_FN(bitmap_targets)); }

}  // namespace maskrcnn_bench
