// The best anchors of a level to boxes: gathered, decoded, clipped and measured in one go.
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <torch/library.h>

#include <tuple>

#include "../decode_rule.h"

namespace maskrcnn_bench {
namespace {

// Limited logarithms of the ratios of width and height of every chosen anchor. torch takes their exponentials, because those
// of the C library may differ from torch's in the last bit. [N, R, 2]
at::Tensor log_ratios(const float* regression, const int64_t* inds, at::IntArrayRef shape, int64_t count, const DecodeRule& rule,
                      const at::TensorOptions& options) {
  auto out = at::empty({shape[0], shape[1], 2}, options);
  float* to = out.mutable_data_ptr<float>();
  for (int64_t i = 0; i < shape[0] * shape[1]; ++i) {
    TORCH_CHECK_INDEX(inds[i] >= 0 && inds[i] < count, "maskrcnn_bench::decode_boxes: inds[", i, "]: expected 0 to ", count - 1, ", got ",
                      inds[i]);
    const float* code = regression + 4 * (i / shape[1] * count + inds[i]);
    to[2 * i] = rule.limited(code[2] / rule.ww);
    to[2 * i + 1] = rule.limited(code[3] / rule.wh);
  }
  return out;
}

std::tuple<at::Tensor, at::Tensor> decode_boxes(const at::Tensor& regression, const at::Tensor& anchors, const at::Tensor& inds,
                                                const at::Tensor& sizes, c10::ArrayRef<double> weights, c10::ArrayRef<double> range,
                                                double pixel, double decode_pixel, bool clip, double min_size, bool strict) {
  check_decode(regression, anchors, inds, sizes);
  const DecodeRule rule(weights, range, pixel, decode_pixel, clip, min_size, strict);
  const auto codes = regression.to(at::kFloat).contiguous(), references = anchors.to(at::kFloat).contiguous();
  const auto inds_ = inds.contiguous(), sizes_ = sizes.to(at::kFloat).contiguous();
  const int64_t images = inds.size(0), chosen = inds.size(1), count = anchors.size(0);
  auto boxes = at::empty({images, chosen, 4}, codes.options());
  auto large = at::empty({images, chosen}, codes.options().dtype(at::kBool));
  const float* code = codes.const_data_ptr<float>();
  const int64_t* ind = inds_.const_data_ptr<int64_t>();
  const auto ratios = at::exp(log_ratios(code, ind, {images, chosen}, count, rule, codes.options()));
  const float* ratio = ratios.const_data_ptr<float>();
  const float* reference = references.const_data_ptr<float>();
  const float* size = sizes_.const_data_ptr<float>();
  float* box = boxes.mutable_data_ptr<float>();
  bool* is_large = large.mutable_data_ptr<bool>();
  for (int64_t i = 0; i < images * chosen; ++i, box += 4) {
    const int64_t image = i / chosen;
    const float* own = code + 4 * (image * count + ind[i]);
    const float* ref = reference + 4 * ind[i];
    rule.decode_axis(ref[0], ref[2], own[0], rule.wx, ratio[2 * i], size[2 * image], box[0], box[2]);
    rule.decode_axis(ref[1], ref[3], own[1], rule.wy, ratio[2 * i + 1], size[2 * image + 1], box[1], box[3]);
    is_large[i] = rule.large_enough(box[0], box[1], box[2], box[3]);
  }
  return {boxes, large};
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CPU, m) { m.impl("decode_boxes", TORCH_FN(decode_boxes)); }

}  // namespace maskrcnn_bench
