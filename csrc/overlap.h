// Intersection over union of two boxes in the operations, and the order, of the plain implementation: to the bit.
#pragma once
#include "host_device.h"

namespace maskrcnn_bench {

HOST_DEVICE inline float box_area(float x1, float y1, float x2, float y2, float pixel) { return (x2 - x1 + pixel) * (y2 - y1 + pixel); }

HOST_DEVICE inline float box_overlap(float ax1, float ay1, float ax2, float ay2, float a_area, float bx1, float by1, float bx2, float by2,
                                     float b_area, float pixel) {
  const float left = ax1 > bx1 ? ax1 : bx1;
  const float top = ay1 > by1 ? ay1 : by1;
  const float right = ax2 < bx2 ? ax2 : bx2;
  const float bottom = ay2 < by2 ? ay2 : by2;
  const float raw_width = right - left + pixel;
  const float raw_height = bottom - top + pixel;
  const float width = raw_width > 0 ? raw_width : 0;
  const float height = raw_height > 0 ? raw_height : 0;
  const float intersection = width * height;
  const float joint = a_area + b_area - intersection;
  return joint > 0 ? intersection / joint : 0;
}

}  // namespace maskrcnn_bench
