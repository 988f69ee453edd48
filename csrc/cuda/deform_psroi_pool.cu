// Deformable position-sensitive RoI pooling over all levels of a pyramid in one launch, and its gradient for the maps and for
// the offsets. A row of a block works on one bin of one share of the channels, which has its own offsets; neighbouring threads
// of the row on neighbouring channels.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "map_sums.cuh"
#include "roi_samples.cuh"

namespace maskrcnn_bench {
namespace {

// One sample along one axis: two neighbours, the share of the second, and whether the value follows the position.
template <typename acc_t>
struct Neighbours {
  int low, high;
  acc_t share;
  bool moves;
};

template <typename acc_t>
struct SampleLine {
  acc_t first, step, size;  // of the samples of a bin; of the box; map pixels
  int extent;

  // low, high: corners in image pixels, rounded, which both belong to the box; moved: in sizes of the box.
  __device__ SampleLine(acc_t low, acc_t high, acc_t scale, int side, int bin, int samples, acc_t moved, int frame_extent)
      : extent(frame_extent) {
    const acc_t corner = ::floor(low + acc_t(.5)) * scale - acc_t(.5);
    const acc_t length = (::floor(high + acc_t(.5)) + 1) * scale - acc_t(.5) - corner;
    size = length < acc_t(.1) ? acc_t(.1) : length;
    first = corner + size * acc_t(bin) / acc_t(side) + moved * size;
    step = size / acc_t(side * samples);
  }

  // False outside of the map.
  __device__ bool sample(int i, Neighbours<acc_t>& out) const {
    const acc_t position = first + acc_t(i) * step, last = acc_t(extent - 1);
    if (!(position >= acc_t(-.5) && position <= acc_t(extent) - acc_t(.5))) {
      return false;
    }
    const acc_t inside = position < 0 ? acc_t(0) : position < last ? position : last;
    out.low = int(inside);
    out.high = out.low + 1 < extent ? out.low + 1 : out.low;
    out.share = inside - acc_t(out.low);
    out.moves = position >= 0 && position < last;
    return true;
  }
};

template <typename acc_t>
struct Bins {
  const acc_t* boxes;
  const int64_t* image_inds;
  const int64_t* levels;
  const acc_t* offsets;  // [R, 2 shares, side, side], nullptr: none
  int64_t count;
  int side, group_size, samples, shares;
  int64_t own_channels;  // of the output, in a share
};

// One bin of one share; those behind the last, and of padding, are not in use.
template <typename acc_t>
struct Bin {
  bool in_use;
  int64_t r, level, image, at_offset;  // where its first offset is
  int bin, share;

  template <typename T>
  __device__ Bin(const Bins<acc_t>& bins, const Levels<T>& pyramid) {
    const int64_t cells = bins.side * bins.side, index = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
    r = index / bins.shares / cells;
    bin = int(index / bins.shares % cells);
    share = int(index % bins.shares);
    at_offset = (r * 2 * bins.shares + 2 * share) * cells + bin;
    level = r < bins.count ? bins.levels[r] : -1;
    image = r < bins.count ? bins.image_inds[r] : -1;
    in_use = pyramid.has(level, image) && pyramid.heights[level] > 0 && pyramid.widths[level] > 0;
  }

  template <typename T>
  __device__ SampleLine<acc_t> columns(const Bins<acc_t>& bins, const Levels<T>& pyramid) const {
    return line(bins, bin % bins.side, 0, acc_t(pyramid.scales[level]), pyramid.widths[level]);
  }

  template <typename T>
  __device__ SampleLine<acc_t> rows(const Bins<acc_t>& bins, const Levels<T>& pyramid) const {
    return line(bins, bin / bins.side, 1, acc_t(pyramid.scales[level]), pyramid.heights[level]);
  }

  // A channel of the share in the output, and in the maps: that of the bin's cell on the grid of groups.
  __device__ int64_t out_channel(const Bins<acc_t>& bins, int64_t channel) const { return share * bins.own_channels + channel; }

