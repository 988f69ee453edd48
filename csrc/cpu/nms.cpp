// Greedy non-maximum suppression, many independent rows at once. A candidate is compared with the boxes kept so far
// (not: every kept box with all candidates), so that a row may stop as soon as it has kept enough.
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <c10/util/bit_cast.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernel.h"

namespace maskrcnn_bench {
namespace {

constexpr int64_t kLanes = 64;           // boxes compared between two looks at the result
constexpr int64_t kWorthThreads = 2048;  // valid boxes in all rows that repay waking threads

struct Boxes {
  std::vector<float> x1, y1, x2, y2, area;

  explicit Boxes(int64_t size) : x1(size), y1(size), x2(size), y2(size), area(size) {}

  void set(int64_t i, const Boxes& from, int64_t j) {
    x1[i] = from.x1[j];
    y1[i] = from.y1[j];
    x2[i] = from.x2[j];
    y2[i] = from.y2[j];
    area[i] = from.area[j];
  }

  // Fills a group of lanes with boxes that meet no other.
  void clear_group(int64_t begin) {
    for (int64_t i = begin; i < begin + kLanes; ++i) {
      x1[i] = y1[i] = std::numeric_limits<float>::max();
      x2[i] = y2[i] = std::numeric_limits<float>::lowest();
      area[i] = 0;
    }
  }
};

// Is the overlap of a box with any of the first `count` boxes of `b` above the threshold? Reads whole groups.
CPU_CLONES bool overlaps_any(const float* __restrict bx1, const float* __restrict by1, const float* __restrict bx2,
                             const float* __restrict by2, const float* __restrict barea, int64_t count, float x1, float y1, float x2,
                             float y2, float area, float pixel, float threshold) {
  for (int64_t group = 0; group < count; group += kLanes) {
    int32_t found = 0;
    for (int64_t j = group; j < group + kLanes; ++j) {
      const float left = x1 > bx1[j] ? x1 : bx1[j];
      const float top = y1 > by1[j] ? y1 : by1[j];
      const float right = x2 < bx2[j] ? x2 : bx2[j];
      const float bottom = y2 < by2[j] ? y2 : by2[j];
      const float raw_width = right - left + pixel;
      const float raw_height = bottom - top + pixel;
      const float width = raw_width > 0 ? raw_width : 0;
      const float height = raw_height > 0 ? raw_height : 0;
      const float intersection = width * height;
      const float joint = area + barea[j] - intersection;
      const float iou = joint > 0 ? intersection / joint : 0;
      found |= iou > threshold ? 1 : 0;
    }
    if (found) {
      return true;
    }
  }
  return false;
}

struct Rule {
  float threshold, pixel;

  bool drops(const Boxes& kept, int64_t count, const Boxes& all, int64_t i) const {
    return overlaps_any(kept.x1.data(), kept.y1.data(), kept.x2.data(), kept.y2.data(), kept.area.data(), count, all.x1[i], all.y1[i],
                        all.x2[i], all.y2[i], all.area[i], pixel, threshold);
  }
};

// Ascending order of the result is descending order of the scores; NaN comes first, as in torch.sort.
uint32_t descending_bits(float score) {
  if (std::isnan(score)) {
    return 0;
  }
  const auto bits = c10::bit_cast<uint32_t>(score + 0.0f);  // -0 and +0 tie
  const uint32_t ascending = (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
  return ~ascending;
}

// Indices of the valid boxes by descending score, the lower index first among equals.
std::vector<uint32_t> visiting_order(const float* scores, const bool* valid, int64_t size) {
  std::vector<uint64_t> keys;
  keys.reserve(size);
  for (int64_t i = 0; i < size; ++i) {
    if (valid[i]) {
      keys.push_back(uint64_t(descending_bits(scores[i])) << 32 | uint64_t(i));
    }
  }
  std::sort(keys.begin(), keys.end());
  std::vector<uint32_t> order(keys.size());
  std::transform(keys.begin(), keys.end(), order.begin(), [](uint64_t key) { return uint32_t(key); });
  return order;
}

Boxes gather(const float* boxes, const std::vector<uint32_t>& order, float pixel) {
  Boxes sorted(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    const float* box = boxes + 4 * int64_t(order[i]);
    sorted.x1[i] = box[0];
    sorted.y1[i] = box[1];
    sorted.x2[i] = box[2];
    sorted.y2[i] = box[3];
    sorted.area[i] = (box[2] - box[0] + pixel) * (box[3] - box[1] + pixel);
  }
  return sorted;
}

void nms_row(const float* boxes, const float* scores, const bool* valid, int64_t size, Rule rule, int64_t limit, bool* keep) {
  const auto order = visiting_order(scores, valid, size);
  const Boxes sorted = gather(boxes, order, rule.pixel);
  Boxes kept(int64_t(order.size()) + kLanes);
  int64_t num_kept = 0;
  for (int64_t i = 0; i < int64_t(order.size()) && num_kept < limit; ++i) {
    if (rule.drops(kept, num_kept, sorted, i)) {
      continue;
    }
    if (num_kept % kLanes == 0) {
      kept.clear_group(num_kept);
    }
    kept.set(num_kept++, sorted, i);
    keep[order[i]] = true;
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
  TORCH_CHECK_VALUE(size < (int64_t(1) << 32), "maskrcnn_bench::nms: expected fewer than 2^32 boxes a row");
  const auto boxes_ = boxes.to(at::kFloat).contiguous();
  const auto scores_ = scores.to(at::kFloat).contiguous();
  const auto valid_ = valid.contiguous();
  auto keep = at::zeros({rows, size}, valid.options());
  const int64_t limit = max_keep < 0 ? size : max_keep;
  const Rule rule{floor_to_float(threshold), float(pixel)};
  const auto* box = boxes_.const_data_ptr<float>();
  const auto* score = scores_.const_data_ptr<float>();
  const auto* is_valid = valid_.const_data_ptr<bool>();
  auto* out = keep.mutable_data_ptr<bool>();
  const auto total = std::count(is_valid, is_valid + rows * size, true);
  at::parallel_for(0, rows, total < kWorthThreads ? std::max<int64_t>(rows, 1) : 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * size;
      nms_row(box + 4 * at, score + at, is_valid + at, size, rule, limit, out + at);
    }
  });
  return keep;
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CPU, m) { m.impl("nms", TORCH_FN(nms)); }

}  // namespace maskrcnn_bench
