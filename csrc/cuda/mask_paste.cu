// Masks of boxes to the edges of their vertical runs, without an image: a thread walks down one column of one mask, once to count
// its edges and once to write them where the counts before it say. The values are those of the CPU's kernel, to the bit.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../mask_sampling.h"
#include "kernel.cuh"

namespace maskrcnn_bench {
namespace {

struct Masks {
  const float* probs;  // [n, S, S]
  const float* boxes;  // [n, 4]
  int64_t count, resolution, padding, height, width;
  float threshold;
};

// A mask with its rule's padding and border.
template <typename Rule>
struct Bordered {
  const float* values;
  int64_t resolution, padding;

  // Two neighbouring values of a row; both counted with the border.
  __device__ void read(int row, int column, float* pair) const {
    pair[0] = at(row, column);
    pair[1] = at(row, column + 1);
  }

 private:
  __device__ float at(int row, int column) const {
    const int64_t y = inside(row), x = inside(column);
    return y >= 0 && y < resolution && x >= 0 && x < resolution ? values[y * resolution + x] : 0.f;
  }

  // The last value is repeated behind the padding, where the rule says so.
  __device__ int64_t inside(int place) const {
    const int64_t last = resolution + 2 * padding + kBorder - 1;
    return (Rule::kRepeatsEdge && place == last + 1 ? last : place) - padding - kBorder;
  }
};

// Calls `visit(row)` where a vertical run of a column begins and where it ends.
template <typename Rule, typename Visit>
__device__ void walk_column(Rule rule, const Masks& masks, int64_t mask, int64_t column, Visit visit) {
  const float* box = masks.boxes + 4 * mask;
  const auto columns = rule.axis(box[0], box[2], masks.width, masks.resolution, masks.padding);
  if (column < columns.begin || column >= columns.end) {
    return;
  }
  const auto rows = rule.axis(box[1], box[3], masks.height, masks.resolution, masks.padding);
  rule.set_size(columns.length, rows.length);
  const Bordered<Rule> values{masks.probs + mask * masks.resolution * masks.resolution, masks.resolution, masks.padding};
  const Place x = columns.place(column);
  float upper[2], lower[2];
  int loaded = -1;
  bool inside = false;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const Place y = rows.place(row);
    if (y.low != loaded) {
      values.read(y.low, x.low, upper);
      values.read(y.low + 1, x.low, lower);
      loaded = y.low;
    }
    const bool now = Rule::inside(rule.value(upper, lower, x.share, y.share), masks.threshold);
    if (now != inside) {
      visit(row);
      inside = now;
    }
  }
  if (inside) {
    visit(rows.end);
  }
}

template <typename Rule>
__global__ void count_edges(Rule rule, Masks masks, int* counts) {
  for (int64_t i = first_index(); i < masks.count * masks.width; i += index_step()) {
    int count = 0;
    walk_column(rule, masks, i / masks.width, i % masks.width, [&](int64_t) { ++count; });
    counts[i] = count;
  }
}

template <typename Rule>
__global__ void write_edges(Rule rule, Masks masks, const int64_t* ends, int64_t total, int64_t* edges) {
  for (int64_t i = first_index(); i < masks.count * masks.width; i += index_step()) {
    int64_t at = i > 0 ? ends[i - 1] : 0;
    const int64_t end = ends[i] < total ? ends[i] : total;
    const int64_t column = i % masks.width;
    walk_column(rule, masks, i / masks.width, column, [&](int64_t row) {
      if (at >= 0 && at < end) {
        edges[at++] = column * masks.height + row;
      }
    });
  }
}

// Tensors in the order in which threads read them, and their view.
struct Arguments {
  at::Tensor probs, boxes;
  Masks masks;

  Arguments(const char* op, const at::Tensor& probs_, const at::Tensor& boxes_, int64_t height, int64_t width, double threshold,
            int64_t padding)
      : probs(probs_.contiguous()), boxes(boxes_.contiguous()) {
    TORCH_CHECK_VALUE(probs.dim() == 3, "maskrcnn_bench::", op, ": probs: expected [n, S, S], got ", probs.sizes());
    check_shape(op, "probs", probs, {probs.size(0), probs.size(1), probs.size(1)});
    check_shape(op, "boxes", boxes, {probs.size(0), 4});
    check_dtype(op, "probs", probs, at::kFloat);
    check_dtype(op, "boxes", boxes, at::kFloat);
    check_device(op, "boxes", boxes, probs);
    TORCH_CHECK_VALUE(padding >= 0 && height >= 0 && width >= 0, "maskrcnn_bench::", op, ": expected padding, height and width >= 0");
    masks = {probs.const_data_ptr<float>(), boxes.const_data_ptr<float>(), probs.size(0), probs.size(1), padding, height, width,
             float(threshold)};
  }

  int64_t columns() const { return masks.count * masks.width; }
};

// Calls `launch(rule)` with the rule of that name.
template <typename Launch>
void with_rule(const char* op, c10::string_view rule, bool fused, Masks& masks, Launch launch) {
  if (rule == "expand_truncate") {
    launch(ExpandTruncate{{fused}});
  } else {
    TORCH_CHECK_VALUE(rule == "pixel_centres", "maskrcnn_bench::", op, ": rule: expected expand_truncate or pixel_centres, got ", rule);
    masks.padding = 0;
    launch(PixelCentres{{fused}});
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor mask_edge_counts(const at::Tensor& probs, const at::Tensor& boxes, int64_t height, int64_t width, double threshold,
                            c10::string_view rule, int64_t padding, bool fused) {
  const c10::cuda::CUDAGuard guard(probs.device());
  Arguments arguments("mask_edge_counts", probs, boxes, height, width, threshold, padding);
  auto counts = at::zeros({probs.size(0), width}, probs.options().dtype(at::kInt));
  if (counts.numel() == 0) {
    return counts;
  }
  with_rule("mask_edge_counts", rule, fused, arguments.masks, [&](auto chosen) {
    count_edges<<<num_blocks(arguments.columns()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(chosen, arguments.masks,
                                                                                                     counts.mutable_data_ptr<int>());
  });
  return counts;
}

at::Tensor mask_edges(const at::Tensor& probs, const at::Tensor& boxes, const at::Tensor& ends, int64_t total, int64_t height,
                      int64_t width, double threshold, c10::string_view rule, int64_t padding, bool fused) {
  const c10::cuda::CUDAGuard guard(probs.device());
  Arguments arguments("mask_edges", probs, boxes, height, width, threshold, padding);
  check_shape("mask_edges", "ends", ends, {probs.size(0), width});
  check_dtype("mask_edges", "ends", ends, at::kLong);
  check_device("mask_edges", "ends", ends, probs);
  TORCH_CHECK_VALUE(total >= 0, "maskrcnn_bench::mask_edges: total: expected >= 0, got ", total);
  const auto ends_ = ends.contiguous();
  auto edges = at::empty({total}, ends.options());
  if (total == 0 || ends.numel() == 0) {
    return edges.zero_();
  }
  with_rule("mask_edges", rule, fused, arguments.masks, [&](auto chosen) {
    write_edges<<<num_blocks(arguments.columns()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        chosen, arguments.masks, ends_.const_data_ptr<int64_t>(), total, edges.mutable_data_ptr<int64_t>());
  });
  return edges;
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CUDA, m) {
  m.impl("mask_edge_counts", TORCH_FN(mask_edge_counts));
  m.impl("mask_edges", TORCH_FN(mask_edges));
}

}  // namespace maskrcnn_bench
