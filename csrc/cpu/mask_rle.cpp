// Masks of boxes straight to COCO's run lengths, without an image. Whether a pixel lies inside is decided cell by cell:
// where the mask's values at a cell's four corners lie on one side of the threshold, so do all its pixels. Only pixels
// whose value is within rounding of the threshold are computed in full, with the very operations of torch's kernels, so
// that the outcome is to the bit that of resizing or sampling the mask and comparing.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "../mask_sampling.h"
#include "kernel.h"

namespace maskrcnn_bench {
namespace {

constexpr float kRounding = 1e-6f;  // more than the relative error of a blend of four values

// An axis with the place of each of its pixels in the image.
template <typename Axis>
struct Places {
  int64_t length, begin, end;
  std::vector<Place> places;  // [end - begin]

  explicit Places(const Axis& axis) : length(axis.length), begin(axis.begin), end(axis.end) {
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      places.push_back(axis.place(pixel));
    }
  }

  Place operator[](int64_t pixel) const { return places[pixel - begin]; }
};

// ------------------------------------------------------------------------------------------------ run lengths

class Runs {
 public:
  // From `position` on (column by column), pixels lie inside or outside.
  void turn(bool inside, int64_t position) {
    if (inside != inside_) {
      lengths_.push_back(position - last_);
      last_ = position;
      inside_ = inside;
    }
  }

  // COCO's text form: differences to the run before last, five bits a character, least significant first.
  std::string text(int64_t pixels) {
    if (last_ < pixels || lengths_.empty()) {
      lengths_.push_back(pixels - last_);
    }
    std::string out;
    for (size_t i = 0; i < lengths_.size(); ++i) {
      append(i > 2 ? lengths_[i] - lengths_[i - 2] : lengths_[i], out);
    }
    return out;
  }

 private:
  static void append(int64_t rest, std::string& out) {
    for (bool more = true; more;) {
      const int64_t bits = rest & 31;
      rest >>= 5;
      more = rest != (bits & 16 ? -1 : 0);  // the highest bit is the sign
      out.push_back(char((bits | (more ? 32 : 0)) + 48));
    }
  }

  std::vector<int64_t> lengths_;
  int64_t last_ = 0;
  bool inside_ = false;
};

enum class Side : uint8_t { kOutside, kInside, kOpen };

// Neighbouring pixels of a column that lie in one cell (or in several, when all are inside or all outside).
struct Piece {
  int64_t begin, end;
  int low;
  Side side;
};

template <typename Rule>
class Tracer {
  using Axis = Places<typename Rule::Axis>;

 public:
  Tracer(Rule rule, int64_t resolution, int64_t padding, float threshold, int64_t height, int64_t width)
      : rule_(rule),
        resolution_(resolution),
        padding_(padding),
        stride_(resolution + 2 * (padding + kBorder)),
        threshold_(threshold),
        height_(height),
        width_(width),
        mask_(stride_ * stride_) {}

  std::string trace(const float* mask, const float* box) {
    place_mask(mask);
    const Axis columns(rule_.axis(box[0], box[2], width_, resolution_, padding_));
    const Axis rows(rule_.axis(box[1], box[3], height_, resolution_, padding_));
    rule_.set_size(columns.length, rows.length);
    Runs runs;
    int cell = -1;
    for (int64_t x = columns.begin; rows.begin < rows.end && x < columns.end; ++x) {
      if (columns[x].low != cell) {
        cell = columns[x].low;
        cut_column(rows, cell);
      }
      trace_column(rows, columns[x], x * height_, runs);
    }
    runs.turn(false, columns.end * height_);
    return runs.text(width_ * height_);
  }

 private:
  void place_mask(const float* mask) {
    for (int64_t row = 0; row < resolution_; ++row) {
      std::copy_n(mask + row * resolution_, resolution_, mask_.data() + (row + padding_ + kBorder) * stride_ + padding_ + kBorder);
    }
    if (Rule::kRepeatsEdge) {
      const int64_t last = stride_ - kBorder - 1;
      for (int64_t row = 0; row < stride_; ++row) {
        mask_[row * stride_ + last + 1] = mask_[row * stride_ + last];
      }
      std::copy_n(mask_.data() + last * stride_, stride_, mask_.data() + (last + 1) * stride_);
    }
  }

  // Grows with each value, so that a NaN or an infinity sends a pixel to the full computation.
  float margin(const float* upper, const float* lower) const {
    return kRounding * (std::abs(upper[0]) + std::abs(upper[1]) + std::abs(lower[0]) + std::abs(lower[1]));
  }

  const float* corner(int row, int column) const { return mask_.data() + row * stride_ + column; }

