// RoI max pooling over all levels of a pyramid in one launch, and its gradient. A thread holds the maxima of up to 16 bytes of
// neighbouring channels of one bin; maps are channels-last, so a warp reads whole lines. Which pixel of the map had the maximum
// is kept for the gradient.
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include <limits>
#include <tuple>

#include "map_sums.cuh"
#include "roi_samples.cuh"

namespace maskrcnn_bench {
namespace {

// The pixels of one bin along one axis. The corners of a box are rounded to pixels, which both belong to it.
struct PoolAxis {
  int begin, end;

  template <typename acc_t>
  __device__ PoolAxis(acc_t low, acc_t high, int bins, int bin, int extent) {
    const int64_t first = rounded(low), length = rounded(high) - first + 1;
    const acc_t bin_size = acc_t(length > 1 ? length : 1) / acc_t(bins);
    begin = inside(first + int64_t(::floor(acc_t(bin) * bin_size)), extent);
    end = inside(first + int64_t(::ceil(acc_t(bin + 1) * bin_size)), extent);
  }

 private:
  // Half away from zero; far positions, which no map reaches, are limited.
  template <typename acc_t>
  __device__ static int64_t rounded(acc_t position) {
    const acc_t most = acc_t(1 << 30);
    return int64_t(::round(position > -most ? (position < most ? position : most) : -most));
  }

  __device__ static int inside(int64_t pixel, int extent) { return int(pixel < 0 ? 0 : pixel < extent ? pixel : extent); }
};

template <typename T, typename acc_t, int kPack>
__global__ void __launch_bounds__(kThreads) pool_max(Levels<const T> pyramid, Rois<acc_t> rois, T* out, int* places) {
  const int bins = rois.height * rois.width;
  const int64_t index = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (index >= rois.count * bins) {
    return;
  }
  const int r = int(index) / bins, bin = int(index) % bins;
  const int64_t level = rois.levels[r], image = rois.image_inds[r];
  const bool in_use = pyramid.has(level, image);
  const int frame_h = in_use ? pyramid.heights[level] : 0, frame_w = in_use ? pyramid.widths[level] : 0;
  const acc_t scale = in_use ? acc_t(pyramid.scales[level]) : acc_t(0);
  const acc_t* box = rois.boxes + 4 * int64_t(r);
  const PoolAxis rows(box[1] * scale, box[3] * scale, rois.height, bin / rois.width, frame_h);
  const PoolAxis columns(box[0] * scale, box[2] * scale, rois.width, bin % rois.width, frame_w);
  const bool empty = rows.begin >= rows.end || columns.begin >= columns.end;
  for (int64_t channel = int64_t(threadIdx.x) * kPack; channel < pyramid.channels; channel += int64_t(blockDim.x) * kPack) {
    acc_t largest[kPack];
    Pack<int, kPack> place;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      largest[k] = empty ? acc_t(0) : std::numeric_limits<acc_t>::lowest();
      place.values[k] = -1;
    }
    for (int y = rows.begin; y < rows.end; ++y) {
      for (int x = columns.begin; x < columns.end; ++x) {
        const int64_t pixel = (image * frame_h + y) * frame_w + x;
        const auto read = *reinterpret_cast<const Pack<T, kPack>*>(pyramid.maps[level] + pixel * pyramid.channels + channel);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
          const acc_t value = static_cast<acc_t>(read.values[k]);
          if (value > largest[k]) {
            largest[k] = value;
            place.values[k] = y * frame_w + x;
          }
        }
      }
    }
    Pack<T, kPack> rounded;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      rounded.values[k] = static_cast<T>(largest[k]);
    }
    *reinterpret_cast<Pack<T, kPack>*>(out + index * pyramid.channels + channel) = rounded;
    *reinterpret_cast<Pack<int, kPack>*>(places + index * pyramid.channels + channel) = place;
  }
}

template <typename acc_t, typename Add>
__global__ void spread_max(const acc_t* grad, const int* places, const int64_t* image_inds, const int64_t* levels, int64_t count,
                           int64_t bins, Levels<typename Add::Cell> pyramid, Add add) {
  add.prepare();
  for (int64_t i = first_index(); i < count; i += index_step()) {
    const int64_t channel = i % pyramid.channels, r = i / pyramid.channels / bins;
    const int64_t level = levels[r], image = image_inds[r], place = places[i];
    if (!pyramid.has(level, image)) {
      continue;
    }
    const int64_t pixels = int64_t(pyramid.heights[level]) * pyramid.widths[level];
    if (place >= 0 && place < pixels) {
      auto* target = pyramid.maps[level] + (image * pixels + place) * pyramid.channels + channel;
      add.template add<1>(target, Pack<acc_t, 1>{{grad[i]}}, acc_t(1));
    }
  }
}

