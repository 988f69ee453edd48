// What a box belongs to, given its overlaps; and the checks of the arguments.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

#include "cpu/kernel.h"
#include "host_device.h"

namespace maskrcnn_bench {

struct MatchRule {
  float pixel, high, low, least;
  bool low_quality, to_best;

  // best: largest overlap of the box, -1 without objects; match: the first object that it has it with;
  // owner: the last object whose largest overlap is with this box, -1 for none.
  HOST_DEVICE int64_t answer(float best, int64_t match, int64_t owner) const {
    if (low_quality && owner >= 0) {
      return to_best ? match : owner;
    }
    return best < low ? -1 : best < high ? -2 : match;
  }
};

inline void check_match(const at::Tensor& objects, const at::Tensor& valid, const at::Tensor& boxes, const std::optional<at::Tensor>& rivals) {
  TORCH_CHECK_VALUE(objects.dim() == 3 && objects.size(2) == 4, "maskrcnn_bench::match: objects: expected shape [N, M, 4], got ",
                    objects.sizes());
  const int64_t images = objects.size(0);
  check_shape("match", "valid", valid, {images, objects.size(1)});
  check_dtype("match", "valid", valid, at::kBool);
  const int64_t count = boxes.dim() >= 2 ? boxes.size(-2) : 0;
  if (boxes.dim() == 3) {
    check_shape("match", "boxes", boxes, {images, count, 4});
  } else {
    check_shape("match", "boxes", boxes, {count, 4});
  }
  if (rivals.has_value()) {
    check_shape("match", "rivals", *rivals, {images, count});
    check_dtype("match", "rivals", *rivals, at::kBool);
  }
}

}  // namespace maskrcnn_bench
