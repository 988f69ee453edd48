// Greedy non-maximum suppression, one block a row. Rows are sorted together; then a block takes 64 candidates at a time,
// compares them with the boxes kept so far and with each other, and settles the 64 in order. A row stops as soon as it
// has kept enough or meets padding. Memory is one box a candidate: no matrix of overlaps.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "kernel.cuh"

namespace maskrcnn_bench {
namespace {

constexpr int kChunk = 64;           // candidates settled at a time: the bits of a word
constexpr int kRowThreads = 512;     // of a row's block
constexpr int32_t kPadding = INT32_MAX;

// Ascending order of the result is descending order of the scores; NaN comes first, as in torch.sort; padding last.
__global__ void make_keys(const float* scores, const bool* valid, int64_t count, int32_t* keys) {
  for (int64_t i = first_index(); i < count; i += index_step()) {
    const float score = scores[i] + 0.0f;  // -0 and +0 tie
    const uint32_t bits = __float_as_uint(score);
    const uint32_t ascending = (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
    const uint32_t descending = score == score ? ~ascending : 0;
    keys[i] = valid[i] ? int32_t(descending ^ 0x80000000u) : kPadding;
  }
}

struct Rule {
  float threshold, pixel;

  __device__ float area(float4 box) const { return (box.z - box.x + pixel) * (box.w - box.y + pixel); }

  // The same operations, in the same order, as the CPU's kernel.
  __device__ bool overlap(float4 a, float4 b) const {
    const float left = a.x > b.x ? a.x : b.x;
    const float top = a.y > b.y ? a.y : b.y;
    const float right = a.z < b.z ? a.z : b.z;
    const float bottom = a.w < b.w ? a.w : b.w;
    const float raw_width = right - left + pixel;
    const float raw_height = bottom - top + pixel;
    const float width = raw_width > 0 ? raw_width : 0;
    const float height = raw_height > 0 ? raw_height : 0;
    const float intersection = width * height;
    const float joint = area(a) + area(b) - intersection;
    return (joint > 0 ? intersection / joint : 0) > threshold;
  }
};

using Word = unsigned long long;

struct Chunk {
  float4 boxes[kChunk];
  int64_t places[kChunk];  // in the row
  Word later[kChunk];      // candidates after each one that overlap it
  Word dropped;            // padding, or overlaps a box kept before
  Word kept;
};

__device__ void load_chunk(Chunk& chunk, const float4* boxes, const int32_t* keys, const int64_t* order, int64_t begin, int64_t size) {
  const int lane = threadIdx.x;
  if (lane == 0) {
    chunk.dropped = 0;
  }
  __syncthreads();
  if (lane >= kChunk) {
    return;
  }
  chunk.later[lane] = 0;
  const int64_t at = begin + lane;
  if (at < size && keys[at] != kPadding) {
    chunk.places[lane] = order[at];
    chunk.boxes[lane] = boxes[order[at]];
  } else {
    chunk.boxes[lane] = make_float4(0, 0, 0, 0);
    atomicOr(&chunk.dropped, Word(1) << lane);
  }
}

// A warp looks at 32 candidates and one other box.
__device__ void compare(Chunk& chunk, const float4* kept, int64_t num_kept, Rule rule) {
  const int lane = threadIdx.x % kChunk;
  const int group = threadIdx.x / kChunk;
  const int groups = blockDim.x / kChunk;
  const float4 box = chunk.boxes[lane];
  for (int other = group; other < lane; other += groups) {
    if (rule.overlap(box, chunk.boxes[other])) {
      atomicOr(&chunk.later[other], Word(1) << lane);
    }
  }
  for (int64_t other = group; other < num_kept; other += groups) {
    if (rule.overlap(box, kept[other])) {
      atomicOr(&chunk.dropped, Word(1) << lane);
      return;
    }
  }
}

// One thread: the first candidate left is kept, those that overlap it fall out.
__device__ Word settle(const Chunk& chunk, int64_t most) {
  Word left = ~chunk.dropped;
  Word kept = 0;
  for (; left && most > 0; --most) {
    const int lane = __ffsll(static_cast<long long>(left)) - 1;
    kept |= Word(1) << lane;
    left &= ~(Word(1) << lane) & ~chunk.later[lane];
  }
  return kept;
}

__global__ void __launch_bounds__(kRowThreads) suppress(const float4* boxes, const int32_t* keys, const int64_t* order, int64_t size,
                                                        Rule rule, int64_t limit, float4* kept_boxes, bool* keep) {
  __shared__ Chunk chunk;
  const int64_t row = int64_t(blockIdx.x) * size;
  float4* kept = kept_boxes + row;
  int64_t num_kept = 0;
  for (int64_t begin = 0; begin < size && num_kept < limit && keys[row + begin] != kPadding; begin += kChunk) {
    load_chunk(chunk, boxes + row, keys + row, order + row, begin, size);
    __syncthreads();
    compare(chunk, kept, num_kept, rule);
    __syncthreads();
    if (threadIdx.x == 0) {
      chunk.kept = settle(chunk, limit - num_kept);
    }
    __syncthreads();
    const Word bits = chunk.kept;
    if (threadIdx.x < kChunk && (bits >> threadIdx.x & 1)) {
      kept[num_kept + __popcll(bits & ((Word(1) << threadIdx.x) - 1))] = chunk.boxes[threadIdx.x];
      keep[row + chunk.places[threadIdx.x]] = true;
    }
    num_kept += __popcll(bits);
    __syncthreads();
  }
}

// The largest float that is not above `threshold` (a double): comparing floats with it decides as with the double.
float floor_to_float(double threshold) {
  const auto nearest = float(threshold);
  return double(nearest) > threshold ? std::nextafter(nearest, -std::numeric_limits<float>::infinity()) : nearest;
}

at::Tensor nms(const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& valid, double threshold, double pixel,
               int64_t max_keep) {
  TORCH_CHECK_VALUE(scores.dim() == 2, "maskrcnn_bench::nms: scores: expected [B, R], got ", scores.sizes());
  const int64_t rows = scores.size(0);
  const int64_t size = scores.size(1);
  check_shape("nms", "boxes", boxes, {rows, size, 4});
  check_shape("nms", "valid", valid, {rows, size});
  check_dtype("nms", "valid", valid, at::kBool);
  check_device("nms", "boxes", boxes, scores);
  check_device("nms", "valid", valid, scores);
  const c10::cuda::CUDAGuard guard(scores.device());
  auto keep = at::zeros({rows, size}, valid.options());
  if (rows * size == 0 || max_keep == 0) {
    return keep;
  }
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const auto boxes_ = aligned(boxes.to(at::kFloat).contiguous());
  const auto scores_ = scores.to(at::kFloat).contiguous();
  const auto valid_ = valid.contiguous();
  auto keys = at::empty({rows, size}, scores.options().dtype(at::kInt));
  make_keys<<<num_blocks(rows * size), kThreads, 0, stream>>>(scores_.const_data_ptr<float>(), valid_.const_data_ptr<bool>(), rows * size,
                                                              keys.mutable_data_ptr<int32_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const auto [sorted, order] = at::sort(keys, /*stable=*/true, /*dim=*/1, /*descending=*/false);
  auto kept = at::empty_like(boxes_);
  const Rule rule{floor_to_float(threshold), float(pixel)};
  suppress<<<unsigned(rows), kRowThreads, 0, stream>>>(
      reinterpret_cast<const float4*>(boxes_.const_data_ptr<float>()), sorted.const_data_ptr<int32_t>(), order.const_data_ptr<int64_t>(),
      size, rule, max_keep < 0 ? size : max_keep, reinterpret_cast<float4*>(kept.mutable_data_ptr<float>()),
      keep.mutable_data_ptr<bool>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return keep;
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CUDA, m) { m.impl("nms", TORCH_FN(nms)); }

}  // namespace maskrcnn_bench
