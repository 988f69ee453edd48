// Where the pixels of an image read a mask that is pasted into a box, by the two rules in use, with the very operations of
// torch's kernels: what lies inside is to the bit what resizing or sampling the mask and comparing gives.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "host_device.h"

namespace maskrcnn_bench {

constexpr int kBorder = 2;  // zeros around a mask; a cell of zeros lies beyond each side

struct Arithmetic {
  bool fused;  // products are added without rounding them: torch's kernels where they are compiled for processors with FMA

  HOST_DEVICE float add(float a, float wa, float sum) const { return fused ? std::fma(a, wa, sum) : a * wa + sum; }

  // Which of the two products is rounded is the compiler's choice in torch's kernels.
  HOST_DEVICE float blend(float a, float wa, float b, float wb) const { return add(a, wa, b * wb); }
};

// A pixel's place along one axis: the mask value before it (counted with the border), and the share of the next one.
struct Place {
  int low;
  float share;
};

// torch.nn.functional.interpolate(mode="bilinear", align_corners=False) of the whole mask to a whole number of pixels.
struct ExpandTruncate {
  static constexpr bool kRepeatsEdge = true;
  static constexpr int64_t kSmall = 128;  // torch has a second kernel for sizes whose sum is at most this
  Arithmetic arithmetic;
  bool small = false;

  struct Axis {
    int64_t length, begin, end;  // of the whole mask; its part in the image; pixels of the image
    int64_t first;
    float scale;
    int cells;
    Arithmetic arithmetic;

    HOST_DEVICE Place place(int64_t pixel) const {
      const float position = std::max(arithmetic.add(scale, float(pixel - first) + .5f, -.5f), 0.f);
      const int low = std::min(int(position), cells - 1);
      return {low + kBorder, std::clamp(position - float(low), 0.f, 1.f)};
    }
  };

  HOST_DEVICE Axis axis(float low, float high, int64_t extent, int64_t resolution, int64_t padding) const {
    const int64_t cells = resolution + 2 * padding;
    const float half = (high - low) * .5f * float(double(cells) / double(resolution));
    const float centre = (high + low) * .5f;
    const int64_t first = whole(centre - half);
    const int64_t count = std::max<int64_t>(whole(centre + half) - first + 1, 1);
    const float scale = float(cells) / float(count);
    return {count, std::max<int64_t>(first, 0), std::min(first + count, extent), first, scale, int(cells), arithmetic};
  }

  HOST_DEVICE void set_size(int64_t columns, int64_t rows) { small = columns + rows <= kSmall; }

  // upper, lower: two neighbouring values each; x, y: the shares of the right and of the lower ones.
  HOST_DEVICE float value(const float* upper, const float* lower, float x, float y) const {
    if (small) {
      const float sum = arithmetic.blend(upper[0], (1 - y) * (1 - x), upper[1], (1 - y) * x);
      return arithmetic.add(lower[1], y * x, arithmetic.add(lower[0], y * (1 - x), sum));
    }
    const float top = arithmetic.blend(upper[0], 1 - x, upper[1], x);
    const float bottom = arithmetic.blend(lower[0], 1 - x, lower[1], x);
    return arithmetic.blend(top, 1 - y, bottom, y);
  }

  HOST_DEVICE static bool inside(float value, float threshold) { return value > threshold; }

 private:
  HOST_DEVICE static int64_t whole(float value) {
    return std::abs(value) < 2147483648.f ? int64_t(value) : int64_t(std::numeric_limits<int32_t>::min());
  }
};

// torch.nn.functional.grid_sample(mode="bilinear", padding_mode="zeros", align_corners=False) at the pixels' centres.
struct PixelCentres {
  static constexpr bool kRepeatsEdge = false;
  Arithmetic arithmetic;

  struct Axis {
    int64_t length, begin, end;
    float low, high;
    int cells;
    Arithmetic arithmetic;

    HOST_DEVICE Place place(int64_t pixel) const {
      const float centre = (float(pixel) + .5f - low) / (high - low) * 2.f - 1.f;
      const float position = arithmetic.add(centre + 1.f, float(cells) / 2.f, -.5f);
      const float before = std::floor(position);
      return {int(before >= -2.f ? std::min(before, float(cells)) : -2.f) + kBorder, position - before};
    }
  };

  HOST_DEVICE Axis axis(float low, float high, int64_t extent, int64_t resolution, int64_t) const {
    const double most = 1e15;  // keeps the conversions defined
    const auto first = int64_t(std::clamp(std::floor(double(low)), -most, most)) - 1;
    const auto last = int64_t(std::clamp(std::ceil(double(high)), -most, most)) + 1;
    return {last - first, std::max<int64_t>(first, 0), high > low ? std::min(last, extent) : 0, low, high, int(resolution), arithmetic};
  }

  HOST_DEVICE void set_size(int64_t, int64_t) {}

  HOST_DEVICE float value(const float* upper, const float* lower, float x, float y) const {
    const float sum = arithmetic.blend(upper[1], (1 - y) * x, upper[0], (1 - y) * (1 - x));
    return arithmetic.add(lower[1], y * x, arithmetic.add(lower[0], y * (1 - x), sum));
  }

  HOST_DEVICE static bool inside(float value, float threshold) { return value >= threshold; }
};

}  // namespace maskrcnn_bench