template <typename T, typename acc_t, int kPack>
void launch(const Levels<const T>& pyramid, const Rois<acc_t>& rois, at::Tensor& out, at::Tensor& places) {
  const BinLaunch size(rois.count * rois.height * rois.width, pyramid.channels / kPack);
  pool_max<T, acc_t, kPack><<<size.blocks, size.threads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      pyramid, rois, out.mutable_data_ptr<T>(), places.mutable_data_ptr<int>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T, typename acc_t>
void pool_all(const std::vector<at::Tensor>& maps, const RoiTensors& tensors, c10::ArrayRef<double> scales, int64_t height, int64_t width,
              at::Tensor& out, at::Tensor& places) {
  const auto pyramid = make_levels<const T>("roi_pool", maps, scales);
  const auto rois = tensors.view<acc_t>(height, width, 0, 0, 0);
  if (rois.count == 0 || pyramid.channels == 0) {
    return;
  }
  constexpr int kPack = int(kWide / sizeof(T));
  if (pyramid.channels % kPack == 0 && all_aligned(maps)) {
    launch<T, acc_t, kPack>(pyramid, rois, out, places);
  } else {
    launch<T, acc_t, 1>(pyramid, rois, out, places);
  }
}

std::tuple<at::Tensor, at::Tensor> roi_pool(at::TensorList features, const at::Tensor& boxes, const at::Tensor& image_inds,
                                            const at::Tensor& levels, c10::ArrayRef<double> scales, int64_t height, int64_t width) {
  TORCH_CHECK_VALUE(!features.empty(), "maskrcnn_bench::roi_pool: features: expected at least one level, got none");
  const auto& first = features[0];
  const auto type = first.scalar_type();
  const c10::cuda::CUDAGuard guard(first.device());
  const auto maps = channels_last_maps("roi_pool", features);
  for (const auto& map : maps) {
    TORCH_CHECK_VALUE(map.size(2) * map.size(3) <= INT32_MAX, "maskrcnn_bench::roi_pool: features: expected fewer than 2^31 pixels, got ",
                      map.sizes());
  }
  const auto rois = make_rois("roi_pool", boxes, image_inds, levels, first, sum_type(type), height * width);
  auto out = at::empty({boxes.size(0), first.size(1), height, width}, first.options(), at::MemoryFormat::ChannelsLast);
  auto places = at::empty(out.sizes(), first.options().dtype(at::kInt), at::MemoryFormat::ChannelsLast);
  if (type == at::kFloat) {
    pool_all<float, float>(maps, rois, scales, height, width, out, places);
  } else if (type == at::kHalf) {
    pool_all<c10::Half, float>(maps, rois, scales, height, width, out, places);
  } else if (type == at::kDouble) {
    pool_all<double, double>(maps, rois, scales, height, width, out, places);
  } else {
    check_dtype("roi_pool", "features", first, at::kBFloat16);
    pool_all<c10::BFloat16, float>(maps, rois, scales, height, width, out, places);
  }
  return {out, places};
}

template <typename acc_t>
std::vector<at::Tensor> spread_all(const at::Tensor& grad, const at::Tensor& places, const at::Tensor& image_inds,
                                   const at::Tensor& levels, at::IntArrayRef shape) {
  return sum_into_maps<acc_t>(grad, shape, [&](const auto& cells, auto add) {
    using Add = decltype(add);
    const std::vector<double> scales(cells.size());
    const auto pyramid = make_levels<typename Add::Cell>("roi_pool_backward", cells, scales);
    spread_max<acc_t, Add><<<num_blocks(grad.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        grad.const_data_ptr<acc_t>(), places.const_data_ptr<int>(), image_inds.const_data_ptr<int64_t>(), levels.const_data_ptr<int64_t>(),
        grad.numel(), grad.size(2) * grad.size(3), pyramid, add);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

std::vector<at::Tensor> roi_pool_backward(const at::Tensor& grad, const at::Tensor& places, const at::Tensor& image_inds,
                                          const at::Tensor& levels, at::IntArrayRef feature_shape) {
  TORCH_CHECK_VALUE(feature_shape.size() >= 4 && feature_shape.size() % 2 == 0,
                    "maskrcnn_bench::roi_pool_backward: feature_shape: expected [N, C, H0, W0, H1, W1, ...], got ", feature_shape);
  TORCH_CHECK_VALUE(grad.dim() == 4, "maskrcnn_bench::roi_pool_backward: grad: expected [R, C, height, width], got ", grad.sizes());
  const int64_t count = grad.size(0);
  check_shape("roi_pool_backward", "grad", grad, {count, feature_shape[1], grad.size(2), grad.size(3)});
  check_shape("roi_pool_backward", "places", places, grad.sizes());
  check_dtype("roi_pool_backward", "places", places, at::kInt);
  check_shape("roi_pool_backward", "image_inds", image_inds, {count});
  check_shape("roi_pool_backward", "levels", levels, {count});
  check_device("roi_pool_backward", "places", places, grad);
  check_device("roi_pool_backward", "image_inds", image_inds, grad);
  check_device("roi_pool_backward", "levels", levels, grad);
  const c10::cuda::CUDAGuard guard(grad.device());
  const auto acc = sum_type(grad.scalar_type());
  const auto grad_ = grad.to(acc).contiguous(at::MemoryFormat::ChannelsLast);
  const auto places_ = places.contiguous(at::MemoryFormat::ChannelsLast);
  const auto inds = image_inds.to(at::kLong).contiguous(), levels_ = levels.to(at::kLong).contiguous();
  auto maps = acc == at::kDouble ? spread_all<double>(grad_, places_, inds, levels_, feature_shape)
                                 : spread_all<float>(grad_, places_, inds, levels_, feature_shape);
  for (auto& map : maps) {
    map = map.to(grad.scalar_type());
  }
  return maps;
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CUDA, m) {
  m.impl("roi_pool", TORCH_FN(roi_pool));
  m.impl("roi_pool_backward", TORCH_FN(roi_pool_backward));
}

}  // namespace maskrcnn_bench
