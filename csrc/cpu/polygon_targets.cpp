// Mask targets from polygons, with the rasterisation of the COCO API: the heights noted along the outline
// (polygon_walk.h), in column-major order, toggle between outside and inside.
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../polygon_walk.h"
#include "kernel.h"

namespace maskrcnn_bench {
namespace {

class Grid {
 public:
  explicit Grid(int64_t resolution) : size_(resolution), toggles_(resolution * resolution + 1) {}

  void clear() { std::fill(toggles_.begin(), toggles_.end(), 0); }

  void add_edge(Point from, Point to) {
    const auto toggle = [this](int64_t position) { toggles_[position] ^= 1; };
    EdgeWalk<decltype(toggle)>(size_, toggle).walk(from, to);
  }

  // Row-major, or with what `out` holds.
  void merge_into(uint8_t* out) const {
    uint8_t inside = 0;
    for (int64_t x = 0; x < size_; ++x) {
      for (int64_t y = 0; y < size_; ++y) {
        inside ^= toggles_[x * size_ + y];
        out[y * size_ + x] |= inside;
      }
    }
  }

 private:
  int64_t size_;
  std::vector<uint8_t> toggles_;  // at a column-major position; the last one is the end of the grid
};

template <typename T>
struct Packed {
  const T* vertices;
  const int64_t* ring_offsets;
  const int64_t* object_offsets;

  void draw(int64_t object, const T* frame, Grid& grid, uint8_t* out) const {
    for (int64_t ring = object_offsets[object]; ring < object_offsets[object + 1]; ++ring) {
      const int64_t begin = ring_offsets[ring];
      const int64_t end = ring_offsets[ring + 1];
      if (end - begin < 3) {
        continue;
      }
      grid.clear();
      Point previous = place(vertices + 2 * (end - 1), frame);
      for (int64_t i = begin; i < end; ++i) {
        const Point point = place(vertices + 2 * i, frame);
        grid.add_edge(previous, point);
        previous = point;
      }
      grid.merge_into(out);
    }
  }
};

void check_offsets(const char* name, const at::Tensor& offsets, int64_t limit) {
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.size(0) > 0, "maskrcnn_bench::polygon_targets: ", name, ": expected at least [1], got ",
                    offsets.sizes());
  const auto* value = offsets.const_data_ptr<int64_t>();
  int64_t previous = 0;
  for (int64_t i = 0; i < offsets.size(0); ++i) {
    TORCH_CHECK_INDEX(value[i] >= previous && value[i] <= limit, "maskrcnn_bench::polygon_targets: ", name, "[", i,
                      "]: expected ascending offsets from 0 to ", limit, ", got ", value[i], " after ", previous);
    previous = value[i];
  }
}

template <typename T>
void draw_all(const at::Tensor& vertices, const at::Tensor& rings, const at::Tensor& objects, const at::Tensor& frames,
              const at::Tensor& inds, int64_t resolution, at::Tensor& out) {
  const Packed<T> packed{vertices.const_data_ptr<T>(), rings.const_data_ptr<int64_t>(), objects.const_data_ptr<int64_t>()};
  const auto* ind = inds.const_data_ptr<int64_t>();
  const auto* frame = frames.const_data_ptr<T>();
  auto* target = out.mutable_data_ptr<uint8_t>();
  at::parallel_for(0, inds.size(0), 8, [&](int64_t begin, int64_t end) {
    Grid grid(resolution);
    for (int64_t r = begin; r < end; ++r) {
      if (ind[r] >= 0) {
        packed.draw(ind[r], frame + 4 * r, grid, target + r * resolution * resolution);
      }
    }
  });
}

at::Tensor polygon_targets(const at::Tensor& vertices, const at::Tensor& ring_offsets, const at::Tensor& object_offsets,
                           const at::Tensor& frames, const at::Tensor& object_inds, int64_t resolution) {
  const int64_t count = object_inds.size(0);
  check_shape("polygon_targets", "vertices", vertices, {vertices.size(0), 2});
  check_shape("polygon_targets", "frames", frames, {count, 4});
  TORCH_CHECK_VALUE(resolution > 0, "maskrcnn_bench::polygon_targets: resolution: expected > 0, got ", resolution);
  const auto type = vertices.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto vertices_ = vertices.to(type).contiguous();
  const auto frames_ = frames.to(type).contiguous();
  const auto rings = ring_offsets.to(at::kLong).contiguous();
  const auto objects = object_offsets.to(at::kLong).contiguous();
  const auto inds = object_inds.to(at::kLong).contiguous();
  check_offsets("ring_offsets", rings, vertices.size(0));
  check_offsets("object_offsets", objects, rings.size(0) - 1);
  for (int64_t r = 0; r < count; ++r) {
    const auto ind = inds.const_data_ptr<int64_t>()[r];
    TORCH_CHECK_INDEX(ind >= -1 && ind < objects.size(0) - 1, "maskrcnn_bench::polygon_targets: object_inds[", r,
                      "]: expected -1 (none) to ", objects.size(0) - 2, ", got ", ind);
  }
  auto out = at::zeros({count, resolution, resolution}, vertices.options().dtype(at::kByte));
  if (type == at::kDouble) {
    draw_all<double>(vertices_, rings, objects, frames_, inds, resolution, out);
  } else {
    draw_all<float>(vertices_, rings, objects, frames_, inds, resolution, out);
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CPU, m) { m.impl("polygon_targets", TORCH_FN(polygon_targets)); }

}  // namespace maskrcnn_bench
