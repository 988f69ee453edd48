// The gradient of RoIAlign for its maps: every bin adds to the pixels that it read.
#include <torch/library.h>

#include "map_sums.cuh"
#include "roi_samples.cuh"

namespace maskrcnn_bench {
namespace {

template <typename acc_t, typename Add, int kPack>
__global__ void __launch_bounds__(kThreads) spread(const acc_t* grad, Rois<acc_t> rois, Levels<typename Add::Cell> pyramid, Add add) {
  const int bins = rois.height * rois.width;
  const int64_t index = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (index >= rois.count * bins) {
    return;
  }
  add.prepare();
  const int r = int(index) / bins, bin = int(index) % bins;
  const int64_t level = rois.levels[r];
  for (int64_t channel = int64_t(threadIdx.x) * kPack; channel < pyramid.channels; channel += int64_t(blockDim.x) * kPack) {
    const auto values = *reinterpret_cast<const Pack<acc_t, kPack>*>(grad + index * pyramid.channels + channel);
    rois.visit_bin(pyramid, r, bin / rois.width, bin % rois.width, [&](acc_t weight, int64_t offset) {
      if (weight != 0) {
        add.template add<kPack>(pyramid.maps[level] + offset + channel, values, weight);
      }
    });
  }
}

struct Rule {
  int64_t sampling_ratio;
  double shift, min_size;
};

template <typename acc_t, typename Add>
void launch(const at::Tensor& grad, const RoiTensors& tensors, c10::ArrayRef<double> scales, const Rule& rule,
            const std::vector<at::Tensor>& cells, Add add) {
  const auto pyramid = make_levels<typename Add::Cell>("roi_align_backward", cells, scales);
  const auto rois = tensors.view<acc_t>(grad.size(2), grad.size(3), rule.sampling_ratio, rule.shift, rule.min_size);
  if (rois.count == 0 || pyramid.channels == 0) {
    return;
  }
  constexpr int kPack = int(kWide / sizeof(acc_t));
  const bool wide = pyramid.channels % kPack == 0 && is_aligned(grad);
  const BinLaunch size(rois.count * rois.height * rois.width, wide ? pyramid.channels / kPack : pyramid.channels);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const auto* values = grad.const_data_ptr<acc_t>();
  if (wide) {
    spread<acc_t, Add, kPack><<<size.blocks, size.threads, 0, stream>>>(values, rois, pyramid, add);
  } else {
    spread<acc_t, Add, 1><<<size.blocks, size.threads, 0, stream>>>(values, rois, pyramid, add);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename acc_t>
std::vector<at::Tensor> spread_all(const at::Tensor& grad, const RoiTensors& rois, c10::ArrayRef<double> scales, const Rule& rule,
                                   at::IntArrayRef shape) {
  return sum_into_maps<acc_t>(grad, shape, [&](const auto& cells, auto add) { launch<acc_t>(grad, rois, scales, rule, cells, add); });
}

std::vector<at::Tensor> roi_align_backward(const at::Tensor& grad, const at::Tensor& boxes, const at::Tensor& image_inds,
                                           const at::Tensor& levels, c10::ArrayRef<double> scales, at::IntArrayRef feature_shape,
                                           int64_t sampling_ratio, double shift, double min_size) {
  TORCH_CHECK_VALUE(feature_shape.size() >= 4 && feature_shape.size() % 2 == 0,
                    "maskrcnn_bench::roi_align_backward: feature_shape: expected [N, C, H0, W0, H1, W1, ...], got ", feature_shape);
  TORCH_CHECK_VALUE(grad.dim() == 4, "maskrcnn_bench::roi_align_backward: grad: expected [R, C, height, width], got ", grad.sizes());
  check_shape("roi_align_backward", "grad", grad, {boxes.size(0), feature_shape[1], grad.size(2), grad.size(3)});
  const c10::cuda::CUDAGuard guard(grad.device());
  const auto acc = sum_type(grad.scalar_type());
  const auto rois = make_rois("roi_align_backward", boxes, image_inds, levels, grad, acc, grad.size(2) * grad.size(3));
  const auto grad_ = grad.to(acc).contiguous(at::MemoryFormat::ChannelsLast);
  const Rule rule{sampling_ratio, shift, min_size};
  auto maps = acc == at::kDouble ? spread_all<double>(grad_, rois, scales, rule, feature_shape)
                                 : spread_all<float>(grad_, rois, scales, rule, feature_shape);
  for (auto& map : maps) {
    map = map.to(grad.scalar_type());
  }
  return maps;
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CUDA, m) { m.impl("roi_align_backward", TORCH_FN(roi_align_backward)); }

}  // namespace maskrcnn_bench
