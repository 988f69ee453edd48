// Which object each box belongs to, without the matrix of overlaps: a thread keeps one box, and all objects pass through
// shared memory. Where the best box of each object matters, a first kernel finds the largest overlap of each object.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <torch/library.h>

#include "../match_rule.h"
#include "../overlap.h"
#include "kernel.cuh"

namespace maskrcnn_bench {
namespace {

constexpr int kObjects = 128;  // in shared memory at a time
constexpr unsigned kAll = 0xffffffffu;

struct Problem {
  const float4* objects;
  const bool* valid;
  const float4* boxes;
  const bool* rivals;
  int64_t count, slots;
  bool shared;  // the same boxes for all images
  MatchRule rule;
};

struct Chunk {
  float4 boxes[kObjects];
  float areas[kObjects];
  bool valid[kObjects];
  int best[kObjects];  // bits of a float; those of -1 and of floats from 0 on are ordered as whole numbers

  __device__ void load(const Problem& problem, int64_t image, int64_t begin, const int* best_of_objects) {
    __syncthreads();
    for (int i = threadIdx.x; i < kObjects; i += blockDim.x) {
      const int64_t at = image * problem.slots + begin + i;
      valid[i] = begin + i < problem.slots && problem.valid[at];
      const float4 box = valid[i] ? problem.objects[at] : make_float4(0, 0, 0, 0);
      boxes[i] = box;
      areas[i] = box_area(box.x, box.y, box.z, box.w, problem.rule.pixel);
      best[i] = valid[i] && best_of_objects != nullptr ? best_of_objects[at] : __float_as_int(-1.0f);
    }
    __syncthreads();
  }
};

// One box of a thread; the threads behind the last box go along with it, for the others wait for them.
struct Box {
  float4 box;
  float area;
  bool in_use, rival;
  int64_t at;

  __device__ Box(const Problem& problem, int64_t image) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    in_use = i < problem.count;
    const int64_t own = in_use ? i : problem.count - 1;
    box = problem.boxes[(problem.shared ? 0 : image * problem.count) + own];
    area = box_area(box.x, box.y, box.z, box.w, problem.rule.pixel);
    at = image * problem.count + own;
    rival = in_use && (problem.rivals == nullptr || problem.rivals[at]);
  }

  __device__ float overlap(const Chunk& chunk, int i, float pixel) const {
    const float4 other = chunk.boxes[i];
    return box_overlap(box.x, box.y, box.z, box.w, area, other.x, other.y, other.z, other.w, chunk.areas[i], pixel);
  }
};

__device__ int largest_of_warp(int value) {
  for (int distance = 16; distance > 0; distance /= 2) {
    value = max(value, __shfl_xor_sync(kAll, value, distance));
  }
  return value;
}

__global__ void find_best(Problem problem, int* best_of_objects) {
  __shared__ Chunk chunk;
  const int64_t image = blockIdx.y;
  const Box box(problem, image);
  for (int64_t begin = 0; begin < problem.slots; begin += kObjects) {
    chunk.load(problem, image, begin, nullptr);
    for (int i = 0; i < kObjects; ++i) {
      if (chunk.valid[i]) {  // the same for the whole block
        const int best = largest_of_warp(__float_as_int(box.rival ? box.overlap(chunk, i, problem.rule.pixel) : -1.0f));
        if (threadIdx.x % 32 == 0) {
          atomicMax(&chunk.best[i], best);
        }
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kObjects; i += blockDim.x) {
      if (chunk.valid[i]) {
        atomicMax(&best_of_objects[image * problem.slots + begin + i], chunk.best[i]);
      }
    }
  }
}

__global__ void find_match(Problem problem, const int* best_of_objects, int64_t* out) {
  __shared__ Chunk chunk;
  const int64_t image = blockIdx.y;
  const Box box(problem, image);
  float best = -1;
  int64_t match = 0, owner = -1;
  for (int64_t begin = 0; begin < problem.slots; begin += kObjects) {
    chunk.load(problem, image, begin, best_of_objects);
    for (int i = 0; i < kObjects; ++i) {
      if (!chunk.valid[i]) {
        continue;
      }
      const float overlap = box.overlap(chunk, i, problem.rule.pixel);
      if (overlap > best) {
        best = overlap;
        match = begin + i;
      }
      const float as_rival = box.rival ? overlap : -1.0f;
      if (as_rival == __int_as_float(chunk.best[i]) && as_rival >= problem.rule.least) {
        owner = begin + i;
      }
    }
  }
  if (box.in_use) {
    out[box.at] = problem.rule.answer(best, match, owner);
  }
}

at::Tensor match(const at::Tensor& objects, const at::Tensor& valid, const at::Tensor& boxes, const std::optional<at::Tensor>& rivals,
                 double pixel, double high, double low, bool low_quality, double least_overlap, bool to_best) {
  check_match(objects, valid, boxes, rivals);
  check_device("match", "valid", valid, objects);
  check_device("match", "boxes", boxes, objects);
  if (rivals.has_value()) {
    check_device("match", "rivals", *rivals, objects);
  }
  const c10::cuda::CUDAGuard guard(objects.device());
  const int64_t images = objects.size(0), count = boxes.size(-2), slots = objects.size(1);
  auto out = at::empty({images, count}, boxes.options().dtype(at::kLong));
  if (out.numel() == 0) {
    return out;
  }
  TORCH_CHECK_VALUE(images < 65536, "maskrcnn_bench::match: expected fewer than 65536 images, got ", images);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const auto objects_ = aligned(objects.to(at::kFloat).contiguous()), boxes_ = aligned(boxes.to(at::kFloat).contiguous());
  const auto valid_ = valid.contiguous();
  const auto rivals_ = rivals.has_value() ? rivals->contiguous() : at::Tensor();
  const Problem problem{reinterpret_cast<const float4*>(objects_.const_data_ptr<float>()),
                        valid_.const_data_ptr<bool>(),
                        reinterpret_cast<const float4*>(boxes_.const_data_ptr<float>()),
                        rivals.has_value() ? rivals_.const_data_ptr<bool>() : nullptr,
                        count,
                        slots,
                        boxes.dim() == 2,
                        {float(pixel), float(high), float(low), float(least_overlap), low_quality, to_best}};
  const dim3 blocks(unsigned((count + kThreads - 1) / kThreads), unsigned(images));
  // -1 as a float, for each object, filled as the whole number with the same bits.
  auto best = at::full({images, slots}, int64_t(INT32_MIN + 0x3f800000), objects.options().dtype(at::kInt));
  if (low_quality) {
    find_best<<<blocks, kThreads, 0, stream>>>(problem, best.mutable_data_ptr<int>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  find_match<<<blocks, kThreads, 0, stream>>>(problem, best.const_data_ptr<int>(), out.mutable_data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CUDA, m) { m.impl("match", TORCH_FN(match)); }

}  // namespace maskrcnn_bench
