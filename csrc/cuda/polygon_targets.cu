// Mask targets from polygons, one block a box: threads walk along the edges (polygon_walk.h) and flip bits; a running
// parity of the bits, column by column, is the inside of a ring.
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../polygon_walk.h"
#include "kernel.cuh"

namespace maskrcnn_bench {
namespace {

constexpr int kBoxThreads = 128;  // of a box's block
constexpr int kBits = 32;         // of a word

template <typename T>
struct Packed {
  const T* vertices;
  const int64_t* ring_offsets;
  const int64_t* object_offsets;
  int64_t num_vertices, num_rings, num_objects;
};

struct FlipBit {
  uint32_t* words;

  __device__ void operator()(int64_t position) const { atomicXor(words + position / kBits, 1u << (position % kBits)); }
};

// Running parity within each word, then of the words before it; the result is added to `joint`.
__device__ void merge_ring(const uint32_t* toggles, uint32_t* parities, uint32_t* joint, int words) {
  for (int i = threadIdx.x; i < words; i += blockDim.x) {
    parities[i] = __popc(toggles[i]) & 1;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < words; i += blockDim.x) {
    uint32_t carry = 0;
    for (int before = 0; before < i; ++before) {
      carry ^= parities[before];
    }
    uint32_t inside = toggles[i];
    for (int shift = 1; shift < kBits; shift *= 2) {
      inside ^= inside << shift;
    }
    joint[i] |= carry ? ~inside : inside;
  }
}

template <typename T>
__global__ void draw(Packed<T> packed, const T* frames, const int64_t* inds, int size, uint8_t* out) {
  extern __shared__ uint32_t shared[];
  const int words = (size * size + kBits) / kBits;  // one bit more: the end of the grid
  uint32_t* toggles = shared;
  uint32_t* parities = toggles + words;
  uint32_t* joint = parities + words;
  const int64_t object = inds[blockIdx.x];
  if (object < 0 || object >= packed.num_objects) {
    return;
  }
  const T* frame = frames + 4 * int64_t(blockIdx.x);
  for (int i = threadIdx.x; i < words; i += blockDim.x) {
    joint[i] = 0;
  }
  const int64_t first_ring = limited<int64_t>(packed.object_offsets[object], 0, packed.num_rings);
  const int64_t end_ring = limited<int64_t>(packed.object_offsets[object + 1], 0, packed.num_rings);
  for (int64_t ring = first_ring; ring < end_ring; ++ring) {
    const int64_t begin = limited<int64_t>(packed.ring_offsets[ring], 0, packed.num_vertices);
    const int64_t end = limited<int64_t>(packed.ring_offsets[ring + 1], 0, packed.num_vertices);
    if (end - begin < 3) {
      continue;
    }
    for (int i = threadIdx.x; i < words; i += blockDim.x) {
      toggles[i] = 0;
    }
    __syncthreads();
    EdgeWalk<FlipBit> edges(size, FlipBit{toggles});
    for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
      const int64_t previous = i == begin ? end - 1 : i - 1;
      edges.walk(place(packed.vertices + 2 * previous, frame), place(packed.vertices + 2 * i, frame));
    }
    __syncthreads();
    merge_ring(toggles, parities, joint, words);
    __syncthreads();
  }
  __syncthreads();
  uint8_t* target = out + int64_t(blockIdx.x) * size * size;
  for (int i = threadIdx.x; i < size * size; i += blockDim.x) {
    const int position = i % size * size + i / size;
    target[i] = joint[position / kBits] >> (position % kBits) & 1;
  }
}

template <typename T>
void draw_all(const at::Tensor& vertices, const at::Tensor& rings, const at::Tensor& objects, const at::Tensor& frames,
              const at::Tensor& inds, int64_t resolution, at::Tensor& out) {
  const Packed<T> packed{vertices.const_data_ptr<T>(),      rings.const_data_ptr<int64_t>(), objects.const_data_ptr<int64_t>(),
                         vertices.size(0), rings.size(0) - 1, objects.size(0) - 1};
  const auto memory = 3 * sizeof(uint32_t) * ((resolution * resolution + kBits) / kBits);
  draw<T><<<unsigned(inds.size(0)), kBoxThreads, memory, c10::cuda::getCurrentCUDAStream()>>>(
      packed, frames.const_data_ptr<T>(), inds.const_data_ptr<int64_t>(), int(resolution), out.mutable_data_ptr<uint8_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor polygon_targets(const at::Tensor& vertices, const at::Tensor& ring_offsets, const at::Tensor& object_offsets,
                           const at::Tensor& frames, const at::Tensor& object_inds, int64_t resolution) {
  const int64_t count = object_inds.size(0);
  check_shape("polygon_targets", "vertices", vertices, {vertices.size(0), 2});
  check_shape("polygon_targets", "frames", frames, {count, 4});
  TORCH_CHECK_VALUE(ring_offsets.dim() == 1 && ring_offsets.size(0) > 0 && object_offsets.dim() == 1 && object_offsets.size(0) > 0,
                    "maskrcnn_bench::polygon_targets: offsets: expected at least [1], got ", ring_offsets.sizes(), " and ",
                    object_offsets.sizes());
  TORCH_CHECK_VALUE(resolution > 0 && resolution <= 256, "maskrcnn_bench::polygon_targets: resolution: expected 1 to 256, got ",
                    resolution);
  check_device("polygon_targets", "ring_offsets", ring_offsets, vertices);
  check_device("polygon_targets", "object_offsets", object_offsets, vertices);
  check_device("polygon_targets", "frames", frames, vertices);
  check_device("polygon_targets", "object_inds", object_inds, vertices);
  const c10::cuda::CUDAGuard guard(vertices.device());
  const auto type = vertices.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto vertices_ = vertices.to(type).contiguous();
  const auto frames_ = frames.to(type).contiguous();
  const auto rings = ring_offsets.to(at::kLong).contiguous();
  const auto objects = object_offsets.to(at::kLong).contiguous();
  const auto inds = object_inds.to(at::kLong).contiguous();
  auto out = at::zeros({count, resolution, resolution}, vertices.options().dtype(at::kByte));
  if (count == 0) {
    return out;
  }
  if (type == at::kDouble) {
    draw_all<double>(vertices_, rings, objects, frames_, inds, resolution, out);
  } else {
    draw_all<float>(vertices_, rings, objects, frames_, inds, resolution, out);
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CUDA, m) { m.impl("polygon_targets", TORCH_FN(polygon_targets)); }

}  // namespace maskrcnn_bench
