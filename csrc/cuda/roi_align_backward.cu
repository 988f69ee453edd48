// The gradient of RoIAlign for its maps: every bin adds to the pixels that it read. With
// torch.use_deterministic_algorithms(True) the sums are kept as 64-bit integers, whose additions have no order; without,
// in the dtype of the sums.
#include <ATen/Context.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>

#include "roi_samples.cuh"

namespace maskrcnn_bench {
namespace {

template <typename acc_t>
struct AddFloating {
  using Cell = acc_t;

  __device__ void prepare() {}

  template <int kPack>
  __device__ void add(Cell* target, const Pack<acc_t, kPack>& grad, acc_t weight) const {
    if constexpr (kPack == 4) {
      add_four(target, make_float4(grad.values[0] * weight, grad.values[1] * weight, grad.values[2] * weight, grad.values[3] * weight));
    } else {
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        atomicAdd(target + k, grad.values[k] * weight);
      }
    }
  }

 private:
  __device__ static void add_four(float* target, float4 values) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    atomicAdd(reinterpret_cast<float4*>(target), values);
#else
    atomicAdd(target, values.x);
    atomicAdd(target + 1, values.y);
    atomicAdd(target + 2, values.z);
    atomicAdd(target + 3, values.w);
#endif
  }
};

// Units a number: the largest power of two with which the sums of all bins stay within 62 bits. A gradient that isn't
// finite makes it NaN, and with it all sums.
__device__ double units(double largest, int bits_of_count) {
  if (!(largest < HUGE_VAL)) {
    return NAN;
  }
  int exponent = 0;
  ::frexp(largest, &exponent);
  const int power = 62 - bits_of_count - exponent;
  return ::ldexp(1., power < 1000 ? power : 1000);
}

template <typename acc_t>
struct AddFixed {
  using Cell = unsigned long long;
  const acc_t* largest;  // of all gradients' absolute values
  int bits_of_count;
  double scale;

  __device__ void prepare() { scale = units(double(*largest), bits_of_count); }

  template <int kPack>
  __device__ void add(Cell* target, const Pack<acc_t, kPack>& grad, acc_t weight) const {
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      atomicAdd(target + k, Cell(__double2ll_rn(double(grad.values[k]) * double(weight) * scale)));
    }
  }
};

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

template <typename acc_t>
__global__ void from_units(const int64_t* sums, const acc_t* largest, int bits_of_count, int64_t count, acc_t* out) {
  const double inverse = 1. / units(double(*largest), bits_of_count);
  for (int64_t i = first_index(); i < count; i += index_step()) {
    out[i] = acc_t(double(sums[i]) * inverse);
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

std::vector<at::Tensor> zero_maps(at::IntArrayRef shape, const at::TensorOptions& options) {
  std::vector<at::Tensor> maps;
  for (size_t i = 2; i < shape.size(); i += 2) {
    maps.push_back(at::empty({shape[0], shape[1], shape[i], shape[i + 1]}, options, at::MemoryFormat::ChannelsLast).zero_());
  }
  return maps;
}

template <typename acc_t>
std::vector<at::Tensor> spread_fixed(const at::Tensor& grad, const RoiTensors& rois, c10::ArrayRef<double> scales, const Rule& rule,
                                     at::IntArrayRef shape) {
  auto out = zero_maps(shape, grad.options());
  if (grad.numel() == 0) {
    return out;
  }
  const auto cells = zero_maps(shape, grad.options().dtype(at::kLong));
  const auto largest = at::amax(at::abs(grad));
  const int bits = int(std::ceil(std::log2(double(grad.numel() / grad.size(1)) + 1)));
  const auto* value = largest.const_data_ptr<acc_t>();
  launch<acc_t>(grad, rois, scales, rule, cells, AddFixed<acc_t>{value, bits, 0});
  for (size_t i = 0; i < out.size(); ++i) {
    const int64_t count = out[i].numel();
    if (count > 0) {
      from_units<acc_t><<<num_blocks(count), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
          cells[i].const_data_ptr<int64_t>(), value, bits, count, out[i].mutable_data_ptr<acc_t>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
  }
  return out;
}

template <typename acc_t>
std::vector<at::Tensor> spread_all(const at::Tensor& grad, const RoiTensors& rois, c10::ArrayRef<double> scales, const Rule& rule,
                                   at::IntArrayRef shape) {
  if (at::globalContext().deterministicAlgorithms()) {
    return spread_fixed<acc_t>(grad, rois, scales, rule, shape);
  }
  auto out = zero_maps(shape, grad.options());
  launch<acc_t>(grad, rois, scales, rule, out, AddFloating<acc_t>{});
  return out;
}

std::vector<at::Tensor> roi_align_backward(const at::Tensor& grad, const at::Tensor& boxes, const at::Tensor& image_inds,
                                           const at::Tensor& levels, c10::ArrayRef<double> scales, at::IntArrayRef feature_shape,
                                           int64_t sampling_ratio, double shift, double min_size) {
  TORCH_CHECK_VALUE(feature_shape.size() >= 4 && feature_shape.size() % 2 == 0,
                    "maskrcnn_bench::roi_align_backward: feature_shape: expected [N, C, H0, W0, H1, W1, ...], got ", feature_shape);
  TORCH_CHECK_VALUE(grad.dim() == 4, "maskrcnn_bench::roi_align_backward: grad: expected [R, C, height, width], got ", grad.sizes());
  check_shape("roi_align_backward", "grad", grad, {boxes.size(0), feature_shape[1], grad.size(2), grad.size(3)});
  const c10::cuda::CUDAGuard guard(grad.device());
  const auto acc = grad.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
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
