// Which object each box belongs to, without the matrix of overlaps: a block of boxes stays in the cache while all objects
// pass. The overlaps are computed a second time where the best box of each object matters, for they can't be kept.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "../match_rule.h"
#include "../overlap.h"
#include "kernel.h"

namespace maskrcnn_bench {
namespace {

constexpr int64_t kBlock = 256;  // boxes that meet all objects together

struct Object {
  float x1, y1, x2, y2, area;
  int32_t slot;
};

// Boxes as columns; those behind the last one meet no object.
struct Block {
  float x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock], overlap[kBlock], best[kBlock];
  int32_t match[kBlock], owner[kBlock];
  bool rival[kBlock];

  void load(const float* boxes, const bool* rivals, int64_t count, float pixel) {
    for (int64_t i = 0; i < kBlock; ++i) {
      const float* box = boxes + 4 * (i < count ? i : count - 1);
      x1[i] = box[0];
      y1[i] = box[1];
      x2[i] = box[2];
      y2[i] = box[3];
      area[i] = box_area(box[0], box[1], box[2], box[3], pixel);
      best[i] = -1;
      match[i] = 0;
      owner[i] = -1;
      rival[i] = i < count && (rivals == nullptr || rivals[i]);
    }
  }
};

CPU_CLONES void overlap_all(Block& block, const Object& object, float pixel) {
  for (int64_t i = 0; i < kBlock; ++i) {
    block.overlap[i] = box_overlap(block.x1[i], block.y1[i], block.x2[i], block.y2[i], block.area[i], object.x1, object.y1, object.x2,
                                   object.y2, object.area, pixel);
  }
}

CPU_CLONES void take_better(Block& block, int32_t slot) {
  for (int64_t i = 0; i < kBlock; ++i) {
    const bool better = block.overlap[i] > block.best[i];
    block.match[i] = better ? slot : block.match[i];
    block.best[i] = better ? block.overlap[i] : block.best[i];
  }
}

CPU_CLONES float best_of_rivals(const Block& block) {
  float out = -1;
  for (int64_t i = 0; i < kBlock; ++i) {
    const float overlap = block.rival[i] ? block.overlap[i] : -1;
    out = overlap > out ? overlap : out;
  }
  return out;
}

CPU_CLONES void take_owner(Block& block, int32_t slot, float best, float least) {
  for (int64_t i = 0; i < kBlock; ++i) {
    const float overlap = block.rival[i] ? block.overlap[i] : -1;
    block.owner[i] = (overlap == best) & (overlap >= least) ? slot : block.owner[i];
  }
}

struct Problem {
  const float* boxes;
  const bool* rivals;
  int64_t images, count, slots;
  bool shared;  // the same boxes for all images
  MatchRule rule;
  std::vector<std::vector<Object>> objects;  // of each image, those in use

  int64_t blocks() const { return (count + kBlock - 1) / kBlock; }

  // Calls visit(image, first box, boxes, block) for some of the blocks of all images.
  template <typename Visit>
  void each(int64_t begin, int64_t end, Visit visit) const {
    Block block;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / blocks(), first = i % blocks() * kBlock;
      const int64_t size = std::min(kBlock, count - first);
      const bool* own_rivals = rivals == nullptr ? nullptr : rivals + image * count + first;
      block.load(boxes + 4 * ((shared ? 0 : image * count) + first), own_rivals, size, rule.pixel);
      visit(image, first, size, block);
    }
  }
};

// The largest overlap that each object has with a rival. [N * M]
std::vector<float> best_of_objects(const Problem& problem) {
  std::vector<float> out(problem.images * problem.slots, -1);
  std::mutex mutex;
  at::parallel_for(0, problem.images * problem.blocks(), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> own(out.size(), -1);
    problem.each(begin, end, [&](int64_t image, int64_t, int64_t, Block& block) {
      for (const Object& object : problem.objects[image]) {
        overlap_all(block, object, problem.rule.pixel);
        float& best = own[image * problem.slots + object.slot];
        best = std::max(best, best_of_rivals(block));
      }
    });
    const std::lock_guard<std::mutex> guard(mutex);
    std::transform(out.begin(), out.end(), own.begin(), out.begin(), [](float a, float b) { return std::max(a, b); });
  });
  return out;
}

void answer_all(const Problem& problem, int64_t* out) {
  const auto best = problem.rule.low_quality ? best_of_objects(problem) : std::vector<float>();
  at::parallel_for(0, problem.images * problem.blocks(), 1, [&](int64_t begin, int64_t end) {
    problem.each(begin, end, [&](int64_t image, int64_t first, int64_t size, Block& block) {
      for (const Object& object : problem.objects[image]) {
        overlap_all(block, object, problem.rule.pixel);
        take_better(block, object.slot);
        if (problem.rule.low_quality) {
          take_owner(block, object.slot, best[image * problem.slots + object.slot], problem.rule.least);
        }
      }
      for (int64_t i = 0; i < size; ++i) {
        out[image * problem.count + first + i] = problem.rule.answer(block.best[i], block.match[i], block.owner[i]);
      }
    });
  });
}

std::vector<std::vector<Object>> used_objects(const at::Tensor& objects, const at::Tensor& valid, float pixel) {
  std::vector<std::vector<Object>> out(objects.size(0));
  const float* box = objects.const_data_ptr<float>();
  const bool* used = valid.const_data_ptr<bool>();
  for (auto& image : out) {
    for (int64_t slot = 0; slot < objects.size(1); ++slot, box += 4, ++used) {
      if (*used) {
        image.push_back({box[0], box[1], box[2], box[3], box_area(box[0], box[1], box[2], box[3], pixel), int32_t(slot)});
      }
    }
  }
  return out;
}

at::Tensor match(const at::Tensor& objects, const at::Tensor& valid, const at::Tensor& boxes, const std::optional<at::Tensor>& rivals,
                 double pixel, double high, double low, bool low_quality, double least_overlap, bool to_best) {
  check_match(objects, valid, boxes, rivals);
  const auto boxes_ = boxes.to(at::kFloat).contiguous();
  const auto rivals_ = rivals.has_value() ? rivals->contiguous() : at::Tensor();
  const auto objects_ = objects.to(at::kFloat).contiguous();
  const MatchRule rule{float(pixel), float(high), float(low), float(least_overlap), low_quality, to_best};
  auto out = at::empty({objects.size(0), boxes.size(-2)}, boxes_.options().dtype(at::kLong));
  if (out.numel() > 0) {
    const Problem problem{boxes_.const_data_ptr<float>(),
                          rivals.has_value() ? rivals_.const_data_ptr<bool>() : nullptr,
                          objects.size(0),
                          boxes.size(-2),
                          objects.size(1),
                          boxes.dim() == 2,
                          rule,
                          used_objects(objects_, valid.contiguous(), rule.pixel)};
    answer_all(problem, out.mutable_data_ptr<int64_t>());
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CPU, m) { m.impl("match", TORCH_FN(match)); }

}  // namespace maskrcnn_bench