  __device__ int64_t map_channel(const Bins<acc_t>& bins, int64_t channel) const {
    const int group_y = bin / bins.side * bins.group_size / bins.side, group_x = bin % bins.side * bins.group_size / bins.side;
    return (out_channel(bins, channel) * bins.group_size + group_y) * bins.group_size + group_x;
  }

 private:
  __device__ SampleLine<acc_t> line(const Bins<acc_t>& bins, int place, int axis, acc_t scale, int extent) const {
    const acc_t* box = bins.boxes + 4 * r;
    const acc_t moved = bins.offsets == nullptr ? acc_t(0) : bins.offsets[at_offset + int64_t(axis) * bins.side * bins.side];
    return {box[axis], box[axis + 2], scale, bins.side, place, bins.samples, moved, extent};
  }
};

// Calls `visit(y, x)` for each sample of the bin in the map; how many there are.
template <typename acc_t, typename Visit>
__device__ int visit_samples(const SampleLine<acc_t>& rows, const SampleLine<acc_t>& columns, int samples, Visit visit) {
  int count = 0;
  for (int i = 0; i < samples; ++i) {
    Neighbours<acc_t> y, x;
    if (!rows.sample(i, y)) {
      continue;
    }
    for (int j = 0; j < samples; ++j) {
      if (columns.sample(j, x)) {
        ++count;
        visit(y, x);
      }
    }
  }
  return count;
}

// The four pixels of a sample, row by row: where they are in a map, in numbers, and their weights.
template <typename acc_t>
struct Corners {
  int64_t offsets[4];
  acc_t weights[4];

  __device__ Corners(const Neighbours<acc_t>& y, const Neighbours<acc_t>& x, int64_t first_row, int64_t width, int64_t channels) {
    const int64_t upper = (first_row + y.low) * width, lower = (first_row + y.high) * width;
    offsets[0] = (upper + x.low) * channels;
    offsets[1] = (upper + x.high) * channels;
    offsets[2] = (lower + x.low) * channels;
    offsets[3] = (lower + x.high) * channels;
    weights[0] = (1 - y.share) * (1 - x.share);
    weights[1] = (1 - y.share) * x.share;
    weights[2] = y.share * (1 - x.share);
    weights[3] = y.share * x.share;
  }
};

template <typename T, typename acc_t, int kPack>
__global__ void __launch_bounds__(kThreads) pool_moved(Levels<const T> pyramid, Bins<acc_t> bins, int64_t total, T* out) {
  if (int64_t(blockIdx.x) * blockDim.y + threadIdx.y >= total) {
    return;
  }
  const Bin<acc_t> bin(bins, pyramid);
  T* target = out + (bin.r * bins.side * bins.side + bin.bin) * bins.own_channels * bins.shares;
  for (int64_t channel = int64_t(threadIdx.x) * kPack; channel < bins.own_channels; channel += int64_t(blockDim.x) * kPack) {
    acc_t sums[kPack] = {};
    int count = 0;
    if (bin.in_use) {
      const int64_t width = pyramid.widths[bin.level], first_row = bin.image * pyramid.heights[bin.level];
      const T* map = pyramid.maps[bin.level] + bin.map_channel(bins, channel);
      count = visit_samples(bin.rows(bins, pyramid), bin.columns(bins, pyramid), bins.samples, [&](const auto& y, const auto& x) {
        const Corners<acc_t> corners(y, x, first_row, width, pyramid.channels);
        acc_t values[kPack] = {};
        for (int corner = 0; corner < 4; ++corner) {
          const auto pixel = *reinterpret_cast<const Pack<T, kPack>*>(map + corners.offsets[corner]);
#pragma unroll
          for (int k = 0; k < kPack; ++k) {
            values[k] += static_cast<acc_t>(pixel.values[k]) * corners.weights[corner];
          }
        }
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
          sums[k] += values[k];
        }
      });
    }
    Pack<T, kPack> rounded;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      rounded.values[k] = static_cast<T>(sums[k] / acc_t(count > 0 ? count : 1));
    }
    *reinterpret_cast<Pack<T, kPack>*>(target + bin.out_channel(bins, channel)) = rounded;
  }
}

