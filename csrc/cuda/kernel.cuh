// What the CUDA kernels share: checks, launch sizes. Nothing here or beside it waits for the device or copies to the
// host, so indices can't be checked; kernels treat those outside a tensor as padding.
#pragma once
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdint>

#include "../cpu/kernel.h"

namespace maskrcnn_bench {

constexpr int kThreads = 256;

inline void check_device(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& first) {
  TORCH_CHECK_VALUE(tensor.device() == first.device(), "maskrcnn_bench::", op, ": ", name, ": expected a tensor on ", first.device(),
                    ", got ", tensor.device());
}

constexpr uintptr_t kWide = 16;  // bytes that a thread reads at once

inline bool is_aligned(const at::Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kWide == 0; }

inline at::Tensor aligned(const at::Tensor& tensor) { return is_aligned(tensor) ? tensor : tensor.clone(); }

// Blocks of kThreads for `count` threads; kernels with more work than threads go round.
inline unsigned num_blocks(int64_t count) {
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return unsigned(blocks < (int64_t(1) << 30) ? blocks : int64_t(1) << 30);
}

__device__ inline int64_t first_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t index_step() { return int64_t(gridDim.x) * blockDim.x; }

}  // namespace maskrcnn_bench
