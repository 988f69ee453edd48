// Gradients of maps: many threads add to the same pixels. With torch.use_deterministic_algorithms(True) the sums are kept as
// 64-bit integers, whose additions have no order; without, in the dtype of the sums.
#pragma once
#include <ATen/Context.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <vector>

#include "roi_samples.cuh"

namespace maskrcnn_bench {

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
__device__ inline double units(double largest, int bits_of_count) {
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

template <typename acc_t>
static __global__ void from_units(const int64_t* sums, const acc_t* largest, int bits_of_count, int64_t count, acc_t* out) {
  const double inverse = 1. / units(double(*largest), bits_of_count);
  for (int64_t i = first_index(); i < count; i += index_step()) {
    out[i] = acc_t(double(sums[i]) * inverse);
  }
}

// Channels-last maps of zeros; shape = [N, C, H0, W0, H1, W1, ...].
inline std::vector<at::Tensor> zero_maps(at::IntArrayRef shape, const at::TensorOptions& options) {
  std::vector<at::Tensor> maps;
  for (size_t i = 2; i < shape.size(); i += 2) {
    maps.push_back(at::empty({shape[0], shape[1], shape[i], shape[i + 1]}, options, at::MemoryFormat::ChannelsLast).zero_());
  }
  return maps;
}

// The sums of what `launch(maps, add)` adds to maps of the shape; `add` is one of the two above, and `maps` hold its cells.
// In magnitude no more than one times its element of `grad` [R, C, height, width] may come to a channel of all maps.
template <typename acc_t, typename Launch>
std::vector<at::Tensor> sum_into_maps(const at::Tensor& grad, at::IntArrayRef shape, Launch launch) {
  auto out = zero_maps(shape, grad.options());
  if (grad.numel() == 0) {
    return out;
  }
  if (!at::globalContext().deterministicAlgorithms()) {
    launch(out, AddFloating<acc_t>{});
    return out;
  }
  const auto cells = zero_maps(shape, grad.options().dtype(at::kLong));
  const auto largest = at::amax(at::abs(grad));
  const int bits = int(std::ceil(std::log2(double(grad.numel() / grad.size(1)) + 1)));
  const auto* value = largest.const_data_ptr<acc_t>();
  launch(cells, AddFixed<acc_t>{value, bits, 0});
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

}  // namespace maskrcnn_bench
