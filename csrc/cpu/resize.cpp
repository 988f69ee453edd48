// Pictures of 8 bits a channel to another size, bilinearly, in the numbers of Pillow (weighted means of all that a pixel
// covers), of OpenCV (fixed point between four neighbours) and of frameworks that normalise first (a table, then floats).
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "kernel.h"

namespace maskrcnn_bench {
namespace {

constexpr int kRowsAThread = 32;

void check_picture(const char* op, const at::Tensor& image, int64_t height, int64_t width) {
  TORCH_CHECK_VALUE(image.dim() == 3 && image.numel() > 0, "maskrcnn_bench::", op, ": image: expected shape [H, W, C], got ", image.sizes());
  check_dtype(op, "image", image, at::kByte);
  TORCH_CHECK_VALUE(height > 0 && width > 0, "maskrcnn_bench::", op, ": expected a size above 0, got ", height, " x ", width);
}

// ---- Pillow: every pixel of the new line is a mean of a few old ones, with whole weights that sum up to 2 ^ kBits.

constexpr int kBits = 22;

struct Means {
  int taps;                      // how many old pixels a new one has, at most
  std::vector<int64_t> first;    // the first of them, for each new pixel
  std::vector<int32_t> weights;  // [taps, pixels]
};

Means find_means(int64_t source, int64_t length) {
  const double scale = static_cast<double>(source) / length, reach = std::max(scale, 1.0);
  const int room = static_cast<int>(std::ceil(reach)) * 2 + 1;
  Means means{1, std::vector<int64_t>(length), std::vector<int32_t>(room * length, 0)};
  std::vector<double> share(room);
  for (int64_t i = 0; i < length; ++i) {
    const double centre = (i + 0.5) * scale;
    const int64_t low = std::max<int64_t>(static_cast<int64_t>(centre - reach + 0.5), 0);
    const int count = static_cast<int>(std::min<int64_t>(static_cast<int64_t>(centre + reach + 0.5), source) - low);
    double sum = 0;
    for (int k = 0; k < count; ++k) {
      share[k] = std::max(1 - std::abs((k + low - centre + 0.5) * (1.0 / reach)), 0.0);
      sum += share[k];
    }
    for (int k = 0; k < count; ++k) {
      const double weight = sum != 0 ? share[k] / sum : share[k];
      means.weights[k * length + i] = static_cast<int32_t>(0.5 + weight * (1 << kBits));
    }
    means.first[i] = low;
    means.taps = std::max(means.taps, count);
  }
  return means;
}

// Sums begin with one half, so that the shift at the end rounds.
CPU_CLONES void mean_to_bytes(const int32_t* sums, uint8_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<uint8_t>(std::min(std::max(sums[i] >> kBits, 0), 255));
}

CPU_CLONES void widen(const uint8_t* from, int32_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

CPU_CLONES void add_gathered(const int32_t* from, const int32_t* places, const int32_t* weights, int32_t* sums, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] += from[places[i]] * weights[i];
}

CPU_CLONES void add_scaled(const uint8_t* from, int32_t weight, int32_t* sums, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] += from[i] * weight;
}

at::Tensor mean_of_columns(const at::Tensor& image, int64_t width) {
  const int64_t height = image.size(0), source = image.size(1), channels = image.size(2), count = width * channels;
  const Means means = find_means(source, width);
  std::vector<int32_t> places(count), weights(means.taps * count);
  for (int64_t i = 0; i < count; ++i) {
    places[i] = static_cast<int32_t>(means.first[i / channels] * channels + i % channels);
    for (int k = 0; k < means.taps; ++k) weights[k * count + i] = means.weights[k * width + i / channels];
  }
  auto out = at::empty({height, width, channels}, image.options());
  const uint8_t* from = image.const_data_ptr<uint8_t>();
  uint8_t* to = out.mutable_data_ptr<uint8_t>();
  at::parallel_for(0, height, kRowsAThread, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> wide((source + means.taps) * channels, 0), sums(count);
    for (int64_t y = begin; y < end; ++y) {
      widen(from + y * source * channels, wide.data(), source * channels);
      std::fill(sums.begin(), sums.end(), 1 << (kBits - 1));
      for (int k = 0; k < means.taps; ++k) {
        add_gathered(wide.data() + k * channels, places.data(), weights.data() + k * count, sums.data(), count);
      }
      mean_to_bytes(sums.data(), to + y * count, count);
    }
  });
  return out;
}

