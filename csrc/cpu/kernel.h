// What the CPU kernels share: run-time choice of the instruction set, and (with the CUDA kernels) checks of the arguments.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

// One copy of the function for each instruction set; the dynamic loader picks the best when the library is opened.
// Nothing is built with -march=native, so a cached library may travel between machines of one architecture.
// Clones are made of a function's own loops: a lambda inside, or a call that isn't inlined, stays generic.
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define CPU_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CPU_CLONES
#endif

namespace maskrcnn_bench {

inline void check_shape(const char* op, const char* name, const at::Tensor& tensor, c10::IntArrayRef expected) {
  TORCH_CHECK_VALUE(tensor.sizes() == expected, "maskrcnn_bench::", op, ": ", name, ": expected shape ", expected, ", got ",
                    tensor.sizes());
}

inline void check_dtype(const char* op, const char* name, const at::Tensor& tensor, at::ScalarType expected) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == expected, "maskrcnn_bench::", op, ": ", name, ": expected ", expected, ", got ",
                    tensor.scalar_type());
}

}  // namespace maskrcnn_bench
