// The best anchors of a level to boxes: one thread gathers, decodes, clips and measures one box.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "../decode_rule.h"
#include "kernel.cuh"

namespace maskrcnn_bench {
namespace {

__global__ void decode(const float4* codes, const float4* anchors, const int64_t* inds, const float2* sizes, int64_t total, int64_t chosen,
                       int64_t count, DecodeRule rule, float4* boxes, bool* large) {
  for (int64_t i = first_index(); i < total; i += index_step()) {
    const int64_t image = i / chosen, anchor = inds[i];
    if (anchor < 0 || anchor >= count) {
      boxes[i] = make_float4(0, 0, 0, 0);
      large[i] = false;
      continue;
    }
    const float4 code = codes[image * count + anchor], ref = anchors[anchor];
    const float2 size = sizes[image];
    const float wide = expf(rule.limited(code.z / rule.ww)), tall = expf(rule.limited(code.w / rule.wh));
    float4 box;
    rule.decode_axis(ref.x, ref.z, code.x, rule.wx, wide, size.x, box.x, box.z);
    rule.decode_axis(ref.y, ref.w, code.y, rule.wy, tall, size.y, box.y, box.w);
    boxes[i] = box;
    large[i] = rule.large_enough(box.x, box.y, box.z, box.w);
  }
}

std::tuple<at::Tensor, at::Tensor> decode_boxes(const at::Tensor& regression, const at::Tensor& anchors, const at::Tensor& inds,
                                                const at::Tensor& sizes, c10::ArrayRef<double> weights, c10::ArrayRef<double> range,
                                                double pixel, double decode_pixel, bool clip, double min_size, bool strict) {
  check_decode(regression, anchors, inds, sizes);
  check_device("decode_boxes", "anchors", anchors, regression);
  check_device("decode_boxes", "inds", inds, regression);
  check_device("decode_boxes", "sizes", sizes, regression);
  const c10::cuda::CUDAGuard guard(regression.device());
  const DecodeRule rule(weights, range, pixel, decode_pixel, clip, min_size, strict);
  const auto codes = aligned(regression.to(at::kFloat).contiguous()), references = aligned(anchors.to(at::kFloat).contiguous());
  const auto inds_ = inds.contiguous(), sizes_ = aligned(sizes.to(at::kFloat).contiguous());
  const int64_t images = inds.size(0), chosen = inds.size(1);
  auto boxes = at::empty({images, chosen, 4}, codes.options());
  auto large = at::empty({images, chosen}, codes.options().dtype(at::kBool));
  if (images * chosen == 0) {
    return {boxes, large};
  }
  decode<<<num_blocks(images * chosen), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      reinterpret_cast<const float4*>(codes.const_data_ptr<float>()), reinterpret_cast<const float4*>(references.const_data_ptr<float>()),
      inds_.const_data_ptr<int64_t>(), reinterpret_cast<const float2*>(sizes_.const_data_ptr<float>()), images * chosen, chosen,
      anchors.size(0), rule, reinterpret_cast<float4*>(boxes.mutable_data_ptr<float>()), large.mutable_data_ptr<bool>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {boxes, large};
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CUDA, m) { m.impl("decode_boxes", TORCH_FN(decode_boxes)); }

}  // namespace maskrcnn_bench
