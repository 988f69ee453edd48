// Mask targets from bitmaps: the average of bilinear samples in each bin of a box.
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../bitmap_samples.h"
#include "kernel.h"

namespace maskrcnn_bench {
namespace {

std::vector<Sample> all_samples(const SampleAxis& axis, int64_t bins) {
  std::vector<Sample> samples;
  samples.reserve(bins * axis.per_bin);
  for (int64_t bin = 0; bin < bins; ++bin) {
    for (int64_t i = 0; i < axis.per_bin; ++i) {
      samples.push_back(axis.sample(bin, i));
    }
  }
  return samples;
}

// The sum over a bin; samples above and below the crop add nothing.
float sum(const Crop& crop, const Sample* rows, int64_t num_rows, const Sample* columns, int64_t num_columns) {
  float total = 0;
  for (int64_t i = 0; i < num_rows; ++i) {
    if (rows[i].low < 0 && rows[i].high < 0) {
      continue;
    }
    for (int64_t j = 0; j < num_columns; ++j) {
      total += crop.blend(rows[i], columns[j]);
    }
  }
  return total;
}

void average(const uint8_t* bitmaps, const int64_t* geometry, const float* box, int64_t resolution, float* out) {
  const Crop crop{bitmaps + geometry[0], geometry[3]};
  const SampleAxis x_axis(box[0], box[2], resolution, geometry[1], geometry[3]);
  const SampleAxis y_axis(box[1], box[3], resolution, geometry[2], geometry[4]);
  const auto columns = all_samples(x_axis, resolution);
  const auto rows = all_samples(y_axis, resolution);
  const auto count = float(std::max<int64_t>(y_axis.per_bin * x_axis.per_bin, 1));
  for (int64_t bin_y = 0; bin_y < resolution; ++bin_y) {
    for (int64_t bin_x = 0; bin_x < resolution; ++bin_x) {
      const Sample* row = rows.data() + bin_y * y_axis.per_bin;
      const Sample* column = columns.data() + bin_x * x_axis.per_bin;
      out[bin_y * resolution + bin_x] = sum(crop, row, y_axis.per_bin, column, x_axis.per_bin) / count;
    }
  }
}

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
        average(pixels, row, box + 4 * r, resolution, target + r * resolution * resolution);
      }
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CPU, m) { m.impl("bitmap_targets", TORCH_FN(bitmap_targets)); }

}  // namespace maskrcnn_bench
