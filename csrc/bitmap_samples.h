// Bilinear samples of a bitmap's crop, about one a pixel. Sums run in the order of torchvision.ops.roi_align, so that a
// threshold on the result decides alike.
#pragma once
#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace maskrcnn_bench {

constexpr int64_t kMostSamples = 1 << 12;  // along an axis of a bin; bounds what a box without sense costs

// One sample along an axis: two neighbours in the crop (-1: outside, zero) and the share of the second.
struct Sample {
  int64_t low, high;
  float fraction;
};

// The samples of a box's bins along one axis, in a crop that begins at `origin`.
struct SampleAxis {
  float start, bin_size;
  int64_t per_bin, origin, extent;

  HOST_DEVICE SampleAxis(float begin, float end, int64_t bins, int64_t crop_begin, int64_t crop_extent)
      : start(begin - .5f), bin_size((end - .5f - start) / float(bins)), per_bin(0), origin(crop_begin), extent(crop_extent) {
    const float wanted = std::ceil(bin_size);
    if (wanted > 0) {
      per_bin = wanted < float(kMostSamples) ? int64_t(wanted) : kMostSamples;
    }
  }

  HOST_DEVICE Sample sample(int64_t bin, int64_t i) const {
    const float position = start + float(bin) * bin_size + (float(i) + .5f) * bin_size / float(per_bin);
    if (!(std::abs(position) < 1e9f)) {
      return {-1, -1, 0};
    }
    const float floor = std::floor(position);
    const int64_t low = int64_t(floor) - origin;
    return {inside(low), inside(low + 1), position - floor};
  }

 private:
  HOST_DEVICE int64_t inside(int64_t pixel) const { return pixel >= 0 && pixel < extent ? pixel : -1; }
};

struct Crop {
  const uint8_t* pixels;
  int64_t width;

  HOST_DEVICE float blend(const Sample& y, const Sample& x) const {
    const float hy = 1.f - y.fraction, hx = 1.f - x.fraction;
    return hy * hx * at(y.low, x.low) + hy * x.fraction * at(y.low, x.high) + y.fraction * hx * at(y.high, x.low) +
           y.fraction * x.fraction * at(y.high, x.high);
  }

 private:
  HOST_DEVICE float at(int64_t y, int64_t x) const { return y < 0 || x < 0 ? 0.f : float(pixels[y * width + x]); }
};

}  // namespace maskrcnn_bench