// The sum of a row's values, for its first thread; all threads of the block call it.
template <typename acc_t>
__device__ acc_t sum_of_row(acc_t value, acc_t* shared) {
  const int own = threadIdx.y * blockDim.x + threadIdx.x;
  __syncthreads();
  shared[own] = value;
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half) {
      shared[own] += shared[own + half];
    }
  }
  return shared[own];
}

template <typename T, typename acc_t, typename Add, int kPack>
__global__ void __launch_bounds__(kThreads) spread_moved(const acc_t* grad, Levels<const T> pyramid, Bins<acc_t> bins,
                                                         Levels<typename Add::Cell> cells, Add add, acc_t* offset_grad) {
  __shared__ acc_t shared[kThreads];
  add.prepare();
  const Bin<acc_t> bin(bins, pyramid);  // no thread leaves early: they wait for each other
  acc_t slope_x = 0, slope_y = 0;
  if (bin.in_use) {
    const auto rows = bin.rows(bins, pyramid), columns = bin.columns(bins, pyramid);
    const int count = visit_samples(rows, columns, bins.samples, [](const auto&, const auto&) {});
    const int64_t width = pyramid.widths[bin.level], first_row = bin.image * pyramid.heights[bin.level];
    const acc_t* source = grad + (bin.r * bins.side * bins.side + bin.bin) * bins.own_channels * bins.shares;
    for (int64_t channel = int64_t(threadIdx.x) * kPack; channel < bins.own_channels; channel += int64_t(blockDim.x) * kPack) {
      auto values = *reinterpret_cast<const Pack<acc_t, kPack>*>(source + bin.out_channel(bins, channel));
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        values.values[k] /= acc_t(count > 0 ? count : 1);
      }
      const int64_t in_map = bin.map_channel(bins, channel);
      visit_samples(rows, columns, bins.samples, [&](const auto& y, const auto& x) {
        const Corners<acc_t> corners(y, x, first_row, width, pyramid.channels);
        acc_t products[4] = {};  // of the gradient with each pixel
        for (int corner = 0; corner < 4; ++corner) {
          if (corners.weights[corner] != 0) {
            add.template add<kPack>(cells.maps[bin.level] + corners.offsets[corner] + in_map, values, corners.weights[corner]);
          }
          if (offset_grad != nullptr) {
            const auto pixel = *reinterpret_cast<const Pack<T, kPack>*>(pyramid.maps[bin.level] + corners.offsets[corner] + in_map);
#pragma unroll
            for (int k = 0; k < kPack; ++k) {
              products[corner] += values.values[k] * static_cast<acc_t>(pixel.values[k]);
            }
          }
        }
        if (x.moves) {
          slope_x += (1 - y.share) * (products[1] - products[0]) + y.share * (products[3] - products[2]);
        }
        if (y.moves) {
          slope_y += (1 - x.share) * (products[2] - products[0]) + x.share * (products[3] - products[1]);
        }
      });
    }
    slope_x *= columns.size;
    slope_y *= rows.size;
  }
  if (offset_grad == nullptr) {  // the same for the whole block
    return;
  }
  slope_x = sum_of_row(slope_x, shared);
  slope_y = sum_of_row(slope_y, shared);
  if (threadIdx.x == 0 && bin.in_use) {
    offset_grad[bin.at_offset] = slope_x;
    offset_grad[bin.at_offset + int64_t(bins.side) * bins.side] = slope_y;
  }
}

struct Problem {
  std::vector<at::Tensor> maps;
  RoiTensors rois;
  at::Tensor offsets;  // undefined: none
  c10::ArrayRef<double> scales;
  int64_t side, group_size, samples, shares, out_channels;

