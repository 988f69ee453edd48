// Mask targets from bitmaps: one thread averages the samples of one bin of one box.
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../bitmap_samples.h"
#include "kernel.cuh"

namespace maskrcnn_bench {
namespace {

struct Bitmaps {
  const uint8_t* pixels;
  const int64_t* geometry;  // (offset, x0, y0, width, height) of each object
  int64_t num_pixels, num_objects;

  __device__ const int64_t* crop_of(int64_t object) const {
    if (object < 0 || object >= num_objects) {
      return nullptr;
    }
    const int64_t* row = geometry + 5 * object;
    const bool fits = row[3] > 0 && row[4] > 0 && row[0] >= 0 && row[4] <= (num_pixels - row[0]) / row[3];
    return fits ? row : nullptr;
  }
};

__device__ float sum(const Crop& crop, const SampleAxis& rows, const SampleAxis& columns, int64_t bin_y, int64_t bin_x) {
  float total = 0;
  for (int64_t i = 0; i < rows.per_bin; ++i) {
    const Sample y = rows.sample(bin_y, i);
    if (y.low < 0 && y.high < 0) {
      continue;
    }
    for (int64_t j = 0; j < columns.per_bin; ++j) {
      total += crop.blend(y, columns.sample(bin_x, j));
    }
  }
  return total;
}

__global__ void average(Bitmaps bitmaps, const float* boxes, const int64_t* inds, int64_t count, int64_t size, float* out) {
  for (int64_t i = first_index(); i < count * size * size; i += index_step()) {
    const int64_t r = i / (size * size);
    const int64_t* row = bitmaps.crop_of(inds[r]);
    if (row == nullptr) {
      continue;
    }
    const float* box = boxes + 4 * r;
    const SampleAxis columns(box[0], box[2], size, row[1], row[3]);
    const SampleAxis rows(box[1], box[3], size, row[2], row[4]);
    const int64_t samples = rows.per_bin * columns.per_bin;
    out[i] = sum(Crop{bitmaps.pixels + row[0], row[3]}, rows, columns, i / size % size, i % size) / float(samples > 0 ? samples : 1);
  }
}

at::Tensor bitmap_targets(const at::Tensor& bitmaps, const at::Tensor& geometry, const at::Tensor& boxes, const at::Tensor& object_inds,
                          int64_t resolution) {
  const int64_t count = object_inds.size(0);
  check_shape("bitmap_targets", "bitmaps", bitmaps, {bitmaps.numel()});
  check_dtype("bitmap_targets", "bitmaps", bitmaps, at::kByte);
  check_shape("bitmap_targets", "geometry", geometry, {geometry.size(0), 5});
  check_shape("bitmap_targets", "boxes", boxes, {count, 4});
  TORCH_CHECK_VALUE(resolution > 0, "maskrcnn_bench::bitmap_targets: resolution: expected > 0, got ", resolution);
  check_device("bitmap_targets", "bitmaps", bitmaps, boxes);
  check_device("bitmap_targets", "geometry", geometry, boxes);
  check_device("bitmap_targets", "object_inds", object_inds, boxes);
  const c10::cuda::CUDAGuard guard(boxes.device());
  const auto bitmaps_ = bitmaps.contiguous();
  const auto geometry_ = geometry.to(at::kLong).contiguous();
  const auto boxes_ = boxes.to(at::kFloat).contiguous();
  const auto inds = object_inds.to(at::kLong).contiguous();
  auto out = at::zeros({count, resolution, resolution}, boxes_.options());
  if (count == 0) {
    return out;
  }
  const Bitmaps packed{bitmaps_.const_data_ptr<uint8_t>(), geometry_.const_data_ptr<int64_t>(), bitmaps_.numel(), geometry_.size(0)};
  average<<<num_blocks(out.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      packed, boxes_.const_data_ptr<float>(), inds.const_data_ptr<int64_t>(), count, resolution, out.mutable_data_ptr<float>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CUDA, m) { m.impl("bitmap_targets", TORCH_FN(bitmap_targets)); }

}  // namespace maskrcnn_bench