at::Tensor mean_of_rows(const at::Tensor& image, int64_t height) {
  const int64_t source = image.size(0), count = image.size(1) * image.size(2);
  const Means means = find_means(source, height);
  auto out = at::empty({height, image.size(1), image.size(2)}, image.options());
  const uint8_t* from = image.const_data_ptr<uint8_t>();
  uint8_t* to = out.mutable_data_ptr<uint8_t>();
  at::parallel_for(0, height, kRowsAThread, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> sums(count);
    for (int64_t y = begin; y < end; ++y) {
      std::fill(sums.begin(), sums.end(), 1 << (kBits - 1));
      for (int k = 0; k < means.taps && means.first[y] + k < source; ++k) {
        add_scaled(from + (means.first[y] + k) * count, means.weights[k * height + y], sums.data(), count);
      }
      mean_to_bytes(sums.data(), to + y * count, count);
    }
  });
  return out;
}

at::Tensor resize_means(const at::Tensor& image, int64_t height, int64_t width) {
  check_picture("resize_means", image, height, width);
  const auto stretched = width != image.size(1) ? mean_of_columns(image.contiguous(), width) : image.clone(at::MemoryFormat::Contiguous);
  return height != image.size(0) ? mean_of_rows(stretched, height) : stretched;
}

// ---- Two neighbours along each axis. A source row is stretched once, and used by all output rows that lie beside it.

struct Neighbours {
  const int32_t* first;
  const int32_t* second;
  int64_t length;
};

Neighbours neighbours(const char* op, const char* name, const at::Tensor& inds, int64_t length, int64_t source) {
  check_dtype(op, name, inds, at::kInt);
  check_shape(op, name, inds, {2, length});
  const int32_t* data = inds.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < 2 * length; ++i) {
    TORCH_CHECK_INDEX(data[i] >= 0 && data[i] < source, "maskrcnn_bench::", op, ": ", name, ": expected 0 to ", source - 1, ", got ", data[i]);
  }
  return {data, data + length, length};
}

// The last two stretched rows, by their number.
template <typename T>
class Stretched {
 public:
  explicit Stretched(int64_t count) : lines_{std::vector<T>(count), std::vector<T>(count)} {}

  template <typename Stretch>
  const T* row(int32_t number, int32_t keep, const Stretch& stretch) {
    for (int i : {0, 1}) {
      if (numbers_[i] == number) return lines_[i].data();
    }
    const int slot = numbers_[0] == keep ? 1 : 0;
    stretch(number, lines_[slot].data());
    numbers_[slot] = number;
    return lines_[slot].data();
  }

 private:
  std::array<std::vector<T>, 2> lines_;
  std::array<int32_t, 2> numbers_{-1, -1};
};

CPU_CLONES void stretch_fixed(const int32_t* from, const int32_t* first, const int32_t* second, const int32_t* low, const int32_t* high,
                              int32_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = (from[first[i]] * low[i] + from[second[i]] * high[i]) >> 4;
}

CPU_CLONES void blend_fixed(const int32_t* upper, const int32_t* lower, int32_t low, int32_t high, uint8_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t sum = ((upper[i] * low) >> 16) + ((lower[i] * high) >> 16);
    to[i] = static_cast<uint8_t>(std::min(std::max((sum + 2) >> 2, 0), 255));
  }
}

