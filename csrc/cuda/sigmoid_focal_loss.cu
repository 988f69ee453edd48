// The focal loss of every output and its gradient: one thread an output, nothing kept in between but the logits.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "kernel.cuh"

namespace maskrcnn_bench {
namespace {

struct FocalLoss {
  float gamma, alpha;

  // With the sign of a positive turned, p_t is sigmoid(-wrong) for both kinds.
  __device__ static float wrong(float logit, bool positive) { return positive ? -logit : logit; }
  __device__ static float sigmoid(float x) { return 1 / (1 + expf(-x)); }
  __device__ static float softplus(float x) { return x > 20 ? x : log1pf(expf(x)); }
  __device__ float weight(bool positive) const { return positive ? alpha : 1 - alpha; }

  __device__ float loss(float logit, bool positive) const {
    const float x = wrong(logit, positive);
    return powf(sigmoid(x), gamma) * softplus(x) * weight(positive);
  }

  __device__ float slope(float logit, bool positive) const {
    const float x = wrong(logit, positive), p = sigmoid(x);
    const float out = powf(p, gamma) * (gamma * (1 - p) * softplus(x) + p) * weight(positive);
    return positive ? -out : out;
  }
};

__global__ void losses(const float* logits, const int64_t* labels, int64_t count, int64_t outputs, FocalLoss rule, float* out) {
  for (int64_t i = first_index(); i < count; i += index_step()) {
    const int64_t label = labels[i / outputs];
    out[i] = label < 0 ? 0 : rule.loss(logits[i], label == i % outputs + 1);
  }
}

__global__ void slopes(const float* grad, const float* logits, const int64_t* labels, int64_t count, int64_t outputs, FocalLoss rule,
                       float* out) {
  for (int64_t i = first_index(); i < count; i += index_step()) {
    const int64_t label = labels[i / outputs];
    out[i] = label < 0 ? 0 : grad[i] * rule.slope(logits[i], label == i % outputs + 1);
  }
}

void check(const char* op, const at::Tensor& logits, const at::Tensor& labels) {
  TORCH_CHECK_VALUE(logits.dim() >= 1, "maskrcnn_bench::", op, ": logits: expected shape [..., K], got ", logits.sizes());
  check_shape(op, "labels", labels, logits.sizes().slice(0, logits.dim() - 1));
  check_dtype(op, "labels", labels, at::kLong);
  check_device(op, "labels", labels, logits);
}

at::Tensor sigmoid_focal_loss(const at::Tensor& logits, const at::Tensor& labels, double gamma, double alpha) {
  check("sigmoid_focal_loss", logits, labels);
  const c10::cuda::CUDAGuard guard(logits.device());
  const auto logits_ = logits.to(at::kFloat).contiguous(), labels_ = labels.contiguous();
  auto out = at::empty_like(logits_);
  if (out.numel() > 0) {
    losses<<<num_blocks(out.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        logits_.const_data_ptr<float>(), labels_.const_data_ptr<int64_t>(), out.numel(), logits.size(-1),
        FocalLoss{float(gamma), float(alpha)}, out.mutable_data_ptr<float>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return out;
}

at::Tensor sigmoid_focal_loss_backward(const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& labels, double gamma,
                                       double alpha) {
  check("sigmoid_focal_loss_backward", logits, labels);
  check_shape("sigmoid_focal_loss_backward", "grad", grad, logits.sizes());
  check_device("sigmoid_focal_loss_backward", "grad", grad, logits);
  const c10::cuda::CUDAGuard guard(logits.device());
  const auto grad_ = grad.to(at::kFloat).contiguous(), logits_ = logits.to(at::kFloat).contiguous(), labels_ = labels.contiguous();
  auto out = at::empty_like(logits_);
  if (out.numel() > 0) {
    slopes<<<num_blocks(out.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        grad_.const_data_ptr<float>(), logits_.const_data_ptr<float>(), labels_.const_data_ptr<int64_t>(), out.numel(), logits.size(-1),
        FocalLoss{float(gamma), float(alpha)}, out.mutable_data_ptr<float>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CUDA, m) {
  m.impl("sigmoid_focal_loss", TORCH_FN(sigmoid_focal_loss));
  m.impl("sigmoid_focal_loss_backward", TORCH_FN(sigmoid_focal_loss_backward));
}

}  // namespace maskrcnn_bench
