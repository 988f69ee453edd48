// The outline of a polygon as the COCO API walks along it: on a grid five times finer, point by point; where the walk
// passes the centre line of a pixel column, the height is noted. Here only the points next to a centre line are
// computed, so a polygon far outside the frame costs no more than one inside; every point has the same rounding as in
// the walk.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace maskrcnn_bench {

struct Point {
  int64_t x, y;  // fine units
};

constexpr int64_t kFine = 5;    // fine units a pixel
constexpr int64_t kCentre = 2;  // a crossing lies between fine column 5 k + 2 and the next one

template <typename T>
HOST_DEVICE T limited(T value, T low, T high) {
  return value < low ? low : high < value ? high : value;
}

// Rounds as the COCO API does; far coordinates are limited to what its 32-bit integers hold.
HOST_DEVICE inline int64_t to_fine(double pixels) {
  const double value = double(kFine) * pixels + .5;
  return value == value ? int64_t(limited(value, -1e9, 1e9)) : 0;
}

HOST_DEVICE inline int64_t ceil_divide(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }

template <typename T>
HOST_DEVICE Point place(const T* vertex, const T* frame) {
  const T x = (vertex[0] - frame[0]) * frame[2];
  const T y = (vertex[1] - frame[1]) * frame[3];
  return {to_fine(double(x)), to_fine(double(y))};
}

// Notes the crossings of one edge: calls `toggle(position)` with positions on the grid, column by column; the end of
// the grid, size * size, is one of them.
template <typename Toggle>
class EdgeWalk {
 public:
  HOST_DEVICE EdgeWalk(int64_t size, Toggle toggle) : size_(size), toggle_(toggle) {}

  HOST_DEVICE void walk(Point from, Point to) {
    const int64_t dx = from.x < to.x ? to.x - from.x : from.x - to.x;
    const int64_t dy = from.y < to.y ? to.y - from.y : from.y - to.y;
    if (dx == 0) {
      return;
    }
    if (dx >= dy) {
      walk_flat(from.x < to.x ? from : to, from.x < to.x ? to : from);
    } else {
      walk_steep(from.y < to.y ? from : to, from.y < to.y ? to : from);
    }
  }

 private:
  // Columns whose crossing lies between two fine abscissae.
  HOST_DEVICE int64_t first_column(int64_t low) const {
    const int64_t column = ceil_divide(low - kCentre, kFine);
    return column > 0 ? column : 0;
  }

  HOST_DEVICE int64_t end_column(int64_t high) const {
    const int64_t column = high < kCentre + 1 ? 0 : (high - kCentre - 1) / kFine + 1;
    return column < size_ ? column : size_;
  }

  HOST_DEVICE void note(int64_t column, int64_t fine_y) {
    toggle_(column * size_ + limited<int64_t>(ceil_divide(fine_y - kCentre, kFine), 0, size_));
  }

  // The walk takes every x once.
  HOST_DEVICE void walk_flat(Point left, Point right) {
    const double slope = double(right.y - left.y) / double(right.x - left.x);
    const auto y_at = [&](int64_t x) { return int64_t(double(left.y) + slope * double(x - left.x) + .5); };
    for (int64_t column = first_column(left.x); column < end_column(right.x); ++column) {
      const int64_t x = kFine * column + kCentre;
      const int64_t before = y_at(x), behind = y_at(x + 1);
      note(column, before < behind ? before : behind);
    }
  }

  // The walk takes every y once; x changes by at most one at a step.
  HOST_DEVICE void walk_steep(Point top, Point bottom) {
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
      auto t = int64_t(limited(guess, 1., double(steps)));
      while (t > 1 && passed(t - 1)) {
        --t;
      }
      while (!passed(t)) {
        ++t;
      }
      note(column, top.y + t - 1);
    }
  }

  int64_t size_;
  Toggle toggle_;
};

}  // namespace maskrcnn_bench