  Problem(const char* op, at::TensorList features, const at::Tensor& boxes, const at::Tensor& image_inds, const at::Tensor& levels,
          c10::ArrayRef<double> scales_, const std::optional<at::Tensor>& offsets_, int64_t side_, int64_t group_size_, int64_t samples_)
      : maps(channels_last_maps(op, features)), scales(scales_), side(side_), group_size(group_size_), samples(samples_), shares(1) {
    const auto acc = sum_type(maps[0].scalar_type());
    const int64_t channels = maps[0].size(1);
    TORCH_CHECK_VALUE(side > 0 && group_size > 0 && samples > 0, "maskrcnn_bench::", op, ": expected side, group_size and samples > 0");
    if (offsets_.has_value()) {
      shares = offsets_->dim() == 4 ? offsets_->size(1) / 2 : 0;
      check_shape(op, "offsets", *offsets_, {boxes.size(0), 2 * shares, side, side});
      check_device(op, "offsets", *offsets_, maps[0]);
      offsets = offsets_->to(acc).contiguous();
    }
    TORCH_CHECK_VALUE(shares > 0 && channels % (shares * group_size * group_size) == 0, "maskrcnn_bench::", op, ": ", channels,
                      " channels do not divide among ", shares, " sets of offsets and ", group_size * group_size, " groups");
    out_channels = channels / (group_size * group_size);
    rois = make_rois(op, boxes, image_inds, levels, maps[0], acc, side * side * shares);
  }

  int64_t rows() const { return rois.boxes.size(0) * side * side * shares; }
  int64_t own_channels() const { return out_channels / shares; }
  bool packs(int pack) const { return group_size == 1 && own_channels() % pack == 0 && all_aligned(maps); }

  template <typename acc_t>
  Bins<acc_t> view() const {
    return {rois.boxes.const_data_ptr<acc_t>(),
            rois.image_inds.const_data_ptr<int64_t>(),
            rois.levels.const_data_ptr<int64_t>(),
            offsets.defined() ? offsets.const_data_ptr<acc_t>() : nullptr,
            rois.boxes.size(0),
            int(side),
            int(group_size),
            int(samples),
            int(shares),
            own_channels()};
  }
};