at::Tensor resize_fixed_point(const at::Tensor& image, const at::Tensor& columns, const at::Tensor& column_weights, const at::Tensor& rows,
                              const at::Tensor& row_weights) {
  constexpr auto op = "resize_fixed_point";
  const int64_t height = rows.size(-1), width = columns.size(-1), source = image.size(1), channels = image.size(2), count = width * channels;
  check_picture(op, image, height, width);
  const auto pixels = image.contiguous(), columns_ = columns.contiguous(), rows_ = rows.contiguous();
  const auto across = neighbours(op, "columns", columns_, width, source), down = neighbours(op, "rows", rows_, height, image.size(0));
  for (const auto* weights : {&column_weights, &row_weights}) check_dtype(op, "weights", *weights, at::kInt);
  check_shape(op, "column_weights", column_weights, {2, width});
  check_shape(op, "row_weights", row_weights, {2, height});
  const auto column_weights_ = column_weights.contiguous(), row_weights_ = row_weights.contiguous();
  const int32_t* share = column_weights_.const_data_ptr<int32_t>();
  const int32_t* part = row_weights_.const_data_ptr<int32_t>();
  std::vector<int32_t> first(count), second(count), low(count), high(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t x = i / channels, c = i % channels;
    first[i] = static_cast<int32_t>(across.first[x] * channels + c), second[i] = static_cast<int32_t>(across.second[x] * channels + c);
    low[i] = share[x], high[i] = share[width + x];
  }
  auto out = at::empty({height, width, channels}, image.options());
  const uint8_t* from = pixels.const_data_ptr<uint8_t>();
  uint8_t* to = out.mutable_data_ptr<uint8_t>();
  at::parallel_for(0, height, kRowsAThread, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> wide(source * channels);
    Stretched<int32_t> lines(count);
    const auto stretch = [&](int32_t number, int32_t* line) {
      widen(from + number * source * channels, wide.data(), source * channels);
      stretch_fixed(wide.data(), first.data(), second.data(), low.data(), high.data(), line, count);
    };
    for (int64_t y = begin; y < end; ++y) {
      const int32_t* upper = lines.row(down.first[y], down.second[y], stretch);
      const int32_t* lower = lines.row(down.second[y], down.first[y], stretch);
      blend_fixed(upper, lower, part[y], part[height + y], to + y * count, count);
    }
  });
  return out;
}

CPU_CLONES void stretch_floats(const float* from, const int32_t* first, const int32_t* second, const float* share, float* to,
                               int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[first[i]] + (from[second[i]] - from[first[i]]) * share[i];
}

CPU_CLONES void blend_floats(const float* upper, const float* lower, float share, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = upper[i] + (lower[i] - upper[i]) * share;
}

at::Tensor resize_looked_up(const at::Tensor& image, const at::Tensor& table, const at::Tensor& columns, const at::Tensor& column_shares,
                            const at::Tensor& rows, const at::Tensor& row_shares) {
  constexpr auto op = "resize_looked_up";
  const int64_t height = rows.size(-1), width = columns.size(-1), source = image.size(1), channels = image.size(2);
  check_picture(op, image, height, width);
  const auto pixels = image.contiguous(), table_ = table.contiguous(), columns_ = columns.contiguous(), rows_ = rows.contiguous();
  const auto across = neighbours(op, "columns", columns_, width, source), down = neighbours(op, "rows", rows_, height, image.size(0));
  for (const auto* floats : {&table, &column_shares, &row_shares}) check_dtype(op, "table and shares", *floats, at::kFloat);
  check_shape(op, "table", table, {channels, 256});
  check_shape(op, "column_shares", column_shares, {width});
  check_shape(op, "row_shares", row_shares, {height});
  const auto column_shares_ = column_shares.contiguous(), row_shares_ = row_shares.contiguous();
  const float* value = table_.const_data_ptr<float>();
  const float* share = column_shares_.const_data_ptr<float>();
  const float* part = row_shares_.const_data_ptr<float>();
  auto out = at::empty({channels, height, width}, image.options().dtype(at::kFloat));
  const uint8_t* from = pixels.const_data_ptr<uint8_t>();
  float* to = out.mutable_data_ptr<float>();
  at::parallel_for(0, channels * height, kRowsAThread, [&](int64_t begin, int64_t end) {
    std::vector<float> looked_up(source);
    Stretched<float> lines(width);
    for (int64_t line = begin; line < end; ++line) {
      const int64_t c = line / height, y = line % height;
      if (y == 0) lines = Stretched<float>(width);
      const auto stretch = [&](int32_t number, float* stretched) {
        const uint8_t* pixel = from + number * source * channels + c;
        for (int64_t x = 0; x < source; ++x) looked_up[x] = value[c * 256 + pixel[x * channels]];
        stretch_floats(looked_up.data(), across.first, across.second, share, stretched, width);
      };
      const float* upper = lines.row(down.first[y], down.second[y], stretch);
      const float* lower = lines.row(down.second[y], down.first[y], stretch);
      blend_floats(upper, lower, part[y], to + line * width, width);
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CPU, m) {
  m.impl("resize_means", TORCH_FN(resize_means));
  m.impl("resize_fixed_point", TORCH_FN(resize_fixed_point));
  m.impl("resize_looked_up", TORCH_FN(resize_looked_up));
}

}  // namespace maskrcnn_bench
