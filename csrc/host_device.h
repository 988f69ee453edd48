// Code that the CPU and the CUDA kernels share runs on both; both are compiled without contraction of multiply and add.
#pragma once

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif
