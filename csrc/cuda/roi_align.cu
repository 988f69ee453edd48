// RoIAlign over all levels of a pyramid in one launch. A thread holds the sums of up to 16 bytes of neighbouring
// channels of one bin; maps are channels-last, so a warp reads whole lines.
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include "roi_samples.cuh"

namespace maskrcnn_bench {
namespace {

template <typename T, typename acc_t, int kPack>
__global__ void __launch_bounds__(kThreads) pool(Levels<const T> pyramid, Rois<acc_t> rois, T* out) {
  const int bins = rois.height * rois.width;
  const int64_t index = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (index >= rois.count * bins) {
    return;
  }
  const int r = int(index) / bins, bin = int(index) % bins;
  const int64_t level = rois.levels[r];
  for (int64_t channel = int64_t(threadIdx.x) * kPack; channel < pyramid.channels; channel += int64_t(blockDim.x) * kPack) {
    acc_t sums[kPack] = {};
    rois.visit_bin(pyramid, r, bin / rois.width, bin % rois.width, [&](acc_t weight, int64_t offset) {
      const auto pixel = *reinterpret_cast<const Pack<T, kPack>*>(pyramid.maps[level] + offset + channel);
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        sums[k] += weight * static_cast<acc_t>(pixel.values[k]);
      }
    });
    Pack<T, kPack> rounded;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      rounded.values[k] = static_cast<T>(sums[k]);
    }
    *reinterpret_cast<Pack<T, kPack>*>(out + index * pyramid.channels + channel) = rounded;
  }
}

template <typename T, typename acc_t, int kPack>
void launch(const Levels<const T>& pyramid, const Rois<acc_t>& rois, at::Tensor& out) {
  const int64_t bins = rois.count * rois.height * rois.width;
  const BinLaunch size(bins, pyramid.channels / kPack);
  pool<T, acc_t, kPack><<<size.blocks, size.threads, 0, c10::cuda::getCurrentCUDAStream()>>>(pyramid, rois, out.mutable_data_ptr<T>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

struct Rule {
  int64_t height, width, sampling_ratio;
  double shift, min_size;
};

template <typename T, typename acc_t>
void pool_all(const std::vector<at::Tensor>& maps, const RoiTensors& tensors, c10::ArrayRef<double> scales, const Rule& rule,
              at::Tensor& out) {
  const auto pyramid = make_levels<const T>("roi_align", maps, scales);
  const auto rois = tensors.view<acc_t>(rule.height, rule.width, rule.sampling_ratio, rule.shift, rule.min_size);
  if (rois.count == 0 || pyramid.channels == 0) {
    return;
  }
  constexpr int kPack = int(kWide / sizeof(T));
  if (pyramid.channels % kPack == 0 && all_aligned(maps)) {
    launch<T, acc_t, kPack>(pyramid, rois, out);
  } else {
    launch<T, acc_t, 1>(pyramid, rois, out);
  }
}

at::Tensor roi_align(at::TensorList features, const at::Tensor& boxes, const at::Tensor& image_inds, const at::Tensor& levels,
                     c10::ArrayRef<double> scales, int64_t height, int64_t width, int64_t sampling_ratio, double shift, double min_size) {
  TORCH_CHECK_VALUE(!features.empty(), "maskrcnn_bench::roi_align: features: expected at least one level, got none");
  const auto& first = features[0];
  const auto type = first.scalar_type();
  const c10::cuda::CUDAGuard guard(first.device());
  const auto maps = channels_last_maps("roi_align", features);
  const auto rois = make_rois("roi_align", boxes, image_inds, levels, first, sum_type(type), height * width);
  auto out = at::empty({boxes.size(0), first.size(1), height, width}, first.options(), at::MemoryFormat::ChannelsLast);
  const Rule rule{height, width, sampling_ratio, shift, min_size};
  if (type == at::kFloat) {
    pool_all<float, float>(maps, rois, scales, rule, out);
  } else if (type == at::kHalf) {
    pool_all<c10::Half, float>(maps, rois, scales, rule, out);
  } else if (type == at::kDouble) {
    pool_all<double, double>(maps, rois, scales, rule, out);
  } else {
    check_dtype("roi_align", "features", first, at::kBFloat16);
    pool_all<c10::BFloat16, float>(maps, rois, scales, rule, out);
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CUDA, m) { m.impl("roi_align", TORCH_FN(roi_align)); }

}  // namespace maskrcnn_bench
