// Mask targets from polygons, with the rasterisation of the COCO API. That algorithm draws the outline on a grid five
// times finer, walks along it point by point, and where the walk passes the centre line of a pixel column notes the
// height; the notes, in column-major order, toggle between outside and inside. Here only the points next to a centre
// line are computed, so a polygon far outside the frame costs no more than one inside; every point has the same
// rounding as in the walk (build without contraction of multiply and add).
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "kernel.h"

namespace maskrcnn_bench {
namespace {

constexpr int64_t kFine = 5;    // fine units a pixel
constexpr int64_t kCentre = 2;  // a crossing lies between fine column 5 k + 2 and the next one

struct Point {
  int64_t x, y;
};

// Rounds as the COCO API does; far coordinates are limited to what its 32-bit integers hold.
int64_t to_fine(double pixels) {
  const double value = double(kFine) * pixels + .5;
  return int64_t(std::clamp(std::isnan(value) ? 0. : value, -1e9, 1e9));
}

int64_t ceil_divide(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }

class Grid {
 public:
  explicit Grid(int64_t resolution) : size_(resolution), toggles_(resolution * resolution + 1) {}

  void clear() { std::fill(toggles_.begin(), toggles_.end(), 0); }

  void add_edge(Point from, Point to) {
    const int64_t dx = std::abs(to.x - from.x);
    const int64_t dy = std::abs(to.y - from.y);
    if (dx == 0) {
      return;
    }
    if (dx >= dy) {
      add_flat_edge(from.x < to.x ? from : to, from.x < to.x ? to : from);
    } else {
      add_steep_edge(from.y < to.y ? from : to, from.y < to.y ? to : from);
    }
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
  // Columns whose crossing lies between two fine abscissae.
  int64_t first_column(int64_t low) const { return std::max<int64_t>(0, ceil_divide(low - kCentre, kFine)); }
  int64_t end_column(int64_t high) const { return std::min(size_, high < kCentre + 1 ? 0 : (high - kCentre - 1) / kFine + 1); }

  void toggle(int64_t column, int64_t fine_y) {
    toggles_[column * size_ + std::clamp<int64_t>(ceil_divide(fine_y - kCentre, kFine), 0, size_)] ^= 1;
  }

  // The walk takes every x once.
  void add_flat_edge(Point left, Point right) {
    const double slope = double(right.y - left.y) / double(right.x - left.x);
    const auto y_at = [&](int64_t x) { return int64_t(double(left.y) + slope * double(x - left.x) + .5); };
    for (int64_t column = first_column(left.x); column < end_column(right.x); ++column) {
      const int64_t x = kFine * column + kCentre;
      toggle(column, std::min(y_at(x), y_at(x + 1)));
    }
  }

  // The walk takes every y once; x changes by at most one at a step.
  void add_steep_edge(Point top, Point bottom) {
    const int64_t steps = bottom.y - top.y;
    const double slope = double(bottom.x - top.x) / double(steps);
    const auto x_at = [&](int64_t t) { return int64_t(double(top.x) + slope * double(t) + .5); };
    const bool rising = slope > 0;
    const int64_t low = x_at(rising ? 0 : steps);
    const int64_t high = x_at(rising ? steps : 0);
    for (int64_t column = first_column(low); column < end_column(high); ++column) {
      const int64_t x = kFine * column + kCentre;
      const auto passed = [&](int64_t t) { return rising ? x_at(t) > x : x_at(t) <= x; };
      const double guess = (double(x) + .5 - double(top.x)) / slope;
      auto t = int64_t(std::clamp(guess, 1., double(steps)));
      while (t > 1 && passed(t - 1)) {
        --t;
      }
      while (!passed(t)) {
        ++t;
      }
      toggle(column, top.y + t - 1);
    }
  }

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
      Point previous = place(end - 1, frame);
      const Point last = previous;
      for (int64_t i = begin; i < end; ++i) {
        const Point point = i == end - 1 ? last : place(i, frame);
        grid.add_edge(previous, point);
        previous = point;
      }
      grid.merge_into(out);
    }
  }

  Point place(int64_t i, const T* frame) const {
    const T x = (vertices[2 * i] - frame[0]) * frame[2];
    const T y = (vertices[2 * i + 1] - frame[1]) * frame[3];
    return {to_fine(double(x)), to_fine(double(y))};
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