  void cut_column(const Axis& rows, int column) {
    pieces_.clear();
    for (int64_t y = rows.begin; y < rows.end;) {
      const int64_t begin = y;
      const int low = rows[y].low;
      while (++y < rows.end && rows[y].low == low) {
      }
      const Side side = side_of_cell(low, column);
      if (side != Side::kOpen && !pieces_.empty() && pieces_.back().side == side) {
        pieces_.back().end = y;
      } else {
        pieces_.push_back({begin, y, low, side});
      }
    }
  }

  Side side_of_cell(int row, int column) const {
    const float* a = corner(row, column);
    const float* b = a + stride_;
    const float doubt = margin(a, b);
    if (std::min({a[0], a[1], b[0], b[1]}) - doubt > threshold_) {
      return Side::kInside;
    }
    return std::max({a[0], a[1], b[0], b[1]}) + doubt < threshold_ ? Side::kOutside : Side::kOpen;
  }

  void trace_column(const Axis& rows, Place x, int64_t origin, Runs& runs) const {
    for (const Piece& piece : pieces_) {
      if (piece.side != Side::kOpen) {
        runs.turn(piece.side == Side::kInside, origin + piece.begin);
      } else {
        trace_cell(rows, piece, x, origin, runs);
      }
    }
    if (rows.begin > 0 || rows.end < height_) {
      runs.turn(false, origin + rows.end);
    }
  }

  void trace_cell(const Axis& rows, const Piece& piece, Place x, int64_t origin, Runs& runs) const {
    const float* upper = corner(piece.low, x.low);
    const float* lower = upper + stride_;
    const float top = upper[0] + x.share * (upper[1] - upper[0]);
    const float slope = lower[0] + x.share * (lower[1] - lower[0]) - top;
    const float doubt = 2 * margin(upper, lower);
    for (int64_t y = piece.begin; y < piece.end; ++y) {
      const float share = rows[y].share;
      const float over = top + share * slope - threshold_;
      const bool clear = std::abs(over) > doubt;
      runs.turn(clear ? over > 0 : Rule::inside(rule_.value(upper, lower, x.share, share), threshold_), origin + y);
    }
  }

  Rule rule_;
  int64_t resolution_, padding_, stride_;
  float threshold_;
  int64_t height_, width_;
  std::vector<float> mask_;  // with the rule's padding and the border of zeros [stride, stride]
  std::vector<Piece> pieces_;
};

template <typename Rule>
std::vector<std::string> trace_all(Rule rule, const at::Tensor& probs, const at::Tensor& boxes, int64_t height, int64_t width,
                                   float threshold, int64_t padding) {
  const int64_t resolution = probs.size(1);
  const auto* mask = probs.const_data_ptr<float>();
  const auto* box = boxes.const_data_ptr<float>();
  std::vector<std::string> out(probs.size(0));
  at::parallel_for(0, probs.size(0), 4, [&](int64_t begin, int64_t end) {
    Tracer<Rule> tracer(rule, resolution, padding, threshold, height, width);
    for (int64_t i = begin; i < end; ++i) {
      out[i] = tracer.trace(mask + i * resolution * resolution, box + 4 * i);
    }
  });
  return out;
}

std::vector<std::string> mask_rle(const at::Tensor& probs, const at::Tensor& boxes, int64_t height, int64_t width, double threshold,
                                  c10::string_view rule, int64_t padding, bool fused) {
  TORCH_CHECK_VALUE(probs.dim() == 3, "maskrcnn_bench::mask_rle: probs: expected [n, S, S], got ", probs.sizes());
  check_shape("mask_rle", "probs", probs, {probs.size(0), probs.size(1), probs.size(1)});
  check_shape("mask_rle", "boxes", boxes, {probs.size(0), 4});
  check_dtype("mask_rle", "probs", probs, at::kFloat);
  check_dtype("mask_rle", "boxes", boxes, at::kFloat);
  TORCH_CHECK_VALUE(padding >= 0 && height >= 0 && width >= 0, "maskrcnn_bench::mask_rle: expected padding, height and width >= 0");
  const auto probs_ = probs.contiguous();
  const auto boxes_ = boxes.contiguous();
  if (rule == "expand_truncate") {
    return trace_all(ExpandTruncate{{fused}}, probs_, boxes_, height, width, float(threshold), padding);
  }
  TORCH_CHECK_VALUE(rule == "pixel_centres", "maskrcnn_bench::mask_rle: rule: expected expand_truncate or pixel_centres, got ", rule);
  return trace_all(PixelCentres{{fused}}, probs_, boxes_, height, width, float(threshold), 0);
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CPU, m) { m.impl("mask_rle", TORCH_FN(mask_rle)); }

}  // namespace maskrcnn_bench