template <typename T, typename acc_t, int kPack>
void launch_pool(const Problem& problem, at::Tensor& out) {
  const BinLaunch size(problem.rows(), problem.own_channels() / kPack);
  pool_moved<T, acc_t, kPack><<<size.blocks, size.threads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      make_levels<const T>("deform_psroi_pool", problem.maps, problem.scales), problem.view<acc_t>(), problem.rows(),
      out.mutable_data_ptr<T>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T, typename acc_t>
void pool_all(const Problem& problem, at::Tensor& out) {
  constexpr int kPack = int(kWide / sizeof(T));
  if (out.numel() == 0) {
    return;
  }
  if (problem.packs(kPack)) {
    launch_pool<T, acc_t, kPack>(problem, out);
  } else {
    launch_pool<T, acc_t, 1>(problem, out);
  }
}

at::Tensor deform_psroi_pool(at::TensorList features, const at::Tensor& boxes, const at::Tensor& image_inds, const at::Tensor& levels,
                             c10::ArrayRef<double> scales, const std::optional<at::Tensor>& offsets, int64_t side, int64_t group_size,
                             int64_t samples) {
  TORCH_CHECK_VALUE(!features.empty(), "maskrcnn_bench::deform_psroi_pool: features: expected at least one level, got none");
  const c10::cuda::CUDAGuard guard(features[0].device());
  const Problem problem("deform_psroi_pool", features, boxes, image_inds, levels, scales, offsets, side, group_size, samples);
  const auto& first = problem.maps[0];
  const auto type = first.scalar_type();
  auto out = at::empty({boxes.size(0), problem.out_channels, side, side}, first.options(), at::MemoryFormat::ChannelsLast);
  if (type == at::kFloat) {
    pool_all<float, float>(problem, out);
  } else if (type == at::kHalf) {
    pool_all<c10::Half, float>(problem, out);
  } else if (type == at::kDouble) {
    pool_all<double, double>(problem, out);
  } else {
    check_dtype("deform_psroi_pool", "features", first, at::kBFloat16);
    pool_all<c10::BFloat16, float>(problem, out);
  }
  return out;
}

template <typename T, typename acc_t, int kPack, typename Add>
void launch_spread(const Problem& problem, const at::Tensor& grad, const std::vector<at::Tensor>& cells, Add add, acc_t* offset_grad) {
  const BinLaunch size(problem.rows(), problem.own_channels() / kPack);
  spread_moved<T, acc_t, Add, kPack><<<size.blocks, size.threads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      grad.const_data_ptr<acc_t>(), make_levels<const T>("deform_psroi_pool_backward", problem.maps, problem.scales),
      problem.view<acc_t>(), make_levels<typename Add::Cell>("deform_psroi_pool_backward", cells, problem.scales), add, offset_grad);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T, typename acc_t>
std::vector<at::Tensor> spread_all(const Problem& problem, const at::Tensor& grad, at::Tensor& offset_grad) {
  std::vector<int64_t> shape{problem.maps[0].size(0), problem.maps[0].size(1)};
  for (const auto& map : problem.maps) {
    shape.insert(shape.end(), {map.size(2), map.size(3)});
  }
  acc_t* slopes = problem.offsets.defined() ? offset_grad.mutable_data_ptr<acc_t>() : nullptr;
  constexpr int kPack = int(kWide / sizeof(acc_t));
  const bool wide = problem.packs(kPack) && is_aligned(grad);
  return sum_into_maps<acc_t>(grad, shape, [&](const auto& cells, auto add) {
    if (wide) {
      launch_spread<T, acc_t, kPack>(problem, grad, cells, add, slopes);
    } else {
      launch_spread<T, acc_t, 1>(problem, grad, cells, add, slopes);
    }
  });
}

std::tuple<std::vector<at::Tensor>, at::Tensor> deform_psroi_pool_backward(at::TensorList features, const at::Tensor& grad,
                                                                           const at::Tensor& boxes, const at::Tensor& image_inds,
                                                                           const at::Tensor& levels, c10::ArrayRef<double> scales,
                                                                           const std::optional<at::Tensor>& offsets, int64_t group_size,
                                                                           int64_t samples) {
  constexpr auto kOp = "deform_psroi_pool_backward";
  TORCH_CHECK_VALUE(!features.empty(), "maskrcnn_bench::", kOp, ": features: expected at least one level, got none");
  TORCH_CHECK_VALUE(grad.dim() == 4, "maskrcnn_bench::", kOp, ": grad: expected [R, C, side, side], got ", grad.sizes());
  const c10::cuda::CUDAGuard guard(grad.device());
  const int64_t side = grad.size(3);
  const Problem problem(kOp, features, boxes, image_inds, levels, scales, offsets, side, group_size, samples);
  check_shape(kOp, "grad", grad, {boxes.size(0), problem.out_channels, side, side});
  check_device(kOp, "grad", grad, problem.maps[0]);
  const auto type = problem.maps[0].scalar_type(), acc = sum_type(type);
  const auto grad_ = grad.to(acc).contiguous(at::MemoryFormat::ChannelsLast);
  auto offset_grad = at::zeros({boxes.size(0), offsets.has_value() ? 2 * problem.shares : 0, side, side}, grad_.options());
  std::vector<at::Tensor> maps;
  if (type == at::kFloat) {
    maps = spread_all<float, float>(problem, grad_, offset_grad);
  } else if (type == at::kHalf) {
    maps = spread_all<c10::Half, float>(problem, grad_, offset_grad);
  } else if (type == at::kDouble) {
    maps = spread_all<double, double>(problem, grad_, offset_grad);
  } else {
    check_dtype(kOp, "features", problem.maps[0], at::kBFloat16);
    maps = spread_all<c10::BFloat16, float>(problem, grad_, offset_grad);
  }
  for (auto& map : maps) {
    map = map.to(type);
  }
  return {maps, offset_grad};
}

}  // namespace

TORCH_LIBRARY_IMPL(maskrcnn_bench, CUDA, m) {
  m.impl("deform_psroi_pool", TORCH_FN(deform_psroi_pool));
  m.impl("deform_psroi_pool_backward", TORCH_FN(deform_psroi_pool_backward));
}

}  // namespace maskrcnn_bench
